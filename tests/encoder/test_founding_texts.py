"""The numbers the project started from: ids, lookups, positions, masks, and what can be learned."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from ragembed import PoolingEncoder
from ragembed.config import EncoderConfig, Pooling, Position, Relative
from ragembed.encoder import presets
from ragembed.encoder.embedding import FrontEnd, LearnedPositions, TokenEmbedding
from ragembed.encoder.masks import causal_mask, combine, padding_mask
from ragembed.encoder.packing import Group, Run
from ragembed.encoder.positions import (
    BucketBias,
    RelativeKey,
    bucket,
    distances,
    rotate,
    sinusoidal,
)
from ragembed.encoder.transformer import SelfAttention, Transformer, attend
from ragembed.errors import InvalidInput
from ragembed.tokenizer import HuggingFaceTokenizer, TiktokenTokenizer, budget_tokenizer
from ragembed.training.data import token_windows

TABLE = [
    [0.3374, -0.1778, -0.1690],
    [0.9178, 1.5810, 1.3010],
    [1.2753, -0.2010, -0.1606],
    [-0.4015, 0.9666, -1.1481],
    [-1.1589, 0.3255, -0.6315],
    [-2.8400, -0.7849, -1.4096],
]
VERDICT = [
    [40, 367, 2885, 1464],
    [3619, 402, 271, 10899],
    [257, 7026, 15632, 438],
    [257, 922, 5891, 1576],
    [568, 340, 373, 645],
    [5975, 284, 502, 284],
    [326, 11, 287, 262],
    [286, 465, 13476, 11],
]
VERDICT_TARGETS = [
    [367, 2885, 1464, 1807],
    [402, 271, 10899, 2138],
    [7026, 15632, 438, 2016],
    [922, 5891, 1576, 438],
    [340, 373, 645, 1049],
    [284, 502, 284, 3285],
    [11, 287, 262, 6001],
    [465, 13476, 11, 339],
]
# Every way of telling the network where a token stands.
KINDS: list[tuple[Position, Relative]] = [
    ("learned", "none"),
    ("sinusoidal", "none"),
    ("none", "rotary"),
    ("none", "buckets"),
    ("none", "relative_key"),
]
SIZE = 32  # words of the small vocabulary
LONGEST = 24


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small lose more time waiting for a second thread than it saves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def word_tokenizer(words: list[str]) -> HuggingFaceTokenizer:
    """One token a word, numbered as they come; no special tokens."""
    vocabulary = {word: number for number, word in enumerate(words)}
    rust = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    rust.normalizer = normalizers.Lowercase()
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    return HuggingFaceTokenizer(rust.to_str().encode(), "words")


@pytest.fixture(scope="module")
def numbered() -> HuggingFaceTokenizer:
    """w0, w1, ..., w31."""
    return word_tokenizer([f"w{n}" for n in range(SIZE)])


def build(
    tokenizer: HuggingFaceTokenizer,
    *,
    seed: int = 0,
    vocabulary: int = SIZE,
    hidden: int = 16,
    layers: int = 2,
    position: Position = "none",
    relative: Relative = "none",
    causal: bool = False,
    front_norm: bool = True,
    pooling: tuple[Pooling, ...] = ("mean",),
) -> PoolingEncoder:
    """A small network with random weights."""
    torch.manual_seed(seed)
    config = EncoderConfig(
        vocabulary_size=vocabulary,
        hidden_size=hidden,
        layers=layers,
        heads=4,
        intermediate_size=2 * hidden,
        positions=LONGEST,
        max_length=LONGEST,
        position=position,
        relative=relative,
        causal=causal,
        front_norm=front_norm,
        pooling=pooling,
        specials=False,
    )
    return PoolingEncoder(config, tokenizer)


@pytest.fixture
def gpt2(data: Path, monkeypatch: pytest.MonkeyPatch) -> TiktokenTokenizer:
    if not (data / "tiktoken").is_dir():
        pytest.skip(f"GPT-2's files are not in {data / 'tiktoken'}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data / "tiktoken"))
    tokenizer = budget_tokenizer("gpt2")
    assert isinstance(tokenizer, TiktokenTokenizer)
    return tokenizer


@pytest.fixture
def verdict(data: Path, gpt2: TiktokenTokenizer) -> list[int]:
    """GPT-2's ids of the short story."""
    text = (data / "text" / "the-verdict.txt").read_text(encoding="utf-8")
    return gpt2.encode_with_specials(text)


