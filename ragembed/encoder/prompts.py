"""Families of models that were trained with prompts, for checkpoints that do not name theirs.

Without its prompt such a model still gives vectors, only worse ones, and nobody notices; so a
checkpoint of a known family without prompts is worth a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownPrompts:
    """What a family puts in front of queries and documents, by its authors' model cards."""

    query: str
    document: str = ""


_BGE_EN = KnownPrompts("Represent this sentence for searching relevant passages: ")
_KNOWN = (
    (r"(^|[-_/])(multilingual-)?e5-(small|base|large)(-|$)", KnownPrompts("query: ", "passage: ")),
    (r"(^|[-_/])bge-(small|base|large)-en", _BGE_EN),
    (r"(^|[-_/])bge-(small|base|large)-zh", KnownPrompts("为这个句子生成表示以用于检索相关文章：")),
    (r"(^|[-_/])nomic-embed-text", KnownPrompts("search_query: ", "search_document: ")),
    (r"(^|[-_/])mxbai-embed", _BGE_EN),
    (r"(^|[-_/])snowflake-arctic-embed-(xs|s|m|l)(-|$)", _BGE_EN),
)


def known_prompts(name: str) -> KnownPrompts | None:
    """The prompts of the family a model's name points to.

    >>> known_prompts("intfloat/e5-small-v2")
    KnownPrompts(query='query: ', document='passage: ')
    """
    return next((known for pattern, known in _KNOWN if re.search(pattern, name.lower())), None)


def missing_prompts(name: str, prompts: Mapping[str, str]) -> str | None:
    """A sentence for a checkpoint of a known family that names no prompts, else None."""
    known = known_prompts(name)
    if known is None or prompts:
        return None
    wanted = f"query={known.query!r}"
    if known.document:
        wanted += f", document={known.document!r}"
    return (
        f"{name} names no prompts, but its family was trained with {wanted}; give them as "
        "prompts={...} to from_pretrained, or in its config_sentence_transformers.json"
    )
