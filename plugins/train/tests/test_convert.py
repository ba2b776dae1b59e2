"""Heads in their authors' formats: read with care, and refused with reason."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import fastllm_core
from fastllm_core import ConfigError, ModelError, load_head
from fastllm_core.testing import tiny_tokenizer
from fastllm_plugin_train.convert import converted, read

SIZE = 32


def published(folder: Path, *, prefix: str = "", **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the authors' trainer writes: a Llama of one layer, in half precision, with rotary buffers."""
    noise = torch.Generator().manual_seed(0)
    weights = {"norm.weight": torch.rand(SIZE, generator=noise), "layers.0.input_layernorm.weight": torch.ones(SIZE)}
    weights |= {
        f"layers.0.self_attn.{part}_proj.weight": torch.randn(SIZE, SIZE, generator=noise).half() for part in "qkvo"
    }
    weights["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights |= {name.replace("__", "."): tensor for name, tensor in more.items()}
    folder.mkdir(exist_ok=True)
    torch.save({prefix + name: tensor for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 4, "rms_norm_eps": 1e-5}))
    return weights


def convert(source: Path, model: str, **options: str) -> Any:
    config = fastllm_core.load_config(None, {"model": model, "dtype": "float32", "device": "cpu"})
    return converted("kangaroo", source, config, {"exit_layer": "2", **options})


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_published_adapter_comes_in_and_drafts(model: str, tmp_path: Path, prefix: str) -> None:
    weights = published(tmp_path / "theirs", prefix=prefix)
    convert(tmp_path / "theirs", model).save(tmp_path / "ours")
    head = load_head(str(tmp_path / "ours"))
    assert head.weights.keys() == {name for name in weights if "rotary" not in name}
    for name, tensor in head.weights.items():
        assert torch.equal(tensor, weights[name].float())
    assert head.settings["exit_layer"] == 2
    assert head.settings["norm_eps"] == 1e-5
    given: dict[str, Any] = {"adapter": str(tmp_path / "ours"), "threshold": 0.0}
    texts = []
    for method, options in (("plain", {}), ("kangaroo", given)):
        with fastllm_core.load(model, method, tokenizer=tiny_tokenizer(), dtype="float32", **options) as pipeline:
            texts.append(pipeline.generate([5, 9, 33], max_new_tokens=20))
    assert texts[0].token_ids == texts[1].token_ids
    assert texts[1].report.drafted


def test_an_adapter_with_an_mlp_is_a_whole_layer(model: str, tmp_path: Path) -> None:
    more = {
        "layers__0__post_attention_layernorm__weight": torch.ones(SIZE),
        "layers__0__mlp__gate_proj__weight": torch.ones(48, SIZE),
        "layers__0__mlp__up_proj__weight": torch.ones(48, SIZE),
        "layers__0__mlp__down_proj__weight": torch.ones(SIZE, 48),
    }
    published(tmp_path, **more)
    head = convert(tmp_path, model)
    assert head.settings["mode"] == "layer"
    assert head.settings["intermediate_size"] == 48


def test_pickles_that_could_run_code_are_not_read(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harmed",))

    path = tmp_path / "pytorch_model.bin"
    torch.save({"norm.weight": Harm()}, path, pickle_module=pickle)
    with pytest.raises(ModelError, match="holds more than tensors, which could run code"):
        read(path)
    assert not (tmp_path / "harmed").exists()


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    published(tmp_path)
    save_file({"norm.weight": torch.full((3,), 7.0)}, tmp_path / "model.safetensors")
    _, weights = read(tmp_path)
    assert weights["norm.weight"].tolist() == [7.0] * 3


def test_what_does_not_fit_is_refused(model: str, tmp_path: Path) -> None:
    published(tmp_path / "a")
    config = fastllm_core.load_config(None, {"model": model})
    with pytest.raises(ConfigError, match="--set exit_layer"):
        converted("kangaroo", tmp_path / "a", config, {})
    with pytest.raises(ModelError, match="no early exit"):
        convert(tmp_path / "a", model, exit_layer="4")
    published(tmp_path / "b", extra__weight=torch.ones(2))
    with pytest.raises(ModelError, match=r"has extra\.weight"):
        convert(tmp_path / "b", model)
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "c.bin")
    with pytest.raises(ModelError, match="is it Kangaroo's"):
        convert(tmp_path / "c.bin", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no weights"):
        read(tmp_path / "empty")
    (tmp_path / "torn.bin").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ModelError, match="cannot be read"):
        read(tmp_path / "torn.bin")


def test_the_command(model: str, tmp_path: Path) -> None:
    from fastllm_core.cli.app import app

    published(tmp_path / "theirs")
    arguments = ["convert", "kangaroo", str(tmp_path / "theirs"), "--model", model, "--set", "exit_layer=2"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "ours")])
    assert result.exit_code == 0, result.output
    assert "6 tensors" in result.output
