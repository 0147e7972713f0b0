"""The embedder that an index is asked with: one that was given or named, else the index's own."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ragembed.config import DEFAULT_MODEL, InferenceConfig
from ragembed.encoder.embedder import Embedder
from ragembed.errors import ModelMismatch
from ragembed.index.rows import StoredModel
from ragembed.indexer import embedder_name
from ragembed.tokenizer import Tokenizer, budget_tokenizer

if TYPE_CHECKING:
    from ragembed.encoder.parallel import ParallelEncoder


class Loader:
    """Loads an embedder when it is first asked for, and another one when the index has changed its
    model. Safe to share by threads."""

    def __init__(
        self,
        directory: Path,
        encoder: Embedder | None,
        model: str | Path | None,
        inference: InferenceConfig,
    ) -> None:
        """`encoder` and `model` are what the caller chose; with neither, the index chooses."""
        self._directory = directory
        self._given = encoder
        self._name = None if model is None else str(model)
        self._inference = inference
        self._loaded: Embedder | None = None
        self._workers: ParallelEncoder | None = None
        self._lock = threading.Lock()

    @property
    def was_chosen(self) -> bool:
        """Whether the caller asked for a certain model, rather than the index's own."""
        return self._given is not None or self._name is not None

    def embedder(self, stored: StoredModel | None) -> Embedder:
        """The embedder for an index whose model is `stored` (None: it has none yet).

        Raises:
            ModelNotFound, ModelError: it cannot be loaded.
            ModelMismatch: the index holds vectors of another one.
        """
        with self._lock:
            if self._given is not None:
                embedder = self._given
            else:
                known = self._loaded
                if known is not None and self._name is None and stored is not None:
                    if (
                        known.fingerprint != stored.fingerprint
                    ):  # switched, maybe by another process
                        self._let_go()
                if self._loaded is None:
                    name = self._name or (stored.name if stored else DEFAULT_MODEL)
                    self._loaded = self.load(name)
                embedder = self._loaded
            if stored is not None:
                self.check(embedder, stored)
            return embedder

    def load(self, name: str) -> Embedder:
        """A checkpoint by name or folder, on the configured device or devices."""
        # torch takes a second to import; lexical search, status and unchanged syncs do without it.
        from ragembed.encoder.model import PoolingEncoder

        if os.path.isdir(name):
            name = os.path.abspath(name)  # the index may be opened from elsewhere
        devices = [device.strip() for device in self._inference.device.split(",")]
        if len(devices) > 1:
            from ragembed.encoder.parallel import ParallelEncoder

            self._workers = ParallelEncoder(
                name,
                devices=devices,
                dtype=self._inference.dtype,
                batch_tokens=self._inference.batch_tokens,
            )
            return self._workers
        return PoolingEncoder.from_pretrained(
            name,
            device=self._inference.device,
            dtype=self._inference.dtype,
            batch_tokens=self._inference.batch_tokens,
        )

    def check(self, embedder: Embedder, stored: StoredModel) -> None:
        """Make sure that an embedder is the one whose vectors an index holds; raises ModelMismatch."""
        if stored.fingerprint == embedder.fingerprint:
            return
        name = embedder_name(embedder)
        raise ModelMismatch(
            f"the index in {self._directory} holds vectors of {stored.name} "
            f"({stored.fingerprint[:12]}) and {name} ({embedder.fingerprint[:12]}) gives others: "
            f"use {stored.name}, or make the vectors anew: `ragembed reembed --model {name}`"
        )

    def use(self, *, given: Embedder | None = None, loaded: Embedder | None = None) -> None:
        """From now on an embedder that was given, or one that was loaded here, or the index's own."""
        with self._lock:
            if loaded is None or loaded is not self._workers:
                self._let_go()
            self._given, self._loaded, self._name = given, loaded, None

    def close(self) -> None:
        """End the processes of several devices."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        self._loaded = None


def tokenizer_of(embedder: Embedder) -> Tokenizer:
    """The tokenizer that documents are cut with: the embedder's, if it has one."""
    own: Tokenizer | None = getattr(embedder, "tokenizer", None)
    return own if own is not None else budget_tokenizer()
