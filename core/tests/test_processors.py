"""What processors remember, which the core does itself, who may share one, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StopStringCriteria,
    SuppressTokensLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    TopKLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from fastllm_core import Controls, Request, RequestError, load
from fastllm_core.acceptor import ExactAcceptor
from fastllm_core.lossy_acceptor import LossyAcceptor
from fastllm_core.processors import Memory, absorbed, memory_of
from fastllm_core.protocols import Guarantee, Proposal
from fastllm_core.testing import Oracle, tiny_model, tiny_tokenizer
from fastllm_core.testing.drafters import Branching
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.processors import AfterSum, Alternating, InOrder, Parity, Rolling

V = 64
PROMPT = (3, 9, 4, 9)


@cache
def model() -> PreTrainedModel:
    return tiny_model(seed=3, num_hidden_layers=2)


class Declared(Rolling):
    fastllm_memory = "prefix-pure"


class Saving:
    """Holds what nobody could copy, and says how it is saved."""

    def __init__(self) -> None:
        self.held, self.count = (i for i in range(3)), 0

    def snapshot(self) -> int:
        return self.count

    def restore(self, state: int) -> None:
        self.count = state

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.count += 1
        return scores.roll(self.count, -1)


class Chance:
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + torch.rand(())


class Lazy:
    """Pure in effect, with something that it makes once."""

    def __init__(self) -> None:
        self.table: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(scores.shape[-1]) % 3
        return scores + self.table


class Shared:
    """Notes what it sees in its class."""

    seen: ClassVar[list[int]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores


class Failing:
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        raise ValueError("not these")


def counting() -> Callable[[Tensor, Tensor], Tensor]:
    calls: list[int] = []

    def count(input_ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(1)
        return scores

    return count


def shifted(by: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda input_ids, scores: scores.roll(by, -1)


KNOWN: dict[str, tuple[Callable[[], Any], Memory]] = {
    "a penalty": (lambda: RepetitionPenaltyLogitsProcessor(1.2), Memory.PURE),
    "biases": (lambda: SequenceBiasLogitsProcessor({(1,): 2.0}), Memory.PURE),
    "stop strings": (lambda: StopStringCriteria(tiny_tokenizer(V), ["a"]), Memory.PURE),
    "guidance": (lambda: UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model()), Memory.STATEFUL),
    "SynthID": (
        lambda: SynthIDTextWatermarkLogitsProcessor(3, [1, 2], 64, 0, 8, torch.device("cpu")),
        Memory.STATEFUL,
    ),
    "declared": (Declared, Memory.PURE),
    "snapshot and restore": (Saving, Memory.SNAPSHOT),
    "plain and constant": (Parity, Memory.PURE),
    "plain and changing": (Alternating, Memory.SNAPSHOT),
    "made once": (Lazy, Memory.SNAPSHOT),
    "an object within": (Rolling, Memory.STATEFUL),
    "a criterion": (lambda: AfterSum(100), Memory.STATEFUL),
    "chance": (Chance, Memory.STATEFUL),
    "a list of its class": (Shared, Memory.STATEFUL),
    "raises": (Failing, Memory.STATEFUL),
    "a function over a list": (counting, Memory.STATEFUL),
    "a function over a number": (lambda: shifted(2), Memory.PURE),
    "a partial": (lambda: partial(lambda _, ids, scores: scores, 1), Memory.STATEFUL),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_remembered(name: str) -> None:
    make, memory = KNOWN[name]
    assert memory_of(make(), PROMPT, V) is memory


def test_a_trial_leaves_the_processor_alone() -> None:
    processor = Alternating()
    memory_of(processor, PROMPT, V)
    assert processor.weights == {}


def test_a_subclass_of_a_known_class_is_not_taken_for_it() -> None:
    class Own(RepetitionPenaltyLogitsProcessor):
        calls = 0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.calls += 1
            return scores

    assert memory_of(Own(1.2), PROMPT, V) is Memory.SNAPSHOT


def test_a_wrong_declaration_is_refused() -> None:
    class Odd(Rolling):
        fastllm_memory = "perhaps"

    with pytest.raises(RequestError, match=r"Odd\.fastllm_memory is 'perhaps'; it must be one of prefix-pure, snap"):
        memory_of(Odd(), PROMPT, V)


# -- what the core does itself -----------------------------------------------------------------------------------------


def settings_of(*processors: Any, **controls: Any) -> Controls:
    ends = frozenset({7, 9})
    return absorbed(Request(PROMPT, 20, eos_token_ids=ends, controls=Controls(**controls, processors=processors)))


def test_processors_of_transformers_become_settings() -> None:
    made = settings_of(
        SequenceBiasLogitsProcessor({(1, 2): 0.5}),
        RepetitionPenaltyLogitsProcessor(1.3, torch.tensor([0])),
        NoRepeatNGramLogitsProcessor(3),
        NoBadWordsLogitsProcessor([[5], [6, 7], [9]], [9]),
        MinLengthLogitsProcessor(10, [7, 9]),
        MinNewTokensLengthLogitsProcessor(len(PROMPT), 4, [9, 7]),
        SuppressTokensLogitsProcessor([8]),
    )
    assert made == Controls((((1, 2), 0.5),), 1.3, 0.0, 0.0, 3, ((5,), (6, 7), (8,)), 6)


@pytest.mark.parametrize(
    "processors",
    [
        [RepetitionPenaltyLogitsProcessor(1.3), RepetitionPenaltyLogitsProcessor(1.2)],
        [RepetitionPenaltyLogitsProcessor(1.3), SequenceBiasLogitsProcessor({(1,): 0.5})],
        [NoRepeatNGramLogitsProcessor(3), RepetitionPenaltyLogitsProcessor(1.2)],
        [NoRepeatNGramLogitsProcessor(3), NoRepeatNGramLogitsProcessor(2)],
        [NoRepeatNGramLogitsProcessor(3), TopKLogitsWarper(5), NoBadWordsLogitsProcessor([[5]])],
        [NoRepeatNGramLogitsProcessor(3), RepetitionPenaltyLogitsProcessor(1.2, 2)],
        [NoRepeatNGramLogitsProcessor(3), MinNewTokensLengthLogitsProcessor(4, 4, [7])],
    ],
    ids=["twice", "bias behind", "penalty behind", "two sizes", "behind another", "part of the prompt", "other ends"],
)
def test_what_would_be_another_order_or_another_meaning_stays_a_processor(processors: list[Any]) -> None:
    assert settings_of(*processors).processors == tuple(processors[1:])


def test_settings_come_first() -> None:
    bias = SequenceBiasLogitsProcessor({(1,): 0.5})
    assert settings_of(bias, repetition_penalty=1.2).processors == (bias,)
    assert settings_of(RepetitionPenaltyLogitsProcessor(1.2), presence_penalty=1.0).processors
    assert settings_of(NoRepeatNGramLogitsProcessor(2), min_new_tokens=3).no_repeat_ngram_size == 2


# -- how they are called -----------------------------------------------------------------------------------------------


def tree(text: list[int]) -> Branching:
    return Branching(Oracle({PROMPT: [*PROMPT, *text]}, lambda i: i % 4 == 3).guess, branches=2)


def test_a_processor_is_called_once_for_every_token_in_order() -> None:
    order = InOrder()

    def watched(input_ids: Tensor, scores: Tensor) -> Tensor:
        order(input_ids)
        return scores

    plain = decode(make_engine(model()), [Request(PROMPT, 20)])[0]
    asked = Request(PROMPT, 20, controls=Controls(processors=(watched,)), eos_token_ids=frozenset({plain[13]}))
    text = decode(make_engine(model(), tree(plain)), [asked])[0]
    assert text == plain[: plain.index(plain[13]) + 1]
    assert order.calls == len(text)
    assert order.seen == [*PROMPT, *text[:-1]]


def test_a_criterion_is_asked_once_for_every_token_in_order() -> None:
    plain = decode(make_engine(model()), [Request(PROMPT, 20)])[0]
    criterion = AfterSum(sum(plain[:11]))
    events = []
    engine = make_engine(model(), tree(plain))
    engine.add(Request(PROMPT, 20, stopping_criteria=(criterion,)))
    while not engine.idle:
        events += engine.step()
    text = [token for event in events for token in event.tokens]
    assert (text, events[-1].finish_reason) == (plain[: len(text)], "criterion")
    assert criterion.order.calls == len(text)
    assert criterion.order.seen == [*PROMPT, *text]


@pytest.mark.parametrize("rule", ["typical", "lenient", "third party"])
@pytest.mark.parametrize("make", [Parity, Alternating, Saving, Rolling])
def test_acceptors_that_want_all_logits_at_once(rule: str, make: Callable[[], Any]) -> None:
    """Where a state can be put back they get them; where not, *match* decides. Greedily all is plain decoding then."""

    class ThirdParty:
        guarantee = Guarantee.EXACT

        def decide(self, *arguments: Any) -> Any:
            return ExactAcceptor(Proposal.ONE_HOT).decide(*arguments)

    made: dict[str, Any] = {
        "typical": LossyAcceptor(Proposal.ONE_HOT, "typical"),
        "lenient": LossyAcceptor(Proposal.ONE_HOT, "lenient", lenience=1.0),
        "third party": ThirdParty(),
    }
    first = make()
    text = decode(make_engine(model()), [Request(PROMPT, 18, controls=Controls(processors=(first,)))])[0]
    for drafter in (Oracle({PROMPT: [*PROMPT, *text]}, lambda i: i % 3 == 1), tree(text)):
        engine = make_engine(model(), drafter)
        object.__setattr__(engine.parts, "acceptor", made[rule])
        second = make()
        assert decode(engine, [Request(PROMPT, 18, controls=Controls(processors=(second,)))])[0] == text
        assert getattr(second, "weights", None) == getattr(first, "weights", None)
        assert getattr(second, "count", None) == getattr(first, "count", None)


@pytest.mark.parametrize("answer", [None, torch.zeros(V), torch.zeros(2, V)], ids=["none", "a vector", "two rows"])
def test_an_answer_that_is_no_scores_is_refused(answer: Any) -> None:
    def odd(input_ids: Tensor, scores: Tensor) -> Any:
        return answer

    engine = make_engine(model())
    engine.add(Request(PROMPT, 4, controls=Controls(processors=(odd,))))
    with pytest.raises(RequestError, match=r"processors: odd answers .*, not scores of shape \(1, 64\)"):
        engine.step()
    assert engine.idle


# -- who may share one -------------------------------------------------------------------------------------------------


def test_what_has_a_state_serves_one_text() -> None:
    prompts = [[3, 4], [5, 6]]
    with load(model(), "plain", tokenizer=tiny_tokenizer(V), config={"forward": "eager"}) as pipeline:
        with pytest.raises(RequestError, match="Rolling may remember what it has seen and cannot serve two texts"):
            pipeline.generate(prompts, processors=[Rolling()], max_new_tokens=5)
        with pytest.raises(RequestError, match="AfterSum may remember"):
            pipeline.generate(prompts, stopping_criteria=[AfterSum(3)], max_new_tokens=5)
        shared = pipeline.generate(prompts, processors=[Parity()], max_new_tokens=5)
        made = pipeline.generate(prompts, processors=lambda prompt: [Parity(), Rolling()], max_new_tokens=5)
        alone = [pipeline.generate(one, processors=[Parity(), Rolling()], max_new_tokens=5) for one in prompts]
    assert [one.token_ids for one in made] == [one.token_ids for one in alone]
    assert [one.token_ids for one in shared] != [one.token_ids for one in made]


def test_a_live_row_keeps_its_processor() -> None:
    processor = Rolling()
    engine = make_engine(model())
    engine.add(Request(PROMPT, 9, controls=Controls(processors=(processor,))))
    with pytest.raises(RequestError, match="cannot serve two texts at once"):
        engine.add(Request(PROMPT, 9, controls=Controls(processors=(processor,))))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a positive number, not 0.0"),
        ({"presence_penalty": float("nan")}, "presence_penalty must be a finite number, not nan"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be 0 or positive, not -1"),
        ({"min_new_tokens": -1}, "min_new_tokens must be 0 or positive, not -1"),
        ({"bad_words": ((),)}, "bad_words: every entry needs at least one token"),
        ({"sequence_bias": (((3,), float("inf")),)}, "logit_bias: a bias is a finite number, or -inf to forbid"),
        ({"processors": (3,)}, "processors: a int cannot be called"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_controls_that_mean_nothing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Controls(**values)


def test_requests_that_cannot_be_served() -> None:
    engine = make_engine(model())
    with pytest.raises(RequestError, match="token id 64 does not exist: the vocabulary has 64 entries"):
        engine.add(Request(PROMPT, 5, controls=Controls(bad_words=((1, 64),))))
    with pytest.raises(RequestError, match="controller: 'clever' does not exist; choose one of fixed, heuristic"):
        engine.add(Request(PROMPT, 5, controller="clever"))
    with pytest.raises(RequestError, match="'threshold' ends a draft where the drafter is unsure, and this one does"):
        make_engine(model(), tree([1])).add(Request(PROMPT, 5, controller="threshold"))
    with pytest.raises(RequestError, match="stopping_criteria: a str cannot be called"):
        Request(PROMPT, 5, stopping_criteria=("no",))  # type: ignore[arg-type]
