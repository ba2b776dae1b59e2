"""What a person asks becomes the engine's controls: arguments, then the configuration, then the model's own wishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastllm_core import Controls, Pipeline, RequestError, load, load_config
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_core.testing.processors import Parity

IDS = [3, 4, 5]
TOKENIZER = tiny_tokenizer()


def pipeline(tokenizer: Any = TOKENIZER, generation: dict[str, Any] | None = None, **config: Any) -> Pipeline:
    model = tiny_model()
    model.generation_config.update(**(generation or {}))
    settings = {"forward": "eager", **{key.replace("__", "."): value for key, value in config.items()}}
    return load(model, "plain", tokenizer=tokenizer, config=settings)


def test_every_setting() -> None:
    parity = Parity()
    asked = pipeline().request(
        IDS,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        no_repeat_ngram_size=3,
        min_new_tokens=4,
        bad_words=["ab", [7, 8]],
        logit_bias={5: -1.0, "6": 2, (1, 2): 0.5},
        processors=[parity],
        stopping_criteria=lambda prompt: [lambda ids, scores: ids.shape[1] > len(prompt)],
        controller="heuristic",
    )
    a, b, space = TOKENIZER.convert_tokens_to_ids(["a", "b", " "])
    biases = (((5,), -1.0), ((6,), 2.0), ((1, 2), 0.5))
    words = ((a, b), (space, a, b), (7, 8))
    assert asked.controls == Controls(biases, 1.2, -0.25, 0.5, 3, words, 4, (parity,))
    assert len(asked.stopping_criteria) == 1
    assert asked.controller == "heuristic"
    assert pipeline().request(IDS).controls == Controls()


def test_a_stopping_criterion_ends_the_text() -> None:
    stop = [lambda ids, scores: ids.shape[1] == 9]
    answer = pipeline().generate(IDS, stopping_criteria=stop, max_new_tokens=20)
    assert (len(answer.token_ids), answer.finish_reason) == (6, "criterion")


def test_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "fastllm.toml"
    file.write_text(
        '[sampling]\nrepetition_penalty = 1.5\nbad_words = ["a"]\nignore_eos = true\nmin_new_tokens = 3\n'
        '[sampling.logit_bias]\n"7" = -2.5\n',
        encoding="utf-8",
    )
    config = load_config(file, {"sampling.logit_bias.8": "3", "sampling.presence_penalty": "0.5"}, {})
    model = tiny_model(eos_token_id=9)
    made = load(model, "plain", tokenizer=TOKENIZER, config=config)
    asked = made.request(IDS)
    assert asked.eos_token_ids == frozenset()
    assert made.request(IDS, ignore_eos=False).eos_token_ids == {9}
    a, space = TOKENIZER.convert_tokens_to_ids(["a", " "])
    biases = (((7,), -2.5), ((8,), 3.0))
    assert asked.controls == Controls(biases, 1.5, 0.0, 0.5, 0, ((a,), (space, a)), 3)
    assert made.request(IDS, repetition_penalty=1.0, bad_words=[], logit_bias={}, min_new_tokens=0).controls == (
        Controls(presence_penalty=0.5)
    )


def test_the_models_generation_config() -> None:
    wishes = {"repetition_penalty": 1.3, "bad_words_ids": [[5], [6, 7]], "suppress_tokens": [9], "min_length": 8}
    made = pipeline(generation=wishes)
    assert made.target.generation.unapplied == ()
    assert made.request(IDS).controls == Controls((), 1.3, bad_words=((5,), (6, 7), (9,)), min_new_tokens=5)
    asked = made.request(IDS, repetition_penalty=1.0, bad_words=[[2]])
    assert asked.controls == Controls(bad_words=((2,), (9,)), min_new_tokens=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bad_words": "damn"}, "bad_words: give a list of words"),
        ({"bad_words": [" "]}, "bad_words: an empty word would forbid everything"),
        ({"bad_words": [[]]}, "bad_words: every entry needs at least one token"),
        ({"logit_bias": {"x": 1.0}}, "logit_bias: 'x' is no token id, or 1.0 no number"),
        ({"logit_bias": {64: 1.0}}, "token id 64 does not exist: the vocabulary has 64 entries"),
        ({"processors": 7}, "processors, stopping_criteria: give a list, not a int"),
        ({"repetition_penalti": 1.0}, "there is no setting 'repetition_penalti'; did you mean 'repetition_penalty'"),
    ],
)
def test_what_cannot_be_asked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pipeline().request(IDS, **settings)


def test_words_need_a_tokenizer() -> None:
    with pytest.raises(RequestError, match="was loaded without a tokenizer: give token ids instead of text"):
        pipeline(None).request(IDS, bad_words=["a"])
