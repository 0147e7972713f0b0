"""Folders to files, files to documents: what can be read is, and the rest is named with a cause."""

from ragembed.readers.files import FileContent, RawFile, extract, read_bytes, read_file
from ragembed.readers.formats import format_of
from ragembed.readers.sandbox import Sandbox
from ragembed.readers.scan import Scan, ScannedFile, explain, scan
from ragembed.readers.structure import parse_blocks

__all__ = [
    "FileContent",
    "RawFile",
    "Sandbox",
    "Scan",
    "ScannedFile",
    "explain",
    "extract",
    "format_of",
    "parse_blocks",
    "read_bytes",
    "read_file",
    "scan",
]
