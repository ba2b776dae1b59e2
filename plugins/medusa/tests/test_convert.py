"""Heads in others' layouts: what comes in goes out as it was, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastllm_core
from fastllm_core import ConfigError, ModelError, Network, UnsupportedModel, converter, load_head, load_model
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_medusa.heads import TOKEN_MAP, HeadsShape, build_heads, random_head

HEADS, BLOCKS, SIZE, ENTRIES = 3, 2, 32, 64


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(load_model(tiny_model()))


def noise(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).half()


def original(prefix: str = "", *, outputs: bool = True) -> dict[str, Tensor]:
    """As the authors' trainer writes it."""
    weights = {}
    for k in range(HEADS):
        for j in range(BLOCKS):
            weights[f"{prefix}{k}.{j}.linear.weight"] = noise(SIZE, SIZE, seed=10 * k + j)
            weights[f"{prefix}{k}.{j}.linear.bias"] = noise(SIZE, seed=100 + 10 * k + j)
        if outputs:
            weights[f"{prefix}{k}.{BLOCKS}.weight"] = noise(ENTRIES, SIZE, seed=200 + k)
    return weights


def vllm(*, prefix: str = "", biased: bool = False, entries: int = ENTRIES) -> dict[str, Tensor]:
    weights = {}
    for k in range(HEADS):
        for j in range(BLOCKS):
            weights[f"{prefix}blocks.{k}.layers.{j}.weight"] = noise(SIZE, SIZE, seed=10 * k + j)
            if biased:
                weights[f"{prefix}blocks.{k}.layers.{j}.bias"] = noise(SIZE, seed=100 + 10 * k + j)
        weights[f"{prefix}lm_heads.{k}.weight"] = noise(entries, SIZE, seed=200 + k)
    return weights


def made(network: Network, **options: Any) -> Any:
    kind: Any = converter("medusa")
    return kind(kind.Options(**options), network)


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_authors_heads_are_counted_in_the_file(network: Network) -> None:
    """Their configuration says 2 where the file holds 5; and it comes out as it went in."""
    weights = original()
    maker = made(network)
    head = maker.convert({"medusa_num_heads": 2, "medusa_num_layers": 1}, weights)
    shape = HeadsShape.read(head.settings, "heads")
    assert (shape.heads, shape.blocks, shape.output) == (HEADS, BLOCKS, "own")
    back = maker.export(head, "original")
    assert same(back.weights, weights)
    assert (back.config["medusa_num_heads"], back.config["medusa_num_layers"]) == (HEADS, BLOCKS)
    assert back.file == "medusa_lm_head.safetensors"


def test_heads_without_outputs_share_the_targets(network: Network) -> None:
    weights = original(outputs=False)
    head = made(network).convert({}, weights)
    assert head.settings["output"] == "shared"
    assert same(made(network).export(head, "original").weights, weights)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("prefix", ["", "medusa_heads."])
def test_vllms_layout(network: Network, biased: bool, prefix: str) -> None:
    head = made(network).convert({"model_type": "medusa", "num_heads": HEADS}, vllm(prefix=prefix, biased=biased))
    back = made(network).export(head, "vllm")
    assert same(back.weights, vllm(biased=biased))
    assert back.config["medusa_fc_bias"] is biased
    assert (back.config["num_heads"], back.config["num_hidden_layers"]) == (HEADS, BLOCKS)
    assert (back.config["vocab_size"], back.config["truncated_vocab_size"]) == (ENTRIES, ENTRIES)


@pytest.mark.parametrize("cut", [False, True])
def test_vllms_truncated_vocabulary(network: Network, cut: bool) -> None:
    """Outputs may be cut already, or as large as the target's."""
    tokens = torch.tensor([4, 60, 7, 9, 30])
    weights = vllm()
    few = {name: each[tokens] if name.startswith("lm_heads") else each for name, each in weights.items()}
    config = {"vocab_size": ENTRIES, "truncated_vocab_size": len(tokens)}
    head = made(network).convert(config, {**(few if cut else weights), TOKEN_MAP: tokens})
    assert head.settings["vocab_size"] == 5
    back = made(network).export(head, "vllm")
    assert same(back.weights, {**few, TOKEN_MAP: tokens})
    assert back.config["truncated_vocab_size"] == 5
    with pytest.raises(ConfigError, match="no place for a truncated vocabulary"):
        made(network).export(head, "original")


def test_vllms_original_head_is_the_targets(network: Network) -> None:
    weights = {name: each for name, each in vllm().items() if not name.startswith("lm_heads")}
    target: Any = network.model
    weights["lm_heads.0.weight"] = target.lm_head.weight.detach().clone()
    head = made(network).convert({"original_lm_head": True}, weights)
    assert head.settings["output"] == "shared"
    back = made(network).export(head, "vllm")
    assert back.config["original_lm_head"] is True
    assert same(back.weights, weights)


