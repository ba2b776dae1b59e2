"""What a person sees: settings, defaults, streams, failures, threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import fastllm_core
from fastllm_core import Context, ContextLengthError, Drafter, Pipeline, RequestError, Row
from fastllm_core.batch import Batch
from fastllm_core.protocols import Draft
from fastllm_core.request import SamplingParams
from fastllm_core.testing import Scripted, tiny_model, tiny_tokenizer

V = 64
PROMPT = "Hello, you."
IDS = (5, 9, 33, 2)
Make = Callable[..., Pipeline]

TOY = """
    from fastllm_core import hookimpl

    make = None

    class Plugin:
        api_version = 1

        def __init__(self, options):
            pass

        @hookimpl
        def fastllm_make_drafter(self, context):
            return make(context)
"""


@cache
def model() -> PreTrainedModel:
    return tiny_model(sharpness=3.0)


@pytest.fixture
def make(site: Any) -> Iterator[Make]:
    """Pipelines around a drafter, closed at the end."""
    site.plugin("toy", TOY)
    opened: list[Pipeline] = []

    def make(drafter: Drafter | None = None, target: PreTrainedModel | None = None, **config: Any) -> Pipeline:
        method = "plain"
        if drafter is not None:
            import fastllm_plugin_toy

            fastllm_plugin_toy.make = lambda context: drafter
            method = "toy"
        settings = {"draft.controller": "fixed", **{key.replace("__", "."): value for key, value in config.items()}}
        opened.append(
            fastllm_core.load(target or model(), method, config=settings, tokenizer=tiny_tokenizer(V), dtype="float32")
        )
        return opened[-1]

    yield make
    for pipeline in opened:
        pipeline.close()
    sys.modules.pop("fastllm_plugin_toy", None)


def same(row: Row, count: int) -> list[int]:
    return [row.tokens[-1]] * count


def generated(ids: tuple[int, ...], count: int, target: PreTrainedModel | None = None, **settings: Any) -> list[int]:
    prompt = torch.tensor([ids])
    settings = {"do_sample": False, "pad_token_id": 0, **settings}
    answer = (target or model()).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, **settings
    )
    return list(answer[0, len(ids) :].tolist())


# -- prompts and settings ----------------------------------------------------------------------------------------------


def test_text_ids_and_lists_of_them(make: Make) -> None:
    pipeline = make(Scripted(same))
    one = pipeline.generate(PROMPT, max_new_tokens=8)
    ids = pipeline.target.tokenizer(PROMPT).input_ids
    assert one.prompt_token_ids == tuple(ids)
    assert list(one.token_ids) == generated(tuple(ids), 8)
    assert one.text == pipeline.target.tokenizer.decode(one.token_ids, skip_special_tokens=True)
    assert pipeline.generate(ids, max_new_tokens=8).token_ids == one.token_ids
    many = pipeline.generate([PROMPT, IDS, PROMPT], max_new_tokens=8)
    assert [each.token_ids for each in many] == [one.token_ids, tuple(generated(IDS, 8)), one.token_ids]
    assert pipeline.generate([], max_new_tokens=8) == []
    assert set(one.to_dict()) == {"text", "token_ids", "finish_reason", "report"}


def test_chat_messages_go_through_the_template(make: Make) -> None:
    pipeline = make()
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(RequestError, match="no chat template"):
        pipeline.generate(messages)
    each = "{% for m in messages %}{{ m.role[0] }} {{ m.content }}. {% endfor %}"
    pipeline.target.tokenizer.chat_template = each + "{% if add_generation_prompt %}a {% endif %}"
    answer = pipeline.generate(messages, max_new_tokens=4)
    assert answer.prompt_token_ids == tuple(pipeline.target.tokenizer("u hi. a ").input_ids)
    (listed,) = pipeline.generate([messages], max_new_tokens=4)
    assert listed.token_ids == answer.token_ids


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([1, 64], {}, "token id 64 does not exist: the vocabulary has 64 entries"),
        ([-1], {}, "token id -1 does not exist"),
        ("", {}, "the prompt has no tokens"),
        ([3, "x"], {}, "not a mixture"),
        (IDS, {"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        (IDS, {"max_new_tokens": -1}, "max_new_tokens must be at least 1"),
        (IDS, {"temperature": -0.5}, "temperature must be 0"),
        (IDS, {"top_p": 0.0}, "top_p must lie in"),
        (IDS, {"stop": ""}, "empty string"),
        (IDS, {"stop": ["a", ""]}, "empty string"),
        (IDS, {"temprature": 1.0}, "there is no setting 'temprature'; did you mean 'temperature'"),
    ],
)
def test_what_is_impossible_is_refused_before_any_work(
    make: Make, prompt: Any, settings: dict[str, Any], message: str
) -> None:
    pipeline = make()
    for call in (pipeline.generate, pipeline.stream):
        with pytest.raises(RequestError, match=message):
            call(prompt, **settings)
        assert pipeline.engine.idle
        assert pipeline.engine.report.rounds == 0


def test_one_prompt_too_long_and_no_other_is_begun(make: Make) -> None:
    pipeline = make()
    with pytest.raises(ContextLengthError, match="exceed the model's context of 256: at most 6 new tokens fit"):
        pipeline.generate([IDS, [1] * 250], max_new_tokens=7)
    with pytest.raises(ContextLengthError, match="at most 252 new tokens fit"):
        pipeline.stream(IDS, max_new_tokens=253)
    assert pipeline.engine.idle
    assert pipeline.engine.report.prompt_tokens == 0
    assert pipeline.generate([1] * 250, max_new_tokens=6).finish_reason == "length"


def test_without_a_tokenizer_there_are_ids_only() -> None:
    with fastllm_core.load(model(), "plain", config={}) as pipeline:
        answer = pipeline.generate(IDS, max_new_tokens=5)
        assert (list(answer.token_ids), answer.text) == (generated(IDS, 5), "")
        with pytest.raises(RequestError, match="without a tokenizer: give token ids"):
            pipeline.generate("text")
        assert "".join(piece.text for piece in pipeline.stream(IDS, max_new_tokens=5)) == ""
        with pytest.raises(RequestError, match="stop strings need a tokenizer"):
            pipeline.stream(IDS, stop="x")


def test_the_models_generation_config_is_the_default(make: Make) -> None:
    target = tiny_model(sharpness=1.0)
    config = target.generation_config
    config.do_sample, config.temperature, config.top_k, config.top_p = True, 0.7, 9, 0.8
    config.max_new_tokens, config.eos_token_id = 17, [3, 5]
    pipeline = make(target=target)
    request = pipeline.request(IDS)
    assert request.sampling == SamplingParams(0.7, 9, 0.8)
    assert request.max_new_tokens == 17
    assert request.eos_token_ids == {3, 5}
    assert pipeline.request(IDS, temperature=0.0, ignore_eos=True).sampling.temperature == 0
    assert pipeline.request(IDS, ignore_eos=True).eos_token_ids == frozenset()
    assert pipeline.request(IDS, top_k=0, max_new_tokens=3).sampling == SamplingParams(0.7, 0, 0.8)
    config.do_sample, config.top_k = True, None
    assert make(target=target).request(IDS).sampling.top_k == 50  # what transformers does
    config.do_sample = False
    assert make(target=target).request(IDS).sampling.temperature == 0
    assert make(target=target).request(IDS, temperature=1.0).sampling.temperature == 1


def test_settings_win_over_the_configuration_and_that_over_the_model(make: Make) -> None:
    target = tiny_model()
    target.generation_config.do_sample, target.generation_config.temperature = True, 0.9
    pipeline = make(target=target, sampling__temperature=0.5, sampling__seed=3, sampling__max_new_tokens=7)
    request = pipeline.request(IDS)
    assert (request.sampling.temperature, request.seed, request.max_new_tokens) == (0.5, 3, 7)
    request = pipeline.request(IDS, temperature=0.0, seed=None, max_new_tokens=2, index=4)
    assert (request.sampling.temperature, request.seed, request.max_new_tokens) == (0.0, 7, 2)


def test_by_default_a_text_may_get_as_long_as_fits(make: Make) -> None:
    pipeline = make()
    assert pipeline.request([1] * 10).max_new_tokens == 246
    assert make(target=tiny_model(max_position_embeddings=1024)).request([1] * 10).max_new_tokens == 256


def test_eos_from_the_model_ends_the_text_unless_ignored(make: Make) -> None:
    text = generated(IDS, 12)
    target = tiny_model(sharpness=3.0)
    target.generation_config.eos_token_id = [text[4], 63]
    pipeline = make(Scripted(same), target=target)
    end = text.index(text[4])
    ended = pipeline.generate(IDS, max_new_tokens=12)
    assert (list(ended.token_ids), ended.finish_reason) == (text[: end + 1], "eos")
    ignored = pipeline.generate(IDS, max_new_tokens=12, ignore_eos=True)
    assert (list(ignored.token_ids), ignored.finish_reason) == (text, "length")


def test_seeds_of_a_list_count_up_and_each_text_is_the_text_alone(make: Make) -> None:
    pipeline = make(Scripted(same))
    sampled = {"max_new_tokens": 10, "temperature": 1.5}
    together = pipeline.generate([PROMPT, PROMPT, IDS], seed=5, **sampled)
    alone = [pipeline.generate(p, seed=5 + i, **sampled) for i, p in enumerate([PROMPT, PROMPT, IDS])]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert together[0].token_ids != together[1].token_ids
    plain = make().generate([PROMPT, PROMPT, IDS], seed=5, **sampled)
    assert [one.token_ids for one in plain] == [one.token_ids for one in together]


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [(), ("e",), ("zzz", "ab")])
@pytest.mark.parametrize("drafter", [None, Scripted(same)], ids=["plain", "drafting"])
def test_a_stream_shows_what_generate_returns(make: Make, drafter: Drafter | None, stop: tuple[str, ...]) -> None:
    pipeline = make(drafter)
    for seed in range(3):
        settings: Any = {"max_new_tokens": 16, "temperature": 1.0, "seed": seed, "stop": stop}
        whole = pipeline.generate(PROMPT, **settings)
        pieces = list(pipeline.stream(PROMPT, **settings))
        assert "".join(piece.text for piece in pieces) == whole.text == pieces[-1].result.text
        assert tuple(token for piece in pieces for token in piece.token_ids) == whole.token_ids
        assert [piece.result is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[-1].result.finish_reason == whole.finish_reason
        assert not any(one in whole.text for one in stop)


def test_a_stream_works_only_while_it_is_read_and_frees_its_row_when_closed(make: Make) -> None:
    pipeline = make(Scripted(same))
    unread = pipeline.stream(PROMPT, max_new_tokens=50)
    assert pipeline.engine.idle
    stream = pipeline.stream(PROMPT, max_new_tokens=50)
    other = pipeline.stream(IDS, max_new_tokens=9)
    first = [next(stream), next(other), next(stream), next(other)]
    assert len(pipeline.engine._slots.rows) == 2
    stream.close()  # the other row moves into its slot
    assert len(pipeline.engine._slots.rows) == 1
    tokens = [token for piece in (first[1], first[3], *other) for token in piece.token_ids]
    assert tokens == generated(IDS, 9)
    unread.close()
    assert pipeline.engine.idle
    assert pipeline._inbox == {}


def test_an_exception_of_the_reader_frees_the_row(make: Make) -> None:
    pipeline = make()

    def read() -> None:
        for _ in pipeline.stream(PROMPT, max_new_tokens=50):
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        read()
    assert pipeline.engine.idle
    assert list(pipeline.generate(IDS, max_new_tokens=6).token_ids) == generated(IDS, 6)


# -- failures ----------------------------------------------------------------------------------------------------------


class Trap(Scripted):
    """Raises when it is armed."""

    error: BaseException | None = None

    def propose(self, batch: Batch) -> Draft:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().propose(batch)


@pytest.mark.parametrize(
    "error", [ValueError("boom"), KeyboardInterrupt(), SystemExit()], ids=["error", "ctrl-c", "exit"]
)
def test_a_failure_reaches_the_caller_and_leaves_the_pipeline_usable(make: Make, error: BaseException) -> None:
    trap = Trap(same)
    pipeline = make(trap)
    trap.error = error
    with pytest.raises(type(error)):
        pipeline.generate([PROMPT, IDS], max_new_tokens=9)
    assert pipeline.engine.idle
    assert pipeline._inbox == {}
    stream = pipeline.stream(IDS, max_new_tokens=9)
    next(stream)
    trap.error = error
    with pytest.raises(type(error)):
        list(stream)
    assert list(pipeline.generate(IDS, max_new_tokens=9).token_ids) == generated(IDS, 9)


def test_a_failure_reaches_every_row_that_it_took_down_and_no_waiting_one(make: Make) -> None:
    trap = Trap(same)
    pipeline = make(trap, engine__max_rows=2)
    streams = [pipeline.stream(IDS, max_new_tokens=9) for _ in range(2)]
    for stream in streams:
        next(stream)
    row = pipeline.engine.add(pipeline.request(IDS, max_new_tokens=9))  # waits
    trap.error = ValueError("boom")
    for stream in streams:
        with pytest.raises(ValueError, match="boom"):
            list(stream)
    assert pipeline.engine.holds(row)
    tokens: list[int] = []
    while not pipeline.engine.idle:
        tokens += [token for event in pipeline.engine.step() for token in event.tokens]
    assert tokens == generated(IDS, 9)


def test_an_interrupt_stops_the_caller_even_if_its_own_row_survives(make: Make) -> None:
    """Ctrl-C lands while another's prompt is read: nobody may swallow it."""
    trap = Trap(same)
    pipeline = make(trap, engine__max_rows=1)
    first = pipeline.stream(IDS, max_new_tokens=9)
    next(first)
    waiting = pipeline.stream(PROMPT, max_new_tokens=9)
    trap.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        next(waiting)
    with pytest.raises(KeyboardInterrupt):
        next(first)
    assert pipeline.engine.idle


