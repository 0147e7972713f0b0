"""CRC-32 over what a row says, its id included: a row that is not what was written is never served.

A flipped bit inside a row's content is one kind of damage; a flipped bit in its key, which makes it
answer for another row, is the other. So every checksum covers the key as well.
"""

from __future__ import annotations

import struct
import zlib

NEVER = -1  # no row has this checksum
_WINDOW = struct.Struct("<6q")
_READING = struct.Struct("<4q")
_VECTOR = struct.Struct("<2q")


def row_crc(*columns: object) -> int:
    """Of any row: its columns in the order of the table, ids included and `crc` left out.

    >>> row_crc("generation", "7") != row_crc("generation", "8")
    True
    """
    return zlib.crc32("\0".join(map(repr, columns)).encode())


def window_crc(
    passage_id: int, model_id: int, position: int, start: int, end: int, vector_id: int
) -> int:
    """Of a row of `window`."""
    return _packed(_WINDOW, passage_id, model_id, position, start, end, vector_id)


def reading_crc(passage_id: int, model_id: int, tokens: int, unknown: int) -> int:
    """Of a row of `reading`."""
    return _packed(_READING, passage_id, model_id, tokens, unknown)


def vector_crc(id: int, model_id: int, key: bytes, data: bytes) -> int:
    """Of a row of `vector`."""
    try:
        return zlib.crc32(data, zlib.crc32(key, zlib.crc32(_VECTOR.pack(id, model_id))))
    except (TypeError, struct.error):  # damage can turn a column into any type
        return NEVER


def _packed(layout: struct.Struct, *columns: int) -> int:
    try:
        return zlib.crc32(layout.pack(*columns))
    except struct.error:
        return NEVER
