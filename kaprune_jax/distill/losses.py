"""Losses between a student and a teacher, padding-aware.

SparseBERT (Xu et al., 2021, arXiv:2104.08682): mean squared errors of hidden states and of attention scores before
softmax (after TinyBERT, Jiao et al., 2020, arXiv:1909.10351), soft cross-entropy of logits (Hinton et al., 2015,
arXiv:1503.02531). Answers as spans of a text: two distributions over its tokens (Rajpurkar et al., 2016,
arXiv:1606.05250; with BERT, Devlin et al., 2019, arXiv:1810.04805, section 4.2).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def kl_loss(
    student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"], *, temperature: float = 1.0
) -> Float[Array, "*batch"]:
    """KL(teacher || student) of softened logits, times temperature² (Hinton et al., 2015, arXiv:1503.02531).

    Args:
      student: logits that gradients flow into.
      teacher: logits of the same shape.
      temperature: divides both logits; above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> float(kl_loss(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0])))
      0.0
    """
    log_student = jax.nn.log_softmax(student / temperature)
    log_teacher = jax.nn.log_softmax(teacher / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)


def soft_cross_entropy(
    student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"], *, temperature: float = 1.0
) -> Float[Array, "*batch"]:
    """-Σ softmax(teacher/τ) log softmax(student/τ): summed over classes, so that a batch is averaged over rows only.

    Its gradient is that of `kl_loss` divided by temperature²; SparseBERT has τ = 1.
    """
    return -jnp.sum(jax.nn.softmax(teacher / temperature) * jax.nn.log_softmax(student / temperature), axis=-1)


def hidden_loss(
    student: Float[Array, "batch seq hidden"],
    teacher: Float[Array, "batch seq hidden"],
    mask: Shaped[Array, "batch seq"],
) -> Float[Array, ""]:
    """Mean squared error over the hidden states of real tokens.

    Args:
      student: one layer's hidden states, projected to the teacher's width where widths differ.
      teacher: the matched layer's.
      mask: nonzero for real tokens, zero for padding.
    """
    weight = mask.astype(jnp.float32)
    difference = (student - teacher).astype(jnp.float32)
    error = jnp.sum(jnp.square(difference) * weight[..., None])
    return error / (jnp.maximum(weight.sum(), 1.0) * student.shape[-1])


def attention_loss(
    student: Float[Array, "batch heads seq seq"],
    teacher: Float[Array, "batch heads seq seq"],
    mask: Shaped[Array, "batch seq"],
) -> Float[Array, ""]:
    """Mean squared error over attention scores before softmax, where query and key are both real tokens.

    Args:
      student: scaled scores of one layer, before masking.
      teacher: the matched layer's, with as many heads.
      mask: nonzero for real tokens, zero for padding.
    """
    weight = mask.astype(jnp.float32)
    difference = (student - teacher).astype(jnp.float32)
    by_query = jnp.sum(jnp.square(difference) * weight[:, None, None, :], axis=-1)
    error = jnp.sum(by_query * weight[:, None, :])
    return error / (jnp.maximum(jnp.square(weight.sum(axis=1)).sum(), 1.0) * max(student.shape[1], 1))


def label_loss(logits: Float[Array, "batch classes"], labels: Shaped[Array, "batch"]) -> Float[Array, "batch"]:
    """Cross-entropy with class ids, or, where labels are floats, the squared error of the one logit."""
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if logits.shape[-1] != 1:
            raise ValueError(f"labels are scores, and logits have {logits.shape[-1]} columns; one is needed")
        return jnp.square(logits[:, 0] - labels)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def over_tokens(
    logits: Float[Array, "batch seq parts"], mask: Shaped[Array, "batch seq"]
) -> Float[Array, "batch_parts seq"]:
    """Logits of tokens as rows of logits over tokens, for the losses above: a softmax then runs over the real ones.

    Row 2b is the start of batch row b's answer and row 2b + 1 its end, as `labels.reshape(-1)` has them.

    Args:
      logits: of each token; [batch, seq, 2] for the first and last token of an answer.
      mask: nonzero for real tokens, zero for padding, whose probability is made exactly zero.
    """
    # Finite, since 0 times infinity is not; far below any logit, also divided by a temperature.
    kept = jnp.where(mask[..., None] != 0, logits, jnp.asarray(-1e9, logits.dtype))
    return jnp.swapaxes(kept, 1, 2).reshape(-1, logits.shape[1])
