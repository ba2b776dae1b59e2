"""`model.generate(..., custom_generate=...)` writes what `model.generate(...)` writes, or refuses by name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)
from transformers.generation import GenerateDecoderOnlyOutput

from fastllm_core import CustomGenerate, custom_generate
from fastllm_core.dropin import fields
from fastllm_core.errors import RequestError
from fastllm_core.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about settings that are tried here

V, NEW = 64, 16

METHODS = ("branching", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plain", "guessing")))

PLUGIN = '''
import random
from fastllm_core import Drafter, Options, Proposal, hookimpl
from fastllm_core.testing import Branching, Scripted

TEXTS = []


def guess(row, count):
    """Of a text that begins like the row, what comes next, with every third token wrong."""
    for text in TEXTS:
        if text[: row.length] == row.tokens:
            return [(token + (i % 3 == 2)) % 64 for i, token in enumerate(text[row.length : row.length + count])]
    return [random.Random(row.length).randrange(64)] * count


class Plugin:
    api_version = 1
    Options = Options

    def __init__(self, options):
        self.options = options

    @hookimpl
    def fastllm_make_drafter(self, context):
        return {}(guess)
'''


@cache
def model() -> PreTrainedModel:
    made = tiny_model(sharpness=2.0)
    made.generation_config.pad_token_id = 0
    return made


@pytest.fixture(params=METHODS)
def fast(request: pytest.FixtureRequest, site: Any) -> Iterator[CustomGenerate]:
    """The drop-in with a method that drafts chains, one that drafts trees, and without any."""
    site.plugin("guessing", PLUGIN.replace("{}", "Scripted"))
    site.plugin("branching", PLUGIN.replace("{}", "Branching"))
    config: dict[str, Any] = {"draft": {"controller": "fixed"}} if request.param != "plain" else {}
    with custom_generate(request.param, config=config) as made:
        yield made


@pytest.fixture
def plain() -> Iterator[CustomGenerate]:
    with custom_generate("plain", config={}) as made:
        yield made


def batch(*sizes: int) -> dict[str, Tensor]:
    """Prompts of some lengths, padded on the left."""
    draw, most = random.Random(len(sizes)), max(sizes)
    lines = [[draw.randrange(1, V) for _ in range(size)] for size in sizes]
    return {
        "input_ids": torch.tensor([[0] * (most - len(line)) + line for line in lines]),
        "attention_mask": torch.tensor([[0] * (most - len(line)) + [1] * len(line) for line in lines]),
    }


ONE, MANY = batch(9), batch(9, 4, 13, 1)


class Recorder:
    """A streamer that remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []

    def put(self, value: Tensor) -> None:
        self.seen.append([value.dtype, str(value.device), value.tolist()])

    def end(self) -> None:
        self.seen.append(["end"])


def learn(fast: CustomGenerate, sequences: Tensor, inputs: dict[str, Tensor]) -> None:
    """Tell the guessing drafters what plain generate wrote, so that drafts are accepted."""
    import sys

    for name in ("fastllm_plugin_guessing", "fastllm_plugin_branching"):
        if name in sys.modules:
            lines = zip(sequences.tolist(), inputs["attention_mask"].tolist(), strict=True)
            sys.modules[name].TEXTS[:] = [line[mask.count(0) :] for line, mask in lines]


def compare(fast: CustomGenerate, inputs: dict[str, Tensor], make: Any = dict, **settings: Any) -> Any:
    """Generate with and without the drop-in and see that everything is the same.

    make: arguments that are made anew each time.
    """
    settings = {"max_new_tokens": NEW, "do_sample": False, **settings}
    one, two = Recorder(), Recorder()
    wanted = model().generate(**inputs, **settings, **make(), streamer=one)
    fast.pipeline(model())  # its plugin is imported
    learn(fast, wanted if isinstance(wanted, Tensor) else wanted.sequences, inputs)
    got = model().generate(**inputs, **settings, **make(), streamer=two, custom_generate=fast)
    assert two.seen == one.seen
    same(got, wanted)
    return wanted


