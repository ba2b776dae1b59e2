"""Compiled forwards: the step that is compiled, the runner around it, and one that really is compiled.

Most tests run the step as Python in place of a program (`testing.unrolled`), since compiling one takes half a minute.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastllm_core import Adapter, compiled, compiler
from fastllm_core.backend import Eager, make_backend
from fastllm_core.batch import Row
from fastllm_core.cache import SlotCache
from fastllm_core.compiled import Compiled
from fastllm_core.config import config_from
from fastllm_core.constants import files
from fastllm_core.controls import Controls
from fastllm_core.device import select_device
from fastllm_core.digests import RACY_NS
from fastllm_core.errors import ConfigError, UnsupportedModel
from fastllm_core.graphs import Graphs
from fastllm_core.layout import ancestors, chain, tree
from fastllm_core.models import LoadedModel
from fastllm_core.network import Network
from fastllm_core.port import EagerRunner, Inputs, Passage
from fastllm_core.programs import ProgramFolder
from fastllm_core.request import Request, SamplingParams
from fastllm_core.step import Form, Sizes, Step
from fastllm_core.strides import STRIDE
from fastllm_core.testing import tiny_model
from fastllm_core.testing.drafters import Branching, Oracle
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.families import family
from fastllm_core.testing.unrolled import Unrolled, UnrolledProgram
from fastllm_core.ties import best_of

FAMILIES = (
    "llama",
    "gemma3_text",
    "gpt2",
    "mixtral",
    "qwen3",
    "bloom",
    "deepseek_v3",
    "gpt_oss",
    "falcon",
    "llama4_text",
)
EXTENT = 64


def network_of(model: Any) -> Network:
    return Network(LoadedModel("tiny", model, None, torch.device("cpu"), torch.float32))


@pytest.fixture
def backend(tmp_path: Path) -> Unrolled:
    return Unrolled(ProgramFolder(tmp_path / "programs"), compiles=True)


def rows_of(batch: int, rows: int, kind: str) -> Any:
    tokens = torch.randint(3, 60, (batch, rows), generator=torch.Generator().manual_seed(rows))
    starts = torch.arange(10, 10 + batch)
    if kind == "chain":
        return chain(tokens, starts, EXTENT)
    parents = torch.arange(-1, rows - 2).div(2, rounding_mode="floor").expand(batch, -1)
    sees = ancestors(parents.clamp(min=-1))
    return tree(tokens, sees, sees.sum(-1) - 1, starts, EXTENT)


@torch.inference_mode()
def filled(network: Network, batch: int) -> SlotCache:
    cache = SlotCache(network)
    cache.reserve(batch, 2 * EXTENT)  # more than a forward reads
    for pair in cache.layers(slice(0, batch), 2 * EXTENT):
        for store in pair:
            if store.numel():
                store.normal_(generator=torch.Generator().manual_seed(5))
    return cache


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("batch", "rows", "kind"), [(1, 1, "chain"), (1, 5, "chain"), (3, 4, "chain"), (1, 6, "tree")])
def test_a_step_is_the_networks_own_forward(backend: Unrolled, name: str, batch: int, rows: int, kind: str) -> None:
    network = network_of(family(name).model())
    runner = backend.runner(network)
    passage, inputs = Passage(0, network.layers), rows_of(batch, rows, kind)
    mine, theirs = filled(network, batch), filled(network, batch)
    with torch.inference_mode():
        given = runner.forward(passage, inputs, mine.layers(slice(0, batch), EXTENT)).logits
        wanted = network.eager(passage, inputs, theirs.layers(slice(0, batch), EXTENT)).logits
    assert backend.missing == []
    assert given is not None
    assert wanted is not None
    assert given.shape == wanted.shape
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
    for ours, other in zip(
        mine.layers(slice(0, batch), 2 * EXTENT), theirs.layers(slice(0, batch), 2 * EXTENT), strict=True
    ):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_hidden_states_go_in_and_come_out(backend: Unrolled) -> None:
    network = network_of(tiny_model("llama"))
    network.runner = backend.runner(network)
    inputs, cache = rows_of(2, 3, "chain"), filled(network, 2)
    layers = cache.layers(slice(0, 2), EXTENT)
    whole = network.forward(inputs, layers, hidden_layers=(1, 4))
    lower = network.forward(inputs, layers, stop=2, hidden_layers=(1, 2))
    upper = network.forward(chain(inputs.tokens, torch.arange(10, 12), EXTENT, hidden=lower.hidden[2]), layers, start=2)
    assert lower.logits is None
    torch.testing.assert_close(lower.hidden[1], whole.hidden[1])
    torch.testing.assert_close(upper.logits, whole.logits, rtol=1e-4, atol=1e-4)
    network.runner = EagerRunner(network)
    eager = network.forward(inputs, layers, hidden_layers=(1, 4))
    torch.testing.assert_close(whole.hidden[4], eager.hidden[4], rtol=1e-4, atol=1e-4)
    assert len(backend.taken) == 3


SKIPPED: dict[str, Any] = {
    "skip_attention": frozenset({1, 3}),
    "skip_mlp": frozenset({2, 3}),
    "hidden_layers": (2,),
}


@pytest.mark.parametrize("options", [{}, SKIPPED], ids=["whole", "skipped"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_chain_is_read_row_by_row(backend: Unrolled, batch: int, options: dict[str, Any]) -> None:
    """Each row that comes out is the row that a caller would make of the most likely token."""
    network = network_of(tiny_model("llama"))
    found = []
    for runner in (EagerRunner(network), backend.runner(network)):
        network.runner = runner
        layers, row, said = filled(network, batch).layers(slice(0, batch), EXTENT), rows_of(batch, 1, "chain"), []
        for step in range(4):
            logits, likely, behind, hidden, _ = network.advance(row, layers, **options)
            starts = torch.arange(11, 11 + batch) + step
            outputs = network.forward(row, layers, **options)
            assert outputs.logits is not None
            torch.testing.assert_close(logits, outputs.logits[:, 0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(hidden, tuple(outputs.hidden.values()), rtol=1e-4, atol=1e-4)
            wanted = chain(logits.argmax(-1, keepdim=True), starts, EXTENT)
            for part in ("tokens", "positions", "slots", "mask"):
                assert torch.equal(getattr(behind, part), getattr(wanted, part))
            assert torch.equal(likely, logits.argmax(-1, keepdim=True))
            row = behind if step % 2 else behind.of_tokens(torch.full_like(likely, 5 + step))
            said.append(logits)
        found.append(torch.stack(said))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    skipped = "4 sub-layers skipped, hidden states 2, " if options else ""
    (program,) = backend.taken
    assert program.name == f"tiny, {skipped}one row, {'one text' if batch == 1 else 'several texts'}"


@pytest.mark.parametrize("options", [{}, SKIPPED], ids=["whole", "skipped"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("rows", "steps"), [(1, STRIDE), (2, 5), (2, 3)])
def test_a_chain_is_run_at_once(backend: Unrolled, batch: int, options: dict[str, Any], rows: int, steps: int) -> None:
    """One call for many tokens says what a call for each says, and writes it to the cache; for other numbers, a loop.

    Rows that enter together are as good as one after the other.
    """
    network = network_of(tiny_model("llama"))
    entering = rows_of(batch, rows, "chain")
    cache = filled(network, batch)
    layers, said = cache.layers(slice(0, batch), EXTENT), []
    for row in range(rows):
        one = Inputs(*(None if part is None else part[:, row : row + 1] for part in entering))
        said = [network.advance(one, layers, **options)]
    for _ in range(steps - 1):
        said.append(network.advance(said[-1].next, layers, **options))
    behind = said[-1].next
    for runner in (EagerRunner(network), backend.runner(network)):
        network.runner = runner
        mine = filled(network, batch)
        found = network.advance(entering, mine.layers(slice(0, batch), EXTENT), steps=steps, **options)
        assert torch.equal(found.likely, torch.cat([one.likely for one in said], 1))
        torch.testing.assert_close(found.logits, said[-1].logits, rtol=1e-4, atol=1e-4)
        for states, each in zip(found.hidden, zip(*(one.hidden for one in said), strict=True), strict=True):
            torch.testing.assert_close(states, torch.cat(each, 1), rtol=1e-4, atol=1e-4)
        for part in ("tokens", "positions", "slots", "mask"):
            assert torch.equal(getattr(found.next, part), getattr(behind, part))
        for ours, theirs in zip(mine.layers(slice(0, batch), EXTENT), layers, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    names = [program.name.rpartition(", ")[0] for program in backend.taken]
    skipped = "tiny, 4 sub-layers skipped, hidden states 2" if options else "tiny"
    at_once = {(1, STRIDE): ", 4 tokens in turn", (2, 5): ", 5 tokens in turn, behind 2 rows"}
    wanted = [at_once[rows, steps]] if (rows, steps) in at_once else ["", ", one row"]
    assert names == [f"{skipped}{words}" for words in wanted]


def test_a_large_network_takes_no_strides(backend: Unrolled, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(tiny_model())
    monkeypatch.setattr(compiled, "QUICK_BYTES", network.weight_bytes - 1)
    network.runner = backend.runner(network)
    layers = filled(network, 1).layers(slice(0, 1), EXTENT)
    assert network.advance(rows_of(1, 1, "chain"), layers, steps=STRIDE).likely.shape == (1, STRIDE)
    assert [program.name for program in backend.taken] == ["tiny, one row, one text"]
    assert not backend.missing


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_row_says_what_is_best_and_what_follows(backend: Unrolled, batch: int, tied: bool) -> None:
    model = tiny_model("llama")
    if tied:
        with torch.no_grad():  # tokens 0 and 1, 2 and 3, ... have the same logit
            weights = model.get_output_embeddings().weight
            weights[1::2] = weights[::2]
    network, inputs = network_of(model), rows_of(batch, 1, "chain")
    with torch.inference_mode():
        layers = filled(network, batch).layers(slice(0, batch), EXTENT)
        given = backend.runner(network).forward(network.whole, inputs, layers)
        wanted = network.eager(network.whole, inputs, filled(network, batch).layers(slice(0, batch), EXTENT)).logits
    assert wanted is not None
    torch.testing.assert_close(given.logits, wanted, rtol=1e-4, atol=1e-4)
    best = best_of(wanted, torch.float32)
    assert given.best is not None
    assert torch.equal(given.best.tokens, best.tokens)
    assert given.best.close.tolist() == best.close.tolist() == [[tied]] * batch
    assert given.next is not None
    behind = chain(best.tokens, torch.arange(11, 11 + batch), EXTENT)
    for part in ("tokens", "positions", "slots", "mask"):
        assert torch.equal(getattr(given.next, part), getattr(behind, part))


def test_part_of_a_network_runs_one_row_twice(backend: Unrolled) -> None:
    """Part of the layers, or hidden states that enter, have no program of one row."""
    network, inputs = network_of(tiny_model("llama")), rows_of(1, 1, "chain")
    network.runner = backend.runner(network)
    layers = filled(network, 1).layers(slice(0, 1), EXTENT)
    lower = network.forward(inputs, layers, stop=2)
    upper = network.forward(chain(inputs.tokens, [10], EXTENT, hidden=lower.hidden[2]), layers, start=2)
    assert lower.hidden[2].shape == (1, 1, network.hidden_size)
    whole = network.forward(inputs, layers)
    torch.testing.assert_close(upper.logits, whole.logits, rtol=1e-4, atol=1e-4)
    assert [program.name for program in backend.taken] == [
        "tiny, layers 0 to 1, hidden states 2, one text",
        "tiny, layers 2 to 3, one text",
        "tiny, one row, one text",
    ]


@pytest.mark.parametrize("every", [0, 2])
def test_rows_that_join_and_leave_write_what_they_write_eagerly(backend: Unrolled, every: int) -> None:
    """Greedy, drawn, with penalties, ended by a token: what one plain round hands on fits not every next one."""
    model = tiny_model(sharpness=2.0)
    requests = [
        Request((3, 4, 5), 9),
        Request((9, 8), 14, SamplingParams(temperature=1.0), seed=3),
        Request((3, 4, 5), 12, controls=Controls(repetition_penalty=1.7)),
        Request((7,), 4),
        Request((3, 4), 20, eos_token_ids=frozenset(range(0, 64, 5))),
        Request((6, 6, 6), 11),
    ]
    wanted = decode(make_engine(model, max_rows=3), requests, every=every)
    assert decode(make_engine(model, max_rows=3, backend=backend), requests, every=every) == wanted


def test_skip_sets_have_programs_of_their_own(backend: Unrolled) -> None:
    network = network_of(tiny_model("llama"))
    network.runner = backend.runner(network)
    inputs, cache = rows_of(1, 3, "chain"), filled(network, 1)
    options = {"skip_attention": frozenset({1}), "skip_mlp": frozenset({0, 2})}
    given = network.forward(inputs, cache.layers(slice(0, 1), EXTENT), **options)
    network.runner = EagerRunner(network)
    wanted = network.forward(inputs, cache.layers(slice(0, 1), EXTENT), **options)
    torch.testing.assert_close(given.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    assert [program.name for program in backend.taken] == ["tiny, 3 sub-layers skipped, one text"]


def test_few_programs_serve_prompts_and_rounds(backend: Unrolled) -> None:
    model = tiny_model()
    prompts = [(3, 4, 5, 6, 7, 8, 9), (5,), (9, 8, 7)]
    requests = [Request(prompt, max_new_tokens=12) for prompt in prompts]
    wanted = decode(make_engine(model), requests)
    assert decode(make_engine(model, backend=backend), requests) == wanted
    assert sorted(program.name for program in backend.taken) == [
        "LlamaForCausalLM, 4 tokens in turn, several texts",
        "LlamaForCausalLM, one text",
    ]
    continuations = {prompt: [*prompt, *tokens] for prompt, tokens in zip(prompts, wanted, strict=True)}

    def known(row: Row, count: int) -> list[int]:
        return continuations[row.request.prompt][row.length : row.length + count]

    for drafter in (Oracle(continuations, lambda at: at % 3 == 0), Branching(known)):
        assert decode(make_engine(model, drafter, backend=backend), requests) == wanted
        assert decode(make_engine(model, drafter, backend=backend), requests, every=2) == wanted


def test_programs_are_shared_and_found_by_the_next_process(backend: Unrolled) -> None:
    model, requests = tiny_model(), [Request((3, 4, 5), max_new_tokens=4)]
    decode(make_engine(model, backend=backend), requests)
    again = Unrolled(backend.folder, compiles=False)
    decode(make_engine(model, backend=again), requests)
    assert [program.path for program in again.taken] == [program.path for program in backend.taken]
    assert again.summary == "compiled"
    other = Unrolled(backend.folder, compiles=False)
    decode(make_engine(tiny_model(seed=1), backend=other), requests)
    assert other.taken == [], "another model's weights"
    assert other.summary == "eager"


@pytest.mark.parametrize("change", ["threads", "processor", "version"])
def test_a_program_belongs_to_its_machine(backend: Unrolled, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    model, requests = tiny_model(), [Request((3, 4, 5), max_new_tokens=4)]
    decode(make_engine(model, backend=backend), requests)
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "processor":
        monkeypatch.setattr("fastllm_core.identity._processor", lambda: "another")
    else:
        monkeypatch.setattr(torch, "__version__", "9.9")
    again = Unrolled(backend.folder, compiles=False)
    decode(make_engine(model, backend=again), requests)
    assert again.taken == []


@pytest.mark.parametrize("there", ["nothing", "another architecture", "another machine's"])
def test_auto_reads_no_weights_where_no_program_can_fit(
    backend: Unrolled, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    requests = [Request((3, 4), max_new_tokens=3)]
    if there != "nothing":
        decode(make_engine(tiny_model(num_hidden_layers=3 if "arch" in there else 4), backend=backend), requests)
    if "machine" in there:
        monkeypatch.setattr("fastllm_core.identity._processor", lambda: "another")

    def read(*_: object) -> str:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("fastllm_core.identity.weights_digest", read)
    auto = Unrolled(backend.folder, compiles=False)
    decode(make_engine(tiny_model(), backend=auto), requests)
    assert auto.summary == "eager"


def test_what_does_not_compile_runs_eagerly_and_says_why(
    backend: Unrolled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(step: Step, path: Path) -> dict[str, Any]:
        raise UnsupportedModel("Unsupported: data-dependent branching")

    monkeypatch.setattr(backend, "compile", refuse)
    model, requests = tiny_model(), [Request((3, 4, 5), max_new_tokens=4)]
    with caplog.at_level(logging.WARNING, logger="fastllm"):
        assert decode(make_engine(model, backend=backend), requests) == decode(make_engine(model), requests)
    messages = [record.message for record in caplog.records]
    assert messages == ["LlamaForCausalLM, one text runs eagerly: Unsupported: data-dependent branching"]
    assert backend.summary == "eager"


def test_one_row_without_a_program_of_its_own_comes_twice(backend: Unrolled, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_step = backend.compile

    def refuse_one_row(step: Step, path: Path) -> Mapping[str, Any]:
        if step.form.steps:
            raise UnsupportedModel("no program of one row")
        return compile_step(step, path)

    monkeypatch.setattr(backend, "compile", refuse_one_row)
    model, requests = tiny_model(), [Request((3, 4, 5), max_new_tokens=9)]
    assert decode(make_engine(model, backend=backend), requests) == decode(make_engine(model), requests)
    assert {program.name.partition(", ")[2] for program in backend.taken} == {"one text"}
    assert backend.summary == "compiled"


def test_a_program_with_other_answers_is_refused(
    backend: Unrolled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(UnrolledProgram):
        def run(self, arguments: Sequence[Tensor]) -> list[Tensor]:
            logits, *rest = super().run(arguments)
            return [logits + logits.abs().max() * 0.01, *rest]

    monkeypatch.setattr(backend, "load", lambda path, _: Wrong(backend.steps[path.name]))
    model, requests = tiny_model(), [Request((3, 4, 5), max_new_tokens=4)]
    assert decode(make_engine(model, backend=backend), requests) == decode(make_engine(model), requests)
    assert "its answers change by" in caplog.text
    assert not backend.folder


def test_a_program_that_does_not_write_the_cache_is_refused(
    backend: Unrolled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Forgetful(UnrolledProgram):
        def run(self, arguments: Sequence[Tensor]) -> list[Tensor]:
            return super().run([argument.clone() for argument in arguments])

    monkeypatch.setattr(backend, "load", lambda path, _: Forgetful(backend.steps[path.name]))
    decode(make_engine(tiny_model(), backend=backend), [Request((3, 4, 5), max_new_tokens=4)])
    assert "its answers change by" in caplog.text


class Own(nn.Linear):
    """A module whose code came from elsewhere."""


def hooked(model: Any) -> None:
    model.model.layers[1].register_forward_hook(lambda *_: None)


def replaced(model: Any) -> None:
    part = model.model.layers[0].mlp
    part.forward = MethodType(type(part).forward, part)


def foreign(model: Any) -> None:
    model.lm_head = Own(32, 64, bias=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hooked, "has hooks"),
        (replaced, "was replaced"),
        (foreign, "is not a module of torch, transformers or an installed"),
    ],
)
def test_what_no_key_can_name_runs_eagerly(
    backend: Unrolled, caplog: pytest.LogCaptureFixture, change: Any, reason: str
) -> None:
    model = tiny_model()
    change(model)
    assert isinstance(Unrolled(backend.folder, compiles=False).runner(network_of(model)), EagerRunner)
    assert caplog.text == "", "nobody asked"
    assert isinstance(backend.runner(network_of(model)), EagerRunner)
    assert reason in caplog.text


def test_a_familys_adapter_from_a_plugin_is_in_no_key(backend: Unrolled, caplog: pytest.LogCaptureFixture) -> None:
    """The plugin's code may change and the key would not."""
    loaded = LoadedModel("tiny", tiny_model(), None, torch.device("cpu"), torch.float32)
    network = Network(loaded, adapters=[Adapter(model_types=("llama",), reason="a plugin's")])
    assert isinstance(backend.runner(network), EagerRunner)
    assert "a plugin's adapter" in caplog.text


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners")
def test_a_folder_that_others_may_write_is_told_to_everyone(
    backend: Unrolled, caplog: pytest.LogCaptureFixture
) -> None:
    decode(make_engine(tiny_model(), backend=backend), [Request((3, 4), max_new_tokens=3)])
    backend.folder.folder.chmod(0o777)
    assert isinstance(Unrolled(backend.folder, compiles=False).runner(network_of(tiny_model())), EagerRunner)
    assert "chmod 700" in caplog.text


