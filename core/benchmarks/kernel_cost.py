"""How near the kernels of `fastllm_core/kernels.py` come to a GPU's memory, for every way to cut a product.

    python core/benchmarks/kernel_cost.py --shape 8b --rows 1,16

Times one product after another over matrices that no cache holds, in a captured graph, and whole layers beside what
copying gives. The table of `fused.tiling` was chosen from it (docs/benchmarks.md, "On a GPU").
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fastllm_core import SlotCache, chain, fused
from fastllm_core.fused import AttentionTiling, FusedForward, Tiling
from fastllm_core.port import Passage
from fastllm_core.testing.engines import make_engine
from fastllm_plugin_bench.forward import machine_of

SHAPES = {
    "8b": (4096, 14336, 32, 8, 128, 128256),
    "1b": (2048, 5504, 64, 32, 32, 4096),
    "drafter": (192, 512, 6, 3, 32, 4096),
}
"""Hidden and intermediate size, heads, key heads, head size, vocabulary."""
CUTS = [
    Tiling(*each)
    for each in product((16, 32, 64), (256, 512), (4,), (2, 3, 5))
    if each[0] * each[1] * each[3] * 4 <= 180_000
]
ATTENTION = [AttentionTiling(*each) for each in product((128, 256, 512), (64, 128), (4, 8), (2, 3))]
L2 = 200_000_000
"""Bytes of matrices that are read before one is read again."""
BATCH = 24
"""Calls in one graph."""


def forward_of(shape: str, layers: int) -> FusedForward:
    """A Llama of random weights in bfloat16."""
    hidden, intermediate, heads, keys, width, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=heads, num_key_value_heads=keys,
        head_dim=width, vocab_size=vocabulary, num_hidden_layers=layers, max_position_embeddings=8192,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    network: Any = make_engine(model).parts.network
    return FusedForward(network)


def calls(forward: FusedForward, rows: int) -> dict[str, tuple[int, list[Callable[[], object]]]]:
    """Bytes read, and the call on each layer, of every kind of product."""
    stream = forward._stream(rows, forward.norm)
    stream.states.normal_(), stream.scaled.normal_(), stream.squares.fill_(16.0)
    layers = forward.layers
    attention, mlp = layers[0].self_attn, layers[0].mlp
    out = torch.randn(rows, attention.o_proj.in_features, dtype=torch.bfloat16, device="cuda")
    wide = torch.randn(rows, mlp.down_proj.in_features, dtype=torch.bfloat16, device="cuda")

    def gate(part: Any) -> None:
        forward._gate(part, stream)

    found: dict[str, tuple[int, list[Callable[[], object]]]] = {}
    qkv = [(each.self_attn.q_proj, each.self_attn.k_proj, each.self_attn.v_proj) for each in layers]
    found["qkv"] = sum(each.weight.nbytes for each in qkv[0]), [lambda x=x: forward._project(stream, *x) for x in qkv]
    found["o"] = (
        attention.o_proj.weight.nbytes,
        [lambda x=x: forward._add(out, x.self_attn.o_proj, stream, forward.norm) for x in layers],
    )
    found["gate"] = 2 * mlp.gate_proj.weight.nbytes, [lambda x=x: gate(x.mlp) for x in layers]
    found["down"] = (
        mlp.down_proj.weight.nbytes,
        [lambda x=x: forward._add(wide, x.mlp.down_proj, stream, forward.norm) for x in layers],
    )
    cache = SlotCache(forward.network)
    cache.reserve(1, 128)
    inputs = chain(torch.zeros(1, rows, dtype=torch.long, device="cuda"), torch.tensor([64], device="cuda"), 128)
    stores = cache.layers(slice(0, 1), 128)
    heads = forward._project(stream, *qkv[0])
    rotation = forward._enter(inputs, forward.norm)[1]
    mask, slots = inputs.mask, inputs.slots
    found["attend"] = (
        heads.nbytes,
        [
            lambda x=x.self_attn, store=store: forward._attend(x, heads, rotation, slots, mask, store)
            for x, store in zip(layers, stores, strict=True)
        ],
    )
    found["enter"] = heads.nbytes, [lambda: forward._enter(inputs, forward.norm)]
    logits = forward._project(stream, forward.head)[None]
    found["best"] = logits.nbytes, [lambda: forward._best(logits)]
    found["head"] = forward.head.weight.nbytes, [lambda: forward._project(stream, forward.head)]
    return found


def timed(work: list[Callable[[], object]], count: int = BATCH) -> float:
    """Seconds of one call, in a graph of `count`."""

    def run() -> None:
        for index in range(count):
            work[index % len(work)]()

    stream: Any = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    spent = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        spent.append(begin.elapsed_time(end) / 1e3 / count)
    return sorted(spent)[len(spent) // 2]


def bandwidth() -> float:
    """Bytes a second of a copy, read and written ones counted."""
    return float(machine_of(torch.device("cuda", 0), torch.bfloat16).bytes_per_s)


def compile_all(shape: str, share: int, shares: int) -> None:
    """Run each cut once, so that the compiler's results lie in the cache."""
    with torch.inference_mode():
        forward = forward_of(shape, 1)
        for seen in ATTENTION[share::shares]:
            fused.attention_tiling = lambda _, seen=seen: seen  # type: ignore[assignment]
            for extent in (128, 512):
                whole(forward, 1, extent)
        work = calls(forward, 1)
        for cut in CUTS[share::shares]:
            fused.tiling = lambda *_, cut=cut, **__: cut  # type: ignore[assignment]
            for _, each in work.values():
                try:
                    each[0]()
                except Exception:  # too much shared memory: left out of the table as well
                    torch.cuda.synchronize()