def same(got: Any, wanted: Any) -> None:
    assert type(got) is type(wanted)
    if isinstance(wanted, Tensor):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
        assert not got.is_inference()
        return
    assert torch.equal(got.sequences, wanted.sequences)
    for name in ("scores", "logits"):
        mine, theirs = getattr(got, name), getattr(wanted, name)
        assert (mine is None) == (theirs is None)
        assert mine is None or len(mine) == len(theirs)
        for a, b in zip(mine or (), theirs or (), strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)


# -- greedy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [ONE, MANY, batch(1), batch(1, 1, 7)], ids=["one", "many", "short", "shorter"])
def test_greedy_texts_are_the_same(fast: CustomGenerate, inputs: dict[str, Tensor]) -> None:
    compare(fast, inputs)
    compare(fast, inputs, eos_token_id=[7, 22, 9, 40, 33])
    compare(fast, inputs, eos_token_id=7, pad_token_id=3, min_new_tokens=5)
    compare(fast, inputs)
    drafted, accepted = (sum(getattr(report, name) for report in fast.reports) for name in ("drafted", "accepted"))
    assert 0 < accepted < drafted if fast.pipeline(model()).method != "plain" else drafted == 0


def test_texts_end_where_the_first_of_many_end_tokens_comes(plain: CustomGenerate) -> None:
    """Every length, and texts of different lengths in one batch."""
    whole = compare(plain, MANY)
    for step in range(NEW):
        compare(plain, MANY, eos_token_id=int(whole[step % 4, 13 + step]))


