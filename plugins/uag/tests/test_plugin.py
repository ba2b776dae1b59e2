"""The plugin as a user meets it: options, refusals, and what it says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fastllm_core
from fastllm_core import ConfigError, ModelError, Pipeline
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_uag.relative import relative


def saved(folder: Path, tokenizer: Any = None) -> str:
    tiny_model(num_hidden_layers=2).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def load(tokenizer: Any = None, **options: Any) -> Pipeline:
    config = {"draft.controller": "fixed", "forward": "eager"}
    return fastllm_core.load(tiny_model(), "uag", tokenizer=tokenizer or tiny_tokenizer(), config=config, **options)


def foreign() -> PreTrainedTokenizerFast:
    """Of characters that the target's tokenizer does not have."""
    names = {"?": 0} | {chr(0x430 + i): i + 1 for i in range(32)}
    backend = Tokenizer(models.WordLevel(names, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


def test_the_draft_model_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^options\.uag\.draft_model: must be given"):
        load()


@pytest.mark.parametrize("wrong", [{"mode": "words"}, {"mod": "string"}])
def test_a_wrong_option_is_refused_by_name(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=rf"^options\.uag\.{next(iter(wrong))}: "):
        load(draft_model=str(tmp_path), **wrong)


def test_a_drafter_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(ModelError) as caught:
        load(draft_model=folder)
    assert str(caught.value).startswith(f"options.uag.draft_model: '{folder}' came without a tokenizer")
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_tokenizer())
    with pytest.raises(ModelError, match=r"^model: 'LlamaForCausalLM' came without a tokenizer"):
        fastllm_core.load(tiny_model(), "uag", config={}, draft_model=folder)


def test_a_tokenizer_that_cannot_be_read_is_refused(kinds: Any) -> None:
    from fastllm_plugin_uag.vocabulary import Vocabulary

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"^model: the tokenizer of 'model' \(Slow\) has no tokenizer\.json"):
        Vocabulary(kinds.loaded(Slow(), size=3), "model")


def test_nothing_in_common_leaves_text_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path, foreign())
    with pytest.raises(ConfigError) as caught:
        load(draft_model=folder, mode="token")
    assert str(caught.value).startswith("options.uag.mode: ")
    assert str(caught.value).endswith(
        'have no token in common, so nothing can be drafted token by token; set mode = "string"'
    )
    for mode in ("auto", "string"):
        with load(draft_model=folder, mode=mode) as pipeline:
            assert pipeline.drafter is not None
            assert pipeline.drafter.proposal == "one-hot"
            assert len(pipeline.generate([1, 2, 3], max_new_tokens=12).token_ids) == 12


def test_the_same_tokenizer_works_and_the_simpler_method_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with load(draft_model=saved(tmp_path, tiny_tokenizer())) as pipeline:
        assert pipeline.generate([1, 2, 3], max_new_tokens=12).report.drafted > 0
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        f"uag: '{tmp_path}' has the tokenizer of 'LlamaForCausalLM': method = \"speculative\" needs no translation"
    ]


def test_it_says_how_it_drafts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastllm")
    folder = relative(tiny_model(), tiny_tokenizer(), tmp_path / "relative")
    with load(draft_model=folder) as pipeline:
        pipeline.generate([[1, 2], [3]], max_new_tokens=12)
        drafter: Any = pipeline.drafter
        assert drafter.proposal == "sampled"
    assert [record.message for record in caplog.records] == [f"uag: {drafter.choice}"]
    assert drafter.choice == (
        f"'{folder}' can say 100% of the tokens of 'LlamaForCausalLM'; "
        "rounds that sample draft shared tokens, greedy ones text"
    )


def test_rejection_needs_drafts_that_are_drawn(tmp_path: Path) -> None:
    folder = relative(tiny_model(), tiny_tokenizer(), tmp_path / "relative")
    config = {"acceptance.rule": "rejection"}
    with pytest.raises(ConfigError, match=r"^acceptance\.rule: 'rejection' needs drafts drawn"):
        fastllm_core.load(
            tiny_model(), "uag", tokenizer=tiny_tokenizer(), config=config, draft_model=folder, mode="string"
        )


def test_a_stream_is_the_text(tmp_path: Path) -> None:
    folder = relative(tiny_model(), tiny_tokenizer(), tmp_path / "relative")
    with load(draft_model=folder) as pipeline:
        result = pipeline.generate("hello", max_new_tokens=12)
        assert result.report.tokens_per_round > 1
        assert "".join(piece.text for piece in pipeline.stream("hello", max_new_tokens=12)) == result.text
