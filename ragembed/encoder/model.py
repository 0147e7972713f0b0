"""PoolingEncoder: front end -> transformer -> pooling -> dense -> unit vector, as one nn.Module.

>>> encoder = PoolingEncoder.from_pretrained("all-MiniLM-L6-v2", dtype="float32")
>>> vectors = encoder.encode(["A cat sat on the mat.", "A kitten rested on the rug."])
>>> vectors.shape, vectors.dtype.name
((2, 384), 'float32')
>>> bool(vectors[0] @ vectors[1] > 0.5)
True
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ragembed.config import DEFAULT_MODEL, DType, EncoderConfig, InferenceConfig
from ragembed.encoder import checkpoint, save
from ragembed.encoder.device import choose_device, choose_dtype
from ragembed.encoder.embedding import FrontEnd
from ragembed.encoder.identity import Weights, fingerprint
from ragembed.encoder.inference import Job, LongText, TokenVectors, encode_stream, encode_tokens
from ragembed.encoder.linear import Linear, set_compute_dtype
from ragembed.encoder.masks import places
from ragembed.encoder.packing import Group, Packed, Run
from ragembed.encoder.pooling import pool
from ragembed.encoder.prompts import missing_prompts
from ragembed.encoder.resources import keep_freed_memory, limit_threads
from ragembed.encoder.transformer import Transformer
from ragembed.errors import InvalidInput
from ragembed.progress import bar

if TYPE_CHECKING:
    from ragembed.tokenizer import HuggingFaceTokenizer, Tokens

logger = logging.getLogger(__name__)


class PoolingEncoder(nn.Module):
    """Sentences and documents to single vectors.

    Attributes:
        config: the shape of the network.
        tokenizer: the checkpoint's own tokenizer.
        prompts: text put in front of a `query` or a `document`, where the checkpoint has one.
        name: what the weights were asked for as.
        family: the kind of checkpoint they came from ("bert", "mpnet", ...), "" if from none.
    """

    def __init__(
        self,
        config: EncoderConfig,
        tokenizer: HuggingFaceTokenizer,
        *,
        prompts: Mapping[str, str] | None = None,
        name: str = "",
        weights_sha256: str = "",
        family: str = "",
        tokenizer_settings: Mapping[str, bytes] | None = None,
        trunk: nn.Module | None = None,
        inference: InferenceConfig | None = None,
    ) -> None:
        """A network with random weights; `from_pretrained` fills one with a checkpoint's.

        `trunk` stands in for front end and transformer: (B, L) ids, (B, L) mask or None, to
        (B, L, D).
        """
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.prompts = dict(prompts or {})
        self.name = name
        self.family = family
        self.tokenizer_settings = dict(tokenizer_settings or {})
        self.inference = inference or InferenceConfig(device="cpu", dtype="float32")
        self._known = Weights(weights_sha256)
        self.trunk = trunk
        if trunk is None:
            self.front_end = FrontEnd(config)
            self.transformer = Transformer(config)
        self.dense = nn.ModuleList(
            Linear(layer.inputs, layer.outputs, activation=layer.activation, bias=layer.bias)
            for layer in config.dense
        )

    def forward(self, ids: Tensor, real: Tensor | None = None, *, skip: int = 0) -> Tensor:
        """Token ids (B, L) to vectors (B, d) float32.

        `real` (B, L) is 1 where a token is real and 0 where it is padding, on either side (on the
        right where transformers runs the network); None says that nothing is padded, and the
        attention mask is left out altogether. `skip` leaves so many tokens at the front of each
        text (a prompt) out of the pooling.
        """
        x = self.token_vectors(ids, real)  # (B, L, D)
        return self.head(pool(x, real, self.config.pooling, skip=skip))

    def forward_packed(self, packed: Packed, *, skip: int = 0) -> Tensor:
        """The same for texts without padding between them: T texts to vectors (T, d) float32."""
        x = self.front_end(packed.ids, packed.places)  # (N, D)
        x = self.transformer(x, packed.groups)  # (N, D)
        runs = [run for group in packed.groups for run in group.runs]
        texts = [x[run.rows].view(*run.shape, -1) for run in runs]  # (count, length, D) each
        pooled = [pool(one, None, self.config.pooling, skip=skip) for one in texts]
        return self.head(torch.cat(pooled))

    def token_vectors(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        """Token ids (B, L) to contextual token vectors (B, L, D) float32."""
        if self.trunk is not None:
            x: Tensor = self.trunk(ids, real)
            return x
        B, L = ids.shape
        at = None if real is None else places(real)  # (B, L)
        x = self.front_end(ids, at)  # (B, L, D)
        group = Group((Run(0, B, L),), B, L, real)
        rows: Tensor = self.transformer(x.flatten(0, 1), [group])  # (B * L, D)
        return rows.view(B, L, -1)

    def head(self, vector: Tensor) -> Tensor:
        """Pooled vectors (B, P * D) to what comes out, (B, d): dense maps, length, dimensions."""
        for layer in self.dense:
            vector = layer(vector)
        if self.config.normalize:
            vector = F.normalize(vector, dim=-1)
        if self.config.truncate_dim:
            # Matryoshka (Kusupati et al., 2022; arXiv:2205.13147): the first dimensions alone.
            vector = vector[:, : self.config.truncate_dim]
            vector = F.normalize(vector, dim=-1) if self.config.normalize else vector
        return vector

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
        dtype: DType = "auto",
        batch_tokens: int = 0,
        truncate_dim: int = 0,
        prompts: Mapping[str, str] | None = None,
    ) -> PoolingEncoder:
        """Load a checkpoint: the sentence-transformers folder layout, bare transformers, model2vec.

        Args:
            name: a local folder, or a model's name (see `checkpoint.resolve` for the order).
            device: "auto", "cpu", "cuda", "cuda:1", ...
            dtype: of the matrix products; "auto" is bfloat16 where the processor has it.
            batch_tokens: most tokens in one batch; 0 picks a figure for the device.
            truncate_dim: keep so many leading dimensions (for Matryoshka models); 0 keeps all.
            prompts: for `query` and `document`, in place of the checkpoint's own.

        Raises:
            InvalidInput: a device, dtype or dimension that is not there.
            ModelNotFound: no weights under that name.
            ModelError: weights of an architecture that is not supported, or damaged ones.
        """
        if unknown := sorted(set(prompts or {}) - {"query", "document"}):
            raise InvalidInput(f"prompts are for query and document, not for {', '.join(unknown)}")
        target = choose_device(device)
        loaded = checkpoint.load(checkpoint.resolve(name), truncate_dim=truncate_dim)
        found = dict(loaded.prompts) if prompts is None else dict(prompts)
        if prompts is None and (warning := missing_prompts(str(name), found)):
            logger.warning(warning)
        # Built on the meta device: random initialisation of 22 M weights would only be overwritten.
        with torch.device("meta"):
            encoder = cls(
                loaded.config,
                loaded.tokenizer,
                prompts=found,
                name=str(name),
                weights_sha256=loaded.weights_sha256,
                family=loaded.family,
                tokenizer_settings=loaded.tokenizer_settings,
                trunk=loaded.trunk,
                inference=InferenceConfig(device=device, dtype=dtype, batch_tokens=batch_tokens),
            )
        checkpoint.check_shapes(encoder.state_dict(), loaded.state, name)
        threads = 0
        if target.type == "cpu":
            threads = limit_threads()
            keep_freed_memory()
        encoder.load_state_dict(loaded.state, assign=True, strict=loaded.trunk is None)
        encoder.to(target)
        encoder._weights()  # these are the numbers that the files' digest stands for
        encoder.set_dtype(choose_dtype(dtype, target))
        shown = f"{target}, {threads} threads" if threads else str(target)
        logger.info("%s runs on %s, products in %s", name, shown, encoder.compute_dtype)
        return encoder.eval()

    def save(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` and sentence-transformers load.

        Raises:
            InvalidInput: the folder is there and not empty, or no family has this shape.
            StorageError: it cannot be written.
        """
        save.save(self, Path(folder))

    def encode(
        self,
        texts: Iterable[str],
        *,
        prompt: str = "",
        long: LongText = "error",
        normalize: bool = True,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Vectors of texts without the checkpoint's prompts: float32, shape (n, d), unit length.

        Args:
            texts: any iterable of strings, none of them blank.
            prompt: put in front of each.
            long: what to do with a text of more than `config.max_length` tokens: refuse it, cut it,
                or average the vectors of its pieces, weighted by their tokens.
            normalize: False gives the vectors as the checkpoint's modules make them.
            progress: draw a bar on stderr when it is a terminal.

        Raises:
            InvalidInput: a blank text, or one that is too long under `long="error"`.
            EncodingFailed: the network gave a vector that is not finite, or has no direction.
        """
        blocks = list(
            self.encode_stream(
                texts, prompt=prompt, long=long, normalize=normalize, progress=progress
            )
        )
        return np.concatenate(blocks) if blocks else np.zeros((0, self.dimension), np.float32)

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        prompt: str = "",
        long: LongText = "error",
        normalize: bool = True,
        progress: bool = False,
    ) -> Iterator[NDArray[np.float32]]:
        """The same, a block of about a million tokens at a time, so memory does not grow.

        >>> encoder = PoolingEncoder.from_pretrained()
        >>> lines = (f"line {n}" for n in range(3))
        >>> sum(len(block) for block in encoder.encode_stream(lines))
        3
        """
        total = len(texts) if isinstance(texts, Sized) else None
        with bar("encoding", total, shown=progress) as advance:
            job = Job(prompt=prompt, long=long, normalize=normalize, advance=advance)
            yield from encode_stream(self, texts, job)

    def encode_query(
        self, texts: Iterable[str], *, long: LongText = "mean", progress: bool = False
    ) -> NDArray[np.float32]:
        """Vectors of queries, with the checkpoint's query prompt; a long one is averaged."""
        prompt = self.prompts.get("query", "")
        return self.encode(texts, prompt=prompt, long=long, progress=progress)

    def encode_document(
        self, texts: Iterable[str], *, long: LongText = "error", progress: bool = False
    ) -> NDArray[np.float32]:
        """Vectors of document pieces, with the checkpoint's prompt; otherwise as `encode`."""
        prompt = self.prompts.get("document", "")
        return self.encode(texts, prompt=prompt, long=long, progress=progress)

    def encode_tokens(self, texts: Sequence[str]) -> list[TokenVectors]:
        """The contextual vector of every token, with its span in the text, special tokens left out.

        Raises:
            InvalidInput: a blank text, or one that is longer than the model reads.
        """
        return encode_tokens(self, texts)

    def model_inputs(self, texts: Sequence[str], *, prompt: str = "") -> list[list[int]]:
        """The token ids the network reads for each text, prompt and special tokens included."""
        prompted = [prompt + text for text in texts] if prompt else texts
        inputs = self.tokenizer.model_inputs(prompted, specials=self.config.specials)
        if self.config.drop_unknown:
            unknown = self.tokenizer.unknown_id
            # A text of unknown tokens alone keeps them: it has to have some vector.
            inputs = [[n for n in ids if n != unknown] or ids for ids in inputs]
        spare = self.tokenizer.unknown_id
        spare = self.config.pad_id if spare is None else spare
        return [ids or [spare] for ids in inputs]

    def kept(self, tokens: Tokens) -> NDArray[np.bool_]:
        """Which of a text's tokens the network reads, (n,): all, but for `drop_unknown`."""
        if self.config.drop_unknown and not tokens.unknown.all():
            return ~tokens.unknown
        return np.ones(len(tokens), dtype=np.bool_)

    def frame(self, prompt: str) -> tuple[list[int], list[int]]:
        """The token ids in front of a text (specials and prompt) and behind it (specials)."""
        head = self.tokenizer.encode([prompt])[0].ids.tolist() if prompt else []
        before, after = self._specials
        return [*before, *head], after

    @cached_property
    def _specials(self) -> tuple[list[int], list[int]]:
        return self.tokenizer.frame() if self.config.specials else ([], [])

    @property
    def dimension(self) -> int:
        """d, the length of each vector."""
        return self.config.dimension

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, tokenizer, pooling, prompts, normalisation, dimension.

        Of weights as they were published, their files count; once trained, the numbers do.
        """
        weights = self._weights().sha256
        return fingerprint(self.config, self.tokenizer.fingerprint, self.prompts, weights)

    def _weights(self) -> Weights:
        """The digest of the weights, taken anew when a parameter was changed or replaced."""
        self._known = self._known.up_to_date(self)
        return self._known

    def __getstate__(self) -> dict[str, object]:
        # A copy has other parameters of the same numbers.
        return {**self.__dict__, "_known": Weights(self._weights().sha256)}

    @property
    def layers(self) -> int:
        """Transformer blocks; 0 for a static encoder."""
        return self.config.layers

    @property
    def max_tokens(self) -> int:
        """Most tokens of a document piece, without specials and prompt."""
        before, after = self.frame(self.prompts.get("document", ""))
        return self.config.max_length - len(before) - len(after)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the matrix products in inference; float32 for an encoder without blocks."""
        if self.trunk is not None:
            return getattr(self.trunk, "compute_dtype", torch.float32)
        maps = (part for part in self.transformer.modules() if isinstance(part, Linear))
        return next((part.compute_dtype for part in maps), torch.float32)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Choose the dtype of the matrix products; the weights themselves stay float32."""
        if self.trunk is None:
            set_compute_dtype(self.transformer, dtype)
        elif hasattr(self.trunk, "compute_dtype"):
            self.trunk.compute_dtype = dtype  # type: ignore[assignment]