# --- the table -------------------------------------------------------------------------------


@pytest.fixture
def table() -> TokenEmbedding:
    torch.manual_seed(123)
    return TokenEmbedding(6, 3)


def test_the_seed_gives_the_known_table(table: TokenEmbedding) -> None:
    assert table.weight.requires_grad
    torch.testing.assert_close(table.weight.detach(), torch.tensor(TABLE), atol=5e-5, rtol=0)


def test_ids_pick_rows(table: TokenEmbedding) -> None:
    one = table(torch.tensor([3])).detach()
    torch.testing.assert_close(one, torch.tensor([[-0.4015, 0.9666, -1.1481]]), atol=5e-5, rtol=0)
    four = table(torch.tensor([5, 1, 3, 2])).detach()
    expected = torch.tensor([TABLE[n] for n in (5, 1, 3, 2)])
    torch.testing.assert_close(four, expected, atol=5e-5, rtol=0)


def test_an_id_has_one_vector_at_every_place(table: TokenEmbedding) -> None:
    found = table(torch.tensor([[5, 1, 5], [3, 5, 2]]))
    assert torch.equal(found[0, 0], found[0, 2])
    assert torch.equal(found[0, 0], found[1, 1])
    placed = found + LearnedPositions(3, 3)(torch.arange(3))
    assert not torch.allclose(placed[0, 0], placed[0, 2])


def test_a_lookup_is_one_hot_times_the_table_and_so_are_its_gradients(
    table: TokenEmbedding,
) -> None:
    ids = torch.tensor([5, 1, 3, 2, 5])  # the gradients of a row that is used twice add up
    weights = torch.randn(5, 3)
    (table(ids) * weights).sum().backward()
    dense = table.weight.detach().clone().requires_grad_()
    product = F.one_hot(ids, 6).float() @ dense
    (product * weights).sum().backward()
    torch.testing.assert_close(table(ids), product)
    assert table.weight.grad is not None and dense.grad is not None
    torch.testing.assert_close(table.weight.grad, dense.grad)
    assert table.weight.grad[[0, 4]].eq(0).all()  # ids that did not occur
    assert table.weight.grad[[1, 2, 3, 5]].ne(0).all()


@pytest.mark.parametrize(
    ("preset", "hidden", "layers", "heads", "wide", "positions", "weights"),
    [
        (presets.GPT2_SMALL, 768, 12, 12, 3_072, 1_024, 124_439_808),
        (presets.GPT3_175B, 12_288, 96, 96, 49_152, 2_048, 174_604_259_328),
        (presets.BERT_BASE, 768, 12, 12, 3_072, 512, 108_890_112),
        (presets.MINILM_L6, 384, 6, 12, 1_536, 512, 22_564_608),
    ],
    ids=["gpt2-small", "gpt3-175b", "bert-base", "minilm-l6"],
)
def test_presets_have_the_published_sizes(
    preset: EncoderConfig,
    hidden: int,
    layers: int,
    heads: int,
    wide: int,
    positions: int,
    weights: int,
) -> None:
    shape = (preset.hidden_size, preset.layers, preset.heads, preset.intermediate_size)
    assert shape == (hidden, layers, heads, wide)
    assert preset.positions == positions
    assert preset.vocabulary_size == (50_257 if preset.causal else 30_522)
    with torch.device("meta"):  # shapes without memory
        network = nn.ModuleList([FrontEnd(preset), Transformer(preset)])
    assert sum(p.numel() for p in network.parameters()) == weights


def test_the_minilm_preset_is_the_shape_of_the_checkpoint(encoder: PoolingEncoder) -> None:
    assert encoder.config == presets.MINILM_L6


# --- GPT-2's tokens and the loader -----------------------------------------------------------


def test_gpt2_tokens(gpt2: TiktokenTokenizer) -> None:
    assert gpt2.vocabulary_size == 50_257
    assert gpt2.encode(["Ak"])[0].ids.tolist() == [33901]
    assert gpt2.encode(["w"])[0].ids.tolist() == [86]
    assert gpt2.decode([33901, 86, 343, 86, 220, 959]) == "Akwirw ier"