def test_a_cache_that_lies_otherwise_runs_eagerly(backend: Unrolled, caplog: pytest.LogCaptureFixture) -> None:
    network = network_of(tiny_model())
    runner = backend.runner(network)
    stores = [(torch.zeros(1, EXTENT, 2, 8).transpose(1, 2),) * 2 for _ in range(network.layers)]
    stores = [(keys, keys.clone().transpose(2, 3).contiguous().transpose(2, 3)) for keys, _ in stores]
    with torch.inference_mode():
        given = runner.forward(Passage(0, network.layers), rows_of(1, 3, "chain"), stores).logits
    assert given is not None
    assert "does not lie in memory" in caplog.text


def test_make_backend() -> None:
    cpu = select_device("cpu", "float32")
    assert isinstance(make_backend(config_from({"forward": "eager"}), cpu), Eager)
    auto = make_backend(config_from({}), cpu)
    assert isinstance(auto, Compiled)
    assert not auto.compiles
    asked = make_backend(config_from({"forward": "compiled", "programs.limit_gib": 0.5}), cpu)
    assert isinstance(asked, Compiled)
    assert asked.compiles
    assert asked.folder.limit_bytes == 1 << 29
    with pytest.raises(ConfigError, match="needs a GPU"):
        make_backend(config_from({"forward": "graphs"}), cpu)
    card = replace(cpu, device=torch.device("cuda", 0), kind="cuda", name="cuda:0")
    assert isinstance(make_backend(config_from({}), card), Graphs)
    assert isinstance(make_backend(config_from({"forward": "eager"}), card), Eager)
    with pytest.raises(ConfigError, match="needs a processor, and the device is cuda:0"):
        make_backend(config_from({"forward": "compiled"}), card)