@pytest.mark.parametrize(("output", "rank"), [("low-rank", 8), ("delta", 4)])
def test_outputs_of_low_rank_are_multiplied_out(network: Network, output: Any, rank: int) -> None:
    head = random_head(tiny_model(), HEADS, BLOCKS, output, rank)
    back = made(network).convert({}, made(network).export(head, "vllm").weights)
    states = torch.randn(1, 2, SIZE)
    said = [
        build_heads(HeadsShape.read(each.settings, "heads"), network, each.weights, "heads")(states)
        for each in (head, back)
    ]
    assert torch.allclose(*said, atol=1e-4)


def test_a_model_that_was_tuned_with_its_heads_is_taken_apart(tmp_path: Path) -> None:
    """From the folder as published to a target and heads that draft for it."""
    model: Any = tiny_model(seed=7)
    folder = tmp_path / "tuned"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors") | original("medusa_head.")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    network = Network(load_model(str(folder), dtype="float32"))
    head = made(network, target=str(tmp_path / "target")).convert({}, weights)
    assert head.target.model == str(tmp_path / "target")
    assert not [name for name in load_file(tmp_path / "target" / "model.safetensors") if "medusa" in name]
    head.save(tmp_path / "heads")
    texts = []
    for method, options in (("plain", {}), ("medusa", {"heads": str(tmp_path / "heads")})):
        given: dict[str, Any] = dict(options)
        with fastllm_core.load(str(tmp_path / "target"), method, dtype="float32", **given) as pipeline:
            texts.append(pipeline.generate([5, 9, 33], max_new_tokens=20).token_ids)
    assert texts[0] == texts[1]
    with pytest.raises(ConfigError, match="is not empty"):
        made(network, target=str(tmp_path / "target")).convert({}, weights)
    other = Network(load_model(tiny_model(seed=8)))
    with pytest.raises(ModelError, match="is another: give the same folder as --model"):
        made(other).convert({}, weights)
    with pytest.raises(ConfigError, match="these are heads alone"):
        made(network, target=str(tmp_path / "more")).convert({}, original())


def test_what_does_not_fit_is_refused(network: Network) -> None:
    maker = made(network)
    with pytest.raises(ModelError, match=r"hold fc\.weight, which is none of Medusa's"):
        maker.convert({}, {"fc.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match="numbered from 0"):
        maker.convert({}, {"1.0.linear.weight": torch.zeros(SIZE, SIZE)})
    lacking = original()
    del lacking["1.0.linear.bias"]
    with pytest.raises(ModelError, match=r"lacks blocks\.1\.layers\.0\.bias"):
        maker.convert({}, lacking)
    with pytest.raises(UnsupportedModel, match="read 32 dimensions"):
        made(Network(load_model(tiny_model(hidden_size=48)))).convert({}, original())
    with pytest.raises(UnsupportedModel, match="say 64 tokens"):
        made(Network(load_model(tiny_model(vocab_size=50)))).convert({}, original())


def test_the_command_goes_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fastllm_core.cli.app import run

    tiny_model().save_pretrained(tmp_path / "target")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    torch.save(original(), theirs / "medusa_lm_head.pt")
    (theirs / "config.json").write_text(json.dumps({"medusa_num_heads": 2}))
    common = ["--model", str(tmp_path / "target"), "--dtype", "float32"]
    assert not run(["convert", "medusa", str(theirs), *common, "--output", str(tmp_path / "ours")])
    assert load_head(str(tmp_path / "ours")).settings["heads"] == HEADS
    for layout, file in (("original", "medusa_lm_head.safetensors"), ("vllm", "model.safetensors")):
        folder = tmp_path / layout
        arguments = ["convert", "medusa", str(tmp_path / "ours"), *common, "--to", layout, "--output", str(folder)]
        assert not run(arguments)
        assert f"in the layout '{layout}'" in capsys.readouterr().out
        wanted = original() if layout == "original" else vllm(biased=True)
        assert same(load_file(folder / file), wanted)
    with pytest.raises(ConfigError, match="--to tgi: 'medusa' does not write it; layouts: original, vllm"):
        run(["convert", "medusa", str(tmp_path / "ours"), *common, "--to", "tgi", "--output", str(tmp_path / "x")])
    with pytest.raises(ConfigError, match="'kangaroo' does not write it; layouts: none"):
        run(["convert", "kangaroo", str(tmp_path / "ours"), *common, "--to", "vllm", "--output", str(tmp_path / "x")])
    other = load_head(str(tmp_path / "ours"))
    replace(other, target=replace(other.target, layers=9)).save(tmp_path / "other")
    with pytest.raises(ModelError, match="was trained for"):
        run(["convert", "medusa", str(tmp_path / "other"), *common, "--to", "vllm", "--output", str(tmp_path / "x")])
