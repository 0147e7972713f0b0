"""A document out of one index and into another: the same, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragembed import Corpus, Document
from ragembed.config import ChunkingConfig
from ragembed.errors import IndexDamaged
from ragembed.index.checksums import row_crc, window_crc
from ragembed.index.commit import Writer
from ragembed.index.rows import StoredModel
from ragembed.index.store import Store
from ragembed.index.transfer import (
    BATCH_DOCUMENTS,
    TransferredDocument,
    read_document,
    write_documents,
)
from ragembed.index.verify import verify

Sql = Callable[..., list[Any]]
LONG = " ".join(f"Sentence {n} tells of thing{n} and of other{n}." for n in range(60))
CHUNKING = ChunkingConfig(passage=64, window=32, overlap=8)


@pytest.fixture
def source(open_corpus: Callable[..., Corpus], directory: Path) -> Path:
    """Two texts: "long" has several passages and windows, "short" one."""
    corpus = open_corpus(chunking=CHUNKING)
    corpus.add(
        [
            Document(id="long", text=LONG, title="Many", metadata={"a": [1, None]}, replaced=2),
            Document(id="short", text="A single window."),
        ]
    )
    corpus.close()
    return directory


def read(directory: Path, *ids: int) -> list[TransferredDocument]:
    store = Store.open(directory)
    try:
        return [read_document(store, model_of(store), id) for id in ids]
    finally:
        store.close()


def model_of(store: Store) -> StoredModel:
    model = store.model()
    assert model is not None
    return model


def empty_like(directory: Path, model: StoredModel, open_corpus: Callable[..., Corpus]) -> Path:
    open_corpus(directory).close()
    with Writer(directory) as writer, writer.transaction() as transaction:
        transaction.set("chunking", "{}")
        transaction.use_model(
            transaction.put_model(model.name, model.fingerprint, model.dimension, model.precision)
        )
    return directory


def test_a_document_comes_out_as_it_went_in(
    source: Path, tmp_path: Path, open_corpus: Callable[..., Corpus]
) -> None:
    documents = read(source, 1, 2)
    assert [d.row.path for d in documents] == [b"long", b"short"]
    assert len(documents[0].row.passages) > 2 and len(documents[0].vectors) > 3
    store = Store.open(source)
    other = empty_like(tmp_path / "other", model_of(store), open_corpus)
    store.close()
    with Writer(other) as writer:
        written = write_documents(writer, model_of(writer.store), reversed(documents))
        writer.finish()
    assert (written.added, written.replaced) == (2, 0)
    assert verify(other, "deep") == []
    for before, after in zip(documents, read(other, 2, 1), strict=True):
        assert before.row == after.row
        assert before.vectors.keys() == after.vectors.keys()
        for key, vector in before.vectors.items():
            np.testing.assert_array_equal(vector, after.vectors[key])


def test_what_is_there_is_replaced_and_its_vectors_are_used(
    source: Path, open_corpus: Callable[..., Corpus]
) -> None:
    (document,) = read(source, 1)
    another = replace(document, row=replace(document.row, title="Another", path=b"new"))
    with Writer(source) as writer:
        before = writer.store.vector_count(model_of(writer.store).id)
        again = replace(document, row=replace(document.row, title="Again"))
        written = write_documents(writer, model_of(writer.store), [again, another])
        assert (written.added, written.replaced) == (1, 1)
        assert writer.store.vector_count(model_of(writer.store).id) == before
        writer.finish()
        assert [(d.id, d.title) for d in writer.store.documents()] == [
            (1, "Again"),
            (3, "Another"),
            (2, ""),
        ]
    assert verify(source) == []


def test_a_batch_is_one_commit(source: Path) -> None:
    (document,) = read(source, 2)
    many = [
        replace(document, row=replace(document.row, path=b"%d" % n))
        for n in range(BATCH_DOCUMENTS + 10)
    ]
    steps: list[int] = []
    with Writer(source) as writer:
        before = writer.store.generation
        write_documents(writer, model_of(writer.store), many, steps.append)
        assert writer.store.generation == before + 2
    assert steps == [BATCH_DOCUMENTS, 10]


STATEMENTS = [
    "DELETE FROM document WHERE id = 1",
    "UPDATE document SET path = x'6c6f6e68' WHERE id = 1",
    "UPDATE document SET title = 'Much' WHERE id = 1",
    "UPDATE document SET metadata = '{}' WHERE id = 1",
    "UPDATE document SET language = 'german' WHERE id = 1",
    "UPDATE document SET sha256 = zeroblob(32) WHERE id = 1",
    "UPDATE document SET mtime_ns = 7 WHERE id = 1",
    "UPDATE document SET format = 'pdf' WHERE id = 1",
    "UPDATE document SET passages = passages + 1 WHERE id = 1",
    "UPDATE document SET windows = windows + 1 WHERE id = 1",
    "UPDATE document SET tokens = tokens + 1 WHERE id = 1",
    "UPDATE document SET unknown = unknown + 1 WHERE id = 1",
    "DELETE FROM source WHERE document_id = 1",
    "UPDATE source SET text = x'00' WHERE document_id = 1",
    "UPDATE source SET text = (SELECT text FROM source WHERE document_id = 2) WHERE document_id = 1",
    "DELETE FROM passage WHERE id = 2",
    "DELETE FROM passage WHERE id = (SELECT max(id) FROM passage WHERE document_id = 1)",
    "UPDATE passage SET text = text || ' ' WHERE id = 2",
    "UPDATE passage SET start = start + 1 WHERE id = 2",
    "UPDATE passage SET heading = '[\"No\"]' WHERE id = 2",
    "UPDATE passage SET first_line = 7 WHERE id = 2",
    "DELETE FROM reading WHERE passage_id = 2",
    "UPDATE reading SET tokens = tokens + 1 WHERE passage_id = 2",
    "DELETE FROM window WHERE passage_id = 2",
    "DELETE FROM window WHERE passage_id = 2 AND position = 0",
    "UPDATE window SET start = start + 1 WHERE passage_id = 2",
    "UPDATE window SET vector_id = 1 WHERE passage_id = 2 AND position = 0",
    "UPDATE window SET crc = crc + 1 WHERE passage_id = 2",
    "DELETE FROM vector WHERE id = 2",
    "UPDATE vector SET data = zeroblob(32) WHERE id = 2",
    "UPDATE vector SET key = zeroblob(32) WHERE id = 2",
    "UPDATE vector SET crc = crc + 1 WHERE id = 2",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_document_that_does_not_fit_is_refused_by_name(
    source: Path, sql: Sql, statement: str
) -> None:
    sql(statement)
    with pytest.raises(IndexDamaged, match=r"\((long|lonh|document 1): "):
        read(source, 1)
    assert read(source, 2)[0].row.path == b"short"


@pytest.mark.parametrize(
    "statements",
    [
        [  # a passage is gone, and so are its figures
            "UPDATE document SET passages = passages - 1, "
            "windows = windows - (SELECT count(*) FROM window WHERE passage_id = 2), "
            "tokens = tokens - (SELECT tokens FROM reading WHERE passage_id = 2) WHERE id = 1",
            "DELETE FROM passage WHERE id = 2",
        ],
        [  # a window is gone
            "UPDATE document SET windows = windows - 1 WHERE id = 1",
            "DELETE FROM window WHERE passage_id = 2 AND position = 0",
        ],
        [  # tokens of one passage went to another
            "UPDATE reading SET tokens = tokens + 1 WHERE passage_id = 1",
            "UPDATE reading SET tokens = tokens - 1 WHERE passage_id = 2",
        ],
    ],
)
def test_figures_that_fit_hide_nothing(source: Path, sql: Sql, statements: list[str]) -> None:
    for statement in statements:
        sql("PRAGMA foreign_keys = ON")
        sql(statement)
    with pytest.raises(IndexDamaged, match=r"\(long: "):
        read(source, 1)


def test_rows_that_are_whole_but_do_not_fit_each_other_are_refused(source: Path, sql: Sql) -> None:
    """Not a flipped bit: somebody wrote them so, checksums and all."""
    *said, _ = sql("SELECT * FROM window WHERE passage_id = 2 AND position = 0")[0]
    (other,) = sql("SELECT vector_id FROM window WHERE passage_id = 1 AND position = 0")[0]
    sql(
        "UPDATE window SET vector_id = ?, crc = ? WHERE passage_id = 2 AND position = 0",
        other,
        window_crc(*said[:-1], other),
    )
    with pytest.raises(IndexDamaged, match="is not that of its window"):
        read(source, 1)


def test_a_passage_that_is_not_the_text_is_refused(source: Path, sql: Sql) -> None:
    *said, _ = sql("SELECT * FROM passage WHERE id = 2")[0]
    said[-1] = said[-1].upper()
    sql("UPDATE passage SET text = ?, crc = ? WHERE id = 2", said[-1], row_crc(*said))
    with pytest.raises(IndexDamaged, match="passage 2 is not the text at its span"):
        read(source, 1)


def test_the_text_of_a_text_is_the_one_that_was_hashed(source: Path, sql: Sql) -> None:
    """A change between passages, which no span would tell."""
    import zlib

    (packed,) = sql("SELECT text FROM source WHERE document_id = 2")[0]
    text = zlib.decompress(packed).decode()
    sql("UPDATE source SET text = ? WHERE document_id = 2", zlib.compress((text + " ").encode()))
    with pytest.raises(IndexDamaged, match="short: its text is another"):
        read(source, 2)
