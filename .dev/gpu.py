"""What fastllm does on a GPU: forwards against what the card can do, and whole texts against transformers.

    python .dev/gpu.py steps:demo-1b steps:8b:eager,fused loop:demo-1b loop:7b

`8b` has the shape of Llama 3 8B and random weights; `7b` is the demo model grown to the shape of Llama 2 7B. The
figures in docs/benchmarks.md, "On a GPU", come from here.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import fastllm_core
from fastllm_core import SlotCache, chain
from fastllm_plugin_bench.forward import machine_of, measure
from fastllm_plugin_demo.build import load as load_small
from fastllm_plugin_demo.grow import grow
from fastllm_plugin_demo.models import DEMO
from fastllm_plugin_demo.shape import Shape

OUT = Path(os.environ.get("OUT", "."))
PROMPTS = [
    "Once upon a time",
    "The old clock in the hall",
    "Mia did not want to sleep because",
    "One day, a small dog found a red ball",
    "Tom and Sue went to the park with their mom.",
    "There was a big tree in the middle of the forest.",
]
NEW_TOKENS = 128
REPEATS = 5
PATIENCE = 90.0
"""Seconds of repeats of one loop, behind which no other is begun."""
DEVICE = torch.device("cuda", 0)


@cache
def model(name: str) -> Any:
    """A module on the GPU in bfloat16."""
    began = time.time()
    if name == "8b":
        config = LlamaConfig(
            hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
            intermediate_size=14336, vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0,
            tie_word_embeddings=False,
        )  # fmt: skip
        torch.set_default_dtype(torch.bfloat16)
        with DEVICE:
            made = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    elif name == "7b":
        generator, torch.Generator = torch.Generator, partial(torch.Generator, device=DEVICE)  # type: ignore
        with DEVICE:
            made = grow(load_small(DEMO.path()).to(DEVICE), Shape(4096, 32, 11008, 128, 64)).to(DEVICE)
        torch.Generator = generator
    else:
        with fastllm_core.load(name, "plain", device="cuda:0", config={"forward": "eager"}) as pipeline:
            made = pipeline.target.model
    print(f"{name} there after {time.time() - began:.0f} s", flush=True)
    return made


def steps(name: str, forwards: list[str]) -> dict[str, Any]:
    """Forwards of a few rows by every back end."""
    found: dict[str, Any] = {}
    for forward in forwards:
        began = time.time()
        torch.cuda.reset_peak_memory_stats()
        with fastllm_core.load(model(name), "plain", config={"forward": forward}) as pipeline:
            machine = machine_of(DEVICE, torch.bfloat16)
            timings = list(measure(pipeline, (1, 2, 6, 16), (64, 448), 30, machine))
            print(f"{name} {forward}: {pipeline.backend.summary}; copying {machine.bytes_per_s / 1e9:.0f} GB/s")
            for each in timings:
                print(
                    f"  {each.rows:3} rows behind {each.context}: {each.seconds * 1e3:.3f} ms, floor "
                    f"{each.floor * 1e3:.3f}, {each.ratio:.2f}x (best {each.fastest * 1e3:.3f})"
                )
            found[forward] = [
                (each.rows, each.context, each.seconds, each.fastest, each.floor, each.ratio) for each in timings
            ]
            print(f"  took {time.time() - began:.0f} s, {torch.cuda.max_memory_allocated() / 1e9:.2f} GB at most")
            for rows in (1, 16):
                kernels(pipeline.engine.parts.network, rows)
    return found


def kernels(network: Any, rows: int) -> None:
    """Where a forward's time goes on the card."""
    store = SlotCache(network)
    store.reserve(1, 128)
    inputs = chain(torch.zeros(1, rows, dtype=torch.long, device=DEVICE), torch.tensor([64], device=DEVICE), 128)
    layers = store.layers(slice(0, 1), 128)
    for _ in range(3):
        network.forward(inputs, layers)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        network.forward(inputs, layers)
        torch.cuda.synchronize()
    spent, count = Counter[str](), Counter[str]()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent[event.name] += event.device_time
            count[event.name] += 1
    print(f"  {rows} rows: {sum(count.values())} kernels, {sum(spent.values()) / 1e3:.3f} ms")
    for kernel, microseconds in spent.most_common(9):
        print(f"    {microseconds:8.0f} us {count[kernel]:4} x {kernel[:100]}")


