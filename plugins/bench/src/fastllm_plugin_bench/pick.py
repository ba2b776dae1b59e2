"""Choosing a method: methods are tried on a person's prompts, and the one that is surely fastest is written down."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fastllm_core import Config, installed, to_toml

from .arm import Arm
from .choice import PLAIN, Choice, configured, parse
from .evaluate import build
from .machine import hardware
from .measure import Bench
from .progress import watched
from .record import Record
from .report import OVERALL
from .session import Arms, Wishes, gather

MANY: Final = 1000
"""Repeats that no time budget allows: the clock ends the trial."""
SOUND: Final = ("identical", "near-ties", "sampled")


@dataclass(slots=True)
class Pick:
    """What was chosen, and why."""

    label: str
    config: Config
    evidence: list[str]
    report: dict[str, Any] = field(repr=False)


class Budget:
    """Says when time is up."""

    def __init__(self, seconds: float, fewest: int) -> None:
        """seconds: for the whole trial.  fewest: groups that are measured whatever they take."""
        self.fewest = fewest
        self.end = time.monotonic() + seconds
        self.groups = 0

    def over(self) -> bool:
        """Asked before each group of prompts."""
        self.groups += 1
        return self.groups > self.fewest and time.monotonic() >= self.end


def pick(wishes: Wishes, seconds: float) -> Pick:
    """Try methods on prompts within a time budget.

    wishes: prompts and methods. Methods that cannot run here are left out, with the reason in the evidence.
    The winner is the fastest of those whose text is plain decoding's, if its interval lies above plain decoding's
    speed, and else plain decoding.
    """
    wishes = replace(wishes, repeats=MANY, batches=wishes.batches[:1], temperatures=wishes.temperatures[:1])
    choices = parse(wishes.methods, [plugin.name for plugin in installed("method")])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fastllm-pick-")))
        arms = gather(wishes, [replace(choice, optional=True) for choice in choices], stack)
        plan = wishes.plan()
        bench = Bench(plan, arms.arms, arms.owner, stack.enter_context(Record(folder, {})), arms.notes)
        budget = Budget(seconds, len(plan.groups(plan.cases[0])))
        with watched(bench, title=f"trying for {seconds:.0f} s", endless=True) as listener:
            bench.run(listener, budget.over)
        found = build(bench, _about(arms), arms.absent, _decode(arms))
        label = winner(found["cases"][0]["arms"])
        config = _written(wishes, next(choice for choice in choices if choice.label == label), arms)
    return Pick(label, config, evidence(found, label), found)


def winner(arms: Sequence[Mapping[str, Any]]) -> str:
    """The label of the fastest sound arm that is surely faster than plain decoding, or plain."""
    sure = [arm for arm in arms if arm["status"] in SOUND and _whole(arm) is not None and _whole(arm)["low"] > 1]
    return str(max(sure, key=lambda arm: _whole(arm)["value"])["label"]) if sure else PLAIN


def _whole(arm: Mapping[str, Any]) -> Any:
    """Times plain decoding, prompts included: that is what a person waits for."""
    return arm["speed"].get(OVERALL, {}).get("whole_ratio")


def evidence(report: Mapping[str, Any], label: str) -> list[str]:
    """What speaks for the choice, a line each."""
    case, machine = report["cases"][0], report["hardware"]
    jobs = max((arm["speed"][OVERALL]["jobs"] for arm in case["arms"] if arm["speed"]), default=0)
    lines = [
        f"{label} was chosen by `fastllm bench pick` for {report['model']} in {machine['dtype']} on {machine['what']},",
        f"from {jobs} jobs on {report['suite']['questions']} prompts ({report['suite']['name']}); "
        "times plain decoding, prompts included:",
    ]
    for arm in case["arms"][1:]:
        ratio = _whole(arm)
        speed = "not measured" if ratio is None else f"{ratio['value']:.2f} ({ratio['low']:.2f}..{ratio['high']:.2f})"
        lines.append(f"  {arm['label']}: {speed}, {arm['verdict']}")
    lines += [f"  {name}: not tried: {reason}" for name, reason in report["absent"].items()]
    return lines


def written(choice: Pick) -> str:
    """The configuration file, with the evidence above it."""
    head = "".join(f"# {line}\n" for line in choice.evidence)
    settings = to_toml(choice.config, brief=True)
    named = "" if settings.startswith("model = ") else f"model = {json.dumps(choice.config.model)}\n"
    return f"{head}\n{named}{settings}"


def _written(wishes: Wishes, choice: Choice, arms: Arms) -> Config:
    """The winner's configuration with what it needs stated: defaults of the model may change."""
    arm: Arm = next(each for each in arms.arms if each.label == choice.label)
    options = arm.describe()["config"].get("options", {})
    config = configured(choice, wishes.config, wishes.overrides, options)
    return config.model_copy(update={"model": arms.owner.config.model})


def _about(arms: Arms) -> dict[str, Any]:
    return {"model": arms.owner.config.model, "hardware": dict(hardware(arms.owner))}


def _decode(arms: Arms) -> Any:
    tokenizer: Any = arms.owner.target.tokenizer
    return lambda tokens: tokenizer.decode(list(tokens))
