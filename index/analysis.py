"""Text analysis for the lexical leg: words, stems, bigrams.

Words are runs of letters, digits and marks (Unicode), lower-cased after NFKC and stemmed by Snowball
in the document's language. Scripts that put no blanks between words (Chinese, Japanese, Thai, ...)
become overlapping pairs of characters, beside the single characters. An identifier such as
`max_tokens` or `getValue` counts as a whole and as its parts.

A query does not know which language it will meet, so its words are stemmed in every language the
index holds: a document carries the stems of its own language only.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache

import Stemmer

# Stored in every index; a change here means the lexical files are built again.
ANALYSER_VERSION = 1
MAX_WORD = 64  # characters; longer runs (hashes, base64) are cut into words of this length

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# Python's \\w has no combining marks: without these ranges Devanagari falls into single letters.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
    "\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a03"
    "\u0a3c-\u0a4d\u0a81-\u0a83\u0abc-\u0acd\u0b01-\u0b03\u0b3c-\u0b4d\u0bbe-\u0bcd\u0c00-\u0c04"
    "\u0c3e-\u0c4d\u0c81-\u0c83\u0cbc-\u0ccd\u0d00-\u0d03\u0d3b-\u0d4d\u0d81-\u0d83\u0dca-\u0ddf"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
)
_LETTER = rf"[^\W{_UNSPACED}][{_MARKS}]*"
_TOKEN = re.compile(
    rf"(?P<unspaced>[{_UNSPACED}]+)"
    rf"|(?P<word>(?:{_LETTER})+(?:['\u2019](?:[^\W\d_{_UNSPACED}][{_MARKS}]*)+)?)"
)
_PART = re.compile(rf"(?:[^\W_][{_MARKS}]*)+")
_CAMEL = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_POSSESSIVE = re.compile(r"['\u2019]s$")

# A few of the most frequent function words; enough to tell these languages apart in a paragraph.
_FUNCTION_WORDS = {
    "english": "the of and to in is that for with was are this be by not from which an at have",
    "german": "der die und das ist von den mit nicht ein eine sich auf auch dem wird im zu für des",
    "french": "le la les des et est dans une que pour qui sur pas au par plus avec ce du sont",
    "spanish": "el los las y que en del una por con para es como se su más al lo pero está",
    "italian": "il che di della per una con non sono gli del dei nel più come anche alla si è delle",
    "portuguese": "o os as e que em do da para uma com não por mais dos como se ao pelo são",
    "dutch": "de het een van en dat niet is zijn voor met op aan ook er worden bij wordt deze naar",
    "swedish": "och att det som en är av för på med den till inte om ett har de var vid kan",
    "danish": "og at det som en er af for på med den til ikke om et har de var ved kan blev",
    "norwegian": "og at det som en er av for på med den til ikke om et har de var ved kan ble",
    "finnish": "ja on ei että se oli joka mutta ovat kun myös hän tai sekä jos niin sen olla ole",
    "russian": "и в не на что с по как это из к для от он но за его она при так",
    "hungarian": "a az és hogy nem egy is meg ez volt de csak mint van ezt azt sem már még",
    "turkish": "ve bir bu için ile olarak da de daha çok olan gibi sonra kadar ne her ama",
}
_LANGUAGE_OF: dict[str, tuple[str, ...]] = {}
for _language, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _LANGUAGE_OF[_word] = (*_LANGUAGE_OF.get(_word, ()), _language)
_SAMPLE = 20_000  # characters looked at


def detect_language(text: str) -> str:
    """The Snowball language of a text, by its function words; English where there are too few.

    >>> detect_language("Der Hund ist nicht auf dem Sofa, und die Katze auch nicht.")
    'german'
    """
    votes: Counter[str] = Counter()
    for match in _PART.finditer(text[:_SAMPLE].lower()):
        votes.update(_LANGUAGE_OF.get(match[0], ()))
    if not votes:
        return "english"
    language, count = votes.most_common(1)[0]
    return language if count >= 3 and count > votes["english"] else "english"


def terms(text: str, language: str) -> list[str]:
    """The terms a text is indexed under, with repetitions.

    >>> terms("The running dogs", "english")
    ['the', 'run', 'dog']
    """
    stemmer = _stemmer(language)
    return [term for _, _, forms in _forms(text) for term in stemmer.stemWords(forms)]


def query_terms(text: str, languages: Iterable[str]) -> list[str]:
    """The terms a query asks for, each once, in order of appearance."""
    stemmers = [_stemmer(language) for language in languages] or [_stemmer("english")]
    found: dict[str, None] = {}
    for _, _, forms in _forms(text, query=True):
        for stemmer in stemmers:
            found.update(dict.fromkeys(stemmer.stemWords(forms)))
    return list(found)


class Matcher:
    """Finds the words of texts that give one of the wanted terms; remembers the words it has met."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._wanted = frozenset(wanted)
        self._known: dict[tuple[str, str], str | None] = {}

    def find(self, text: str, language: str) -> list[tuple[int, int, str]]:
        """(start, end, term) of each word of a text that gives a wanted term.

        >>> Matcher(["run"]).find("She was running.", "english")
        [(8, 15, 'run')]
        """
        found = []
        for match in _TOKEN.finditer(text):
            if match.lastgroup == "unspaced":
                pairs = _pairs(match[0], match.start(), query=False)
                found += [(a, b, form) for a, b, (form,) in pairs if form in self._wanted]
            elif (term := self._term_of(match[0], language)) is not None:
                found.append((match.start(), match.end(), term))
        return found

    def _term_of(self, word: str, language: str) -> str | None:
        key = (word, language)
        if key not in self._known:
            candidates = terms(word, language)
            self._known[key] = next((term for term in candidates if term in self._wanted), None)
        return self._known[key]


def _forms(text: str, *, query: bool = False) -> Iterator[tuple[int, int, list[str]]]:
    """Words with their span in the text and the forms they count as, before stemming."""
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if match.lastgroup == "unspaced":
            yield from _pairs(match[0], start, query)
            continue
        # NFKC puts blanks into a few characters, and tantivy splits a field at blanks.
        word = "".join(unicodedata.normalize("NFKC", _POSSESSIVE.sub("", match[0])).split())
        lowered = word.lower()
        for at in range(0, len(lowered), MAX_WORD):
            yield start, end, [lowered[at : at + MAX_WORD]]
        parts = [part.lower() for piece in _PART.findall(word) for part in _CAMEL.split(piece)]
        if len(parts) > 1 and len(lowered) <= MAX_WORD:
            yield start, end, parts


def _pairs(run: str, start: int, query: bool) -> Iterator[tuple[int, int, list[str]]]:
    """Pairs of characters of a run; single ones too, which a query uses only for a run of one."""
    folded = [unicodedata.normalize("NFKC", character).lower() for character in run]
    for n in range(len(folded)):
        if not query or len(folded) == 1:
            yield start + n, start + n + 1, [folded[n]]
        if n + 1 < len(folded):
            yield start + n, start + n + 2, [folded[n] + folded[n + 1]]


@cache
def _stemmer(language: str) -> Stemmer.Stemmer:
    # Another language is damage, which `verify` sees by the checksum of its document.
    return Stemmer.Stemmer(language if language in _FUNCTION_WORDS else "english")
