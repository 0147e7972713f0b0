"""Passages: whole blocks under one heading path where they fit, else cut at ever finer borders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragembed.chunking.borders import code_points, context_hashes, cut
from ragembed.chunking.sentences import (
    character_starts,
    line_starts,
    sentence_starts,
    word_starts,
)
from ragembed.chunking.windows import TokenTable, slide
from ragembed.config import ChunkingConfig
from ragembed.tokenizer import Tokenizer
from ragembed.types import Block, Document, Passage

Splitter = Callable[[str, int, int], NDArray[np.int64]]
# The ways to split an atom that is too large, strongest first; their index + 1 is the cut's class.
_PROSE: tuple[Splitter, ...] = (sentence_starts, line_starts, word_starts, character_starts)
_LINES: tuple[Splitter, ...] = (line_starts, sentence_starts, word_starts, character_starts)


@dataclass(frozen=True, slots=True)
class _Section:
    """Consecutive blocks under one heading path; the headings themselves come first."""

    heading: tuple[str, ...]
    blocks: tuple[Block, ...]


def chunk(document: Document, tokenizer: Tokenizer, config: ChunkingConfig) -> tuple[Passage, ...]:
    """Cut a document into passages and their windows.

    Every non-blank character is in exactly one passage and at least one window; passages and windows
    are exact spans of `document.text`. A passage has at most `config.passage` tokens and lies under
    one heading path; a window has at most `config.window` tokens once tokenised on its own.

    Args:
        document: with its `blocks` (see `ragembed.readers.parse_blocks`).
        tokenizer: the encoder's; lengths are counted in its tokens.
        config: lengths and overlap.
    """
    text = document.text
    table = TokenTable.of(text, document.blocks, tokenizer)
    points = code_points(text)
    spans: list[tuple[int, int, tuple[str, ...]]] = []
    for section in _sections(document.blocks):
        atoms = _atoms(text, section.blocks, table, config)
        hashes = context_hashes(points, atoms.starts)
        for first, last in cut(atoms.sizes, atoms.classes, hashes, config.passage):
            start, stop = int(atoms.starts[first]), int(atoms.ends[last - 1])
            spans.append((start, stop, section.heading))
    windows = slide(text, [(a, b) for a, b, _ in spans], table, tokenizer, config)
    return tuple(
        Passage(
            start=a,
            end=b,
            text=text[a:b],
            heading=heading,
            tokens=table.count(a, b),
            unknown=table.count_unknown(a, b),
            windows=own,
        )
        for (a, b, heading), own in zip(spans, windows, strict=True)
    )


def _sections(blocks: Sequence[Block]) -> list[_Section]:
    """Blocks by heading path. A heading without a body joins the section below it."""
    sections: list[_Section] = []
    path: list[tuple[int, str]] = []
    current: list[Block] = []
    has_body = False
    for block in blocks:
        if block.kind == "heading":
            if has_body:
                sections.append(_Section(tuple(title for _, title in path), tuple(current)))
                current, has_body = [], False
            path = [(level, title) for level, title in path if level < block.level]
            path.append((block.level, block.title))
        else:
            has_body = True
        current.append(block)
    if current:
        sections.append(_Section(tuple(title for _, title in path), tuple(current)))
    return sections


@dataclass(frozen=True, slots=True)
class _Atoms:
    """The pieces that are never cut: spans, sizes, and the class of the cut before each."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int64]
    classes: NDArray[np.int64]


def _atoms(text: str, blocks: Sequence[Block], table: TokenTable, config: ChunkingConfig) -> _Atoms:
    """Blocks, a heading together with what it stands over; those too large for a passage split."""
    groups: list[list[Block]] = []
    for n, block in enumerate(blocks):
        if n and blocks[n - 1].kind == "heading":
            groups[-1].append(block)
        else:
            groups.append([block])
    starts = np.array([group[0].start for group in groups], dtype=np.int64)
    ends = np.array([group[-1].end for group in groups], dtype=np.int64)
    sizes = table.sizes(starts, ends, config.characters_per_token)
    whole = _Atoms(starts, ends, sizes, np.zeros(len(groups), dtype=np.int64))
    if (sizes <= config.passage).all():
        return whole
    parts: list[_Atoms] = []
    for n, group in enumerate(groups):
        ways = _LINES if group[-1].kind in ("code", "table_row") else _PROSE
        parts.append(_refine(text, _slice(whole, n, n + 1), ways, table, config))
    return _join(parts)


def _refine(
    text: str, atoms: _Atoms, ways: Sequence[Splitter], table: TokenTable, config: ChunkingConfig
) -> _Atoms:
    """Split what is larger than a passage by the first of `ways`, what is left by the next."""
    for level, split in enumerate(ways, start=1):
        large = np.flatnonzero(atoms.sizes > config.passage)
        if not len(large):
            break
        parts: list[_Atoms] = []
        done = 0
        for n in large.tolist():
            parts.append(_slice(atoms, done, n))
            start, stop = int(atoms.starts[n]), int(atoms.ends[n])
            starts = split(text, start, stop)
            ends = _trimmed_ends(text, starts, stop)
            if split is character_starts:
                # A word cut apart is tokenised differently: count a token a character.
                sizes = ends - starts
            else:
                sizes = table.sizes(starts, ends, config.characters_per_token)
            classes = np.full(len(starts), level, dtype=np.int64)
            classes[0] = atoms.classes[n]
            parts.append(_Atoms(starts, ends, sizes, classes))
            done = n + 1
        parts.append(_slice(atoms, done, len(atoms.sizes)))
        atoms = _join(parts)
    return atoms


def _trimmed_ends(text: str, starts: NDArray[np.int64], stop: int) -> NDArray[np.int64]:
    ends = np.append(starts[1:], stop)
    return np.array(
        [
            max(a + 1, a + len(text[a:b].rstrip()))
            for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
        ],
        dtype=np.int64,
    )


def _slice(atoms: _Atoms, first: int, last: int) -> _Atoms:
    part = slice(first, last)
    return _Atoms(atoms.starts[part], atoms.ends[part], atoms.sizes[part], atoms.classes[part])


def _join(parts: Sequence[_Atoms]) -> _Atoms:
    return _Atoms(
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.classes for part in parts]),
    )
