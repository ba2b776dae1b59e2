"""What a fresh process pays until its first piece of text, and the memory that it has taken by its last.

    fastllm compile --model demo-100m --method plain --dtype bfloat16
    python core/benchmarks/first_token.py --model demo-100m --method plain --dtype bfloat16

Fresh processes take turns: eager forwards, `auto` without any program, `auto` with those that were compiled. Seconds
count from the loaded model. Memory is the process's peak beyond what it had before it loaded the model, in MB and as a
multiple of the target's weights and cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

ARMS = {"eager": "eager", "auto, nothing compiled": "auto", "auto, programs": "auto"}


def memory(*kinds: str) -> list[float]:
    """MB of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    values = {key: value for key, _, value in (line.partition(":") for line in lines)}
    return [int(values[kind].split()[0]) / 1e3 for kind in kinds]


def write_once(model: str, method: str, dtype: str, forward: str, new_tokens: int) -> dict[str, float]:
    """In a fresh process: load, write, and say what it took."""
    from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401 - imported before anything is counted

    from fastllm_core.compose import select
    from fastllm_core.config import config_from
    from fastllm_core.device import select_device
    from fastllm_core.models import load_model
    from fastllm_core.pipeline import Pipeline

    before = memory("VmRSS", "RssAnon")
    selection = select(config_from({"model": model, "method": method, "dtype": dtype, "forward": forward}))
    place = select_device("auto", dtype)
    target = load_model(model, device=place)
    began = time.perf_counter()
    with Pipeline(selection, target, place) as pipeline:
        pieces = pipeline.stream("Once upon a time", max_new_tokens=new_tokens, temperature=0)
        next(pieces)
        first = time.perf_counter() - began
        for _ in pieces:
            pass
        peak, anonymous = memory("VmHWM", "RssAnon")
        cache = pipeline.engine.parts.cache
        rows = [keys.nbytes + values.nbytes for keys, values in cache.layers(slice(0, 1), cache.extent(1))]
    weights = sum(tensor.nbytes for tensor in target.model.parameters())
    return {
        "first": first,
        "peak": peak - before[0],
        "anonymous": anonymous - before[1],
        "needed": (weights + sum(rows)) / 1e6,
    }


def in_turn(arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Every arm in fresh processes, one after another."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    with TemporaryDirectory() as nothing:
        for _ in range(arguments.repeats + 1):
            for name, forward in ARMS.items():
                folder = {} if name.endswith("programs") else {"FASTLLM_COMPILED": nothing}
                command = [sys.executable, __file__, "--once", forward, "--model", arguments.model]
                command += ["--method", arguments.method, "--dtype", arguments.dtype]
                command += ["--new-tokens", str(arguments.new_tokens)]
                answer = subprocess.run(command, env={**os.environ, **folder}, check=True, stdout=subprocess.PIPE)
                found[name].append(json.loads(answer.stdout.splitlines()[-1]))
    return {name: values[1:] for name, values in found.items()}  # files are in memory after the first


def main() -> None:
    """Print a line for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-100m")
    parser.add_argument("--method", default="plain")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        took = write_once(arguments.model, arguments.method, arguments.dtype, arguments.once, arguments.new_tokens)
        print(json.dumps(took))
        return
    print(f"{'':24} first piece, s         peak MB  of weights and cache  anonymous MB")
    for name, values in in_turn(arguments).items():
        first = sorted(value["first"] for value in values)
        peak, anonymous, needed = (median(value[key] for value in values) for key in ("peak", "anonymous", "needed"))
        seconds = f"{median(first):.3f} ({first[0]:.3f}..{first[-1]:.3f})"
        print(f"{name:24} {seconds:22} {peak:7.0f} {peak / needed:21.2f} {anonymous:13.0f}")


if __name__ == "__main__":
    main()
