"""Which legacy encoding a text is in: how likely its bytes are in languages whose letters we know.

A detector that looks for "chaos" needs a page of text. One line is enough for a comparison: under
the right encoding the bytes give letters that the language uses often, under a wrong one they give
rare letters, symbols, capitals inside words, or characters of two scripts side by side. Every
candidate decodes strictly, and the best wins only with a margin over the next *different* text.
"""

from __future__ import annotations

import codecs
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ragembed.readers import charset_tables as tables

_SAMPLE = 4000  # bytes outside ASCII that are weighed: the same bytes under every candidate
_WORD_SAMPLE = 20_000  # characters in which words are looked up
_MARGIN = 1.5  # nats between the best text and the next one
_WORST = -7.0  # mean nats per byte outside ASCII below which a reading is not believed
_WORST_LONG = -5.0  # the same where there is more to go by
_WORST_EAST = -4.7
_LONG = 30  # bytes outside ASCII

_RARE = -11.0  # a character no language here expects
_CAPITAL = -2.0  # a capital, on top of its letter
_INNER_CAPITAL = -4.0  # a capital after a small letter
_MIXED = -3.0  # letters of two scripts, or a symbol between letters
_WORD = 1.0  # each word found that is common in the language
_MOST_WORDS = 30

_HIGH = re.compile(rb"[\x80-\xff]+")
_RUN = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+[\x00-\x7f]?")
_WORDS = re.compile(r"[^\W\d_]+")

_PRIOR: Mapping[str, float] = {
    "cp1252": 0.0,
    "cp1251": -0.5,
    "cp1250": -1.0,
    "cp1254": -1.5,
    "iso8859_2": -1.5,
    "mac_roman": -6.0,
    "cp850": -6.0,
    "cp852": -4.0,
    "mac_cyrillic": -4.0,
    "cp855": -4.0,
    "cp866": -2.0,
    "iso8859_16": -5.0,
    "johab": -4.0,
}


@dataclass(frozen=True, slots=True)
class Guess:
    """A decoded text and its encoding; `score` is in nats, `mean` is per byte outside ASCII, of
    which there are `count` in the sample."""

    text: str
    encoding: str
    score: float
    mean: float
    count: int


def _ranked(letters: str, mass: float) -> dict[str, float]:
    """Log probabilities of letters in falling order of frequency (Zipf with an offset)."""
    weights = {letter: 1 / (rank + 3) for rank, letter in enumerate(dict.fromkeys(letters))}
    total = sum(weights.values())
    return {letter: math.log(mass * weight / total) for letter, weight in weights.items()}


@functools.cache  # few runs need it, so that importing this module must not pay for it
def _letters(name: str) -> Mapping[str, float]:
    table = _ranked(tables.PUNCTUATION, 0.1)
    table.update(_ranked(tables.LANGUAGES[name].letters, 0.9))
    return table


def _flat(characters: str, mass: float) -> dict[str, float]:
    return {c: math.log(mass / len(set(characters))) for c in characters}


_EAST: Mapping[str, tuple[dict[str, float], tuple[str, ...]]] = {
    "Chinese (simplified)": (_flat(tables.CHINESE_SIMPLIFIED, 0.6), ("gb18030",)),
    "Chinese (traditional)": (_flat(tables.CHINESE_TRADITIONAL, 0.6), ("big5hkscs", "cp950")),
    "Japanese": (_flat(tables.JAPANESE, 0.6), ("cp932", "euc_jp")),
    "Korean": (_flat(tables.KOREAN, 0.6), ("cp949", "johab")),
}
_EAST_PUNCTUATION = frozenset(
    "　、。，．：；？！（）「」『』《》【】〈〉“”‘’…—·・～／％－ー－◇■●○◆□※→①②③④"
)


def _is_frequent_plane(character: str, encoding: str) -> bool:
    """Whether a character lies in the part of its standard that holds the everyday ones."""
    try:
        if encoding == "gb18030":
            return 0xB0 <= character.encode("gb2312")[0] <= 0xD7
        if encoding in ("big5hkscs", "cp950"):
            return 0xA4 <= character.encode("big5")[0] <= 0xC6
        if encoding in ("cp949", "johab"):
            return 0xB0 <= character.encode("euc_kr")[0] <= 0xC8
        return 0xA4 <= character.encode("euc_jp")[0] <= 0xCF
    except UnicodeEncodeError:
        return False