def sweep(forward: FusedForward, rows: int) -> Iterator[str]:
    """A line for each of the best cuts of every product."""
    for name, (size, work) in calls(forward, rows).items():
        if name in ("attend", "enter", "best"):
            continue
        found = []
        for cut in CUTS:
            fused.tiling = lambda *_, cut=cut, **__: cut  # type: ignore[assignment]
            try:
                found.append((timed(work), cut))
            except Exception as error:
                found.append((float("inf"), cut))
                if "out of resource" not in str(error):
                    yield f"{name} {cut}: {str(error).splitlines()[0]}"
        found.sort()
        best = ", ".join(
            f"{size / seconds / 1e9:.0f} {cut.columns}x{cut.inner}/{cut.warps}/{cut.stages}"
            for seconds, cut in found[:6]
        )
        yield f"{rows:3} rows {name:5} {size / 1e6:6.1f} MB {found[0][0] * 1e6:7.2f} us; GB/s: {best}"


def whole(forward: FusedForward, rows: int, extent: int) -> float:
    """Seconds of a whole forward in a graph."""
    cache = SlotCache(forward.network)
    cache.reserve(1, extent)
    inputs = chain(torch.zeros(1, rows, dtype=torch.long, device="cuda"), torch.tensor([64], device="cuda"), extent)
    layers = cache.layers(slice(0, 1), extent)
    return timed([lambda: forward(Passage(0, forward.network.layers), inputs, layers)], 2)


def main() -> None:
    """Sweep, then whole layers with the table that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="8b", choices=sorted(SHAPES))
    parser.add_argument("--rows", default="1,16")
    parser.add_argument("--cuts", action="store_true", help="try every way to cut a product")
    parser.add_argument("--attention", action="store_true", help="try every way to cut attention")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here, and these are kernels for one")
    table, seen, began = fused.tiling, fused.attention_tiling, time.time()
    if options.cuts or options.attention:
        shares = min(14, os.cpu_count() or 1)
        workers = [
            multiprocessing.get_context("fork").Process(target=compile_all, args=(options.shape, each, shares))
            for each in range(shares)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(f"compiled after {time.time() - began:.0f} s", flush=True)
    with torch.inference_mode():
        rate = bandwidth()
        print(f"{torch.cuda.get_device_name()}: copying {rate / 1e9:.0f} GB/s", flush=True)
        layer = sum(weight.nbytes for weight in forward_of(options.shape, 1).layers[0].parameters())
        count = max(2, -(-L2 // layer))
        forward = forward_of(options.shape, count)
        for rows in map(int, options.rows.split(",")):
            fused.tiling, fused.attention_tiling = table, seen
            found = {name: timed(work) for name, (_, work) in calls(forward, rows).items()}
            print(rows, "rows:", {name: f"{seconds * 1e6:.1f} us" for name, seconds in found.items()}, flush=True)
            if options.cuts:
                for line in sweep(forward, rows):
                    print(line, flush=True)
            fused.tiling = table
            read = count * layer + forward.head.weight.nbytes
            for extent in (128, 512):
                seconds = whole(forward, rows, extent)
                print(
                    f"{rows:3} rows, {count} layers and head, extent {extent}: {seconds * 1e6:.1f} us, "
                    f"{seconds * rate / read:.2f} times the floor",
                    flush=True,
                )
                if options.attention:
                    tried = []
                    for each in ATTENTION:
                        fused.attention_tiling = lambda _, each=each: each  # type: ignore[assignment]
                        tried.append((whole(forward, rows, extent), each))
                    fused.attention_tiling = seen
                    print(", ".join(f"{best * 1e6:.1f} {tuple(each)}" for best, each in sorted(tried)[:6]), flush=True)
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
