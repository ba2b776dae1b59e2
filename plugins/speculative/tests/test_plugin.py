"""The plugin as a user meets it: options, refusals, and what it hands out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import fastllm_core
from fastllm_core import ConfigError, ModelError, Pipeline
from fastllm_core.testing import tiny_model, tiny_tokenizer


def saved(folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, **settings: Any) -> str:
    tiny_model(**settings).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return str(folder)


def load(config: dict[str, Any] | None = None, **options: Any) -> Pipeline:
    return fastllm_core.load(tiny_model(), "speculative", tokenizer=tiny_tokenizer(), config=config or {}, **options)


def another_tokenizer() -> PreTrainedTokenizerFast:
    """Of the same size, with every id moved by one."""
    state = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {token: (index + 1) % len(vocabulary) for token, index in vocabulary.items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="<unk>")


def test_the_draft_model_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^options\.speculative\.draft_model: must be given"):
        load()


def test_an_unknown_option_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"options\.speculative\.draft_modle: unknown key.*'options\.speculative\.draft_model'"
    ):
        load(draft_model=str(tmp_path), draft_modle="x")


def test_a_wrong_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options\.speculative\.sample"):
        load(draft_model=str(tmp_path), sample=3)


def test_a_drafter_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="model 'nowhere': no such registered model or folder"):
        load(draft_model="nowhere")


def test_another_tokenizer_is_refused_and_uag_recommended(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"different vocabularies.*uag"):
        load(draft_model=saved(tmp_path, another_tokenizer()))


def test_arg_max_drafts_have_no_law_to_reject_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^acceptance\.rule: 'rejection' needs drafts drawn from a known distri"):
        load({"acceptance.rule": "rejection"}, draft_model=saved(tmp_path), sample=False)


def test_a_lossy_rule_needs_permission_and_is_named_in_every_report(tmp_path: Path) -> None:
    draft_model = saved(tmp_path, num_hidden_layers=2)
    with pytest.raises(ConfigError, match=r"^lossy: typical acceptance changes the text .* set lossy = true"):
        load({"acceptance.rule": "typical"}, draft_model=draft_model)
    with load({"draft.controller": "fixed"}, draft_model=draft_model) as exact:
        assert exact.lossy == exact.generate([1, 2], max_new_tokens=2).report.lossy == ()
        greedy = exact.generate([1, 2, 3], max_new_tokens=12, temperature=0.0)
        plain = exact.generate([1, 2, 3], max_new_tokens=12, temperature=1.0, seed=5, speculate=False)
    settings = {"acceptance.rule": "typical", "lossy": True, "draft.controller": "fixed"}
    with load(settings, draft_model=draft_model) as pipeline:
        assert pipeline.lossy == ("typical acceptance",)
        result = pipeline.generate([1, 2, 3], max_new_tokens=12, temperature=0.0)
        assert result.token_ids == greedy.token_ids
        assert result.report.summary().count("lossy: typical acceptance") == 1
        assert result.to_dict()["report"]["lossy"] == ["typical acceptance"]
        assert pipeline.engine.report.lossy == ("typical acceptance",)
        unspeculated = pipeline.generate([1, 2, 3], max_new_tokens=12, temperature=1.0, seed=5, speculate=False)
        assert unspeculated.token_ids == plain.token_ids


def test_the_pipeline_says_who_drafts(tmp_path: Path) -> None:
    with load(draft_model=saved(tmp_path)) as pipeline:
        assert pipeline.method == "speculative"
        assert pipeline.roles == {
            "drafter": "speculative", "verifier": "core", "kv_cache": "core", "acceptor": "core"
        }  # fmt: skip
        drafter: Any = pipeline.drafter
        assert isinstance(drafter.model, torch.nn.Module)
        assert drafter.model.config.model_type == "llama"


def test_text_in_and_text_out(tmp_path: Path) -> None:
    with load(draft_model=saved(tmp_path)) as pipeline:
        result = pipeline.generate("hello", max_new_tokens=12)
        assert result.report.tokens_per_round > 1
        assert len(result.text) >= 12
        assert "".join(piece.text for piece in pipeline.stream("hello", max_new_tokens=12)) == result.text


def test_closing_a_stream_frees_its_row_beside_others(tmp_path: Path) -> None:
    """Also between steps, when the other row moves into the freed slot of both caches."""
    with load({"draft.controller": "fixed"}, draft_model=saved(tmp_path, seed=1)) as pipeline:
        alone = pipeline.generate([4, 5], max_new_tokens=30).token_ids
        leaving, staying = pipeline.stream([1, 2, 3], max_new_tokens=30), pipeline.stream([4, 5], max_new_tokens=30)
        first = next(leaving), next(staying)
        leaving.close()
        tokens = [*first[1].token_ids, *(token for piece in staying for token in piece.token_ids)]
        assert tuple(tokens) == alone
        assert pipeline.engine.idle


def test_neither_model_is_changed(tmp_path: Path) -> None:
    target = tiny_model().train()
    before = copy.deepcopy(target.state_dict()), copy.deepcopy(target.config.to_dict()), set(vars(target))
    folder = saved(tmp_path, seed=1)
    with fastllm_core.load(
        target, "speculative", tokenizer=tiny_tokenizer(), config={}, draft_model=folder
    ) as pipeline:
        drafter: Any = pipeline.drafter
        kept = copy.deepcopy(drafter.model.state_dict()), copy.deepcopy(drafter.model.config.to_dict())
        pipeline.generate([[1, 2, 3], [4]], max_new_tokens=12)
        pipeline.generate([1, 2, 3], max_new_tokens=12, temperature=1.0, seed=1)
    for model, (weights, config, *_) in ((target, before), (drafter.model, kept)):
        assert model.config.to_dict() == config
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
        assert not any(module._forward_hooks for module in model.modules())
    assert target.training
    assert set(vars(target)) == before[2]
    assert not drafter.model.training


def test_the_whole_module_gives_back_what_it_was_given(tmp_path: Path) -> None:
    """Two pipelines over one target do not meet."""
    target = tiny_model()
    folder = saved(tmp_path, seed=1)
    with (
        fastllm_core.load(target, "speculative", tokenizer=tiny_tokenizer(), config={}, draft_model=folder) as one,
        fastllm_core.load(target, "plain", tokenizer=tiny_tokenizer(), config={}) as other,
    ):
        assert one.generate([1, 2], max_new_tokens=20).token_ids == other.generate([1, 2], max_new_tokens=20).token_ids
