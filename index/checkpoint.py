"""FAISS files: written once under another name, hashed on the way in and on the way out.

FAISS files carry no checksum, and about a third of damaged ones load and answer differently; so a
file is parsed only when the SHA-256 of the very bytes that are parsed matches the catalogue.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from ragembed.index.ann import segment_of
from ragembed.index.disk import private_opener, sync_directory
from ragembed.index.rows import Checkpoint, StoredModel
from ragembed.index.vectors import VectorIndex

logger = logging.getLogger(__name__)

_PIECE = 4 << 20  # bytes read and hashed at a time, while they are in the processor's cache


def save(index: faiss.Index, directory: Path, name: str) -> tuple[int, bytes]:
    """Write a FAISS index to a new file; returns its size and SHA-256.

    Temporary name, hash on the way, fsync, rename, fsync of the directory. A failed write leaves
    nothing behind.
    """
    digest = hashlib.sha256()
    size = 0
    draft = directory / f"{name}.tmp"
    try:
        with open(draft, "xb", opener=private_opener) as file:

            def write(chunk: bytes) -> int:
                nonlocal size
                digest.update(chunk)
                size += len(chunk)
                return file.write(chunk)

            faiss.write_index(index, faiss.PyCallbackIOWriter(write))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o400)  # write-once
        os.replace(draft, directory / name)
        sync_directory(directory)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return size, digest.digest()


def load(
    directory: Path, checkpoint: Checkpoint, model: StoredModel, *, owned: bool = False
) -> VectorIndex | None:
    """Read a checkpoint; None when the file is not byte for byte what was written.

    The index looks into the bytes that were read and hashed, without a copy, and must never be changed:
    FAISS ends the process if it is. `owned` makes a copy that may be.
    """
    data = read_hashed(directory / checkpoint.file, checkpoint.size, checkpoint.sha256)
    if data is None:
        return None
    try:
        if owned:
            index = faiss.deserialize_index(data)
        else:
            index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(data), data.size))
    except RuntimeError as error:
        logger.warning("%s cannot be read by this FAISS: %s", checkpoint.file, error)
        return None
    if index.d != model.dimension or index.ntotal != checkpoint.vectors:
        return None
    segment = segment_of(
        index, checkpoint.kind, model, checkpoint.max_vector_id, checkpoint.probes, data
    )
    return VectorIndex(model.dimension, model.precision, (segment,))


def is_there(directory: Path, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's file is there and of the right size; its content is not looked at."""
    try:
        return (directory / checkpoint.file).stat().st_size == checkpoint.size
    except OSError:
        return False


def read_hashed(file: Path, size: int, sha256: bytes) -> NDArray[np.uint8] | None:
    """The bytes of a file, (size,), if they are the ones that were hashed; else None."""
    digest = hashlib.sha256()
    try:
        with open(file, "rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size != size:
                return None
            data = np.empty(size, dtype=np.uint8)
            view = data.data
            done = 0
            while done < size:
                count = stream.readinto(view[done : done + _PIECE])
                if not count:
                    return None
                digest.update(view[done : done + count])
                done += count
    except OSError:
        return None  # missing or unreadable: the caller has other means
    return data if digest.digest() == sha256 else None
