"""Every error ragembed raises on purpose, each with its exit code and HTTP status.

    RagembedError                 1  500
    |-- InvalidInput              2  400  an argument, option or text that cannot be used
    |-- ModelError                1  500  weights or a tokenizer that cannot be used
    |   |-- ModelNotFound         1  404  no weights under that name
    |   `-- ModelMismatch         1  409  the index was built with another model or chunking
    |-- EncodingFailed            1  500  the model gave something that is not a vector
    |-- RemoteFailed              1  502  an embedding server was not reached or gave no vectors
    |-- ReadError                 1  422  one document cannot be read (it carries a code)
    |-- MassDelete                1  409  a sync would have emptied the index
    `-- IndexFailure              1  500
        |-- IndexNotFound         1  404  there is no index there
        |-- NotAnIndex            1  409  the directory holds something else
        |-- IndexVersionError     1  409  written by a newer version
        |-- IndexDamaged          4  500  stored rows are not what was written
        |-- StorageError          5  507  disk full, permission, input/output
        `-- IndexLocked           6  423  another writer holds the lock

A message says what is wrong, with the numbers, and what to do. Front ends print it as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ragembed.types import SyncReport


class RagembedError(Exception):
    """Base of all errors raised on purpose."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class InvalidInput(RagembedError, ValueError):
    """An argument, option or text that cannot be used."""

    exit_code = 2
    http_status = 400


class ModelError(RagembedError):
    """Weights or a tokenizer that cannot be used."""


class ModelNotFound(ModelError):
    """No weights under that name."""

    http_status = 404


class ModelMismatch(ModelError):
    """The index was built with another model or another chunking."""

    http_status = 409


class EncodingFailed(RagembedError):
    """The encoder gave something that is not a unit vector (NaN, infinity, zero)."""


class RemoteFailed(RagembedError):
    """An embedding server was not reached, refused, or answered something else than vectors."""

    http_status = 502


class ReadError(RagembedError):
    """One document cannot be read; `code` is the stable word that reports carry."""

    http_status = 422

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class MassDelete(RagembedError):
    """A sync would have removed most of a root; everything else was done, as `report` says."""

    http_status = 409

    def __init__(self, message: str, report: SyncReport) -> None:
        super().__init__(message)
        self.report = report


class IndexFailure(RagembedError):
    """Base of what can go wrong with an index directory."""


class IndexNotFound(IndexFailure):
    """There is no index in that directory."""

    http_status = 404


class NotAnIndex(IndexFailure):
    """The directory holds something that is not an index."""

    http_status = 409


class IndexVersionError(IndexFailure):
    """The index was written by a newer version."""

    http_status = 409


class IndexDamaged(IndexFailure):
    """Stored rows are not what was written."""

    exit_code = 4


class StorageError(IndexFailure):
    """The disk is full, a permission is missing, or input/output failed."""

    exit_code = 5
    http_status = 507


class IndexLocked(IndexFailure):
    """Another writer holds the lock."""

    exit_code = 6
    http_status = 423
