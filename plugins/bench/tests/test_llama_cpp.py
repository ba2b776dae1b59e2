"""llama.cpp runs the very same weights: its greedy text is ours, plain and drafted."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_bench.arm import Job, NotApplicable
from fastllm_plugin_bench.peers import Pair, peers
from fastllm_plugin_bench.recount import tokens_of

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
"""llama.cpp wants rows of whole vectors."""
PROMPT = (5, 6, 7, 8, 9)


def pair_of(folder: Path, target: Any) -> Pair:
    tiny_model(**SIZES).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = {"method": "plain", "device": "cpu", "dtype": "auto"}
    owner = fastllm_core.load(target, tokenizer=tiny_tokenizer(), config=config)
    return Pair(owner, str(folder), None, None, 3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pytest.importorskip("llama_cpp", exc_type=ImportError)
    pytest.importorskip("gguf", exc_type=ImportError)
    made = pair_of(tmp_path_factory.mktemp("assistant"), tiny_model(**SIZES))
    with made.owner:
        yield made


def job(pair: Pair, new: int = 40, eos: frozenset[int] = frozenset()) -> Job:
    return Job((PROMPT,), new, pair.owner.request([1], temperature=0.0).sampling, 0, eos)


def test_both_ways_say_what_plain_decoding_says(pair: Pair) -> None:
    plain = pair.owner.generate(list(PROMPT), max_new_tokens=40, temperature=0.0).token_ids
    for _, make in peers(["llama.cpp"], pair):
        arm = make()
        for _ in range(2):  # its cache is clean again
            run = arm.run(job(pair))
            assert tokens_of(run.rows[0]) == plain
        steps = run.rows[0].steps
        assert run.rounds == len(steps)
        assert (len(steps) < 20) == (arm.label == "llama.cpp drafted")
        assert arm.unable(2, 0.0)
        assert arm.unable(1, 1.0)
        arm.close()


def test_a_text_ends_within_a_draft(pair: Pair) -> None:
    plain = pair.owner.generate(list(PROMPT), max_new_tokens=40, temperature=0.0).token_ids
    end = plain[9]
    for _, make in peers(["llama.cpp"], pair):
        arm = make()
        run = arm.run(job(pair, eos=frozenset({end})))
        assert tokens_of(run.rows[0]) == plain[: plain.index(end) + 1]
        arm.close()


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [("qwen2", {}, "is a qwen2; only Llama-shaped"), ("llama", {"attention_bias": True}, "has biases")],
)
def test_other_models_are_not_converted(tmp_path: Path, family: str, config: dict[str, Any], reason: str) -> None:
    from fastllm_plugin_bench.peers import gguf

    with pair_of(tmp_path, tiny_model(family, **config)).owner as owner, pytest.raises(NotApplicable, match=reason):
        gguf.write(owner.target, tmp_path / "x.gguf")


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *_: Any) -> Any:
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
        return import_module(name)

    monkeypatch.setattr("fastllm_plugin_bench.peers.llama_cpp.import_module", missing)
    made = pair_of(tmp_path, tiny_model(**SIZES))
    with made.owner, pytest.raises(NotApplicable, match=r"gguf is not installed.*bench\[llama-cpp\]"):
        dict(peers(["llama.cpp"], made))["llama.cpp"]()


def test_rows_are_reordered_as_rotation_wants() -> None:
    from fastllm_plugin_bench.peers.gguf import _paired

    matrix = torch.arange(8.0)[:, None]  # two heads of four: halves 0 1 | 2 3, so pairs (0, 2), (1, 3)
    assert _paired(matrix, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
