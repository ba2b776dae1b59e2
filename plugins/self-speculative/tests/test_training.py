"""The LayerSkip recipe: its formulas by hand, a few steps on a tiny model, and a stock folder at the end."""

from __future__ import annotations

import copy
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core import ConfigError, UnsupportedModel
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_self_speculative.training.data import rows_of, texts_of
from fastllm_plugin_self_speculative.training.exits import Exits
from fastllm_plugin_self_speculative.training.recipe import Recipe
from fastllm_plugin_self_speculative.training.train import steps

TEXT = "ab ba abba baab " * 40


def test_dropout_grows_with_depth_and_from_scratch_with_time() -> None:
    """p(l, t) = S(t) (2^(l/(L-1)) - 1) p_max."""
    recipe = Recipe(dropout=0.2, steps=100)
    assert [recipe.drop_chance(layer, 3, 0) for layer in range(3)] == pytest.approx([0.0, 0.2 * (2**0.5 - 1), 0.2])
    scratch = Recipe(dropout=0.2, steps=100, scratch=True)
    assert [scratch.drop_chance(2, 3, step) for step in (0, 50, 100)] == pytest.approx([0.0, 0.2 * (2**0.5 - 1), 0.2])


def test_exits_count_by_depth_and_in_turns() -> None:
    """L = 4, e_scale = .5: e = 0, .5, 1.5, and 3 + .5 * 3 = 4.5 for the last."""
    whole = Recipe(exit_scale=0.5, rotation=1)
    assert whole.exit_weights(4, 0) == pytest.approx([0.0, 0.5 / 6.5, 1.5 / 6.5, 4.5 / 6.5])
    turns = Recipe(exit_scale=0.5, rotation=2)
    assert turns.exit_weights(4, 0) == pytest.approx([0.0, 0.0, 1.5 / 6.0, 4.5 / 6.0])
    assert turns.exit_weights(4, 1) == pytest.approx([0.0, 0.5 / 5.0, 0.0, 4.5 / 5.0])
    gradual = Recipe(exit_scale=0.5, curriculum="gradual", steps=90)
    kept = [sum(weight > 0 for weight in gradual.exit_weights(4, step)) for step in (0, 15, 30, 45)]
    assert kept == [1, 2, 3, 3], "from the last exit downwards, all of them from half of the steps on"
    assert all(sum(gradual.exit_weights(12, step)) == pytest.approx(1.0) for step in range(0, 90, 9))


def test_exits_that_are_chosen_take_turns_and_may_count_evenly() -> None:
    even = Recipe(exit_scale=0.5, rotation=1, weighting="even")
    assert even.exit_weights(4, 0) == pytest.approx([0.2, 0.2, 0.2, 0.4])
    chosen = Recipe(exit_scale=1.0, rotation=2, weighting="even", exits=(1, 3))
    assert chosen.exit_weights(4, 0) == pytest.approx([0.5, 0.0, 0.0, 0.5])
    assert chosen.exit_weights(4, 1) == pytest.approx([0.0, 0.0, 0.5, 0.5])
    deep = Recipe(exit_scale=0.5, rotation=1, exits=(3,))
    assert deep.exit_weights(4, 7) == pytest.approx([0.0, 0.0, 1.5 / 6.0, 4.5 / 6.0])
    gradual = Recipe(curriculum="gradual", steps=8, exits=(1, 2))
    assert [gradual.enabled(4, step) for step in (0, 2, 4)] == [[], [1], [0, 1]]


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(steps=100, learning_rate=1.0)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)