def test_gpt2_has_one_special_token_and_takes_more(gpt2: TiktokenTokenizer) -> None:
    assert gpt2.special_ids == {"<|endoftext|>": 50_256}
    more = gpt2.extended("<|unk|>")
    assert more.vocabulary_size == 50_258
    assert more.special_ids == {"<|endoftext|>": 50_256, "<|unk|>": 50_257}
    meant = "one<|endoftext|>two <|unk|>"
    assert more.encode_with_specials(meant) == [505, 50256, 11545, 220, 50257]
    assert more.decode([505, 50256, 11545, 220, 50257]) == meant


def test_a_document_that_mentions_special_tokens_stays_a_document(gpt2: TiktokenTokenizer) -> None:
    more = gpt2.extended("<|unk|>")
    text = "GPT-2 ends a text with <|endoftext|>; <|unk|> is not its own."
    (tokens,) = more.encode([text])
    assert not {50_256, 50_257} & set(tokens.ids.tolist())
    assert tokens.ids.tolist() == gpt2.encode([text])[0].ids.tolist()
    assert more.count(text) == len(tokens)
    assert more.decode(tokens.ids) == text


def test_the_loader_gives_the_known_batch(verdict: list[int]) -> None:
    inputs, targets = next(iter(token_windows(verdict, batch_size=8, max_length=4, stride=5)))
    assert inputs.tolist() == VERDICT
    assert targets.tolist() == VERDICT_TARGETS
    inputs, _ = next(iter(token_windows(verdict, batch_size=8, max_length=4)))
    assert inputs[:2].tolist() == [[40, 367, 2885, 1464], [1807, 3619, 402, 271]]


def test_token_and_position_vectors_add_up() -> None:
    torch.manual_seed(123)
    tokens = TokenEmbedding(50_257, 256)(torch.tensor(VERDICT))
    positions = LearnedPositions(4, 256)(torch.arange(4))
    assert (tokens.shape, positions.shape) == ((8, 4, 256), (4, 256))
    both = tokens + positions
    assert both.shape == (8, 4, 256)
    torch.testing.assert_close(both[7, 2], tokens[7, 2] + positions[2])


def test_the_front_end_adds_a_position_to_a_token(numbered: HuggingFaceTokenizer) -> None:
    front = build(numbered, hidden=4, position="learned", front_norm=False).front_end
    assert isinstance(front.position, LearnedPositions)
    with torch.no_grad():
        front.token.weight[7] = torch.tensor([0.5, -0.2, 0.1, 0.0])
        front.position.table.weight[1] = torch.tensor([0.1, 0.3, -0.1, 0.0])
        found = front(torch.tensor([[3, 7]]))[0, 1]
    torch.testing.assert_close(found, torch.tensor([0.6, 0.1, 0.0, 0.0]))


# --- order and positions ---------------------------------------------------------------------

CAT = "Die Katze saß auf der Matte"
MAT = "Die Matte saß auf der Katze"


def pooled(encoder: PoolingEncoder, text: str) -> Tensor:
    with torch.no_grad():
        return encoder(torch.tensor(encoder.model_inputs([text])))[0]


@pytest.mark.parametrize("pooling", ["mean", "max", "mean_sqrt_len"])
def test_without_positions_a_text_is_a_bag_of_words(pooling: Pooling) -> None:
    tokenizer = word_tokenizer("die katze saß auf der matte".split())
    bag = build(tokenizer, vocabulary=6, pooling=(pooling,))
    assert bag.model_inputs([CAT, MAT]) == [[0, 1, 2, 3, 4, 5], [0, 5, 2, 3, 4, 1]]
    torch.testing.assert_close(pooled(bag, CAT), pooled(bag, MAT), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("position", "relative"), KINDS)
def test_with_positions_order_counts(position: Position, relative: Relative) -> None:
    tokenizer = word_tokenizer("die katze saß auf der matte".split())
    ordered = build(tokenizer, vocabulary=6, position=position, relative=relative)
    assert (pooled(ordered, CAT) - pooled(ordered, MAT)).abs().max() > 0.01


