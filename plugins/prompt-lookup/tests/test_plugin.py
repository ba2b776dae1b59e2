"""The plugin as a user meets it: options, refusals, and whole texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fastllm_core
from fastllm_core import ConfigError, Pipeline
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_prompt_lookup.plugin import PromptLookupOptions

README = Path(__file__).parents[1] / "README.md"
PROMPTS = [[1, 2, 3] * 5, [7], [5] * 20, [9, 8], [4, 11, 6, 60, 33, 2, 1, 4, 11]]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"pick": "first", "max_ngram": 2},
    {"pick": "frequent", "branches": 3},
    {"branches": 4, "adapt": False, "remember": True},
    {"min_ngram": 2, "max_ngram": 6},
]


def load(method: str = "prompt-lookup", config: dict[str, Any] | None = None, **options: Any) -> Pipeline:
    settings = {"draft.controller": "fixed", "draft.length": 6, **(config or {})}
    return fastllm_core.load(tiny_model(), method, tokenizer=tiny_tokenizer(), config=settings, **options)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: ",".join(options) or "defaults")
def test_texts_are_plain_decodings_to_the_token(options: dict[str, Any], temperature: float) -> None:
    """Five uneven rows of which three are live at once; under sampling a text is a function of its seed."""
    settings: dict[str, Any] = {"max_new_tokens": 40, "temperature": temperature, "seed": 11}
    with load("plain", {"engine.max_rows": 3}) as plain:
        expected = [result.token_ids for result in plain.generate(PROMPTS, **settings)]
    with load(config={"engine.max_rows": 3}, **options) as pipeline:
        results = pipeline.generate(PROMPTS, **settings)
        assert [result.token_ids for result in results] == expected
        alone = [pipeline.generate(prompt, **{**settings, "seed": 11 + i}) for i, prompt in enumerate(PROMPTS)]
        assert [result.token_ids for result in alone] == expected
    assert sum(result.report.accepted for result in results) > 0


def test_a_round_without_a_match_is_plain_decoding() -> None:
    with load(min_ngram=3) as pipeline:
        report = pipeline.generate([1, 2, 3], max_new_tokens=3).report
    assert report.rounds == 3
    assert report.drafted == 0


def test_a_text_that_repeats_itself_comes_in_few_rounds() -> None:
    """A model for which all tokens are alike says the first one for ever; drafts grow by two from four."""
    config = {"draft.controller": "fixed", "draft.length": 16}
    model = tiny_model(sharpness=0.0)
    with fastllm_core.load(model, "prompt-lookup", tokenizer=tiny_tokenizer(), config=config) as pipeline:
        result = pipeline.generate([3, 4, 5], max_new_tokens=62)
    assert result.token_ids == (0,) * 62
    # Two plain rounds, since the first 0 is new and the second one shows that they repeat; then 5, 7, 9, ... tokens.
    assert result.report.rounds == 2 + 6
    assert result.report.drafted == result.report.accepted


def test_exact_mode_gives_the_same_tokens() -> None:
    config = {"exact": True, "engine.max_rows": 2, "draft.length": 4}
    with load(config=config) as pipeline, load("plain", config) as plain:
        ours, theirs = (each.generate(PROMPTS, max_new_tokens=20) for each in (pipeline, plain))
    assert [result.token_ids for result in ours] == [result.token_ids for result in theirs]


def test_exact_mode_refuses_a_tree_before_weights_are_loaded() -> None:
    with pytest.raises(ConfigError, match=r"^options\.prompt-lookup\.branches: exact = true is for chains; set"):
        fastllm_core.load("a-model-that-does-not-exist", "prompt-lookup", config={"exact": True}, branches=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_ngram": 4, "max_ngram": 3}, r"^options\.prompt-lookup\.min_ngram: must be at most max_ngram.* 3, not 4"),
        ({"min_ngram": 0}, r"^options\.prompt-lookup\.min_ngram: .*greater than or equal to 1"),
        ({"max_ngram": 0}, r"^options\.prompt-lookup\.max_ngram: "),
        ({"branches": 0}, r"^options\.prompt-lookup\.branches: "),
        ({"pick": "last"}, r"^options\.prompt-lookup\.pick: .*'recent', 'first' or 'frequent'"),
        ({"corpus_tokens": 1}, r"^options\.prompt-lookup\.corpus_tokens: "),
        ({"ngram": 3}, r"^options\.prompt-lookup\.ngram: unknown key"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


def test_only_the_longest_is_set() -> None:
    assert PromptLookupOptions(max_ngram=1).min_ngram == 1


def test_drafts_that_were_looked_up_have_no_law_to_reject_with() -> None:
    with pytest.raises(ConfigError, match=r"^acceptance\.rule: 'rejection' needs drafts drawn from a known distri"):
        load(config={"acceptance.rule": "rejection"})


def test_closing_drops_every_index() -> None:
    with load(remember=True) as pipeline:
        stream = pipeline.stream([1, 2, 3], max_new_tokens=20)
        next(stream)
        drafter: Any = pipeline.drafter
        assert len(drafter.indexes) == 1
    assert not drafter.indexes
    assert drafter.memory is None


@pytest.mark.parametrize("controller", ["auto", "heuristic", "fixed"])
def test_every_controller_has_its_say(controller: str) -> None:
    with load(config={"draft.controller": controller}, branches=2) as pipeline, load("plain") as plain:
        ours, theirs = (each.generate(PROMPTS, max_new_tokens=40) for each in (pipeline, plain))
    assert [result.token_ids for result in ours] == [result.token_ids for result in theirs]


def test_a_text_ends_where_plain_decodings_does_inside_a_draft() -> None:
    """Every token in turn is the one that ends a text; so is a string."""
    model = tiny_model()
    with load("plain") as plain:
        text = plain.generate(PROMPTS[0], max_new_tokens=24).token_ids
    for end in set(text):
        model.generation_config.eos_token_id = end
        results = []
        for method in ("plain", "prompt-lookup"):
            with fastllm_core.load(
                model, method, tokenizer=tiny_tokenizer(), config={"draft.controller": "fixed"}
            ) as pipeline:
                results.append(pipeline.generate(PROMPTS[0], max_new_tokens=24))
        assert results[0].token_ids == results[1].token_ids == text[: text.index(end) + 1]
        assert results[1].finish_reason == "eos"


def test_the_readme_lists_every_option_as_it_is() -> None:
    """`python plugins/prompt-lookup/tests/test_plugin.py` rewrites the table."""
    assert README.read_text(encoding="utf-8") == readme(), "run: python plugins/prompt-lookup/tests/test_plugin.py"


def readme() -> str:
    text = README.read_text(encoding="utf-8")
    rows = [
        f"| `{name}` | `{json.dumps(field.default)}` | {field.description} |\n"
        for name, field in PromptLookupOptions.model_fields.items()
    ]
    head, end = "| option | default | meaning |\n| --- | --- | --- |\n", "<!-- end -->"
    before, after = text.split(head)[0], text.split(end)[1]
    return "".join([before, head, *rows, end, after])


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
