"""A whole search for a tree: texts, accuracies, trees, their cost, and the files that stay."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from fastllm_core import Config, ConfigError, Pipeline, TargetIdentity, configuration, load, load_head, read_prompts

from ..drafter import MedusaDrafter
from ..tree import Tree, best_cartesian, grown
from ..treefile import TreeFile, digest_of
from .plot import picture
from .ranks import Text, accuracies_of, ranks_of, walked
from .sweep import Cost, costs

RESULT, PLOT = "tree.json", "sweep.svg"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for; see `fastllm tune tree --help`."""

    config: Config
    sizes: Sequence[int]
    prompts: Path | None = None
    limit: int | None = None
    new_tokens: int = 64
    rows: int = 1
    repeats: int = 5
    output: Path | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """A tree of the sweep."""

    tree: Tree
    tokens: float
    """Per round, as rounds over the texts come out."""
    expected: float
    """Per round, if heads were right independently of each other."""
    cartesian: float
    """Tokens per round of the best Cartesian tree of at most as many nodes."""
    cost: Cost
    rows: int

    @property
    def speed(self) -> float:
        """Tokens per second of all rows."""
        return self.rows * self.tokens / self.cost.round


def session(wishes: Wishes) -> TreeFile:
    """Find the tree, write it and the picture, and show the table. Returns what the file holds."""
    console = Console(stderr=True)
    prompts = read_prompts(wishes.prompts, wishes.limit)
    if wishes.rows > len(prompts):
        raise ConfigError(f"--rows {wishes.rows}: there are {len(prompts)} prompts; give more, or ask for fewer rows")
    fixed = {"method": "medusa", "draft.controller": "fixed", "exact": False, "options.medusa.tree": "chain"}
    config = configuration(wishes.config, {**fixed, "engine.max_rows": max(wishes.rows, 8)})
    with load(config=config, trust_remote_code=wishes.trust_remote_code) as medusa:
        plain_config = config.model_copy(update={"method": "plain", "options": {}})
        with load(medusa.target.model, config=plain_config, tokenizer=medusa.target.tokenizer) as plain:
            return _found(wishes, medusa, plain, prompts, console)


def _found(wishes: Wishes, medusa: Pipeline, plain: Pipeline, prompts: list[str], console: Console) -> TreeFile:
    drafter: MedusaDrafter = medusa.drafter  # type: ignore[assignment]
    deepest = drafter.tree.depth
    ranks = _ranks(medusa, drafter, prompts, wishes.new_tokens)
    accuracies = accuracies_of(ranks)
    trees = list(dict.fromkeys(grown(accuracies, size, deepest) for size in sorted({*wishes.sizes})))
    with _bar("timing", (len(trees) + 1) * (wishes.repeats + 1)) as tell:
        plainly, *spent = costs(medusa, plain, trees, prompts[: wishes.rows], wishes.new_tokens, wishes.repeats, tell)
    points = []
    for tree, cost in zip(trees, spent, strict=True):
        product = walked(ranks, best_cartesian(accuracies, len(tree), deepest))
        points.append(Point(tree, walked(ranks, tree), tree.value(accuracies), product, cost, wishes.rows))
    best = max(points, key=lambda point: point.speed)
    speed = wishes.rows / plainly.round
    identity = TargetIdentity.of(medusa.engine.parts.network)
    head = load_head(drafter.options.heads, drafter.options.revision)
    found = TreeFile(best.tree, accuracies, identity, digest_of(head.weights), _measured(wishes, medusa, points, speed))
    folder = wishes.output or Path("tune") / f"{wishes.config.model.rstrip('/').rpartition('/')[2]}-tree"
    found.write(folder / RESULT)
    (folder / PLOT).write_text(picture(points, best, speed), encoding="utf-8")
    _show(console, points, best, speed, folder / RESULT)
    return found


def _ranks(medusa: Pipeline, drafter: MedusaDrafter, prompts: Sequence[str], new_tokens: int) -> list[Tensor]:
    """int64[S, K] of each text."""
    network, found = medusa.engine.parts.network, []
    heads = drafter.all_heads.first(drafter.tree.depth)
    with _bar("reading", len(prompts)) as tell:
        for prompt in prompts:
            text = medusa.generate(prompt, max_new_tokens=new_tokens, temperature=0.0)
            tokens = [*text.prompt_token_ids, *text.token_ids]
            found.append(ranks_of(Text(tokens, len(text.prompt_token_ids)), network, heads, drafter.token_map))
            tell()
    if not any(len(each) > drafter.tree.depth for each in found):
        raise ConfigError("--prompts: the model ends its texts at once; give other prompts")
    return [each for each in found if len(each)]


def _measured(wishes: Wishes, medusa: Pipeline, points: Sequence[Point], plain: float) -> dict[str, Any]:
    return {
        "device": medusa.device.description,
        "dtype": str(medusa.target.dtype).removeprefix("torch."),
        "forwards": medusa.backend.summary,
        "rows": wishes.rows,
        "new_tokens": wishes.new_tokens,
        "plain_tokens_per_s": plain,
        "sweep": [
            {
                "nodes": len(point.tree),
                "levels": list(point.tree.levels[1:]),
                "tokens_per_round": point.tokens,
                "expected": point.expected,
                "cartesian": point.cartesian,
                "verify_seconds": list(point.cost.verify),
                "round_seconds": list(point.cost.rounds),
                "tokens_per_s": point.speed,
            }
            for point in points
        ],
    }


def _show(console: Console, points: Sequence[Point], best: Point, plain: float, path: Path) -> None:
    table = Table("nodes", "tokens/round", "Cartesian", "verify", "round", "tokens/s", "x plain")
    table.columns[0].no_wrap = True
    for point in points:
        verify, whole = (f"{1e3 * seconds:.2f} ms" for seconds in (point.cost.verification, point.cost.round))
        told = [str(point.tree), f"{point.tokens:.2f}", f"{point.cartesian:.2f}", verify, whole]
        told += [f"{point.speed:.1f}", f"{point.speed / plain:.2f}"]
        table.add_row(*told, style="bold green" if point is best else None)
    console.print(table)
    if best.speed <= plain:
        console.print(f"no tree pays: the best runs at {best.speed / plain:.2f} times plain decoding's speed")
    console.print(f'use it:  options.medusa.tree = "{path}"', highlight=False, soft_wrap=True)


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=total)
        yield lambda: progress.update(task, advance=1)