@pytest.mark.parametrize(("position", "relative"), KINDS)
def test_every_kind_of_position_trains(
    position: Position, relative: Relative, numbered: HuggingFaceTokenizer
) -> None:
    network = build(numbered, position=position, relative=relative)
    vectors = network(torch.randint(SIZE, (3, 9)))
    (vectors * torch.randn_like(vectors)).sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_learned_positions_are_rows_and_end() -> None:
    learned = LearnedPositions(4, 8)
    assert torch.equal(learned(torch.arange(4)), learned.table.weight)
    with pytest.raises(IndexError):
        learned(torch.tensor([4]))


@pytest.mark.parametrize("k", [1, 2, 7, 100, -3])
def test_sinusoidal_positions_move_by_a_rotation(k: int) -> None:
    size, places = 16, torch.arange(4, 512)
    here, there = sinusoidal(places, size), sinusoidal(places + k, size)
    rotation = torch.zeros(size, size)
    for i in range(size // 2):
        angle = k * 10_000 ** (-2 * i / size)
        cos, sin = math.cos(angle), math.sin(angle)
        # sin(a + b) = cos b sin a + sin b cos a, cos(a + b) = -sin b sin a + cos b cos a
        rotation[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[cos, sin], [-sin, cos]])
    torch.testing.assert_close(here @ rotation.T, there, atol=1e-4, rtol=0)
    # The map need not be known: least squares finds one that fits as well.
    fitted = torch.linalg.lstsq(here.double(), there.double()).solution
    torch.testing.assert_close(here.double() @ fitted, there.double(), atol=1e-4, rtol=0)


def test_sinusoidal_positions_differ_and_have_the_published_values() -> None:
    vectors = sinusoidal(torch.arange(1_000), 16)
    apart = torch.cdist(vectors, vectors) + 9 * torch.eye(1_000)
    assert apart.min() > 0.1
    p, i = 37, 3
    expected = [math.sin(p / 10_000 ** (2 * i / 16)), math.cos(p / 10_000 ** (2 * i / 16))]
    torch.testing.assert_close(vectors[p, 6:8], torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_rotary_product_depends_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)

    def product(p: int, r: int) -> float:
        return float(rotate(q[None], torch.tensor([p])) @ rotate(k[None], torch.tensor([r])).T)

    for distance in (0, 1, 5, 40):
        found = [product(r + distance, r) for r in (0, 1, 17, 300)]
        assert np.allclose(found, found[0], atol=1e-4)
    assert abs(product(5, 0) - product(4, 0)) > 1e-2
    assert abs(product(5, 0) - product(0, 5)) > 1e-2  # forwards is not backwards
    assert math.isclose(product(0, 0), float(q @ k), abs_tol=1e-5)


def test_rotary_is_that_of_llama() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 4, 10, 8)  # two of (B, H, L, K)
    at = torch.arange(10)
    angles = at[:, None] * 10_000 ** (-torch.arange(0, 8, 2) / 8)  # (L, K / 2)
    twice = torch.cat([angles, angles], dim=-1)[None]
    theirs = apply_rotary_pos_emb(q, k, twice.cos(), twice.sin())
    torch.testing.assert_close(rotate(q, at), theirs[0])
    torch.testing.assert_close(rotate(k, at), theirs[1])


def test_buckets_are_those_of_mpnet() -> None:
    far = torch.arange(-600, 601)
    theirs = MPNetEncoder.relative_position_bucket(far, num_buckets=32)
    assert torch.equal(bucket(far, 32), theirs)
    assert set(theirs.tolist()) == set(range(32)) - {16}  # only a distance of 0 would be in it


def test_a_bucket_bias_is_a_number_a_head_and_distance() -> None:
    torch.manual_seed(0)
    bias = BucketBias(heads=2)
    found = bias(20)
    assert found.shape == (1, 2, 20, 20)
    far = distances(20, torch.device("cpu"))
    assert far[3, 5] == 2 and far[5, 3] == -2  # row = query, column = key
    for head, query, key in ((0, 3, 5), (1, 5, 3), (1, 19, 0)):
        row = int(bucket(torch.tensor(key - query)))
        assert found[0, head, query, key] == bias.table.weight[row, head]