# -- closing, sharing, threads -----------------------------------------------------------------------------------------


def test_close_tells_the_drafter_once_and_ends_everything(make: Make) -> None:
    class Closing(Scripted):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    drafter = Closing(same)
    with make(drafter) as pipeline:
        stream, late = pipeline.stream(IDS), pipeline.stream(IDS)
        next(stream)
    pipeline.close()
    assert drafter.closed == 1
    for step in (
        lambda: next(stream),
        lambda: next(late),
        lambda: pipeline.generate(IDS),
        lambda: pipeline.stream(IDS),
    ):
        with pytest.raises(RequestError, match="closed"):
            step()
    assert pipeline.engine.idle


def test_a_row_cancelled_through_the_engine_ends_its_stream(make: Make) -> None:
    pipeline = make()
    stream = pipeline.stream(IDS)
    next(stream)
    pipeline.engine.cancel(pipeline.engine._slots.rows[0].id)
    with pytest.raises(RequestError, match="cancelled"):
        next(stream)


def test_two_pipelines_share_nothing(make: Make) -> None:
    """Two models, two methods, read in turns; the user's model is as it was."""
    before = {name: tensor.clone() for name, tensor in model().state_dict().items()}
    config = model().config.to_dict()
    other = tiny_model(seed=9)
    pipelines = [make(Scripted(same)), make(target=other), make(Scripted(lambda row, count: []))]
    streams = [pipeline.stream(IDS, max_new_tokens=8) for pipeline in pipelines]
    tokens: list[list[int]] = [[], [], []]
    while any(len(one) < 8 for one in tokens):
        for one, stream in zip(tokens, streams, strict=True):
            piece = next(stream, None)
            one += piece.token_ids if piece else ()
    assert tokens == [generated(IDS, 8), generated(IDS, 8, other), generated(IDS, 8)]
    assert len({id(pipeline.engine.parts.clock) for pipeline in pipelines}) == 3
    assert model().config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model().state_dict().items())


