"""Vocabulary pruning: the word embedding and the WordPiece tokenizer reduced to what a task needs.

Half of a small encoder is its word embedding (11.7 of the 22.7 million parameters of MiniLM-L6), and a task uses few
of the rows. A row never looked up changes no logit, so leaving it out is exact. A WordPiece tokenizer takes the longest
piece that fits (Wu et al., 2016, arXiv:1609.08144): without the pieces that a word does not use it finds the same ones.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from kaprune_jax._errors import InputError
from kaprune_jax._typing import Params
from kaprune_jax.models.config import BertConfig

# What a tokenizer was made with that holds old ids, names old files, or is padding and truncation of its old JSON.
_STALE = frozenset(
    "added_tokens_decoder vocab vocab_file tokenizer_file tokenizer_object added_tokens_file special_tokens_map_file "
    "name_or_path is_local local_files_only max_length stride truncation_strategy pad_to_multiple_of".split()
)


class PrunedVocabulary(NamedTuple):
    """What `prune_vocabulary` returns.

    Attributes:
      params: the tree with fewer rows in the word embedding, all else the same arrays.
      config: with the new `vocab_size` and `pad_token_id`.
      tokenizer: gives the new ids.
    """

    params: Params
    config: BertConfig
    tokenizer: Any


def used_ids(encoded_rows: Iterable[Sequence[int] | np.ndarray]) -> Int32[np.ndarray, " ids"]:
    """The ids that occur in tokenised rows, each once, ascending.

    Example:
      >>> used_ids([[2, 7, 3], [2, 5, 5, 3]]).tolist()
      [2, 3, 5, 7]
    """
    found: set[int] = set()
    for row in encoded_rows:
        found.update(row)
    return np.array(sorted(found), np.int32)


def prune_vocabulary(
    params: Params, config: BertConfig, tokenizer: Any, keep_ids: Iterable[int] | np.ndarray
) -> PrunedVocabulary:
    """Leaves out the tokens that are not in `keep_ids`; those left keep their order and are numbered from 0.

    Special and added tokens always stay, and so does every piece of one character, at the start of a word and within
    it: words that lose their pieces can still be spelt. A text all of whose tokens stay gets the same pieces, hence
    the same logits; any other text gets other pieces or the unknown token. A word that was unknown stays unknown
    where the vocabulary has all its characters as pieces of their own in both forms, as BERT's uncased one has;
    elsewhere it may come out in pieces, since the longest piece that led into a dead end can be gone.

    Args:
      params: the tree `load` gives; of a masked-LM head the rows of the bias go too.
      config: its configuration.
      tokenizer: a fast WordPiece tokenizer of `transformers`; not changed.
      keep_ids: what must stay, such as `used_ids(encode(train_rows, tokenizer, max_length=128).input_ids)`.

    Returns:
      The smaller parameters, configuration and tokenizer; the tokenizer's padding and truncation are off.

    Raises:
      InputError: not a fast WordPiece tokenizer, one that does not fit the model, or ids that it does not have.
    """
    words = params["embeddings"]["word"]["embedding"]
    if words.shape[0] != config.vocab_size:
        raise InputError(f"params: {words.shape[0]} rows of word embedding, but config has {config.vocab_size}")
    raw = _read(tokenizer)
    ids: dict[str, int] = tokenizer.get_vocab()
    if max(ids.values()) >= config.vocab_size:
        raise InputError(f"tokenizer: has id {max(ids.values())}, but the model has {config.vocab_size} tokens only")
    kept = _kept(raw, ids, _checked(keep_ids, ids.values()), {*tokenizer.all_special_ids, config.pad_token_id})
    new = {old: number for number, old in enumerate(kept)}
    rows = np.array(kept)
    pruned = {**params, "embeddings": {**params["embeddings"], "word": {"embedding": words[rows]}}}
    if config.head == "masked-lm":
        pruned["lm_head"] = {**params["lm_head"], "bias": params["lm_head"]["bias"][rows]}
    smaller = _rebuild(tokenizer, _renumber(raw, new))
    if smaller.get_vocab() != {token: new[old] for token, old in ids.items() if old in new}:
        raise InputError(f"tokenizer: a {type(tokenizer).__name__} whose tokens cannot be numbered anew")
    return PrunedVocabulary(
        pruned, config.replace(vocab_size=len(kept), pad_token_id=new[config.pad_token_id]), smaller
    )


def _read(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer's backend as JSON; only WordPiece passes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    raw = json.loads(backend.to_str()) if backend is not None else {}
    kind = raw["model"].get("type") if raw else "no fast tokenizer"
    if kind != "WordPiece":
        raise InputError(f"tokenizer: {type(tokenizer).__name__} ({kind}); only fast WordPiece ones can be pruned")
    return raw


def _checked(keep_ids: Iterable[int] | np.ndarray, known: Iterable[int]) -> list[int]:
    found = np.unique(np.asarray(list(keep_ids)))
    if found.size and found.dtype.kind not in "iu":
        raise InputError(f"keep_ids: {found[0]!r}; whole numbers are needed")
    strange = np.setdiff1d(found, np.array(sorted(known)))
    if strange.size:
        raise InputError(f"keep_ids: {strange[0]} is no id of the tokenizer ({strange.size} such in all)")
    return found.astype(int).tolist()


def _kept(raw: Mapping[str, Any], ids: Mapping[str, int], asked: Iterable[int], special: set[int]) -> list[int]:
    """The old ids that stay, ascending: those asked for, the special ones, and pieces of one character."""
    model = raw["model"]
    prefix = model["continuing_subword_prefix"]
    single = {number for token, number in model["vocab"].items() if len(token.removeprefix(prefix)) == 1}
    added = {token["id"] for token in raw["added_tokens"]}
    unknown = {ids[token] for token in (model["unk_token"],) if token in ids}
    kept = {*asked, *special, *single, *added, *unknown, *_processor_ids(raw["post_processor"])}
    missing = kept - set(ids.values())
    if missing:
        raise InputError(f"tokenizer: no token has id {min(missing)}, which the model or the tokenizer itself names")
    return sorted(kept)


def _processor_ids(processor: Mapping[str, Any] | None) -> set[int]:
    """The ids that a post-processor puts in, whatever its kind."""
    if processor is None:
        return set()
    found = {number for token in processor.get("special_tokens", {}).values() for number in token["ids"]}
    found |= {processor[name][1] for name in ("cls", "sep") if name in processor}
    return found.union(*(_processor_ids(part) for part in processor.get("processors", ())))


def _renumber_processor(processor: Mapping[str, Any] | None, new: Mapping[int, int]) -> dict[str, Any] | None:
    if processor is None:
        return None
    changed = dict(processor)
    if "special_tokens" in changed:  # TemplateProcessing
        changed["special_tokens"] = {
            name: {**token, "ids": [new[number] for number in token["ids"]]}
            for name, token in changed["special_tokens"].items()
        }
    for name in ("cls", "sep"):  # BertProcessing
        if name in changed:
            changed[name] = [changed[name][0], new[changed[name][1]]]
    if "processors" in changed:  # Sequence
        changed["processors"] = [_renumber_processor(part, new) for part in changed["processors"]]
    return changed


def _renumber(raw: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """The backend JSON over the tokens of `new`, a map from old ids to new ones."""
    vocab = {token: new[old] for token, old in raw["model"]["vocab"].items() if old in new}
    return {
        **raw,
        "truncation": None,
        "padding": None,
        "added_tokens": [{**token, "id": new[token["id"]]} for token in raw["added_tokens"]],
        "post_processor": _renumber_processor(raw["post_processor"], new),
        "model": {**raw["model"], "vocab": vocab},
    }


def _rebuild(tokenizer: Any, raw: Mapping[str, Any]) -> Any:
    """A tokenizer of the same class and settings on another backend."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(raw))
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name not in _STALE}
    settings |= tokenizer.special_tokens_map
    for name in ("model_max_length", "padding_side", "truncation_side", "model_input_names", "extra_special_tokens"):
        settings[name] = getattr(tokenizer, name)
    made = type(tokenizer)(tokenizer_object=backend, **settings)
    # BERT's class always puts its own in; a template of another form would be lost.
    made.backend_tokenizer.post_processor = backend.post_processor
    return made
