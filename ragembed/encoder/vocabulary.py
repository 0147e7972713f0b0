"""A `tokenizer.json` for checkpoints that come with a plain vocabulary (`vocab.txt`, ...)."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from ragembed.errors import ModelError

_VOCABULARIES = ("vocab.txt", "vocab.json", "*.model", "*.tiktoken")


def build_tokenizer(folder: Path) -> bytes:
    """The bytes of a `tokenizer.json`, built by transformers from what the folder has.

    Raises:
        ModelError: there is no vocabulary, or none that can be read without Python code.
    """
    # Without any, transformers makes a tokenizer of no words.
    if not any(path for pattern in _VOCABULARIES for path in folder.glob(pattern)):
        raise ModelError(f"{folder} has no tokenizer.json and no vocabulary to make one of")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        built: str = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # whatever a damaged vocabulary does to transformers
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{folder} has no tokenizer.json and none can be made of what it has ({first})"
        ) from None
    return built.encode()
