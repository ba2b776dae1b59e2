"""Heads in folders: what comes back, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastllm_core.errors import ModelError, PluginNotFound
from fastllm_core.heads import CONFIG, WEIGHTS, Head, TargetIdentity, load_head
from fastllm_core.lessons import converter, trainer
from fastllm_core.models import load_model
from fastllm_core.network import Network
from fastllm_core.testing import tiny_model

TARGET = TargetIdentity("some/model", "llama", 4, 32, 64, "0123456789abcdef", (0.5, -0.25))
HEAD = Head("kangaroo", TARGET, {"exit_layer": 2}, {"a.weight": torch.arange(6.0).view(2, 3).T})


def identity(model: Any) -> TargetIdentity:
    return TargetIdentity.of(Network(load_model(model)))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    HEAD.save(tmp_path / "new" / "head")
    head = load_head(str(tmp_path / "new" / "head"))
    assert (head.method, head.target, head.settings) == (HEAD.method, HEAD.target, HEAD.settings)
    assert torch.equal(head.weights["a.weight"], HEAD.weights["a.weight"])
    assert sorted(path.name for path in (tmp_path / "new" / "head").iterdir()) == [CONFIG, WEIGHTS]


def test_a_head_is_for_one_target() -> None:
    own = identity(tiny_model())
    head = replace(HEAD, target=own)
    head.check("kangaroo", own)
    head.check("kangaroo", replace(own, model="moved elsewhere"))
    with pytest.raises(ModelError, match=r"the hash of the output matrix differs.*fastllm train kangaroo"):
        head.check("kangaroo", identity(tiny_model(seed=1)))
    with pytest.raises(ModelError, match="layers: 5, not 4"):
        head.check("kangaroo", identity(tiny_model(num_hidden_layers=5)))
    with pytest.raises(ModelError, match="is a head for 'kangaroo', and 'medusa' cannot read it"):
        head.check("medusa", own)
    replace(HEAD, target=TargetIdentity()).check("kangaroo", own)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_identity_of_a_model_is_that_of_its_rounded_copy(dtype: torch.dtype) -> None:
    assert identity(tiny_model().to(dtype)).head == identity(tiny_model().bfloat16()).head


def in_another_format(spread: float) -> tuple[TargetIdentity, TargetIdentity]:
    """A float32 model with some tiny numbers, and it in float16, its output matrix changed by so large a share."""
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[::7] *= 1e-7  # below what float16 tells from zero
        whole = identity(model)
        model.lm_head.weight *= 1 + spread * torch.randn(model.lm_head.weight.shape)
    return whole, identity(model.half())


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_numbers_that_were_rounded_twice_are_those_of_the_same_model(saved: torch.dtype) -> None:
    whole, half = in_another_format(spread=0.0)
    if saved is torch.bfloat16:
        whole = identity(tiny_model(tie_word_embeddings=False).bfloat16())
        half = identity(tiny_model(tie_word_embeddings=False).half())
    assert whole.head != half.head, "the hash alone tells them apart: without a sample the head would be refused"
    replace(HEAD, target=whole).check("kangaroo", half)
    replace(HEAD, target=half).check("kangaroo", whole)
    with pytest.raises(ModelError, match="the hash of the output matrix differs"):
        replace(HEAD, target=replace(whole, sample=None)).check("kangaroo", half)


def test_a_model_that_was_trained_further_is_another() -> None:
    whole, half = in_another_format(spread=0.02)
    with pytest.raises(ModelError, match="the hash of the output matrix differs"):
        replace(HEAD, target=whole).check("kangaroo", half)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / CONFIG).write_text("{"), "cannot be read"),
        (lambda folder: (folder / CONFIG).write_text('{"architectures": []}'), r"no fastllm head.*fastllm convert"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "no fastllm head"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"torn"), "cannot be read"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read"),
        (lambda folder: edit(folder, version=9), "is of version 9"),
        (lambda folder: edit(folder, target=None), "cannot be read"),
        (lambda folder: edit(folder, target={"sample": ["a"]}), "cannot be read"),
    ],
    ids=["no JSON", "another config", "a list", "torn weights", "no weights", "newer", "no target", "no numbers"],
)
def test_a_spoilt_folder_is_refused(tmp_path: Path, spoil: Any, said: str) -> None:
    HEAD.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=said):
        load_head(str(tmp_path))


def edit(folder: Path, **values: Any) -> None:
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(told | values))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ModelError, match="no such registered model or folder"):
        load_head("no-such-head")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, as its own client keeps it, with two revisions of a head, and no network."""
    folder = tmp_path / "models--owner--head"
    for revision, exit_layer in (("main", 2), ("v2", 3)):
        commit = str(exit_layer) * 40
        replace(HEAD, settings={"exit_layer": exit_layer}).save(folder / "snapshots" / commit)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def test_a_head_on_the_hub_is_read_from_the_asked_revision(hub: Path) -> None:
    for revision, exit_layer in ((None, 2), ("v2", 3), ("3" * 40, 3)):
        head = load_head("owner/head", revision)
        assert head.settings == {"exit_layer": exit_layer}
        assert torch.equal(head.weights["a.weight"], HEAD.weights["a.weight"])
    assert head.source == "head 'owner/head'"


def test_a_head_that_the_hub_does_not_give_is_named(hub: Path) -> None:
    (hub / "snapshots" / ("3" * 40) / WEIGHTS).unlink()
    for name, revision in (("owner/other", None), ("owner/head", "v9"), ("owner/head", "v2")):
        with pytest.raises(ModelError, match=f"head '{name}' cannot be read from the hub"):
            load_head(name, revision)


def test_a_model_without_an_output_matrix_in_memory_has_no_hash() -> None:
    network = Network(load_model(tiny_model()))
    network.model = SimpleNamespace(get_output_embeddings=lambda: None)  # type: ignore[assignment]
    assert TargetIdentity.of(network).head is None


def test_a_network_that_embeds_one_row_reads_no_tokens() -> None:
    model = tiny_model()
    network = Network(load_model(model))
    assert network.reads_tokens
    network.model.set_input_embeddings(torch.nn.Embedding(1, 32))
    del network.__dict__["reads_tokens"]
    assert not network.reads_tokens


@pytest.mark.parametrize("find", [trainer, converter])
def test_a_method_that_trains_nothing_is_named(find: Any) -> None:
    with pytest.raises(PluginNotFound, match="nothing-of-the-kind"):
        find("nothing-of-the-kind")
