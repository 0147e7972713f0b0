"""Encodings: what comes out right, and what is refused rather than guessed."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragembed.errors import ReadError
from ragembed.readers.decode import decode


def code_of(data: bytes, encoding: str | None = None) -> str:
    with pytest.raises(ReadError) as caught:
        decode(data, encoding)
    return caught.value.code


@given(st.text())
def test_utf8_comes_back(text: str) -> None:
    data = text.encode()
    try:
        assert decode(data, None)[0] == text.removeprefix("\ufeff")
    except ReadError as error:
        assert error.code in ("binary", "encoding_unknown")
        assert "\ufffd" in text or any(ord(c) < 32 or ord(c) == 127 for c in text) or "\x00" in text


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        text, encoding = decode(data, None)
    except ReadError as error:
        assert error.code in ("binary", "encoding_unknown")
    else:
        assert data.decode(encoding).removeprefix("\ufeff") == text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_byte_order_marks(encoding: str) -> None:
    mark = "" if encoding in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"
    assert decode((mark + "grün, 文字").encode(encoding), None)[0] == "grün, 文字"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Die Prüfung läuft über alle Größen.", "latin-1"),
        ("L'été dernier, les élèves étaient très contents.", "latin-1"),
        ("El niño comió una manzana en el jardín mañana.", "cp1252"),
        ("“Quoted” – with an em—dash, that is all", "cp1252"),
        ("我们的系统可以使用中文文档进行检索。", "gbk"),
        ("我們可以使用中文文件進行檢索。", "big5"),
        ("これは日本語のテキストです。", "shift_jis"),
        ("これは日本語のテキストです。", "euc_jp"),
        ("これは日本語のテキストです。", "iso2022_jp"),
        ("이것은 한국어로 작성된 문서입니다.", "euc_kr"),
        ("이것은 한국어로 작성된 문서입니다.", "iso2022_kr"),
        ("Это простой русский текст.", "cp1251"),
        ("Это простой русский текст.", "koi8_r"),
        ("Это простой русский текст.", "cp866"),
        ("Zażółć gęślą jaźń, to jest po polsku", "cp1250"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy", "iso8859_2"),
        ("Αυτό είναι ένα ελληνικό κείμενο.", "cp1253"),
        ("זהו טקסט בעברית על מסמכים", "cp1255"),
        ("هذا نص باللغة العربية عن الوثائق", "cp1256"),
        ("นี่คือข้อความภาษาไทย", "tis_620"),
        ("Bu çok güzel bir gün ve ağaçlar yeşil", "cp1254"),
    ],
)
def test_one_line_in_a_legacy_encoding(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding), None)[0] == text


def test_binary_is_refused() -> None:
    assert code_of(b"text\x00text") == "binary"
    assert code_of("utf sixteen".encode("utf-16-le")) == "binary"
    assert code_of(b"\x01\x02\x03 abc" * 10) == "binary"
    assert decode(b"a\tb\r\n\x0c" * 10 + b"\x1b[0m", None)[0].startswith("a\tb")


def test_unknown_is_refused_with_a_remedy() -> None:
    with pytest.raises(ReadError, match="--encoding") as caught:
        decode(bytes(range(0x80, 0x100)) * 4, None)
    assert caught.value.code == "encoding_unknown"


def test_given_encoding_is_taken_at_its_word() -> None:
    assert decode(b"\xe9", "cp437") == ("Θ", "cp437")
    assert code_of(b"\xff\xff", "utf-8") == "encoding_unknown"
    assert code_of(b"\x80abc", "gbk") in ("encoding_unknown",)


def test_replacement_characters_are_refused() -> None:
    assert code_of(("a" * 500 + "\ufffd").encode()) == "encoding_unknown"
    assert decode(("a" * 5000 + "\ufffd").encode(), None)[0].endswith("\ufffd")


# Folder names that are not Python codecs, or whose files use the larger relative of the name.
CODECS = {
    "Big5": "big5hkscs",
    "CP949": "cp949",
    "EUC-KR": "cp949",
    "GB2312": "gb18030",
    "MacCyrillic": "mac_cyrillic",
    "SHIFT_JIS": "cp932",
    "TIS-620": "cp874",
    "iso-8859-1": "cp1252",
}


@pytest.mark.slow
def test_corpus_of_encodings(data: Path, tmp_path: Path) -> None:
    right, wrong, skipped = 0, [], 0
    with tarfile.open(data / "folders/encodings.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    for path in sorted((tmp_path / "encodings").glob("*/*")):
        folder = path.parent.name
        name = CODECS.get(folder) or "-".join(folder.split("-")[: 3 if "8859" in folder else 2])
        raw = path.read_bytes()
        try:
            expected = raw.decode(name).removeprefix("\ufeff")
        except (LookupError, UnicodeDecodeError):
            continue
        try:
            text, encoding = decode(raw, None)
        except ReadError:
            skipped += 1
            continue
        if text == expected:
            right += 1
        else:
            wrong.append(f"{folder}/{path.name} as {encoding}")
    assert right >= 195, (right, skipped, wrong)
    assert len(wrong) <= 1, wrong