def test_relative_key_is_the_naive_double_loop() -> None:
    torch.manual_seed(0)
    B, H, L, K, positions = 2, 3, 7, 4, 9
    relative = RelativeKey(positions, K)
    q, k, v = torch.randn(3, B, H, L, K)
    scores = torch.zeros(B, H, L, L)
    for l in range(L):  # noqa: E741
        for r in range(L):
            a = relative.table.weight[l - r + positions - 1]
            scores[:, :, l, r] = (q[:, :, l] * (k[:, :, r] + a)).sum(-1) / math.sqrt(K)
    expected = scores.softmax(dim=-1) @ v
    torch.testing.assert_close(q @ k.mT / math.sqrt(K) + relative(q), scores)
    torch.testing.assert_close(attend(q, k, v, relative(q)), expected)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, relative(q)), expected)


@pytest.mark.parametrize("relative", get_args(Relative))
def test_attention_is_softmax_of_products_whatever_the_kind(
    relative: Relative, numbered: HuggingFaceTokenizer
) -> None:
    network = build(numbered, relative=relative, layers=1).transformer
    (block,) = network.blocks
    attention = block.attention
    assert isinstance(attention, SelfAttention)
    x = torch.randn(1, 6, 16)
    texts = network.texts(Group((Run(0, 1, 6),), 1, 6, None), x.device)
    q, k, v = attention.qkv(x).view(1, 6, 3, 4, 4).permute(2, 0, 3, 1, 4)
    if relative == "rotary":
        q, k = rotate(q, torch.arange(6)), rotate(k, torch.arange(6))
    scores = q @ k.mT / 2
    if relative == "buckets":
        assert network.buckets is not None
        scores = scores + network.buckets(6)
    if relative == "relative_key":
        scores = scores + attention.relative_key(q)
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(1, 6, 16)
    torch.testing.assert_close(attention(x[0], [texts]), attention.output(mixed)[0])


@pytest.mark.parametrize(("position", "relative"), KINDS)
def test_too_long_is_refused_or_cut_on_request_and_short_is_padded(
    position: Position, relative: Relative, numbered: HuggingFaceTokenizer
) -> None:
    network = build(numbered, position=position, relative=relative).eval()
    words = [f"w{n % SIZE}" for n in range(LONGEST + 6)]
    long, full = " ".join(words), " ".join(words[:LONGEST])
    with pytest.raises(InvalidInput, match=f"text 2 has {LONGEST + 6} tokens.*reads {LONGEST}"):
        network.encode(["w1", long])
    cut = network.encode(["w1", long, "w2 w3"], long="truncate")
    assert np.allclose(cut[1], network.encode([full])[0], atol=1e-6)
    assert np.allclose(cut[0], network.encode(["w1"])[0], atol=1e-6)
    assert np.allclose(cut[2], network.encode(["w2 w3"])[0], atol=1e-6)


# --- masks -----------------------------------------------------------------------------------


def test_the_padding_mask_is_additive() -> None:
    real = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    mask = padding_mask(real, torch.float32)
    assert mask.shape == (2, 1, 1, 4)
    low = torch.finfo(torch.float32).min
    assert mask[:, 0, 0].tolist() == [[0, 0, 0, low], [low, 0, 0, 0]]


def test_the_causal_mask_hides_what_comes_later() -> None:
    mask = causal_mask(5, torch.float32)
    assert mask.shape == (1, 1, 5, 5)
    low = torch.finfo(torch.float32).min
    for query in range(5):
        assert mask[0, 0, query].tolist() == [0.0] * (query + 1) + [low] * (4 - query)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_add_up_without_overflow(dtype: torch.dtype) -> None:
    real = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    both = combine(padding_mask(real, dtype), None, causal_mask(4, dtype))
    assert both is not None and both.dtype == dtype
    assert both.shape == (2, 1, 4, 4)
    allowed = (real[:, None, None, :] == 1) & (torch.ones(4, 4).tril() == 1)
    assert both.eq(0).equal(allowed)
    assert both[~allowed].eq(torch.finfo(dtype).min).all()
    rows = (torch.randn(2, 1, 4, 4).to(dtype) + both).softmax(dim=-1)
    assert rows.isfinite().all()
    assert rows[0, 0, 2].tolist()[2:] == [0.0, 0.0]
    assert combine(None, None) is None


def test_a_thousand_million_is_no_number_in_float16() -> None:
    assert torch.tensor(-1e9).to(torch.float16) == -torch.inf
    blocked = torch.full((4,), -torch.inf, dtype=torch.float16).softmax(dim=-1)
    assert blocked.isnan().all()  # what a row of padding would come to
    lowest = padding_mask(torch.zeros(1, 4), torch.float16)
    assert lowest.isfinite().all() and lowest.softmax(dim=-1).isfinite().all()


