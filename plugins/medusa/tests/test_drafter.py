"""Drafting trees: what is drafted, what the target says of it, what is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core import Batch, ConfigError, Draft, Head, ModelError, Network, Pipeline, Scores, Verdict, load_model
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_core.testing.checks.cache import AnyVerdict, CacheWatch
from fastllm_plugin_medusa.heads import random_head
from fastllm_plugin_medusa.treefile import TreeFile, digest_of

PROMPTS = [[5, 9, 33, 2], [7] * 9, [1]]
NEW = 24
LENGTH = 4
HEADS = 3
TREES = ["grown", "chain", "2x3x2"]


@cache
def model() -> Any:
    return tiny_model()


def saved(head: Head, folder: Path) -> str:
    head.save(folder)
    return str(folder)


def load(heads: str, of: Any = None, config: dict[str, Any] | None = None, **options: Any) -> Pipeline:
    settings = {"draft.controller": "fixed", "draft.length": LENGTH, "forward": "eager", **(config or {})}
    given = {"heads": heads, **options}
    return fastllm_core.load(
        of or model(), "medusa", tokenizer=tiny_tokenizer(), config=settings, dtype="float32", **given
    )


@cache
def plain_texts(**settings: Any) -> list[tuple[int, ...]]:
    config = {"forward": "eager", **{key.replace("__", "."): value for key, value in settings.items()}}
    with fastllm_core.load(model(), "plain", config=config, dtype="float32") as pipeline:
        return [text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)]


class Watch:
    """Asks something of every round."""

    def __init__(self, look: Callable[[Batch, Draft, Scores, Verdict], None]) -> None:
        self.look, self.rounds = look, 0

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        self.rounds += 1
        self.look(batch, draft, scores, verdict)


def watch(pipeline: Pipeline, look: Callable[[Batch, Draft, Scores, Verdict], None]) -> Watch:
    watching = Watch(look)
    pipeline.engine.parts = replace(pipeline.engine.parts, observers=(watching,))
    return watching


class Moody:
    """A controller whose rows draft by chance, and often not at all."""

    def __init__(self, seed: int, lengths: Sequence[int] = (0, 1, 2, LENGTH)) -> None:
        self.rng, self.choices = random.Random(seed), lengths

    def lengths(self, rows: Sequence[int]) -> list[int]:
        return [self.rng.choice(self.choices) for _ in rows]

    def thresholds(self, rows: Sequence[int], sampled: Sequence[bool]) -> list[float]:
        return [0.0] * len(rows)

    def observe(self, round_: Any) -> None: ...

    def release(self, row: int) -> None: ...

    def state(self, row: int) -> dict[str, float]:
        return {}


@pytest.fixture
def heads(tmp_path: Path) -> str:
    return saved(random_head(model(), HEADS), tmp_path / "heads")


def knowing(rank: int = 0, *, zeros: bool = False) -> tuple[Any, Head]:
    """A model whose next token follows from the last one alone, and heads that have the right token at a rank.

    zeros: the model says token 0 whatever came before.
    """
    target = tiny_model(seed=3, hidden_size=64)
    with torch.no_grad():
        for layer in target.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        states = target.model.norm(target.model.embed_tokens.weight)  # [V, H], one for each token
        inverse = torch.linalg.pinv(states)
        noise = torch.Generator().manual_seed(1)
        after = torch.zeros(64, dtype=torch.long) if zeros else torch.randperm(64, generator=noise)
        target.lm_head.weight.copy_((inverse @ (20.0 * torch.eye(64)[after])).T)
        weights = {name: torch.zeros_like(part) for name, part in random_head(target, HEADS).weights.items()}
        follows = after
        for k in range(HEADS):
            follows = after[follows]
            wanted = 20.0 * torch.eye(64)[follows]
            for better in range(rank):  # others that look more likely
                wanted += (30.0 + better) * torch.eye(64)[(follows + 1 + better) % 64]
            weights[f"lm_heads.{k}.weight"] = (inverse @ wanted).T.contiguous()
    return target, replace(random_head(target, HEADS), weights=weights)


def own_words(pipeline: Pipeline) -> list[int]:
    """A prompt that the model might have written: heads look past its last token without having seen it."""
    return [5, *pipeline.generate([5], max_new_tokens=4).token_ids]


def test_heads_that_are_right_are_accepted_whole(tmp_path: Path) -> None:
    target, head = knowing()
    with load(saved(head, tmp_path / "heads"), target, tree="chain") as pipeline:
        text = pipeline.generate(own_words(pipeline), max_new_tokens=1 + 4 * (HEADS + 1))
    assert text.report.accepted == text.report.drafted
    assert text.report.accepted_at[:HEADS] == [4] * HEADS  # from the prompt's own hidden state on


@pytest.mark.parametrize("rank", [1, 2])
def test_a_tree_holds_what_is_not_the_first_choice(rank: int, tmp_path: Path) -> None:
    target, head = knowing(rank)
    folder = saved(head, tmp_path / "heads")
    for tree, accepted in ((f"{rank + 1}x{rank + 1}", 2), (f"{rank}x{rank}", 0), (f"{rank + 1}x{rank}", 1)):
        with load(folder, target, tree=tree) as pipeline:
            text = pipeline.generate(own_words(pipeline), max_new_tokens=12)
        assert text.report.tokens_per_round == pytest.approx(12 / -(-12 // (accepted + 1)))
        assert text.report.drafted


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("output", "rank", "entries"), [("own", 0, None), ("shared", 0, 20), ("delta", 4, None)])
def test_texts_are_those_of_plain_decoding(
    tree: str, exact: bool, output: Any, rank: int, entries: int | None, tmp_path: Path
) -> None:
    folder = saved(random_head(model(), HEADS, 2, output, rank, entries), tmp_path / "heads")
    wanted = plain_texts(exact=True, draft__length=LENGTH) if exact else plain_texts()
    with load(folder, config={"exact": exact}, tree=tree) as pipeline:
        assert [text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)] == wanted


def test_every_nodes_logits_are_those_of_its_path(heads: str) -> None:
    """Whatever was drafted beside it: the model reads the path alone."""

    def look(batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        for index, (row, before) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
            paths = [row.tokens[:before]]
            for node in range(int(draft.lengths[index])):
                assert draft.parents is not None
                above = int(draft.parents[index, node]) + 1
                paths.append([*paths[above], int(draft.tokens[index, node])])
            for place, path in enumerate(paths):
                wanted = model()(torch.tensor([path])).logits[0, -1]
                assert torch.allclose(scores.logits[index, place], wanted, atol=1e-4)

    with load(heads, tree="2x2x2") as pipeline, torch.no_grad():
        pipeline.engine.parts = replace(pipeline.engine.parts, controller=Moody(4))
        watching = watch(pipeline, look)
        pipeline.generate(PROMPTS, max_new_tokens=8)
    assert watching.rounds > 5


def test_tokens_are_the_heads_best_behind_the_last_committed_state(heads: str) -> None:
    """Recomputed from the unmodified model: the hidden state that the root was chosen from."""
    head = fastllm_core.load_head(heads)

    def look(batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        for index, (row, before) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
            if before == 1:
                assert not draft.lengths[index], "nothing has been read behind which the root stands"
                continue
            if not draft.lengths[index]:
                continue
            states = model()(torch.tensor([row.tokens[: before - 1]]), output_hidden_states=True).hidden_states[-1]
            x = states[0, -1]
            for depth, nodes in ((1, (0, 1)), (2, (2, 3))):
                k = depth - 1
                part = f"blocks.{k}.layers.0."
                u = x + torch.nn.functional.silu(head.weights[part + "weight"] @ x + head.weights[part + "bias"])
                best = (head.weights[f"lm_heads.{k}.weight"] @ u).topk(2).indices.tolist()
                if int(draft.lengths[index]) > max(nodes):
                    assert draft.tokens[index, list(nodes)].tolist() == best

    with load(heads, tree="2x2") as pipeline, torch.no_grad():
        pipeline.engine.parts = replace(pipeline.engine.parts, controller=Moody(5))
        watching = watch(pipeline, look)
        pipeline.generate(PROMPTS, max_new_tokens=12)
    assert watching.rounds > 5


def test_a_row_drafts_no_deeper_than_it_may_and_padding_never_counts(tmp_path: Path) -> None:
    """The target says token 0 for ever, which is what padding would most easily be taken for."""
    target, head = knowing(zeros=True)

    def look(batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        for wanted, length, accepted in zip(batch.draft_lengths, draft.lengths, verdict.accepted, strict=True):
            assert int(accepted) == min(wanted, HEADS, int(length))
            assert int(length) == sum(2**depth for depth in range(1, min(wanted, HEADS) + 1))

    with load(saved(head, tmp_path / "heads"), target, tree="2x2x2") as pipeline:
        pipeline.engine.parts = replace(pipeline.engine.parts, controller=Moody(6))
        watching = watch(pipeline, look)
        texts = pipeline.generate([[5, 9], [3, 4, 7], [8, 8]], max_new_tokens=20)
    assert {token for text in texts for token in text.token_ids} == {0}
    assert watching.rounds > 5


@pytest.mark.parametrize("tree", TREES)
def test_rows_that_come_and_go_keep_their_caches(heads: str, tree: str) -> None:
    watching = CacheWatch(every=1)
    with load(heads, config={"engine.max_rows": 4}, tree=tree) as pipeline:
        watching.pipeline = pipeline  # type: ignore[assignment]
        pipeline.engine.parts = replace(
            pipeline.engine.parts, controller=Moody(1), acceptor=AnyVerdict(2), observers=(watching,)
        )
        pipeline.generate([[3 + i, 9, 2 * i + 1] for i in range(6)], max_new_tokens=60)
        drafter: Any = pipeline.drafter
        assert not drafter._states
    assert watching.rounds > 30


def test_a_tree_reaches_to_the_end_of_the_context(heads: str) -> None:
    short = tiny_model(max_position_embeddings=40)
    with load(saved(random_head(short, HEADS), Path(heads)), short, tree="3x3x3") as pipeline:
        text = pipeline.generate([5, 9, 33, 2], max_new_tokens=36)
    with fastllm_core.load(short, "plain", config={"forward": "eager"}, dtype="float32") as pipeline:
        assert pipeline.generate([5, 9, 33, 2], max_new_tokens=36).token_ids == text.token_ids


def test_typical_acceptance_is_lossy_and_says_so(heads: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="typical acceptance changes the text"):
        load(heads, config={"acceptance.rule": "typical"})
    allowed = {"acceptance.rule": "typical", "lossy": True}

    def look(batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Every kept token passes the threshold, and no longer path does."""
        log_p = (scores.logits[0].double() / 0.7).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        threshold = torch.minimum(torch.tensor(0.09).double(), 0.3 * (-entropy).exp()).log()
        depths = [0]
        for node in range(int(draft.lengths[0])):
            assert draft.parents is not None
            above = int(draft.parents[0, node]) + 1
            passes = log_p[above, draft.tokens[0, node]] > threshold[above]
            depths.append(depths[above] + 1 if passes and depths[above] >= 0 else -99)
        assert int(verdict.accepted[0]) == max(depths)
        kept = [int(node) + 1 for node in verdict.path[0, : int(verdict.accepted[0])]]
        assert all(depths[row] > 0 for row in kept)

    soft = tiny_model(sharpness=1.5)
    folder = saved(random_head(soft, HEADS, output="shared"), tmp_path / "soft")
    with load(folder, soft, config=allowed, tree="3x3x2") as pipeline:
        watching = watch(pipeline, look)
        text = pipeline.generate([5, 9, 33, 2], max_new_tokens=60, temperature=0.7, seed=1)
    assert text.report.lossy == ("typical acceptance",)
    assert text.report.accepted > 5
    assert watching.rounds > 5


