"""Skip sets from files, by name and by option: what is read, and what is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import fastllm_core
from fastllm_core import ConfigError, Pipeline, TargetIdentity
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_self_speculative import skipfile
from fastllm_plugin_self_speculative.skipset import SkipSet, spans

OWN = {"format": "fastllm-skip-set", "version": 1, "attention": [1, 3], "mlp": [2], "model": {}}


def saved(folder: Path, value: Any) -> str:
    path = folder / "set.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def load(**options: Any) -> Pipeline:
    return fastllm_core.load(tiny_model(), "self-speculative", tokenizer=tiny_tokenizer(), dtype="float32", **options)


@pytest.mark.parametrize(
    "value",
    [
        OWN,
        {"llama-tiny": {"attention": [1, 3], "mlp": [2]}},
        {"attn": [3, 1], "mlp": [2]},
        {"other/name": {"attention": [], "mlp": [0]}, "org/tiny": {"attention": [1, 3], "mlp": [2]}},
    ],
    ids=["own", "draft-and-verify", "fast-llm-inference", "several models"],
)
def test_every_format_is_read(tmp_path: Path, value: Any) -> None:
    assert skipfile.find(saved(tmp_path, value), "tiny").skipped == SkipSet.of([1, 3], [2])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", r"cannot be read: Expecting property name"),
        ("[1]", r"a JSON object was expected, not a list"),
        ({**OWN, "format": "x"}, r"its format is 'x', not 'fastllm-skip-set'"),
        ({**OWN, "version": 2}, r"it is of version 2, and this plugin reads version 1"),
        ({**OWN, "mlp": ["2"]}, r"mlp must be a list of layer numbers, not \['2'\]"),
        ({"attn": [1]}, r"mlp must be a list of layer numbers, not None"),
        ({"a": {"attention": [], "mlp": []}, "b": {"attention": [], "mlp": []}}, r"holds sets for a, b, and none"),
        ({"a": 3}, r"a set is an object with the lists"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^options\.self-speculative\.skip: skip set .*set\.json.*{message}"):
        load(skip=saved(tmp_path, value))


def test_published_sets_are_those_of_the_authors() -> None:
    known = skipfile.published()
    counts = {name: (len(found.skipped.attention), len(found.skipped.mlp)) for name, found in known.items()}
    assert counts == {"llama-2-13b": (24, 10), "llama-2-13b-chat": (24, 10), "codellama-13b": (22, 12)}
    assert all(found.skipped.problem(40) is None for found in known.values())
    assert all(min(found.skipped.attention | found.skipped.mlp) >= 3 for found in known.values())


def test_a_published_set_is_for_its_model_only() -> None:
    with pytest.raises(
        ConfigError, match=r"published set 'llama-2-13b' was chosen for meta-llama/Llama-2-13b-hf, .*layers: 4, not 40"
    ):
        load(skip="llama-2-13b")


def test_a_name_that_is_nothing_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'llama-3' is no file and no published set; published: llama-2-13b, "):
        load(skip="llama-3")
    with pytest.raises(ConfigError, match=r"skip set there/x\.json: there is no such file"):
        load(skip="there/x.json")


def test_a_set_for_other_weights_is_refused(tmp_path: Path) -> None:
    with fastllm_core.load(tiny_model(), "plain", tokenizer=tiny_tokenizer(), dtype="float32") as pipeline:
        mine = TargetIdentity.of(pipeline.engine.parts.network)
    with fastllm_core.load(tiny_model(seed=1), "plain", tokenizer=tiny_tokenizer(), dtype="float32") as pipeline:
        other = TargetIdentity.of(pipeline.engine.parts.network)
    assert mine.mismatch(other) == "head: other weights (the hash of the output matrix differs)"
    load(skip=saved(tmp_path, {**OWN, "model": asdict(mine)})).close()
    with pytest.raises(ConfigError, match=r"is another \(head: other weights .*\); choose one for it"):
        load(skip=saved(tmp_path, {**OWN, "model": asdict(other)}))


def test_identity_is_that_of_the_weights_in_any_number_format() -> None:
    import copy

    model = tiny_model()
    found = []
    for dtype in ("float32", "bfloat16"):
        cast: Any = copy.deepcopy(model).to(getattr(__import__("torch"), dtype))
        with fastllm_core.load(cast, "plain", tokenizer=tiny_tokenizer()) as pipeline:
            found.append(TargetIdentity.of(pipeline.engine.parts.network).head)
    assert found[0] == found[1] is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_attention": [4]}, r"layer 4 cannot be skipped: the model has layers 0\.\.3"),
        ({"skip_mlp": [-1, 7]}, r"layers -1, 7 cannot be skipped"),
        ({"exit_layer": 4}, r"exit_layer: 4 is no early exit: the model has 4 layers, so leave after 1\.\.3"),
        ({}, r"say what drafts leave out: skip = FILE"),
        ({"exit_layer": 1, "skip_mlp": [1]}, r"say in one way only"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^options\.self-speculative.*{message}"):
        load(**options)


def test_a_file_with_indices_beyond_the_model_is_refused(tmp_path: Path) -> None:
    """As MLP indices offset by the number of layers would be."""
    with pytest.raises(ConfigError, match=r"set\.json: layer 6 cannot be skipped: the model has layers 0\.\.3"):
        load(skip=saved(tmp_path, {"attn": [1], "mlp": [6]}))


def test_a_set_of_nothing_drafts_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "fastllm"),
        load(skip=saved(tmp_path, {**OWN, "attention": [], "mlp": [], "best": 0.94})) as pipeline,
    ):
        report = pipeline.generate([1, 2], max_new_tokens=6).report
    assert report.drafted == 0
    assert "drafts nothing" in caplog.text
    assert "0.94 times plain decoding" in caplog.text


def test_skip_sets_are_sets() -> None:
    skipped = SkipSet.of([1], [2]) | SkipSet.of([5, 6, 7], [])
    assert str(skipped) == "attention 1, 5-7; MLP 2"
    assert (len(skipped), str(SkipSet()), bool(SkipSet())) == (5, "nothing", False)
    assert skipped - SkipSet.of([5], [2]) == SkipSet.of([1, 6, 7], [])
    assert SkipSet.of_layers(2, 4).exit_layer(4) == 2
    assert SkipSet.of_layers(2, 3).exit_layer(4) is None
    assert SkipSet.of_layers(0, 4).exit_layer(4) is None
    assert SkipSet().exit_layer(4) is None
    assert spans([3, 1, 2, 9]) == "1-3, 9"
