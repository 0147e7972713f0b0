"""PoolingEncoder: front end -> transformer -> pooling -> unit vector, as one nn.Module.

>>> encoder = PoolingEncoder.from_pretrained("all-MiniLM-L6-v2", dtype="float32")
>>> vectors = encoder.encode(["A cat sat on the mat.", "A kitten rested on the rug."])
>>> vectors.shape, vectors.dtype.name
((2, 384), 'float32')
>>> bool(vectors[0] @ vectors[1] > 0.5)
True
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ragembed.config import DType, EncoderConfig, InferenceConfig
from ragembed.encoder import checkpoint, inference
from ragembed.encoder.embedding import FrontEnd, padding_mask
from ragembed.encoder.pooling import pool
from ragembed.encoder.transformer import Transformer

if TYPE_CHECKING:
    from ragembed.tokenizer import HuggingFaceTokenizer

LongText = Literal["error", "truncate", "mean"]


class PoolingEncoder(nn.Module):
    """Sentences and documents to single vectors.

    Attributes:
        config: the shape of the network.
        tokenizer: the checkpoint's own tokenizer.
        prompts: text put in front of a `query` or a `document`, where the checkpoint has one.
        name: what the weights were asked for as.
        fingerprint: SHA-256 over weights, tokenizer, pooling, prompts, normalisation, dimension.
    """

    def __init__(
        self,
        config: EncoderConfig,
        tokenizer: HuggingFaceTokenizer,
        *,
        prompts: Mapping[str, str] | None = None,
        name: str = "",
        weights_sha256: str = "",
        inference: InferenceConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.prompts = dict(prompts or {})
        self.name = name
        self.inference = inference or InferenceConfig(device="cpu", dtype="float32")
        self.fingerprint = _fingerprint(config, tokenizer.fingerprint, self.prompts, weights_sha256)
        self.front_end = FrontEnd(
            config.vocabulary_size, config.positions, config.hidden_size, config.layer_norm_eps
        )
        self.transformer = Transformer(
            config.layers,
            config.hidden_size,
            config.heads,
            config.intermediate_size,
            config.layer_norm_eps,
        )

    @property
    def dimension(self) -> int:
        """d, the length of each vector."""
        return self.config.hidden_size

    @property
    def max_tokens(self) -> int:
        """Most tokens of a document piece, without specials and prompt."""
        prompt = self.tokenizer.count(self.prompts.get("document", ""))
        return self.config.max_length - self.tokenizer.special_tokens - prompt

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Token ids (B, L), padded on the right, to vectors (B, D) float32.

        `lengths` (B,) are the real tokens of each text; None says that nothing is padded, and the
        attention mask is left out altogether.
        """
        B, L = ids.shape
        mask = None
        if lengths is None:
            lengths = torch.full((B,), L, device=ids.device)
        else:
            mask = padding_mask(lengths, L, self.compute_dtype)
        x = self.front_end(ids)  # (B, L, D)
        x = self.transformer(x, mask)  # (B, L, D)
        vector = pool(x, lengths, self.config.pooling)  # (B, D)
        return F.normalize(vector, dim=-1) if self.config.normalize else vector

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the matrix products; float32 for an encoder without blocks."""
        maps = (part for part in self.transformer.modules() if isinstance(part, nn.Linear))
        return next((part.weight.dtype for part in maps), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.front_end.token.weight.device

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = checkpoint.DEFAULT_MODEL,
        *,
        device: str = "auto",
        dtype: DType = "auto",
        batch_tokens: int = 0,
    ) -> PoolingEncoder:
        """Load a checkpoint in the sentence-transformers folder layout.

        Args:
            name: a local folder, or a model's name (see `checkpoint.resolve` for the order).
            device: "auto", "cpu", "cuda", "cuda:1", ...
            dtype: of the matrix products; "auto" is bfloat16 where the processor has it.
            batch_tokens: most tokens in one batch; 0 picks a figure for the device.

        Raises:
            ModelNotFound: no weights under that name.
            ModelError: weights of an architecture that is not supported, or damaged ones.
        """
        loaded = checkpoint.load(checkpoint.resolve(name))
        run = InferenceConfig(device=device, dtype=dtype, batch_tokens=batch_tokens)
        # Built on the meta device: random initialisation of 22 M weights would only be overwritten.
        with torch.device("meta"):
            encoder = cls(
                loaded.config,
                loaded.tokenizer,
                prompts=loaded.prompts,
                name=str(name),
                weights_sha256=loaded.weights_sha256,
                inference=run,
            )
        encoder.load_state_dict(loaded.state, assign=True)
        target = inference.choose_device(device)
        encoder.to(target)
        inference.cast(encoder.transformer, inference.choose_dtype(dtype, target))
        return encoder.eval()

    def encode(
        self, texts: Sequence[str], *, long: LongText = "error", progress: bool = False
    ) -> NDArray[np.float32]:
        """Vectors of texts without a prompt: float32, shape (n, d), unit length.

        Args:
            texts: strings, none of them blank.
            long: what to do with a text of more than `config.max_length` tokens: refuse it, cut it,
                or average the vectors of its pieces, weighted by their tokens.
            progress: draw a bar on stderr when it is a terminal.

        Raises:
            InvalidInput: a blank text, or one that is too long under `long="error"`.
            EncodingFailed: the network gave a vector that is not finite.
        """
        return inference.encode(self, texts, long=long, progress=progress)

    def encode_query(
        self, texts: Sequence[str], *, long: LongText = "mean", progress: bool = False
    ) -> NDArray[np.float32]:
        """Vectors of queries, with the checkpoint's query prompt; a long one is averaged."""
        return self._encode_with("query", texts, long, progress)

    def encode_document(
        self, texts: Sequence[str], *, long: LongText = "error", progress: bool = False
    ) -> NDArray[np.float32]:
        """Vectors of document pieces, with the checkpoint's prompt; otherwise as `encode`."""
        return self._encode_with("document", texts, long, progress)

    def _encode_with(
        self, prompt: str, texts: Sequence[str], long: LongText, progress: bool
    ) -> NDArray[np.float32]:
        prefix = self.prompts.get(prompt, "")
        prompted = [prefix + text for text in texts] if prefix else texts
        return inference.encode(self, prompted, long=long, progress=progress)


def _fingerprint(
    config: EncoderConfig, tokenizer: str, prompts: Mapping[str, str], weights: str
) -> str:
    parts = {
        "weights": weights,
        "tokenizer": tokenizer,
        "pooling": config.pooling,
        "prompts": {key: prompts[key] for key in sorted(prompts)},
        "normalize": config.normalize,
        "dimension": config.hidden_size,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