def test_no_compiler_is_said_and_runs_eagerly(
    backend: Unrolled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "obstacle", lambda: "there is no C++ compiler: install one")
    network = network_of(tiny_model())
    assert isinstance(backend.runner(network), EagerRunner)
    assert "no C++ compiler" in caplog.text


@pytest.mark.parametrize("form", [Form(), Form(many=True), Form(steps=1), Form(steps=3), Form(keyed=True)], ids=str)
def test_a_step_exports_with_open_sizes(form: Form) -> None:
    if compiler.obstacle():
        pytest.skip(str(compiler.obstacle()))
    network = network_of(family("qwen3").model())
    step = Step(network, Passage(0, network.layers), form)
    with torch.no_grad():
        exported = torch.export.export(
            step, step.example(), dynamic_shapes=step.open_sizes(), strict=False, **{compiler.OPEN_RANGES: True}
        )
        other = step.example(Sizes(4, 96, 130, 4))
        mine = (*other[:-1], [buffer.clone() for buffer in other[-1]])
        torch.testing.assert_close(exported.module()(*mine), step(*other), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine[-1], other[-1], rtol=1e-4, atol=1e-4)


def test_one_that_is_really_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiler.obstacle():
        pytest.skip(str(compiler.obstacle()))
    monkeypatch.setattr(compiler, "OPTIONS", {"freezing": True})  # without timing kernels, which takes longer
    model = tiny_model(num_hidden_layers=1)
    requests = [Request((3, 4, 5, 6, 7), max_new_tokens=13)]
    wanted = decode(make_engine(model), requests)
    backend = Compiled(ProgramFolder(tmp_path / "programs"), compiles=True)
    oracle = Oracle({(3, 4, 5, 6, 7): [3, 4, 5, 6, 7, *wanted[0]]}, lambda at: at % 4 == 0)
    assert decode(make_engine(model, backend=backend), requests) == wanted
    assert decode(make_engine(model, oracle, backend=backend), requests) == wanted
    programs = {program.path: program for program in backend.taken}.values()
    kinds = sorted(program.name.partition(", ")[2] for program in programs)
    assert kinds == ["4 tokens in turn, one text", "one row, one text", "one text"]
    assert all(program.facts["difference"] < 1e-3 for program in programs)
    left = Counter(path.suffix or path.name for path in backend.folder.folder.iterdir())
    left.pop(".jsonl", None)  # hashes of files that are old enough
    assert left == {".json": 3, ".lock": 4, ".so": 3, "constants": 1}, "what the compiler left is gone"
    one, other, *_ = (files(program.weights) for program in programs)
    assert one, "the weights are not in the library"
    assert one.keys() & other.keys(), "the two share some"


FRESH = """
import sys, torch
from fastllm_core import load
with load(sys.argv[1], "plain", dtype="bfloat16", config={"forward": sys.argv[2]}) as pipeline:
    text = pipeline.generate([[3, 4, 5]], max_new_tokens=12, temperature=0)[0].token_ids
    print(pipeline.backend.summary, text)
"""


@pytest.mark.slow
def test_a_process_that_runs_programs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one runs no eager forward before: it must ask for the processor's tiles by itself."""
    if compiler.obstacle():
        pytest.skip(str(compiler.obstacle()))
    tiny_model(hidden_size=128, intermediate_size=256, num_hidden_layers=1).save_pretrained(tmp_path / "model")
    said = []
    for forward in ("compiled", "auto", "auto"):
        environment = {**os.environ, "FASTLLM_COMPILED": str(tmp_path / "programs")}
        command = [sys.executable, "-c", FRESH, str(tmp_path / "model"), forward]
        ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        said.append(ran.stdout.splitlines()[-1])
        time.sleep(RACY_NS / 1e9)  # what has just been written is not yet remembered
    assert said[0].startswith("compiled")
    assert said[1:] == said[:1] * 2
