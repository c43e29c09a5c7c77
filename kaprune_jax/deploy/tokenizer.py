"""The tokenizer of a model folder: no code of the folder is run, and nothing outside it is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaprune_jax._errors import InputError
from kaprune_jax._reading import inside, read_json

_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_READ = (".json", ".txt", ".model", ".jinja")
_GROWTH = 10_000  # the longest chain of normalisations in use, XLNet's, comes to some thousand by the same count


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, as `transformers` loads it.

    Raises:
      InputError: there is none, it cannot be read, or its files name others, lead out of the folder, or would make
        texts thousands of times longer.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise InputError(f"{folder}: no tokenizer; tokenizer.json or vocab.txt is needed")
    _check(folder)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("a", truncation=True, max_length=8)
    except Exception as error:
        raise InputError(f"{folder}: its tokenizer cannot be read ({error})") from None
    tokenizer.chat_template = None  # an encoder has no use for templates, and saving them makes files of their names
    return tokenizer


def _check(folder: Path) -> None:
    for file in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if file.suffix in _READ:
            inside(folder, str(file.relative_to(folder)))
    settings = folder / "tokenizer_config.json"
    read = {name: read_json(folder / name) for name in _JSON if (folder / name).is_file()}
    for name, value in read.get(settings.name, {}).items():
        # The file of special tokens is what old versions wrote of where they had it; nothing opens it.
        plain = value is None or name == "special_tokens_map_file"
        if name == "fast_tokenizer_files" and isinstance(value, list):
            plain = all(isinstance(each, str) and not set(each) & set("/\\\0") for each in value)
        if name.endswith(("_file", "_files")) and not plain:
            raise InputError(f"{settings}: {name}={value!r}; only the folder's own files are read")
    growth = _growth(read.get("tokenizer.json", {}).get("normalizer"))
    if growth > _GROWTH:
        raise InputError(
            f"{folder / 'tokenizer.json'}: its normalizer makes texts up to {growth:.0e} times longer; up to {_GROWTH} "
            "times are allowed"
        )


def _growth(part: Any) -> float:
    """At most how many times longer a normalizer makes a text, in characters."""
    if not isinstance(part, Mapping):
        return 1.0
    kind, inner = part.get("type"), part.get("normalizers")
    if kind == "Sequence" and isinstance(inner, list):
        product = 1.0
        for each in inner:
            product *= _growth(each)
        return product
    if kind == "Replace":  # at every character, where the pattern is one that nothing matches
        return 1.0 + len(str(part.get("content")))
    return 18.0 if kind in ("NFD", "NFKD", "NFC", "NFKC", "Precompiled") else 1.0  # Unicode's most, of one character