SETTINGS: dict[str, dict[str, Any]] = {
    "max_length": {"max_new_tokens": None, "max_length": 20},
    "default length": {"max_new_tokens": None},
    "min_length": {"min_length": 20, "eos_token_id": [7, 22, 9, 40, 33]},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[5], [7, 9], [22]]},
    "sequence_bias": {"sequence_bias": {(5,): 4.0, (7, 9): -3.0}},
    "suppress": {"suppress_tokens": [1, 2, 3, 30], "begin_suppress_tokens": [9, 40]},
    "forced": {"forced_eos_token_id": 7, "forced_bos_token_id": 3, "eos_token_id": 7},
    "decay": {"exponential_decay_length_penalty": (4, 1.4), "eos_token_id": [7, 22]},
    "encoder": {"encoder_repetition_penalty": 1.4, "encoder_no_repeat_ngram_size": 2},
    "guidance": {"guidance_scale": 1.5},
    "watermark": {"watermarking_config": {"bias": 2.5, "seeding_scheme": "selfhash"}},
    "renormalize": {"renormalize_logits": True, "remove_invalid_values": True},
    "several": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[4]], "min_new_tokens": 6},
    "irrelevant": {"use_cache": False, "length_penalty": 2.0, "early_stopping": True, "disable_compile": True},
    "static": {"cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.parametrize("inputs", [ONE, MANY], ids=["one", "many"])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_honoured(fast: CustomGenerate, name: str, inputs: dict[str, Tensor]) -> None:
    compare(fast, inputs, **SETTINGS[name])


@pytest.mark.parametrize("inputs", [ONE, MANY], ids=["one", "many"])
def test_the_dictionary_is_the_same(fast: CustomGenerate, inputs: dict[str, Tensor]) -> None:
    settings: dict[str, Any] = {"return_dict_in_generate": True, "eos_token_id": [7, 22, 9, 40, 33]}
    assert isinstance(compare(fast, inputs, **settings), GenerateDecoderOnlyOutput)
    compare(fast, inputs, output_scores=True, **settings)
    compare(fast, inputs, output_logits=True, **settings)
    whole = compare(fast, inputs, output_scores=True, output_logits=True, repetition_penalty=1.3, **settings)
    assert len(whole.scores) == whole.sequences.shape[1] - inputs["input_ids"].shape[1]
    compare(fast, inputs, output_scores=True, guidance_scale=1.5, **settings)


def test_transition_scores_can_be_computed(plain: CustomGenerate) -> None:
    settings: dict[str, Any] = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_scores": True}
    wanted = model().generate(**ONE, **settings)
    got = model().generate(**ONE, **settings, custom_generate=plain)
    one, two = (
        model().compute_transition_scores(out.sequences, out.scores, normalize_logits=True) for out in (got, wanted)
    )
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


# -- processors and criteria of the caller's own -----------------------------------------------------------------------


class Alternating(LogitsProcessor):
    """Even tokens at even lengths: a function of the text."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, (input_ids.shape[1] + 1) % 2 :: 2] -= 3.0
        return scores


class Counting(LogitsProcessor):
    """Has a state: what it does depends on how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        scores = scores.clone()
        scores[:, self.calls % V] += 6.0
        return scores


class ByPlace(LogitsProcessor):
    """Treats the rows of a batch differently."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row in range(len(scores)):
            scores[row, row] += 9.0
        return scores


class AtToken(StoppingCriteria):
    """Ends a row at some tokens."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return (input_ids[:, -1, None] == torch.tensor([7, 22, 9, 40])).any(1)


class AfterCalls(StoppingCriteria):
    """Has a state, and answers for the whole batch."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.left -= 1
        return torch.full((len(input_ids),), self.left <= 0)


@pytest.mark.parametrize("inputs", [ONE, MANY], ids=["one", "many"])
@pytest.mark.parametrize("kind", [Alternating, Counting])
def test_processors_of_ones_own(fast: CustomGenerate, kind: Any, inputs: dict[str, Tensor]) -> None:
    compare(fast, inputs, make=lambda: {"logits_processor": LogitsProcessorList([kind()])}, repetition_penalty=1.2)


@pytest.mark.parametrize("inputs", [ONE, MANY], ids=["one", "many"])
@pytest.mark.parametrize("eos", [None, 33])
def test_criteria_of_ones_own(fast: CustomGenerate, eos: int | None, inputs: dict[str, Tensor]) -> None:
    """Without end tokens nothing is padded: a text that has ended goes on until the last one has."""
    for kind in (AtToken, lambda: AfterCalls(5)):
        made = lambda kind=kind: {"stopping_criteria": StoppingCriteriaList([kind()])}  # noqa: E731
        compare(fast, inputs, make=made, eos_token_id=eos)
    compare(fast, inputs, make=lambda: {"stopping_criteria": StoppingCriteriaList([EosTokenCriteria([7, 22])])})


def test_what_is_allowed_may_depend_on_the_prompt(fast: CustomGenerate) -> None:
    compare(fast, MANY, prefix_allowed_tokens_fn=lambda prompt, sent: [prompt, prompt + 4, (len(sent) * 3) % V])


@pytest.mark.parametrize("inputs", [ONE, MANY], ids=["one", "many"])
def test_stop_strings(fast: CustomGenerate, inputs: dict[str, Tensor]) -> None:
    tokenizer = tiny_tokenizer(V)
    text = tokenizer.decode(compare(fast, inputs)[0, -NEW:])
    for at in range(0, len(text) - 3, 3):
        compare(fast, inputs, stop_strings=[text[at : at + 3], "zzz"], tokenizer=tokenizer)
        compare(fast, inputs, stop_strings=text[at : at + 2], tokenizer=tokenizer, eos_token_id=1)


def test_rows_that_are_not_treated_by_themselves_are_refused(plain: CustomGenerate) -> None:
    class AnyRow(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> bool:
            return bool(input_ids[0, -1] == 7)

    class Scores(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.full((len(input_ids),), bool(scores[-1].max() > 1e9) if scores is not None else False)

    refused: list[tuple[str, dict[str, Any], dict[str, Tensor]]] = [
        ("logits_processor: a ByPlace does not treat", {"logits_processor": LogitsProcessorList([ByPlace()])}, MANY),
        ("stopping_criteria: a AnyRow does not answer", {"stopping_criteria": StoppingCriteriaList([AnyRow()])}, MANY),
        (
            "stopping_criteria: a Scores reads the scores",
            {
                "stopping_criteria": StoppingCriteriaList([Scores()]),
                "return_dict_in_generate": True,
                "output_scores": True,
            },
            ONE,
        ),
    ]
    for message, settings, inputs in refused:
        with pytest.raises(RequestError, match=f"^{message}"):
            model().generate(**inputs, max_new_tokens=4, **settings, custom_generate=plain)
    compare(plain, ONE, make=lambda: {"logits_processor": LogitsProcessorList([ByPlace()])})
    compare(plain, ONE, make=lambda: {"stopping_criteria": StoppingCriteriaList([AnyRow()])})


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_samples_follow_the_seed(fast: CustomGenerate) -> None:
    settings: dict[str, Any] = {"do_sample": True, "max_new_tokens": NEW, "custom_generate": fast}
    torch.manual_seed(5)
    one = model().generate(**MANY, **settings)
    torch.manual_seed(5)
    assert torch.equal(model().generate(**MANY, **settings), one)
    assert not torch.equal(model().generate(**MANY, **settings), one)
    seeded = model().generate(**MANY, **settings, seed=3)
    assert torch.equal(model().generate(**MANY, **settings, seed=3), seeded)


def test_samples_are_the_pipelines(plain: CustomGenerate) -> None:
    """Prompt i has seed + i, and its samples the seeds that `n` gives them."""
    settings: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": NEW, "seed": 11}
    got = model().generate(**ONE, **settings, do_sample=True, num_return_sequences=3, custom_generate=plain)
    prompt = ONE["input_ids"][0].tolist()
    wanted = plain.pipeline(model()).generate(prompt, **settings, n=3, top_k=50)
    assert got[:, len(prompt) :].tolist() == [list(sample.token_ids) for sample in wanted]
    two = model().generate(**MANY, do_sample=True, num_return_sequences=2, max_new_tokens=NEW, custom_generate=plain)
    assert two.shape == (8, 13 + NEW)
    assert torch.equal(two[::2, :13], MANY["input_ids"])


LAWS: dict[str, dict[str, Any]] = {
    "default": {},
    "temperature": {"temperature": 1.7, "top_k": 0},
    "top_k": {"temperature": 0.6, "top_k": 5},
    "top_p": {"top_p": 0.7, "top_k": 20},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.6},
    "cutoffs": {"epsilon_cutoff": 0.02, "eta_cutoff": 0.03},
    "top_h": {"top_h": 0.5},
    "processors": {"repetition_penalty": 1.5, "bad_words_ids": [[3]], "temperature": 1.3, "renormalize_logits": True},
    "watermark": {"watermarking_config": {"bias": 2.0}, "top_p": 0.9},
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_a_token_is_that_of_generate(plain: CustomGenerate, name: str) -> None:
    """What a token is drawn from, over every cell of the uniform: it is the softmax of generate's scores."""
    settings: dict[str, Any] = {"do_sample": True, "max_new_tokens": 1, **LAWS[name]}
    theirs = model().generate(**ONE, **settings, return_dict_in_generate=True, output_scores=True)
    wanted = theirs.scores[0].softmax(-1)[0]
    cells = 100
    drawn = torch.zeros(V)
    for cell in range(cells):
        with at((cell + 0.5) / cells):
            drawn[model().generate(**ONE, **settings, custom_generate=plain)[0, -1]] += 1 / cells
    assert (drawn - wanted).abs().max() <= 1.01 / cells
    assert set(drawn.nonzero().flatten().tolist()) <= set(wanted.nonzero().flatten().tolist())


@pytest.mark.parametrize("name", LAWS)
def test_a_seeds_text_is_the_same_from_every_method(fast: CustomGenerate, plain: CustomGenerate, name: str) -> None:
    """So the law is that of plain decoding, whose tokens are drawn as above."""
    for seed in range(3):
        settings: dict[str, Any] = {"do_sample": True, "max_new_tokens": NEW, "seed": seed, **LAWS[name]}
        wanted = model().generate(**MANY, **settings, custom_generate=plain)
        fast.pipeline(model())
        learn(fast, wanted, MANY)
        assert torch.equal(model().generate(**MANY, **settings, custom_generate=fast), wanted)


def at(u: float) -> Any:
    """All uniforms that decide a token are this one."""
    import numpy as np

    patch = pytest.MonkeyPatch()
    patch.setattr("fastllm_core.batch.uniforms", lambda seeds, purpose, counters: np.full(np.shape(counters)[:2], u))
    return Undoing(patch)


class Undoing:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


# -- streamers and pipelines -------------------------------------------------------------------------------------------


def test_transformers_own_streamers(fast: CustomGenerate, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer(V)
    printed = []
    for more in ({}, {"custom_generate": fast}):
        model().generate(**ONE, max_new_tokens=NEW, streamer=TextStreamer(tokenizer, skip_prompt=True), **more)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""
    texts = []
    for more in ({}, {"custom_generate": fast}):
        streamer = TextIteratorStreamer(tokenizer)
        model().generate(**ONE, max_new_tokens=NEW, streamer=streamer, **more)
        texts.append("".join(streamer))
    assert texts[0] == texts[1]


def test_a_streamer_that_raises_frees_the_rows(plain: CustomGenerate) -> None:
    class Broken(Recorder):
        def put(self, value: Tensor) -> None:
            if value.dim() == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model().generate(**ONE, max_new_tokens=NEW, streamer=Broken(), custom_generate=plain)
    assert plain.pipeline(model()).engine.idle
    compare(plain, ONE)


def test_a_text_generation_pipeline(fast: CustomGenerate) -> None:
    tokenizer = tiny_tokenizer(V)
    tokenizer.pad_token = "<unk>"
    make = pipeline("text-generation", model=model(), tokenizer=tokenizer)
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    assert make("abc def", **settings, custom_generate=fast) == make("abc def", **settings)
    several = ["abc", "Hello there", "x"]
    assert make(several, batch_size=3, **settings, custom_generate=fast) == make(several, batch_size=3, **settings)
    stopped = {**settings, "stop_sequence": make("abc", **settings)[0]["generated_text"][6:9]}
    assert make("abc", **stopped, custom_generate=fast) == make("abc", **stopped)


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED: dict[str, dict[str, Any]] = {
    "num_beams": {"num_beams": 3},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "assistant_early_exit": {"assistant_early_exit": 2},
    "use_mtp": {"use_mtp": True},
    "output_attentions": {"output_attentions": True},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "cache_implementation": {"cache_implementation": "offloaded"},
    "assistant_model": {"assistant_model": tiny_model(num_hidden_layers=1)},
    "synced_gpus": {"synced_gpus": True},
    "position_ids": {"position_ids": torch.arange(9)[None] + 3},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(plain: CustomGenerate, name: str) -> None:
    with pytest.raises(RequestError, match=f"^{name}") as caught:
        model().generate(**ONE, max_new_tokens=4, **REFUSED[name], custom_generate=plain)
    assert "\n" not in str(caught.value)


def test_other_ways_to_say_a_prompt_are_refused(plain: CustomGenerate) -> None:
    from transformers import DynamicCache

    embeds = model().get_input_embeddings()(ONE["input_ids"])
    holes = {**ONE, "attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1, 1]])}
    right = {**ONE, "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 0]])}
    for message, arguments in (
        ("inputs_embeds|input_ids", {"inputs_embeds": embeds}),
        ("attention_mask", holes),
        ("attention_mask", right),
        ("cache|past_key_values", {**ONE, "cache": DynamicCache()}),
    ):
        with pytest.raises(RequestError, match=f"^({message})"):
            model().generate(**arguments, max_new_tokens=4, custom_generate=plain)


def test_a_model_in_training_mode_is_refused() -> None:
    training = tiny_model().train()
    with custom_generate("plain", config={}) as fast, pytest.raises(RequestError, match="training mode"):
        training.generate(**ONE, max_new_tokens=4, custom_generate=fast)


def test_every_setting_of_transformers_has_been_thought_about() -> None:
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    tables = [set(fields.HONOURED), set(fields.IRRELEVANT), set(fields.ALLOWED)]
    assert known <= set.union(*tables)
    assert sum(map(len, tables)) == len(set.union(*tables))


def test_a_setting_that_nobody_knows_is_refused(plain: CustomGenerate, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig(max_new_tokens=4, telepathy=0.5)
    with pytest.raises(RequestError, match=r"^telepathy = 0.5 cannot be honoured"):
        model().generate(**ONE, generation_config=config, custom_generate=plain)
    # One that the model's own file brings is not read by transformers either.
    monkeypatch.setattr(model().generation_config, "telepathy", 0.5, raising=False)
    model().generate(**ONE, max_new_tokens=4, custom_generate=plain)


def test_a_new_setting_of_transformers_is_refused_unless_it_is_at_its_default(
    plain: CustomGenerate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "HONOURED", fields.HONOURED - {"top_h"})
    monkeypatch.setattr(fields, "HONOURED", fields.HONOURED - {"temperature"})
    model().generate(**ONE, max_new_tokens=4, custom_generate=plain)
    for settings in ({"top_h": 0.4}, {"temperature": 0.4}):
        with pytest.raises(RequestError, match=f"^{next(iter(settings))} = 0.4 cannot be honoured"):
            model().generate(**ONE, max_new_tokens=4, do_sample=True, **settings, custom_generate=plain)


# -- the pipeline behind it --------------------------------------------------------------------------------------------


def test_the_pipeline_is_built_once_and_the_model_is_not_touched(plain: CustomGenerate) -> None:
    before = [(name, id(module), sorted(vars(module))) for name, module in model().named_modules()]
    first = plain.pipeline(model())
    compare(plain, ONE)
    compare(plain, MANY)
    assert plain.pipeline(model()) is first
    assert [(name, id(module), sorted(vars(module))) for name, module in model().named_modules()] == before


def test_it_is_built_again_for_a_model_that_was_changed(plain: CustomGenerate) -> None:
    other = tiny_model(sharpness=2.0, seed=1)
    settings: dict[str, Any] = {**ONE, "max_new_tokens": NEW, "do_sample": False}
    first = plain.pipeline(other)
    assert torch.equal(other.generate(**settings, custom_generate=plain), other.generate(**settings))
    with torch.no_grad():
        other.lm_head.weight.mul_(-1.0)  # trained on, say
    assert torch.equal(other.generate(**settings, custom_generate=plain), other.generate(**settings))
    assert plain.pipeline(other) is not first
    other.double()
    assert torch.equal(other.generate(**settings, custom_generate=plain), other.generate(**settings))


def test_two_models_have_a_pipeline_each(plain: CustomGenerate) -> None:
    other = tiny_model(sharpness=2.0, seed=1)
    first = plain.pipeline(model())
    assert plain.pipeline(other) is not first
    assert plain.pipeline(model()) is first
    plain.close()
    assert plain.pipeline(model()) is not first


def test_it_says_why_it_was_fast(plain: CustomGenerate) -> None:
    model().generate(**MANY, max_new_tokens=NEW, custom_generate=plain)
    assert [report.tokens for report in plain.reports] == [NEW] * 4