def test_the_loss_is_the_exits_own() -> None:
    model: Any = tiny_model()
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    weights = [0.0, 0.25, 0.0, 0.75]
    found = Exits(model).loss(tokens, weights).detach()
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True)
        first = model.lm_head(model.model.norm(states.hidden_states[2]))
    by_hand = 0.0
    for weight, logits in ((0.25, first), (0.75, states.logits)):
        chances = logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])
        by_hand -= weight * float(chances.mean())
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_a_row_goes_around_dropped_layers_and_no_hook_is_left() -> None:
    model: Any = tiny_model().train()
    tokens = torch.randint(0, 64, (6, 5), generator=torch.Generator().manual_seed(1))
    exits = Exits(model)
    recipe = Recipe(dropout=1.0)
    with torch.no_grad():
        model(tokens, output_hidden_states=True)  # after which transformers has hooks of its own, which come first
    before = [len(layer._forward_hooks) for layer in model.model.layers]
    with exits.dropping(recipe, 0, torch.Generator().manual_seed(0)):
        dropped = [state.detach() for state in model(tokens, output_hidden_states=True).hidden_states]
    torch.testing.assert_close(model.model.norm(dropped[3]).detach(), dropped[4])  # p(L-1) = 1
    assert not torch.equal(dropped[0], dropped[1]), "the first layer is never dropped"
    around = [bool(torch.equal(dropped[2][row], dropped[3][row])) for row in range(6)]
    assert 0 < sum(around) < 6, "each row decides for itself"
    assert [len(layer._forward_hooks) for layer in model.model.layers] == before


def test_training_teaches_the_early_exits() -> None:
    model: Any = copy.deepcopy(tiny_model())
    exits = Exits(model)
    tokens = torch.tensor(tiny_tokenizer()(TEXT)["input_ids"])[:160].view(10, 16)
    recipe = Recipe(steps=25, batch=5, length=16, learning_rate=3e-3, exit_scale=1.0, rotation=1)
    losses = list(steps(exits, tokens, recipe))
    assert len(losses) == 25
    assert losses[-1] < 0.6 * losses[0]
    again = list(steps(Exits(copy.deepcopy(tiny_model())), tokens, recipe))
    assert again == pytest.approx(losses), "the seed decides"


def test_a_model_without_a_final_norm_is_refused() -> None:
    model: Any = copy.deepcopy(tiny_model())
    del model.model.norm
    with pytest.raises(UnsupportedModel, match="its layers, final norm or head were not found"):
        Exits(model)


def test_texts_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\\ntwo\n\nthree\n")
    with lzma.open(tmp_path / "b.jsonl.xz", "wt") as file:
        file.write('{"text": "one"}\n{"prompt": "two ", "completion": "three"}\n')
    assert list(texts_of(tmp_path / "a.txt")) == ["one\ntwo", "three"]
    assert list(texts_of(tmp_path / "b.jsonl.xz")) == ["one", "two three"]
    (tmp_path / "c.jsonl").write_text("{}\n")
    for name in ("c.jsonl", "missing.txt"):
        with pytest.raises(ConfigError, match=rf"^--data .*{name}: cannot be read"):
            list(texts_of(tmp_path / name))
    with pytest.raises(ConfigError, match=r"^--data: holds \d+ tokens, and a row has 9999"):
        rows_of([tmp_path / "a.txt"], tiny_tokenizer(), 9999, 1, 0)


def test_the_command_leaves_a_stock_model_that_drafts_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastllm_core.cli import main

    source = tmp_path / "source"
    tiny_model().save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    (tmp_path / "text.txt").write_text("\n".join([TEXT] * 8))
    words = ["tune", "early-exit", "--model", str(source), "--data", str(tmp_path / "text.txt"), "--steps", "2"]
    words += ["--batch", "2", "--length", "16", "--output", str(tmp_path / "exits"), "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    assert "exit_layer 3: " in capsys.readouterr().out
    record = json.loads((tmp_path / "exits" / "early-exit.json").read_text())
    assert (record["steps"], record["tokens"], len(record["losses"])) == (2, 64, 2)
    with fastllm_core.load(str(tmp_path / "exits"), "self-speculative", exit_layer=2) as pipeline:
        assert pipeline.generate("ab", max_new_tokens=6).token_ids
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*words[:-4], "--output", str(tmp_path / "other"), "--exit", "4"])
    assert ended.value.code == 2
    assert "--exit 4: lies not before the last of 4 layers" in capsys.readouterr().err
