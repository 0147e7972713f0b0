"""The facade: what a full disk, another model or a second process does to it."""

from __future__ import annotations

from pathlib import Path

import pytest

import ragembed
from ragembed import Document
from ragembed.errors import IndexNotFound, ModelMismatch, StorageError
from ragembed.index.checksums import row_crc
from ragembed.index.lexical import LexicalFailure, LexicalIndex


def test_a_full_disk_is_a_storage_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ragembed.Corpus(tmp_path / "index") as corpus:
        corpus.add([Document(id="a", text="The zyzzyva sleeps.")])

        def full(*_: object) -> None:
            raise LexicalFailure("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(LexicalIndex, "apply", full)
            with pytest.raises(StorageError, match=r"No space left.*nothing that was acknowledged"):
                corpus.add([Document(id="b", text="The clipper sails.")])
        assert StorageError.exit_code == 5
    with ragembed.Corpus(tmp_path / "index") as corpus:
        assert corpus.search("clipper", k=1, mode="lexical")[0].path == "b"
        assert corpus.verify().ok


def test_opening_without_creating(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFound, match="ragembed index PATH"):
        ragembed.Corpus(tmp_path / "index", create=False)
    assert not (tmp_path / "index").exists()


class Other:
    """An embedder that is not the index's."""

    name = "other"
    dimension = 384
    fingerprint = "another fingerprint"

    def encode_query(self, texts: object) -> None:
        raise AssertionError("nothing may be encoded with the wrong model")

    encode_document = encode_query


def test_another_encoder_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("The zyzzyva sleeps.")
    with ragembed.Corpus(tmp_path / "index") as corpus:
        corpus.sync(docs)
    with ragembed.Corpus(tmp_path / "index", encoder=Other()) as corpus:  # type: ignore[arg-type]
        for ask in (lambda: corpus.search("x"), lambda: corpus.sync(docs)):
            with pytest.raises(ModelMismatch, match=r"ragembed reembed --model other"):
                ask()
        assert corpus.search("zyzzyva", mode="lexical")[0].path == "a.md"


def test_two_models_never_meet_in_one_index(tmp_path: Path) -> None:
    """An index that was empty when it was opened may have got a model from elsewhere since."""
    with ragembed.Corpus(tmp_path / "index") as early:
        early.embedder()
        with ragembed.Corpus(tmp_path / "index") as writer:
            writer.add([Document(id="a", text="The zyzzyva sleeps.")])
            with writer.reading() as store:
                assert store.model() is not None
        import sqlite3

        connection = sqlite3.connect(tmp_path / "index/ragembed.db")
        (row,) = connection.execute("SELECT id, name, dimension, precision FROM model").fetchall()
        crc = row_crc(row[0], row[1], "elsewhere", row[2], row[3])
        connection.execute("UPDATE model SET fingerprint = 'elsewhere', crc = ?", (crc,))
        connection.commit()
        connection.close()
        with pytest.raises(ModelMismatch):
            early.add([Document(id="b", text="Tea.")])