def padded_batch(ids: list[int], width: int, side: str) -> tuple[Tensor, Tensor]:
    """A text among others, padded on one side with ids that mean something; it is number 1."""
    gap = [9] * (width - len(ids))
    row = ids + gap if side == "right" else gap + ids
    shown = [1] * len(ids) + [0] * len(gap)
    mask = shown if side == "right" else shown[::-1]
    others = torch.randint(SIZE, (2, width)).tolist()
    full = [1] * width
    return torch.tensor([others[0], row, others[1]]), torch.tensor([full, mask, full])


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("relative", get_args(Relative))
@pytest.mark.parametrize("position", get_args(Position))
def test_padding_changes_no_vector(
    position: Position,
    relative: Relative,
    causal: bool,
    pooling: Pooling,
    numbered: HuggingFaceTokenizer,
) -> None:
    network = build(
        numbered, position=position, relative=relative, causal=causal, pooling=(pooling,)
    )
    ids = [4, 8, 15, 16, 23]
    with torch.no_grad():
        alone = network(torch.tensor([ids]))[0]
        for side in ("left", "right"):
            for width in (6, 17):
                found = network(*padded_batch(ids, width, side))[1]
                torch.testing.assert_close(found, alone, atol=1e-6, rtol=0)
    trained = network(*padded_batch(ids, 17, "left"))[1]  # another code path: with gradients
    torch.testing.assert_close(trained.detach(), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("position", "relative"), [("none", "none"), *KINDS])
def test_a_causal_network_does_not_see_what_comes_later(
    position: Position, relative: Relative, numbered: HuggingFaceTokenizer
) -> None:
    torch.manual_seed(1)
    ids = torch.randint(SIZE, (1, 8))
    changed = ids.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % SIZE
    causal = build(numbered, position=position, relative=relative, causal=True)
    with torch.no_grad():
        before, after = causal.token_vectors(ids)[0], causal.token_vectors(changed)[0]
        torch.testing.assert_close(before[:5], after[:5], atol=1e-6, rtol=0)
        assert (before[5:] - after[5:]).abs().amax(dim=-1).min() > 0.01
        both = build(numbered, position=position, relative=relative)
        moved = both.token_vectors(ids)[0] - both.token_vectors(changed)[0]
    assert moved.abs().amax(dim=-1).min() > 1e-3


# --- no layers, one-hot ----------------------------------------------------------------------


def test_a_network_without_layers_is_the_same_class(numbered: HuggingFaceTokenizer) -> None:
    static = build(numbered, layers=0, front_norm=False)
    assert type(static) is PoolingEncoder and static.layers == 0
    assert [name for name, _ in static.named_parameters()] == ["front_end.token.weight"]
    rows = static.front_end.token.weight[[3, 1, 4]].detach()
    expected = F.normalize(rows.mean(dim=0), dim=0)
    torch.testing.assert_close(pooled(static, "w3 w1 w4"), expected)
    assert np.allclose(static.encode(["w3 w1 w4", "w2"])[0], expected, atol=1e-6)