def test_threads_share_rounds_and_get_their_own_texts(make: Make) -> None:
    pipeline = make(Scripted(same))
    prompts = [tuple((i * 7 + j) % V for j in range(3 + i)) for i in range(6)]
    answers: dict[int, list[int]] = {}
    failures: list[BaseException] = []
    start = threading.Barrier(len(prompts))

    def work(index: int) -> None:
        try:
            start.wait(timeout=30)
            if index % 2:
                answers[index] = list(pipeline.generate(prompts[index], max_new_tokens=20).token_ids)
            else:
                pieces = pipeline.stream(prompts[index], max_new_tokens=20)
                answers[index] = [token for piece in pieces for token in piece.token_ids]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
    assert [answers[i] for i in range(len(prompts))] == [generated(prompt, 20) for prompt in prompts]
    assert pipeline.engine.report.tokens == 120
    assert pipeline.engine.report.rounds < 120 / 1.5  # several rows to a round
    assert pipeline.engine.idle


def test_a_context_reaches_the_drafters_factory(make: Make) -> None:
    seen: list[Context] = []
    make(Scripted(same))
    import fastllm_plugin_toy

    fastllm_plugin_toy.make = lambda context: seen.append(context) or Scripted(same)
    with fastllm_core.load(model(), "toy", config={"draft.length": 3}) as pipeline:
        (context,) = seen
        assert context.draft_length == 3
        assert context.target is pipeline.target
        assert context.cache is pipeline.engine.parts.cache
        assert context.network is pipeline.engine.parts.network
