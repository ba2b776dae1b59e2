"""Which exit layer, and which threshold of the second exit (eta)? Measured in turn, beside the paper's cost model.

python plugins/kangaroo/benchmarks/sweep.py --model demo-100m --grow demo-kangaroo my-exit-2 my-exit-3

Every adapter is tried with every threshold by `fastllm bench run`, which takes care of turns, warm-ups and intervals.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastllm_core import Head, Network, load_head, load_model
from fastllm_plugin_kangaroo.adapter import AdapterShape, output_matrix

HEAD = (
    "adapter",
    "exit",
    "mode",
    "eta",
    "tokens/round",
    "drafted/round",
    "c, weights",
    "foretold",
    "c, time",
    "foretold",
    "measured",
)
THRESHOLDS = (0.0, 0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True, slots=True)
class Point:
    """One adapter with one threshold, as it was measured. Ratios are times plain decoding."""

    name: str
    """As it was given."""
    shape: AdapterShape
    threshold: float
    weight_cost: float
    """c by weights: what a draft reads, as a share of what a plain step reads."""
    arm: Mapping[str, Any]
    """From the report of `fastllm bench`."""

    @property
    def tokens_per_round(self) -> float:
        """MAT."""
        return float(self.arm["cost"]["per_round"])

    @property
    def drafted(self) -> float:
        """Drafted tokens of a round, those that draft nothing among them."""
        return float(self.arm["cost"]["length"] * self.arm["cost"]["drafting"])

    def foretold(self, cost: float) -> float:
        """tokens per round / (1 + k c): the root's row of the first layers is what verification is spared.

        Source: arXiv:2211.17192, theorem 3.8, with the measured tokens per round.
        """
        return self.tokens_per_round / (1 + self.drafted * cost)

    @property
    def by_weights(self) -> float:
        """Foretold, if forwards cost what they read."""
        return self.foretold(self.weight_cost)

    @property
    def by_time(self) -> float:
        """Foretold from what drafting took."""
        return self.foretold(self.arm["cost"]["ratio"])

    @property
    def measured(self) -> float:
        """Times plain decoding."""
        return float(self.arm["speed"]["overall"]["ratio"]["value"])


def weight_cost(network: Network, shape: AdapterShape, adapter: Head) -> float:
    """(first layers + adapter + output matrix) / (all layers + output matrix), in weights; layers count as alike."""
    matrix = output_matrix(network).weight.numel()
    embedding = network.model.get_input_embeddings().weight.numel()  # type: ignore[operator]
    tied = network.model.get_input_embeddings().weight is output_matrix(network).weight  # type: ignore[operator]
    layers = sum(part.numel() for part in network.model.parameters()) - embedding - (0 if tied else matrix)
    read = layers * shape.exit_layer / network.layers + sum(part.numel() for part in adapter.weights.values()) + matrix
    return float(read / (layers + matrix))


def grown(sources: Sequence[str], model: str, folder: Path) -> Iterator[str]:
    """Folders of heads for a grown demo model, grown from heads for `demo`."""
    from fastllm_plugin_demo.heads import build
    from fastllm_plugin_demo.models import GROWN

    for index, source in enumerate(sources):
        small, large = folder / f"small-{index}", folder / f"large-{index}"
        if not large.exists():
            load_head(source).save(small)
            build(small, GROWN[model], large)
        yield str(large)


def bench(arguments: argparse.Namespace, adapters: Sequence[str], output: Path) -> dict[str, Any]:
    """Run all arms in turn. Returns the report's arms by label."""
    methods = [f"kangaroo:adapter={name}:threshold={eta}" for name in adapters for eta in arguments.thresholds]
    command = ["fastllm", "bench", "run", "--model", arguments.model, "--methods", ",".join(methods)]
    command += ["--set", f"forward={arguments.forward}", "--set", "draft.controller=fixed"]
    command += ["--set", f"draft.length={arguments.length}", "--limit", str(arguments.limit)]
    command += ["--repeats", str(arguments.repeats), "--max-new-tokens", "64", "--output", str(output)]
    subprocess.run(command, check=True)
    (case,) = loads((output / "report.json").read_text(encoding="utf-8"))["cases"]
    return {arm["label"]: arm for arm in case["arms"]}


def points(arguments: argparse.Namespace, adapters: Sequence[str], output: Path) -> list[Point]:
    """Every adapter with every threshold. adapters: those for this model, in the order of what was given."""
    arms = bench(arguments, adapters, output)
    network = Network(load_model(arguments.model))
    found = []
    for given, name in zip(arguments.adapters, adapters, strict=True):
        head = load_head(name)
        shape = AdapterShape.read(head.settings, head.source)
        cost = weight_cost(network, shape, head)
        found += [
            Point(Path(given).name, shape, eta, cost, arms[f"kangaroo:adapter={name}:threshold={eta}"])
            for eta in arguments.thresholds
        ]
    return found


def table(found: Sequence[Point]) -> Iterator[str]:
    """Markdown, the best of each kind of speed in bold."""
    yield "| " + " | ".join(HEAD) + " |"
    yield "| " + " | ".join(["---"] * len(HEAD)) + " |"
    best = [max(getattr(point, kind) for point in found) for kind in ("by_weights", "by_time", "measured")]
    for point in found:
        speed = point.arm["speed"]["overall"]["ratio"]
        speeds = [
            f"**{value:.2f}**" if value == most else f"{value:.2f}"
            for value, most in zip((point.by_weights, point.by_time, point.measured), best, strict=True)
        ]
        cells = [point.name, str(point.shape.exit_layer), point.shape.mode, f"{point.threshold:g}"]
        cells += [
            f"{point.tokens_per_round:.2f}",
            f"{point.drafted:.2f}",
            f"{point.weight_cost:.2f}",
            speeds[0],
            f"{point.arm['cost']['ratio']:.2f}",
        ]
        yield "| " + " | ".join([*cells, speeds[1], f"{speeds[2]} ({speed['low']:.2f}..{speed['high']:.2f})"]) + " |"


def main() -> None:
    """Sweep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+", help="heads for the model: registered names or folders")
    parser.add_argument("--model", default="demo-100m")
    parser.add_argument("--grow", action="store_true", help="the heads are for 'demo': grow them as the model was")
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--length", type=int, default=5, help="the most drafted tokens")
    parser.add_argument("--forward", default="eager")
    parser.add_argument("--limit", type=int, default=4, help="questions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="keep the benchmark in this folder, and go on from what is there")
    arguments = parser.parse_args()
    with TemporaryDirectory() as passing:
        folder, names = arguments.output or Path(passing), arguments.adapters
        adapters = [*grown(names, arguments.model, folder / "heads")] if arguments.grow else names
        found = points(arguments, adapters, folder / "bench")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