def test_one_hot_is_the_front_end_with_an_identity_table() -> None:
    words = "i love eating apple".split()
    static = build(word_tokenizer(words), vocabulary=4, hidden=4, layers=0, front_norm=False)
    with torch.no_grad():
        static.front_end.token.weight.copy_(torch.eye(4))
    assert static.model_inputs(["I love eating apple"]) == [[0, 1, 2, 3]]
    tokens = static.token_vectors(torch.tensor([[0, 1, 2, 3]]))[0].detach()
    assert torch.equal(tokens, F.one_hot(torch.arange(4), 4).float())
    assert torch.equal(tokens @ tokens.T, torch.eye(4))  # no word is nearer to one than another
    assert pooled(static, "I love eating apple").tolist() == [0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("size", [4, 100, 2_000])
def test_the_flaws_of_one_hot_in_numbers(size: int) -> None:
    table = TokenEmbedding.from_pretrained(torch.eye(size))
    vectors = table(torch.arange(size))
    assert vectors.shape == (size, size)  # as many dimensions as words
    assert torch.equal(vectors @ vectors.T, torch.eye(size))  # all pairs orthogonal
    assert vectors.eq(0).float().mean().item() == pytest.approx(1 - 1 / size)


def test_nine_ids_do_not_fit_eight_words() -> None:
    sentence = "i eat a big apple every day ."
    words = sentence.split()
    assert (len(sentence), len(words), len(set(words))) == (29, 8, 8)
    table = TokenEmbedding(8, 4)
    assert table(torch.arange(8)).shape == (8, 4)
    with pytest.raises(IndexError):
        table(torch.tensor([8]))
    assert TokenEmbedding(len(sentence), 4)(torch.arange(9)).shape == (9, 4)  # 21 rows of no use


# --- learning --------------------------------------------------------------------------------

COOKING = [
    "Simmer the onions in butter until they are golden.",
    "Knead the dough and let it rise for an hour.",
    "Season the soup with salt and black pepper.",
    "Bake the bread at 220 degrees.",
    "Whisk two eggs with a cup of sugar.",
    "Roast the potatoes with rosemary and oil.",
    "Drain the pasta and stir in the sauce.",
    "Chop the garlic and fry it gently.",
]
STARS = [
    "Jupiter has more than ninety known moons.",
    "The telescope collects light from distant galaxies.",
    "A comet's tail points away from the sun.",
    "Neutron stars are only some twenty kilometres wide.",
    "The lunar eclipse will last three hours.",
    "Mars takes 687 days to orbit the sun.",
    "Astronomers measured the parallax of the star.",
    "The probe left the solar system years ago.",
]
UNSEEN = ["Stir the flour into the milk.", "Saturn's rings are made of ice and rock."]


@pytest.fixture
def frozen(encoder: PoolingEncoder) -> Iterator[PoolingEncoder]:
    """MiniLM that is not trained."""
    encoder.requires_grad_(False)
    yield encoder
    encoder.requires_grad_(True)


def test_an_output_layer_learns_on_a_frozen_encoder(frozen: PoolingEncoder) -> None:
    before = copy.deepcopy(frozen.state_dict())

    def features(texts: list[str]) -> Tensor:
        inputs = frozen.model_inputs(texts)
        width = max(map(len, inputs))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in inputs])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in inputs])
        return frozen(ids, real)

    x, y = features(COOKING + STARS), torch.tensor([0] * 8 + [1] * 8)
    assert not x.requires_grad
    torch.manual_seed(0)
    layer = nn.Linear(frozen.dimension, 2)
    losses = train(layer.parameters(), lambda: F.cross_entropy(layer(x), y), steps=50, rate=0.05)
    assert losses[0] > 0.6 and losses[-1] < 0.05
    assert layer(features(UNSEEN)).argmax(dim=1).tolist() == [0, 1]
    assert all(torch.equal(before[name], now) for name, now in frozen.state_dict().items())
    assert all(p.grad is None for p in frozen.parameters())


def which_first(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of eight words that hold w1 and w2 once each, and whether w1 comes first."""
    chosen = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, SIZE, (count, 8), generator=chosen)
    for row in ids:
        one, two = torch.randperm(8, generator=chosen)[:2]
        row[one], row[two] = 1, 2
    return ids, ((ids == 1).int().argmax(1) < (ids == 2).int().argmax(1)).long()


def train(parameters, loss, *, steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.Adam(parameters, lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        now = loss()
        now.backward()
        optimizer.step()
        losses.append(now.item())
    return losses


@pytest.mark.parametrize("position", ["learned", "none"])
def test_an_encoder_from_scratch_learns_order_if_it_has_positions(
    position: Position, numbered: HuggingFaceTokenizer
) -> None:
    network = build(numbered, layers=1, position=position)
    layer = nn.Linear(network.dimension, 2)
    x, y = which_first(256, seed=0)
    losses = train(
        [*network.parameters(), *layer.parameters()],
        lambda: F.cross_entropy(layer(network(x)), y),
        steps=80,
        rate=0.02,
    )
    fresh, truth = which_first(256, seed=1)
    right = (layer(network(fresh)).argmax(dim=1) == truth).float().mean()
    if position == "learned":
        assert losses[0] > 0.6 and losses[-1] < 0.2
        assert right > 0.85
    else:
        assert right < 0.65  # a bag of words does not hold the answer
