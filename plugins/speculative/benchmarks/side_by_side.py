"""fastllm and transformers side by side: plain and speculative greedy decoding of one pair, in one run.

Prompt by prompt in turn, so that a machine that drifts slows all alike; the same weights, prompts, draft length and
number of tokens; ratios of the same repeat, with their spread.

    python plugins/speculative/benchmarks/side_by_side.py --model demo --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fastllm_core
from fastllm_core.models import resolve_model

PROMPTS = (
    "Once upon a time",
    "The old clock in the hall",
    "Mia did not want to sleep because",
    "One day, a small dog found a red ball",
    "Tom and Sue went to the park with their mom.",
    "There was a big tree in the middle of the forest.",
)
Run = Callable[[str], list[int]]
OURS_PLAIN, OURS, THEIRS_PLAIN, THEIRS = (
    "fastllm plain",
    "fastllm speculative",
    "transformers generate",
    "transformers assisted",
)
RATIOS = ((OURS_PLAIN, THEIRS_PLAIN), (OURS, THEIRS), (OURS, OURS_PLAIN), (THEIRS, THEIRS_PLAIN))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["demo", "demo-100m"], help="targets, by name or folder")
    parser.add_argument("--draft-model", default="demo-drafter")
    parser.add_argument("--draft-length", type=int, default=5)
    parser.add_argument("--controller", default="fixed", help="fastllm's draft length: fixed, heuristic or auto")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, help="also write every time to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = [compare(model, dtype, options) for model in options.model for dtype in options.dtype]
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1), encoding="utf-8")


def compare(name: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time all four arms on one target, and print their table."""
    target, draft = (load(model, dtype) for model in (name, options.draft_model))
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_model(name).location)
    reports: list[fastllm_core.RunReport] = []
    with pipeline(target, tokenizer, options) as ours:
        arms: dict[str, Run] = {
            OURS_PLAIN: our_arm(ours, options, speculate=False, reports=[]),
            OURS: our_arm(ours, options, speculate=True, reports=reports),
            THEIRS_PLAIN: their_arm(target, tokenizer, options),
            THEIRS: their_arm(target, tokenizer, options, assistant_model=assistant(draft, options)),
        }
        seconds, differing = timed(arms, options.repeats, f"{name} {dtype}")
    tokens = len(PROMPTS) * options.new_tokens
    show(name, dtype, seconds, differing, tokens, reports)
    return {"model": name, "dtype": dtype, "seconds": seconds, "tokens": tokens, "differing": differing}


def pipeline(target: Any, tokenizer: Any, options: argparse.Namespace) -> fastllm_core.Pipeline:
    """Our pipeline around the very module that transformers runs; it is not changed."""
    draft = {"draft.controller": options.controller, "draft.length": options.draft_length}
    return fastllm_core.load(target, "speculative", tokenizer=tokenizer, config=draft, draft_model=options.draft_model)


def our_arm(
    ours: fastllm_core.Pipeline, options: argparse.Namespace, *, speculate: bool, reports: list[fastllm_core.RunReport]
) -> Run:
    """Generate with fastllm."""

    def run(prompt: str) -> list[int]:
        result = ours.generate(
            prompt, max_new_tokens=options.new_tokens, temperature=0.0, ignore_eos=True, speculate=speculate
        )
        reports.append(result.report)
        return list(result.token_ids)

    return run


def their_arm(target: Any, tokenizer: Any, options: argparse.Namespace, **more: Any) -> Run:
    """Generate with transformers."""

    def run(prompt: str) -> list[int]:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        output = target.generate(
            ids, max_new_tokens=options.new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0, **more
        )
        return output[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]

    return run


def assistant(draft: Any, options: argparse.Namespace) -> Any:
    """The draft model, set to draft the same number of tokens in every round."""
    draft.generation_config.num_assistant_tokens = options.draft_length
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0
    draft.generation_config.eos_token_id = None
    return draft


def load(name: str, dtype: str) -> Any:
    """A model as transformers loads it."""
    location = resolve_model(name).location
    return transformers.AutoModelForCausalLM.from_pretrained(location, dtype=getattr(torch, dtype)).eval()


def timed(arms: dict[str, Run], repeats: int, label: str) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each repeat over all prompts, and how many outputs differ from our plain decoding."""
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    differing = dict.fromkeys(arms, 0)
    for run in arms.values():
        run(PROMPTS[0])  # warm up
    for _ in track(range(repeats), description=label, console=Console(stderr=True), transient=True):
        spent = dict.fromkeys(arms, 0.0)
        for prompt in PROMPTS:
            outputs = {}
            for arm, run in arms.items():
                start = time.perf_counter()
                outputs[arm] = run(prompt)
                spent[arm] += time.perf_counter() - start
            for arm, output in outputs.items():
                differing[arm] += output != outputs[OURS_PLAIN]
        for arm, value in spent.items():
            seconds[arm].append(value)
    return seconds, differing


def show(
    name: str,
    dtype: str,
    seconds: dict[str, list[float]],
    differing: dict[str, int],
    tokens: int,
    reports: list[fastllm_core.RunReport],
) -> None:
    """The table of one target."""
    console = Console()
    table = Table("", "tokens/s", "spread", f"of {len(PROMPTS) * len(seconds[OURS])} outputs differ from fastllm plain")
    for arm, times in seconds.items():
        rates = sorted(tokens / value for value in times)
        spread = f"{rates[0]:.1f}..{rates[-1]:.1f}"
        table.add_row(arm, f"{statistics.median(rates):.1f}", spread, str(differing[arm]))
    console.print(f"\n{name}, {dtype}: {machine()}")
    console.print(table)
    for fast, slow in RATIOS:
        ratios = sorted(b / a for a, b in zip(seconds[fast], seconds[slow], strict=True))
        console.print(f"{fast} : {slow} = {statistics.median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})")
    per_round = sum(report.tokens for report in reports) / sum(report.rounds for report in reports)
    outside = statistics.median(report.outside_forwards for report in reports)
    console.print(f"{per_round:.2f} tokens/round; {outside:.1%} of a round outside model forwards")


def machine() -> str:
    """What this ran on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return (
        f"{name}, {threads} threads, {capability}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
