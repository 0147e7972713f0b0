"""Texts that are no files: added and deleted by id, never touched by a sync."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ragembed.errors import InvalidInput
from ragembed.index.commit import Writer
from ragembed.index.rows import FileFacts, StoredDocument
from ragembed.indexer import Ingest, Listener, Tally, prepare
from ragembed.readers import parse_blocks
from ragembed.readers.clean import clean
from ragembed.sync import Tools, report_of
from ragembed.types import Document, SyncReport


def add_texts(
    directory: Path, tools: Tools, documents: Iterable[Document], listener: Listener | None
) -> SyncReport:
    """See `Corpus.add`."""
    started = time.monotonic()
    checked = _checked(documents)
    tally = Tally()
    with Writer(directory) as writer:
        known = {document.path: document for document in writer.store.documents(texts=True)}
        chunking = tools.chunking(writer.store)
        ingest = Ingest(writer, tools.embedder, chunking, tools.index, tally, listener)
        for path, document in checked.items():
            facts = _facts(document)
            stored = known.get(path)
            if stored is not None and _same(stored, document, facts):
                tally.unchanged += 1
                continue
            ingest.put(
                prepare(
                    document,
                    facts,
                    root_id=None,
                    path=path,
                    tokenizer=tools.tokenizer(),
                    chunking=chunking,
                    replaces=None if stored is None else stored.id,
                )
            )
        ingest.flush()
        writer.finish()
    return report_of(tally, (), time.monotonic() - started)


def delete_texts(directory: Path, ids: Iterable[str]) -> int:
    """See `Corpus.delete`."""
    wanted = {id.encode("utf-8", "replace") for id in ids}
    with Writer(directory) as writer:
        found = [d for d in writer.store.documents(texts=True) if d.path in wanted]
        if found:
            with writer.transaction() as transaction:
                for document in found:
                    transaction.delete_document(document.id)
            writer.finish()
    return len(found)


def _checked(documents: Iterable[Document]) -> dict[bytes, Document]:
    """Documents by stored path, made fit to be stored; all are looked at before any is stored."""
    checked: dict[bytes, Document] = {}
    for document in documents:
        path = document.id.encode("utf-8", "replace")
        if not document.id.strip():
            raise InvalidInput("a document has a blank id; give each text one of its own")
        if path in checked:
            raise InvalidInput(f"the id {document.id!r} was given twice; ids name one text each")
        text, replaced = clean(document.text)
        if not text.strip():
            raise InvalidInput(
                f"the text of {document.id!r} is blank; there is nothing to find in it"
            )
        try:
            json.dumps(dict(document.metadata), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the metadata of {document.id!r} is not JSON ({error})") from None
        checked[path] = replace(
            document,
            text=text,
            replaced=document.replaced + replaced,
            blocks=document.blocks or parse_blocks(text, document.format),
        )
    return checked


def _facts(document: Document) -> FileFacts:
    data = document.text.encode()
    return FileFacts(hashlib.sha256(data).digest(), len(data), checked_ns=time.time_ns())


def _same(stored: StoredDocument, document: Document, facts: FileFacts) -> bool:
    return (stored.facts.sha256, stored.title, stored.format, dict(stored.metadata)) == (
        facts.sha256,
        document.title,
        document.format,
        dict(document.metadata),
    )
