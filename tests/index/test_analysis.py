"""Words, stems, bigrams: what is indexed is what is asked for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragembed.index.analysis import (
    MAX_WORD,
    Matcher,
    detect_language,
    query_terms,
    terms,
)

LANGUAGES = ("english", "german", "french", "russian", "turkish", "finnish")
NASTY = [
    "c++", '"quoted', "AND", "a AND NOT b", "NEAR(a b)", "it's", "-x", "body:word", "*", "^", "~1",
    "foo-bar", "((", "\\", "\0", "a\0b", "\U0001f600", "\U0001f468‍\U0001f469", "中", "中文检索",
    "ภาษาไทย", "ﷺ", "ͺ", "", " \t\n", "́", "x" * 100_000, "word " * 5000, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY, ids=[ascii(text)[:12] for text in NASTY])
def test_nothing_a_user_types_is_syntax(text: str) -> None:
    asked = query_terms(text, LANGUAGES)
    assert len(asked) == len(set(asked))
    for language in LANGUAGES:
        indexed = terms(text, language)
        assert not any(term == "" or re.search(r"\s", term) for term in indexed + asked)


@given(text=st.text(max_size=200), language=st.sampled_from(LANGUAGES))
@settings(max_examples=300, deadline=None)
def test_every_word_of_a_text_finds_it(text: str, language: str) -> None:
    indexed = set(terms(text, language))
    for word in text.split():
        asked = query_terms(word, [language])
        assert not asked or indexed & set(asked), (word, asked)


@given(text=st.text(max_size=200), languages=st.lists(st.sampled_from(LANGUAGES), max_size=3))
@settings(max_examples=200, deadline=None)
def test_terms_hold_no_blanks(text: str, languages: list[str]) -> None:
    """tantivy splits a field at blanks: a term that holds one could never be found."""
    for term in [*terms(text, "english"), *query_terms(text, languages)]:
        assert term == "".join(term.split())
        assert len(term) > 0


@given(text=st.text(max_size=200), language=st.sampled_from(LANGUAGES))
@settings(max_examples=200, deadline=None)
def test_matches_are_spans_of_the_text(text: str, language: str) -> None:
    wanted = frozenset(terms(text, language))
    found = Matcher(wanted).find(text, language)
    assert {term for _, _, term in found} <= wanted
    for start, end, _ in found:
        assert 0 <= start < end <= len(text)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is on the mat and it is not going to leave that place.", "english"),
        (
            "Der Vertrag ist nicht von dem Mieter unterschrieben, und die Frist ist vorbei.",
            "german",
        ),
        ("Le chat est dans la maison avec les enfants et il ne sort pas par la porte.", "french"),
        ("El perro no está en la casa, y los niños que lo buscan son del pueblo.", "spanish"),
        ("Мы не знаем, что это за дом, но он из камня и стоит на горе.", "russian"),
        ("Il gatto non è nella casa, che è più grande della scuola, e anche gli altri.", "italian"),
        ("Bu kitap çok eski bir yazar için ve daha sonra olarak yazıldı.", "turkish"),
        ("def main(argv): return parse(argv)", "english"),
        ("die cast", "english"),
        ("", "english"),
        ("中文检索", "english"),
    ],
)
def test_languages_are_told_apart(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_case_width_and_composition_do_not_matter() -> None:
    same = ["Café", "CAFÉ", "Cafe\u0301", "ｃａｆé"]
    assert len({tuple(terms(word, "french")) for word in same}) == 1


def test_identifiers_count_whole_and_in_parts() -> None:
    for identifier, parts in [
        ("max_tokens", ["max", "token"]),
        ("getValueOf", ["get", "valu", "of"]),
        ("HTTPServer", ["http", "server"]),
        ("snake_caseAndCamel", ["snake", "case", "and", "camel"]),
    ]:
        indexed = terms(identifier, "english")
        assert set(parts) <= set(indexed)
        assert set(query_terms(identifier.lower(), ["english"])) & set(indexed)


def test_possessives_are_dropped_and_other_apostrophes_kept_together() -> None:
    for written in ("Anna's", "Anna’s"):
        assert terms(written, "english") == terms("Anna", "english")
    assert "don't" in terms("don't", "english")


def test_scripts_without_blanks_become_pairs() -> None:
    assert terms("中文字", "english") == ["中", "中文", "文", "文字", "字"]
    assert query_terms("中文字", ["english"]) == ["中文", "文字"]
    assert query_terms("文", ["english"]) == ["文"]
    assert terms("ไทย2024", "english")[-1] == "2024"


def test_long_runs_are_cut_and_still_found() -> None:
    run = "ab" * 5000
    indexed = terms(run, "english")
    assert max(map(len, indexed)) <= MAX_WORD
    assert set(query_terms(run, ["english"])) <= set(indexed)


def test_a_query_is_stemmed_in_every_language_of_the_index() -> None:
    german = terms("Die Kündigungen der Verträge", "german")
    assert set(query_terms("Kündigung Vertrag", ["english", "german"])) & set(german)
    assert query_terms("dogs", ["english", "german"])[0] == "dog"
    assert query_terms("dogs", []) == query_terms("dogs", ["english"])