def _sample(data: bytes) -> bytes:
    left = _SAMPLE
    for match in _HIGH.finditer(data):
        left -= len(match.group())
        if left <= 0:
            return data[: match.end()]
    return data


def _start(data: bytes, encoding: str) -> str | None:
    """`data` decoded strictly, but for a last character that the sample may have cut."""
    try:
        return codecs.getincrementaldecoder(encoding)("strict").decode(data)
    except UnicodeDecodeError:
        return None


def _east_score(runs: list[str], table: dict[str, float], encoding: str) -> tuple[float, int]:
    score, count = 0.0, 0
    known: dict[str, float] = dict(table)
    for run in runs:
        previous = ""
        for c in run:
            if c < "\x80":
                if c.isalpha() and previous and previous.isalpha():
                    score += _MIXED / 2
                previous = c
                continue
            count += 2
            value = known.get(c)
            if value is None:
                if c in _EAST_PUNCTUATION:
                    value = -5.0
                elif _is_frequent_plane(c, encoding):
                    value = -9.2
                else:
                    value = -13.0 if c.isalpha() else -10.0
                if "\uff61" <= c <= "\uff9f":
                    value = -9.0  # half a width, one byte
                    count -= 1
                known[c] = value
            score += value
            if previous and previous < "\x80" and previous.isalpha() and c.isalpha():
                score += _MIXED / 2
            previous = c
    return score, count


def _letter_score(runs: list[str], table: Mapping[str, float], plain: bool) -> tuple[float, int]:
    score, count = 0.0, 0
    for run in runs:
        previous = ""
        for c in run:
            if c < "\x80":
                if not plain and previous > "\x7f" and c.isalpha() and previous.isalpha():
                    score += _MIXED
                previous = c
                continue
            count += 1
            lower = c.lower()
            value = table.get(lower, _RARE)
            if lower != c:
                inner = previous.isalpha() and previous.islower()
                value += _INNER_CAPITAL if inner else _CAPITAL if not previous.isupper() else -0.5
            elif previous.isupper() and not plain and previous > "\x7f" and c.isalpha():
                value -= 0.2
            if previous and not plain and previous < "\x80" and previous.isalpha() and c.isalpha():
                value += _MIXED
            if plain and not c.isalpha() and c not in "’´" and previous.isalpha():
                value -= 0.5
            score += value
            previous = c
    return score, count


def _word_score(text: str, words: frozenset[str]) -> float:
    found = sum(word in words for word in _WORDS.findall(text[:_WORD_SAMPLE].lower()))
    return _WORD * min(found, _MOST_WORDS)


def _guesses(sample: bytes) -> Iterator[Guess]:
    decoded: dict[str, tuple[str, list[str]]] = {}
    encodings = {e for language in tables.LANGUAGES.values() for e in language.encodings}
    encodings |= {e for _, names in _EAST.values() for e in names}
    for encoding in sorted(encodings):
        text = _start(sample, encoding)
        if text is not None:
            decoded[encoding] = (text, _RUN.findall(text))
    for table, names in _EAST.values():
        for encoding in names:
            if encoding in decoded:
                text, runs = decoded[encoding]
                score, count = _east_score(runs, table, encoding)
                score += _PRIOR.get(encoding, -1.0)
                if score > _WORST_EAST * count:
                    yield Guess(text, encoding, score, score / max(count, 1), count)
    for name, language in tables.LANGUAGES.items():
        for encoding in language.encodings:
            if encoding in decoded:
                text, runs = decoded[encoding]
                score, count = _letter_score(runs, _letters(name), language.plain)
                score += _PRIOR.get(encoding, -1.0)
                mean = score / max(count, 1)
                yield Guess(text, encoding, score + _word_score(text, language.words), mean, count)


def guess(data: bytes) -> Guess | None:
    """The most likely reading of `data`, or None when two readings are about as likely.

    >>> guess("Привет, мир".encode("koi8_u")).text
    'Привет, мир'
    """
    best: Guess | None = None
    for candidate in sorted(_guesses(_sample(data)), key=lambda guess: -guess.score):
        if best is not None and candidate.score < best.score - _MARGIN:
            break
        try:
            text = data.decode(candidate.encoding)
        except UnicodeDecodeError:
            continue  # the sample was readable, the rest is not
        if best is None:
            best = replace(candidate, text=text)
        elif text != best.text:
            return None
    if best is None or best.mean < (_WORST if best.count < _LONG else _WORST_LONG):
        return None
    return best
