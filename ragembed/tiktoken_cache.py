"""The files of tiktoken's encodings: where its cache keeps them, fetched when one was named.

tiktoken's own download has no time limit and retries; here one attempt is made, with a limit, and
what comes is checked before tiktoken sees it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

from ragembed.errors import InvalidInput, ModelError, StorageError

FETCH_TIMEOUT = 5.0  # seconds without an answer after which a download is given up

# The files tiktoken reads per encoding (tiktoken_ext/openai_public.py) and their SHA-256; its
# cache names each by the SHA-1 of its address.
_HOST = "https://openaipublic.blob.core.windows.net/"
_GPT2_FILES = ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json")
_SAME_RANKS: Mapping[str, str] = {"p50k_edit": "p50k_base", "o200k_harmony": "o200k_base"}
_SHA256: Mapping[str, str] = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "r50k_base.tiktoken": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "p50k_base.tiktoken": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    "cl100k_base.tiktoken": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base.tiktoken": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}


def tiktoken_files(encoding: str) -> dict[str, Path]:
    """Address and place in tiktoken's cache of each file an encoding needs; {} if not known.

    The cache is `TIKTOKEN_CACHE_DIR`, else `DATA_GYM_CACHE_DIR`, else a folder of the system's
    temporary files. Raises `InvalidInput` if the variable is set to nothing (no cache).
    """
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":
        raise InvalidInput(
            f"the tokenizer {encoding!r} needs tiktoken's cache, which an empty "
            f"TIKTOKEN_CACHE_DIR switches off; set it to a folder"
        )
    cache = Path(folder or Path(tempfile.gettempdir(), "data-gym-cache"))
    file = f"{_SAME_RANKS.get(encoding, encoding)}.tiktoken"
    addresses = [f"encodings/{file}"] if file in _SHA256 else []
    urls = [_HOST + address for address in (_GPT2_FILES if encoding == "gpt2" else addresses)]
    names = [hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest() for url in urls]
    return {url: cache / name for url, name in zip(urls, names, strict=True)}


def ensure_cached(encoding: str, url: str, cached: Path) -> None:
    """Put the file where tiktoken looks for it; tiktoken's own download has no timeout."""
    expected = _SHA256[url.rpartition("/")[2]]
    if cached.is_file() and hashlib.sha256(cached.read_bytes()).hexdigest() == expected:
        return
    try:
        with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT) as answer:
            data: bytes = answer.read()
    except (OSError, HTTPException) as error:
        raise InvalidInput(
            f"the tokenizer {encoding!r} is not in tiktoken's cache and cannot be fetched "
            f"({getattr(error, 'reason', error)}): put {url} at {cached}, or set "
            f"TIKTOKEN_CACHE_DIR to a folder that has {cached.name}, or use ragembed-32k"
        ) from error
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise ModelError(f"{url} gave SHA-256 {found}, not the {expected} that was expected")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, cached)
    except OSError as error:
        raise StorageError(f"{cached} cannot be written ({error.strerror})") from error
