"""transformers in the same run: every way of assisting, with the models left as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core import ConfigError
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_bench.arm import Job, NotApplicable
from fastllm_plugin_bench.peers import Pair, peers
from fastllm_plugin_bench.recount import Limit, tokens_of
from fastllm_plugin_bench.session import Wishes, session

PROMPTS = ((5, 6, 7), (8, 9, 10, 11, 12))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    assistant, other = tmp_path_factory.mktemp("assistant"), tmp_path_factory.mktemp("other")
    for folder, size in ((assistant, 64), (other, 72)):
        tiny_model(vocab_size=size).save_pretrained(folder)
        tiny_tokenizer(size).save_pretrained(folder)
    config = {"method": "plain", "device": "cpu", "dtype": "float32"}
    with fastllm_core.load(tiny_model(), tokenizer=tiny_tokenizer(), config=config) as owner:
        yield Pair(owner, str(assistant), str(other), 2, 3)


def made(pair: Pair) -> dict[str, Any]:
    return {label: make() for label, make in peers(["transformers"], pair)}


def job(pair: Pair, *prompts: tuple[int, ...], temperature: float = 0.0, new: int = 12) -> Job:
    return Job(prompts, new, pair.owner.request([1], temperature=temperature).sampling, 3, frozenset())


def test_every_way_of_assisting_says_what_plain_decoding_says(pair: Pair) -> None:
    plain = [pair.owner.generate(list(prompt), max_new_tokens=12, temperature=0.0).token_ids for prompt in PROMPTS]
    state = pair.owner.target.model.generation_config.to_dict(), pair.owner.target.model.config.to_dict()
    weights = {name: tensor.clone() for name, tensor in pair.owner.target.model.state_dict().items()}
    arms = made(pair)
    assert len(arms) == 5
    for arm in arms.values():
        run = arm.run(job(pair, PROMPTS[0]))
        assert tokens_of(run.rows[0]) == plain[0]
        times = [step.at for step in run.rows[0].steps]
        assert times == sorted(times)
        assert times[-1] <= run.seconds
        assert (arm.unable(2, 0.0) is None) == (arm.label == "transformers")
    both = arms["transformers"].run(job(pair, *PROMPTS))
    assert [tokens_of(row) for row in both.rows] == plain
    model = pair.owner.target.model
    assert (model.generation_config.to_dict(), model.config.to_dict()) == state
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_one_way_alone_may_be_asked_for(pair: Pair) -> None:
    wanted = ["transformers plain", "llama.cpp drafted", "transformers early exit"]
    labels = [label for label, _ in peers(wanted, pair)]
    assert labels == ["transformers", "llama.cpp drafted", "transformers early exit"]
    with pytest.raises(
        ConfigError, match=r"transformers asisted: of transformers there are transformers plain, .*early"
    ):
        list(peers(["transformers asisted"], pair))
    with pytest.raises(ConfigError, match=r"vllm: there are transformers and llama\.cpp"):
        list(peers(["vllm"], pair))


def test_assistance_commits_several_tokens_in_a_round(pair: Pair) -> None:
    steps = made(pair)["transformers assisted"].run(job(pair, PROMPTS[0], new=24)).rows[0].steps
    assert {len(step.tokens) for step in steps[:-1]} == {4}  # the target drafts for itself


def test_texts_end_where_the_counter_says(pair: Pair) -> None:
    arm = made(pair)["transformers"]
    whole = tokens_of(arm.run(job(pair, PROMPTS[0])).rows[0])
    end = whole[4]
    ending = Job(PROMPTS, 12, job(pair).sampling, 0, frozenset({end}))
    row = arm.run(ending).rows[0]
    assert Limit({end}, 12).cut(tokens_of(row)) == whole[: whole.index(end) + 1]


def test_sampling_is_repeatable_and_leaves_the_generator_alone(pair: Pair) -> None:
    arm = made(pair)["transformers"]
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    texts = [tokens_of(arm.run(job(pair, PROMPTS[0], temperature=1.0)).rows[0]) for _ in range(2)]
    assert texts[0] == texts[1]
    assert torch.equal(torch.rand(1), expected)


def test_what_cannot_be_done_says_why(pair: Pair) -> None:
    lacking = Pair(pair.owner, None, "nowhere", 9, 3)
    reasons = {}
    for label, make in peers(["transformers"], lacking):
        try:
            make()
        except NotApplicable as error:
            reasons[label] = str(error)
    assert reasons["transformers assisted"].endswith("name one with --assistant")
    assert "model 'nowhere': no such registered model" in reasons["transformers cross-tokenizer"]
    assert "cannot leave at layer 9" in reasons["transformers early exit"]


def test_a_model_that_runs_all_layers_cannot_leave_early(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = pair.owner.target.model
    forward = type(model.model).forward

    def whole(self: Any, *arguments: Any, **named: Any) -> Any:
        self.config.num_hidden_layers = 4
        return forward(self, *arguments, **named)

    monkeypatch.setattr(type(model.model), "forward", whole)
    with pytest.raises(NotApplicable, match="runs all its layers"):
        dict(peers(["transformers"], pair))["transformers early exit"]()


def test_a_run_against_transformers(model: str, methods: list[str], tmp_path: Path) -> None:
    overrides = {"model": model, "device": "cpu", "dtype": "float32"}
    report = session(
        Wishes(
            methods="echo",
            limit=2,
            repeats=1,
            max_new_tokens=12,
            against=["transformers"],
            assistant=model,
            output=tmp_path / "out",
            overrides=overrides,
        )
    )
    found = {arm["label"]: arm["status"] for arm in report["cases"][0]["arms"]}
    echo = report["cases"][0]["arms"][1]
    assert [*echo["against"]][:3] == ["transformers", "transformers assisted", "transformers lookup"]
    theirs = report["cases"][0]["arms"][2]["speed"]["overall"]["tokens_per_s"]
    assert echo["against"]["transformers"]["value"] == pytest.approx(
        echo["speed"]["overall"]["tokens_per_s"] / theirs, rel=1e-6
    )
    assert found["transformers assisted"] == found["transformers lookup"] == found["transformers"] == "identical"
    assert "--cross-assistant" in report["absent"]["transformers cross-tokenizer"]
