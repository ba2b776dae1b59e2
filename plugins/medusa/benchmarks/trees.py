"""Grown trees against Cartesian ones of at most as many nodes: tokens per round, as generation has them.

python plugins/medusa/benchmarks/trees.py --model demo --prompts prompts.jsonl

Trees are chosen by accuracies over one half of the prompts, and drafted over the other half.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from fastllm_core import Pipeline, configuration, load, read_prompts
from fastllm_plugin_medusa.drafter import MedusaDrafter
from fastllm_plugin_medusa.tree import PUBLISHED, Tree, best_cartesian, grown
from fastllm_plugin_medusa.tuning.ranks import Text, accuracies_of, ranks_of, walked

SIZES: Final = (4, 8, 16, 32, 63)


def tokens_per_round(pipeline: Pipeline, tree: Tree, prompts: list[str], new_tokens: int) -> float:
    """Mean over all texts of one run."""
    drafter: MedusaDrafter = pipeline.drafter  # type: ignore[assignment]
    drafter.draw(tree)
    texts = pipeline.generate(prompts, max_new_tokens=new_tokens, temperature=0.0)
    return sum(text.report.tokens for text in texts) / sum(text.report.rounds for text in texts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    prompts = read_prompts(given.prompts)
    settings: dict[str, Any] = {"model": given.model, "method": "medusa", "dtype": given.dtype, "forward": "eager"}
    config = configuration(None, settings | {"draft.controller": "fixed", "options.medusa.tree": "chain"})
    with load(config=config) as pipeline:
        drafter: MedusaDrafter = pipeline.drafter  # type: ignore[assignment]
        network, depth = pipeline.engine.parts.network, drafter.tree.depth
        heads = drafter.all_heads.first(depth)
        ranks = []
        for prompt in prompts[::2]:
            text = pipeline.generate(prompt, max_new_tokens=given.new_tokens, temperature=0.0)
            tokens = [*text.prompt_token_ids, *text.token_ids]
            ranks.append(ranks_of(Text(tokens, len(text.prompt_token_ids)), network, heads, drafter.token_map))
        accuracies = accuracies_of([each for each in ranks if len(each)])
        for head, row in enumerate(accuracies):
            print(f"head {head}: {' '.join(f'{share:.3f}' for share in row)}")
        print("| nodes | grown | foretold on the first half | expected | Cartesian | grown by published accuracies |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for size in SIZES:
            tree, product = grown(accuracies, size, depth), best_cartesian(accuracies, size, depth)
            found = [
                tokens_per_round(pipeline, each, prompts[1::2], given.new_tokens)
                for each in (tree, product, grown(PUBLISHED, size, depth))
            ]
            foretold = walked([each for each in ranks if len(each)], tree)
            print(
                f"| {size} | {found[0]:.3f} | {foretold:.3f} | {tree.value(accuracies):.3f} | "
                f"{found[1]:.3f} ({product}) | {found[2]:.3f} |"
            )


if __name__ == "__main__":
    main()