def loop(name: str, forwards: list[str]) -> dict[str, Any]:
    """Texts per second: ours by every back end, transformers' own, one after another in each repeat."""
    target = model(name)
    tokenizer = AutoTokenizer.from_pretrained(DEMO.path())
    drafter = AutoModelForCausalLM.from_pretrained(fastllm_core_path("demo-drafter"), dtype=torch.bfloat16).to(DEVICE)
    runs: dict[str, Callable[[], list[list[int]]]] = {}
    for forward in forwards:
        for method in ("plain", "speculative"):
            options = {"draft_model": "demo-drafter"} if method == "speculative" else {}
            pipeline = fastllm_core.load(
                target, method, tokenizer=tokenizer, config={"forward": forward, "draft": {"length": 5}}, **options
            )
            runs[f"{method}, {forward}"] = partial(ours, pipeline)
    runs["generate"] = partial(theirs, target, tokenizer, {})
    assisted = {"assistant_model": drafter}
    drafter.generation_config.num_assistant_tokens = 5
    drafter.generation_config.num_assistant_tokens_schedule = "constant"
    drafter.generation_config.assistant_confidence_threshold = 0.0
    runs["generate assisted"] = partial(theirs, target, tokenizer, assisted)
    speeds: dict[str, list[float]] = {label: [] for label in runs}
    texts = {}
    for label, run in runs.items():
        began = time.time()
        texts[label] = run()
        print(f"  {label}: first {time.time() - began:.1f} s", flush=True)
    started = time.time()
    for repeat in range(REPEATS):
        if repeat and time.time() - started > PATIENCE:
            print(f"  {repeat} repeats", flush=True)
            break
        for label, run in runs.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            made = run()
            torch.cuda.synchronize()
            speeds[label].append(sum(map(len, made)) / (time.perf_counter() - began))
    for label, found in speeds.items():
        same = sum(mine == other for mine, other in zip(texts[label], texts[f"plain, {forwards[0]}"], strict=True))
        ratios = [mine / other for mine, other in zip(found, speeds["generate assisted"], strict=True)]
        print(
            f"{name} {label}: {median(found):.0f} tokens/s ({min(found):.0f}..{max(found):.0f}), "
            f"{median(ratios):.2f}x assisted ({min(ratios):.2f}..{max(ratios):.2f}), {same} of {len(PROMPTS)} "
            f"texts as plain, {forwards[0]}"
        )
    for label, run in runs.items():
        if "generate" not in label:
            pipeline = run.args[0]  # type: ignore[attr-defined]
            report = pipeline.engine.report
            print(
                f"  {label}: {report.tokens_per_round:.2f} tokens a round, {report.rounds} rounds, "
                f"{report.near_ties} near-ties, {pipeline.backend.summary}"
            )
    return speeds


def fastllm_core_path(name: str) -> Path:
    """The folder of a registered model."""
    from fastllm_plugin_demo import models

    return {"demo-drafter": models.DRAFTER, "demo": models.DEMO}[name].path()


def ours(pipeline: Any) -> list[list[int]]:
    """The tokens of every prompt, one after another."""
    settings = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    return [list(pipeline.generate(prompt, **settings).token_ids) for prompt in PROMPTS]


@torch.inference_mode()
def theirs(target: Any, tokenizer: Any, assisted: dict[str, Any]) -> list[list[int]]:
    """The same by `generate`."""
    found = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt").to(DEVICE)
        given.pop("token_type_ids", None)
        length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
        made = target.generate(**given, do_sample=False, eos_token_id=None, pad_token_id=0, **length, **assisted)
        found.append(made[0, given["input_ids"].shape[1] :].tolist())
    return found


def main() -> None:
    """Every stage that was named; one that fails stops no other."""
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here")
    found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for stage in sys.argv[1:]:
        kind, name, *forwards = stage.split(":")
        try:
            chosen = forwards[0].split(",") if forwards else ["eager", "graphs", "fused"]
            found[stage] = {"steps": steps, "loop": loop}[kind](name, chosen)
        except Exception:
            traceback.print_exc()
        (OUT / "gpu.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