def test_trees_are_checked(heads: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options\.medusa\.tree: 'nothing' is neither"):
        load(heads, tree="nothing")
    with pytest.raises(ConfigError, match="is 4 deep"):
        load(heads, tree="1x1x1x2")
    with pytest.raises(ConfigError, match="takes 65 tokens of a head"):
        load(heads, tree="65")
    with load(heads, config={"draft.length": 2}, tree="2x2x2") as pipeline:
        drafter: Any = pipeline.drafter
        assert drafter.tree.levels == (0, 2, 6)
    with load(heads, tree="grown", nodes=7) as pipeline:
        drafter = pipeline.drafter
        assert len(drafter.tree) == 7


def test_heads_bring_their_accuracies(tmp_path: Path) -> None:
    head = random_head(model(), HEADS)
    even = [[0.2, 0.2, 0.2]] * HEADS
    folder = saved(replace(head, settings={**head.settings, "accuracies": even}), tmp_path / "heads")
    with load(folder, nodes=5) as pipeline:
        drafter: Any = pipeline.drafter
        assert drafter.tree.levels == (0, 3, 5)


def test_a_tree_of_other_heads_is_refused(heads: str, tmp_path: Path) -> None:
    from fastllm_core import TargetIdentity
    from fastllm_plugin_medusa.tree import cartesian

    head = fastllm_core.load_head(heads)
    identity = TargetIdentity.of(Network(load_model(model())))
    path = tmp_path / "tree.json"
    TreeFile(cartesian([2, 1]), [[0.5, 0.2]], identity, digest_of(head.weights), {}).write(path)
    with load(heads, tree=str(path)) as pipeline:
        drafter: Any = pipeline.drafter
        assert drafter.tree == cartesian([2, 1])
        assert pipeline.generate(PROMPTS[0], max_new_tokens=NEW).token_ids == plain_texts()[0]
    other = saved(random_head(model(), HEADS, seed=1), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"another model \(other heads\).*fastllm tune tree again"):
        load(other, tree=str(path))
    TreeFile(cartesian([2]), [[0.5]], replace(identity, layers=9), digest_of(head.weights), {}).write(path)
    with pytest.raises(ConfigError, match="layers: 4, not 9"):
        load(heads, tree=str(path))
    for text, message in (("{", "cannot be read"), ("{}", "is no tree"), ('{"format": "fastllm-tree"}', "of version")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load(heads, tree=str(path))


def test_heads_for_another_target_are_refused(heads: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the hash of the output matrix differs"):
        load(heads, tiny_model(seed=1))
    with pytest.raises(ModelError, match="hidden size: 48, not 32"):
        load(heads, tiny_model(hidden_size=48))
    other = saved(replace(fastllm_core.load_head(heads), method="kangaroo"), tmp_path / "other")
    with pytest.raises(ModelError, match="is a head for 'kangaroo'"):
        load(other)
    with pytest.raises(ConfigError, match=r"options\.medusa\.heads: there is no folder"):
        load(str(tmp_path / "missing"))


def test_heads_run_as_programs_do(heads: str, tmp_path: Path) -> None:
    """The compiled back end takes them: their code is in the key, and their answers are the eager ones."""
    from fastllm_core.compiled import CompiledRunner
    from fastllm_core.identity import of_architecture
    from fastllm_core.programs import ProgramFolder
    from fastllm_core.testing.unrolled import Unrolled

    with load(heads) as pipeline:
        drafter: Any = pipeline.drafter
        network = drafter.heads
        assert list(of_architecture(network)["code"]) == ["fastllm_plugin_medusa"]
        backend = Unrolled(ProgramFolder(tmp_path / "programs"), compiles=True)
        network.runner = backend.runner(network)
        assert isinstance(network.runner, CompiledRunner)
        texts = [text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)]
        alone = pipeline.generate(PROMPTS[0], max_new_tokens=NEW).token_ids
    assert [alone, *texts] == [plain_texts()[0], *plain_texts()]
    assert len(backend.taken) == 2  # one text, and several
    assert not backend.missing
