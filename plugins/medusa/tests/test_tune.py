"""`fastllm tune tree`: ranks and accuracies as they are, and a tree that the method then drafts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core import ConfigError, Network, load_head, load_model
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_medusa.heads import TOKEN_MAP, HeadsShape, build_heads, random_head
from fastllm_plugin_medusa.tree import cartesian, chain
from fastllm_plugin_medusa.tuning.ranks import Text, accuracies_of, ranks_of, walked


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.mark.parametrize("entries", [None, 12])
def test_ranks_are_those_of_every_place(model: Any, entries: int | None) -> None:
    network = Network(load_model(model))
    head = random_head(model, 3, output="shared", vocab_size=entries)
    heads = build_heads(HeadsShape.read(head.settings, "heads"), network, head.weights, "heads")
    token_map = head.weights.get(TOKEN_MAP)
    tokens = [5, 9, 33, 2, 7, 7, 60, 12, 1, 40, 3]
    ranks = ranks_of(Text(tokens, 4), network, heads, token_map)
    states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
    assert ranks.shape == (len(tokens) - 4, 3)
    for index, root in enumerate(range(3, len(tokens) - 1)):
        for k in range(3):
            wanted = -1
            if root + k + 1 < len(tokens):
                best = heads.head(k, states[root - 1]).topk(10).indices
                best = best if token_map is None else token_map[best]
                wanted = best.tolist().index(tokens[root + k + 1]) if tokens[root + k + 1] in best else -1
            assert ranks[index, k] == wanted


def test_accuracies_leave_out_what_cannot_be_known() -> None:
    ranks = [torch.tensor([[0, 1], [1, 0], [0, -1]]), torch.tensor([[2, -1]])]
    accuracies = accuracies_of(ranks)
    assert accuracies[0][:3] == [0.5, 0.25, 0.25]
    assert accuracies[1][:2] == [0.5, 0.5]  # the last place of each text has nothing two tokens on


def test_a_walk_is_a_run(model: Any, tmp_path: Path) -> None:
    """Tokens per round as foretold from ranks are those of generation."""
    network = Network(load_model(model))
    head = random_head(model, 3, output="shared")
    head.save(tmp_path)
    heads = build_heads(HeadsShape.read(head.settings, "heads"), network, head.weights, "heads")
    config = {"draft.controller": "fixed", "draft.length": 5, "forward": "eager"}
    for shape, tree in (("6x5x4", cartesian([6, 5, 4])), ("chain", chain(3))):
        given: dict[str, Any] = {"heads": str(tmp_path), "tree": shape}
        with fastllm_core.load(model, "medusa", config=config, dtype="float32", **given) as pipeline:
            text = pipeline.generate([5, 9, 33, 2], max_new_tokens=60)
        ranks = ranks_of(Text([5, 9, 33, 2, *text.token_ids], 4), network, heads, None)
        assert walked([ranks], tree) == pytest.approx(text.report.tokens_per_round)


def test_the_command_writes_a_tree_that_is_drafted(model: Any, tmp_path: Path, capsys: Any) -> None:
    from fastllm_core.cli.app import run

    target, heads, out = (tmp_path / name for name in ("target", "heads", "out"))
    model.save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    random_head(model, 3, output="shared").save(heads)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("abcde\nOnce upon\n")
    words = ["--model", str(target), "--heads", str(heads), "--dtype", "float32", "--set", "forward=eager"]
    words += ["--prompts", str(prompts), "--max-new-tokens", "16", "--repeats", "1"]
    assert not run(["tune", "tree", *words, "--sizes", "1,4,9", "--rows", "2", "--output", str(out)])
    told = capsys.readouterr().err
    assert "9 (" in told
    assert "use it:" in told
    result = json.loads((out / "tree.json").read_text())
    assert [point["nodes"] for point in result["measured"]["sweep"]] == [1, 4, 9]
    assert len(result["paths"]) in (1, 4, 9)
    fastest = max(result["measured"]["sweep"], key=lambda point: point["tokens_per_s"])
    assert len(result["paths"]) == fastest["nodes"]
    assert (out / "sweep.svg").read_text().count("<polyline") == 3
    given: dict[str, Any] = {"heads": str(heads), "tree": str(out / "tree.json")}
    with fastllm_core.load(str(target), "medusa", dtype="float32", **given) as pipeline:
        drafter: Any = pipeline.drafter
        assert [list(path) for path in drafter.tree.paths] == result["paths"]
        assert pipeline.generate("abcde", max_new_tokens=8).report.drafted
    with pytest.raises(ConfigError, match="--rows 3: there are 2 prompts"):
        run(["tune", "tree", *words, "--rows", "3", "--output", str(out)])
    with pytest.raises(ConfigError, match="--sizes 1,x"):
        run(["tune", "tree", *words, "--sizes", "1,x"])
    assert load_head(str(heads)).method == "medusa"
