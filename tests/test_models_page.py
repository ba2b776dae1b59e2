"""docs/models.md says of every family what was found, and is made from the findings in docs/models.json.

`python tests/test_models_page.py` examines every causal LM that transformers registers (ten minutes) and writes both;
with names after it, only those families. `--page` makes the page anew from the findings.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fastllm_core.testing.equality import CHECKS
from fastllm_core.testing.families import VARIANTS, family, registered
from fastllm_core.testing.sweep import Finding, examine

DOCS = Path(__file__).parent.parent / "docs"
PAGE, FINDINGS = DOCS / "models.md", DOCS / "models.json"
NAMED = (  # the families that fastllm promises
    *("llama", "mistral", "mistral, full attention", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    *("phi", "phi3", "gpt2", "gpt_neox", "gpt_oss", "opt", "falcon", "gptj", "granite", "olmo2", "olmo3", "cohere"),
    *("cohere2", "stablelm", "starcoder2", "smollm3", "mixtral", "qwen3_moe", "glm4", "deepseek_v3", "llama4_text"),
)
HEAD = """# Models

<!-- made from docs/models.json: python tests/test_models_page.py --page -->

Every causal language model that transformers {transformers} registers was built tiny, with random weights large enough
for attention to matter, windows and chunks shorter than the text, and layers of several kinds in an uneven order where
the family has them. Greedy, in float32 on a CPU, with torch {torch}. `python tests/test_models_page.py` repeats it all.

| what became of it | families |
| --- | --- |
| works in every column | {works} |
| works; parts or skipped layers are refused | {in part} |
| refused, with a sentence, when it is loaded | {refused} |
| could not be built here | {not built} |
| broken: neither right nor refused | {broken} |

A family that is not listed, because it is newer or brings its own code, is run if its structure is the usual one, and
compared with its own forward when it is loaded ([decision 6](decisions/0006-the-port-is-probed.md)). What is special
about a listed one stands in `quirks.py`, and a plugin can add to that ([architecture](architecture.md#adapters)).

A model with LongRoPE (Phi-3's long variants) is run up to the length at which its frequencies change; beyond it every
key in the cache would have to be computed again.

## What works

A mark means equal to the unmodified model:

- **plain**: plain decoding is `model.generate`, token for token, and a prompt read in pieces gives the model's logits.
- **split**: layers below any cut, then those above it from hidden states, are the whole model bit for bit, and so are
  the hidden states between them.
- **skip**: with attentions, MLPs or both left out in some layers, the logits are those of the model with the outputs of
  these set to 0.
- **chain**: rounds with drafted chains that are right, wrong and partly right give `model.generate`'s tokens.
- **tree**: so do rounds with trees whose kept path must be gathered from among rejected branches.
- **ragged**: so do three rows of one batch that join one after another, with chains and with trees.
"""


def load() -> dict[str, Any]:
    """Versions and findings by family."""
    found: dict[str, Any] = json.loads(FINDINGS.read_text(encoding="utf-8"))
    return found


def store(found: Mapping[str, Any]) -> None:
    """Write docs/models.json, a family a line."""
    head = ", ".join(f'"{key}": "{value}"' for key, value in found.items() if key != "families")
    lines = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in found["families"].items()]
    text = "{" + head + ', "families": {\n' + ",\n".join(lines) + "\n}}\n"
    FINDINGS.write_text(text, encoding="utf-8")


def page(found: Mapping[str, Any]) -> str:
    """The text of docs/models.md."""
    families: Mapping[str, Any] = found["families"]
    counts = Counter(families[name]["outcome"] for name in families if name not in VARIANTS)
    outcomes = {name: counts[name] for name in ("works", "in part", "refused", "not built", "broken")}
    notes: dict[str, str] = {}
    working = [name for name in families if families[name]["columns"]]
    lines = [HEAD.format(transformers=found["transformers"], torch=found["torch"], **outcomes)]
    lines += ["### Named families", "", *table({name: families[name] for name in NAMED if name in working}, notes), ""]
    rest = {name: families[name] for name in working if name not in NAMED}
    lines += ["### All others", "", *table(rest, notes), ""]
    lines += [f"- {mark} {reason}" for reason, mark in notes.items()]
    lines += [""]
    lines += ["## What is refused", "", "| reason | families |", "| --- | --- |"]
    for outcome in ("refused", "not built", "broken"):
        lines += reasons({name: found for name, found in families.items() if found["outcome"] == outcome})
    return "\n".join(lines) + "\n"


def table(families: Mapping[str, Any], notes: dict[str, str]) -> list[str]:
    """Rows of families by columns. notes: reasons met so far, with their marks."""
    rows = [f"| `model_type` | {' | '.join(CHECKS)} |", f"| --- |{' :-: |' * len(CHECKS)}"]
    for name, found in families.items():
        rows.append(f"| {name} | {' | '.join(mark(found['columns'][column], notes) for column in CHECKS)} |")
    return rows


def mark(result: str, notes: dict[str, str]) -> str:
    if not result:
        return "✓"
    reason = result.removeprefix("refused: ").partition(": ")[2] if result.startswith("refused: ") else f"**{result}**"
    return notes.setdefault(reason, f"({len(notes) + 1})")


def reasons(families: Mapping[str, Any]) -> list[str]:
    """Rows of reasons with those who have them, the most common first."""
    by_reason: dict[str, list[str]] = {}
    for name, found in families.items():
        by_reason.setdefault(found["reason"] or "see above", []).append(name)
    ordered = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    return [f"| {reason} | {', '.join(names)} |" for reason, names in ordered]


def sweep(names: Iterable[str]) -> dict[str, Any]:
    """Findings by family, as they are stored."""
    return {name: record(examine(family(name))) for name in names}


def record(finding: Finding) -> dict[str, Any]:
    return {"outcome": finding.outcome, "reason": finding.reason, "columns": dict(finding.columns)}


def test_the_page_is_made_from_the_findings() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(load())


def test_nothing_is_broken_and_what_is_promised_works() -> None:
    families = load()["families"]
    assert [name for name in families if families[name]["outcome"] == "broken"] == []
    assert [name for name in NAMED if families[name]["outcome"] != "works"] == []


def test_every_family_was_examined() -> None:
    found = load()
    if found["transformers"] == transformers.__version__:
        assert set(found["families"]) == {*registered(), *VARIANTS}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*VARIANTS, *registered()])
def test_a_family_is_as_the_page_says(name: str) -> None:
    finding = examine(family(name))
    assert finding.outcome != "broken", finding
    found = load()
    if found["transformers"] == transformers.__version__:
        assert record(finding) == found["families"][name], "python tests/test_models_page.py makes the page anew"


def main(arguments: list[str]) -> None:
    names = [name for name in arguments if not name.startswith("--")]
    if "--page" not in arguments:
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        old = load()["families"] if names else {}
        found = dict(old)
        for name in names or [*VARIANTS, *registered()]:
            found |= sweep([name])
            print(name, found[name]["outcome"], found[name]["reason"], flush=True)
        versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
        store({**versions, "families": dict(sorted(found.items()))})
    PAGE.write_text(page(load()), encoding="utf-8")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1:])
