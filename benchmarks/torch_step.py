"""PyTorch eager rival of the student + teacher training step: a measuring stick, never a dependency of the library.

One step does what ``kaprune_jax``'s SparseBERT step does (Xu, Yen, Zhao, Xiao, 2021, arXiv:2104.08682):

* student forward in training mode (dropout 0.1), teacher forward in evaluation mode without gradients;
* loss = MSE over every hidden state (embeddings included, padding tokens excluded)
  + MSE over every layer's pre-softmax attention scores (query and key both real tokens)
  + soft cross-entropy of the logits;
* AdamW with weight decay 0.01 (not on biases and LayerNorm), then ``weights *= mask`` for the six matrices of
  each layer.

The model is a plain BERT written here rather than Hugging Face's ``BertModel``: both call the same ATen kernels, but
this one skips the wrapper code, scales the queries instead of the (larger) scores and never materialises what the
loss does not need, so it should be the faster rival; the two were not timed against each other.
``scaled_dot_product_attention`` is no option because the loss needs the scores. The optimizer is
``AdamW(fused=True)`` and masks are applied with one foreach call, the fastest that eager PyTorch offers on a CPU.
Everything is float32.

Run alone with ``python benchmarks/torch_step.py --shape minilm``; ``benchmarks/train_step.py`` drives it next to JAX.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shapes import LEARNING_RATE, SHAPES, SPARSITY, Shape, make_batch

DROPOUT = 0.1
EPSILON = 1e-12


class Layer(nn.Module):
    """One post-LayerNorm transformer layer that also returns its scaled attention scores."""

    def __init__(self, shape: Shape):
        super().__init__()
        d = shape.hidden
        self.heads = shape.heads
        self.query, self.key, self.value, self.output = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, shape.ffn), nn.Linear(shape.ffn, d)
        self.norm_attention, self.norm_ffn = nn.LayerNorm(d, eps=EPSILON), nn.LayerNorm(d, eps=EPSILON)

    def prunable(self) -> list[Tensor]:
        """The six matrices that are pruned."""
        return [m.weight for m in (self.query, self.key, self.value, self.output, self.up, self.down)]

    def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """``x``: [batch, seq, hidden]; ``bias``: [batch, 1, 1, seq], added to the scores before the softmax."""
        batch, length, hidden = x.shape
        width = hidden // self.heads

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, width).transpose(1, 2)

        scale = 1.0 / math.sqrt(width)
        scores = split(self.query(x) * scale) @ split(self.key(x)).transpose(-1, -2)
        probabilities = F.dropout(F.softmax(scores + bias, dim=-1), DROPOUT, self.training)
        context = (probabilities @ split(self.value(x))).transpose(1, 2).reshape(batch, length, hidden)
        x = self.norm_attention(x + F.dropout(self.output(context), DROPOUT, self.training))
        y = self.down(F.gelu(self.up(x)))
        return self.norm_ffn(x + F.dropout(y, DROPOUT, self.training)), scores


class Encoder(nn.Module):
    """BERT with a pooler and a classifier; returns logits, hidden states and attention scores."""

    def __init__(self, shape: Shape):
        super().__init__()
        d = shape.hidden
        self.word = nn.Embedding(shape.vocab, d)
        self.position = nn.Embedding(shape.positions, d)
        self.segment = nn.Embedding(shape.types, d)
        self.norm = nn.LayerNorm(d, eps=EPSILON)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.pooler, self.classifier = nn.Linear(d, d), nn.Linear(d, shape.classes)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """``ids``, ``mask`` (1 = real token) and ``types``: [batch, seq]."""
        x = self.word(ids) + self.segment(types) + self.position.weight[: ids.shape[1]]
        x = F.dropout(self.norm(x), DROPOUT, self.training)
        bias = (1.0 - mask.to(x.dtype))[:, None, None, :] * -1e9
        hidden, scores = [x], []
        for layer in self.layers:
            x, a = layer(x, bias)
            hidden.append(x)
            scores.append(a)
        pooled = F.dropout(torch.tanh(self.pooler(x[:, 0])), DROPOUT, self.training)
        return self.classifier(pooled), hidden, scores


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Float mask that keeps the ``floor(n (1 - sparsity))`` largest magnitudes."""
    flat = weight.detach().abs().flatten()
    mask = torch.zeros_like(flat)
    mask[torch.topk(flat, int(flat.numel() * (1.0 - sparsity))).indices] = 1.0
    return mask.view_as(weight)


def distillation_loss(student: tuple, teacher: tuple, mask: Tensor) -> Tensor:
    """Hidden-state MSE + attention-score MSE + soft cross-entropy, padding excluded from every mean."""
    (logits_s, hidden_s, scores_s), (logits_t, hidden_t, scores_t) = student, teacher
    token = mask.to(logits_s.dtype)
    pair = token[:, None, :, None] * token[:, None, None, :]
    token_weight = token[:, :, None] / (token.sum() * hidden_s[0].shape[-1])
    pair_weight = pair / (pair.sum() * scores_s[0].shape[1])
    loss = -(F.softmax(logits_t, -1) * F.log_softmax(logits_s, -1)).sum(-1).mean()
    for s, t in zip(hidden_s, hidden_t, strict=True):
        loss = loss + ((s - t).square() * token_weight).sum()
    for s, t in zip(scores_s, scores_t, strict=True):
        loss = loss + ((s - t).square() * pair_weight).sum()
    return loss


def build(
    shape: str, batch: int, length: int, seed: int, *, sparsity: float = SPARSITY, update_every: int = 0
) -> Callable[[], float]:
    """Make the models, the optimizer and a fixed batch; return a callable that runs one step and gives the loss.

    ``update_every`` > 0 recomputes the masks (topk) every so many steps inside the timed step.
    """
    sizes = SHAPES[shape]
    torch.manual_seed(seed)
    student, teacher = Encoder(sizes).train(), Encoder(sizes).eval()
    data = {k: torch.from_numpy(v).long() for k, v in make_batch(batch, length, sizes.vocab, seed).items()}
    inputs = (data["input_ids"], data["attention_mask"], data["token_type_ids"])
    prunable = [w for layer in student.layers for w in layer.prunable()]
    masks = [magnitude_mask(w, sparsity) for w in prunable]
    plain = [p for p in student.parameters() if p.ndim < 2]
    decayed = [p for p in student.parameters() if p.ndim >= 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    with torch.no_grad():
        torch._foreach_mul_(prunable, masks)
    count = 0

    def step() -> float:
        nonlocal count
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            target = teacher(*inputs)
        loss = distillation_loss(student(*inputs), target, inputs[1])
        loss.backward()
        optimizer.step()
        count += 1
        with torch.no_grad():
            if update_every and count % update_every == 0:
                for mask, weight in zip(masks, prunable, strict=True):
                    mask.copy_(magnitude_mask(weight * mask, sparsity))
            torch._foreach_mul_(prunable, masks)
        return loss.item()

    return step


def main() -> None:
    """Time the step alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="minilm", help="encoder sizes")
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    parser.add_argument("--length", type=int, default=80, help="tokens per row")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps")
    arguments = parser.parse_args()
    step = build(arguments.shape, arguments.batch, arguments.length, 0)
    step(), step()
    seconds = []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    print(f"threads {torch.get_num_threads()}  median {statistics.median(seconds):.3f} s  loss {loss:.4f}")


if __name__ == "__main__":
    main()
