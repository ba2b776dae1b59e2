"""A whole benchmark: from what was asked to arms, a plan, the measurement and the reports."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fastllm_core import Config, FastllmError, Pipeline, installed, load, registered_model

from . import markdown, page, report, table
from .arm import Arm, NotApplicable
from .choice import PLAIN, Choice, configured, parse
from .device import used
from .evaluate import build
from .machine import hardware, versions
from .measure import Bench
from .ours import Ours
from .peers import Pair, peers
from .plan import Case, Plan
from .progress import watched
from .record import Notes, Record
from .suite import load_suite


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for; see `fastllm bench run --help`."""

    methods: str = "all"
    suite: str = "demo"
    data: Path | None = None
    limit: int | None = None
    batches: Sequence[int] = (1,)
    temperatures: Sequence[float] = (0.0,)
    max_new_tokens: int = 128
    repeats: int = 3
    against: Sequence[str] = ()
    assistant: str | None = None
    cross_assistant: str | None = None
    early_exit: int | None = None
    seed: int = 0
    ignore_eos: bool = False
    chat: bool | None = None
    output: Path | None = None
    fresh: bool = False
    config: Path | None = None
    overrides: Mapping[str, object] = field(default_factory=dict)
    trust_remote_code: bool = False

    def plan(self) -> Plan:
        """What will be measured."""
        suite = load_suite(self.suite, self.data)
        return Plan(
            suite=suite.limited(self.limit),
            cases=tuple(Case(batch, heat) for batch in self.batches for heat in self.temperatures),
            repeats=self.repeats,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            chat=self.chat,
        )


@dataclass(slots=True)
class Arms:
    """Everyone who takes part, and why others do not."""

    owner: Pipeline
    """Plain decoding, which holds the weights."""
    arms: list[Arm] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)

    def add(self, label: str, make: Any, *, optional: bool) -> None:
        """Make an arm. One that nobody named may turn out to be impossible here."""
        before = used(self.owner.device.device)
        try:
            arm = make()
        except NotApplicable as error:
            self.absent[label] = str(error)
            return
        except FastllmError as error:
            if not optional:
                raise
            self.absent[label] = " ".join(str(error).split())
            return
        self.arms.append(arm)
        self.notes.loaded[label] = max(0, used(self.owner.device.device) - before)


def session(wishes: Wishes) -> dict[str, Any]:
    """Run a benchmark, or finish one, write its reports and show the table. Returns the report."""
    plan = wishes.plan()
    methods = [plugin.name for plugin in installed("method")]
    choices = parse(wishes.methods, methods)
    console = Console()
    with ExitStack() as stack:
        arms = gather(wishes, choices, stack)
        told = identity(wishes, plan, arms)
        folder = wishes.output or Path("bench") / _name(arms.owner, plan, told)
        if wishes.fresh and folder.is_dir():
            shutil.rmtree(folder)
        record = stack.enter_context(Record(folder, told))
        bench = Bench(plan, arms.arms, arms.owner, record, arms.notes)
        try:
            with watched(bench) as listener:
                bench.run(listener)
        except KeyboardInterrupt:
            sys.stderr.write(f"stopped; the same command with --output {folder} goes on from here\n")
            raise
        found = build(bench, _about(arms.owner), arms.absent, _decoder(arms.owner))
    write(found, folder)
    table.show(found, console)
    console.print(f"wrote {folder}/report.json, report.md, report.html", highlight=False, soft_wrap=True)
    return found


def write(found: Mapping[str, Any], folder: Path) -> None:
    """Every form of a report."""
    report.write(found, folder)
    (folder / "report.md").write_text(markdown.render(found), encoding="utf-8")
    (folder / "report.html").write_text(page.render(found), encoding="utf-8")


def gather(wishes: Wishes, choices: Sequence[Choice], stack: ExitStack) -> Arms:
    """Load plain decoding, then everyone else around its weights."""
    config = configured(choices[0], wishes.config, wishes.overrides, {})
    registered = registered_model(config.model)
    defaults = registered.options if registered else {}
    owner = stack.enter_context(load(config=config, trust_remote_code=wishes.trust_remote_code))
    arms = Arms(owner, [Ours(PLAIN, owner)])
    arms.notes.weights = sum(tensor.nbytes for tensor in owner.target.model.parameters())
    for choice in choices[1:]:

        def make(choice: Choice = choice) -> Arm:
            asked = configured(choice, wishes.config, wishes.overrides, defaults)
            return Ours.sharing(choice.label, asked, owner, trust_remote_code=wishes.trust_remote_code)

        arms.add(choice.label, make, optional=choice.optional)
    pair = Pair(
        owner,
        wishes.assistant or _drafter(config, defaults),
        wishes.cross_assistant or _cross(owner),
        wishes.early_exit,
        config.draft.length,
    )
    for label, build_peer in peers(wishes.against, pair):
        arms.add(label, build_peer, optional=False)
    for arm in arms.arms[1:]:
        stack.callback(arm.close)
    return arms


def _drafter(config: Config, defaults: Mapping[str, Mapping[str, object]]) -> str | None:
    """The draft model that is configured for 'speculative', or that the model recommends."""
    name = config.options.get("speculative", {}).get("draft_model") or defaults.get("speculative", {}).get(
        "draft_model"
    )
    return None if name is None else str(name)


def _cross(owner: Pipeline) -> str | None:
    """The demo models have a drafter with another tokenizer."""
    return "demo-drafter-512" if owner.config.model.startswith("demo") else None


def identity(wishes: Wishes, plan: Plan, arms: Arms) -> dict[str, Any]:
    """Everything that figures follow from: events of another identity must not be mixed in."""
    return {
        "model": arms.owner.config.model,
        "suite": [plan.suite.name, plan.suite.hash],
        "cases": [[case.batch, case.temperature] for case in plan.cases],
        "repeats": plan.repeats,
        "max_new_tokens": plan.max_new_tokens,
        "seed": plan.seed,
        "ignore_eos": plan.ignore_eos,
        "chat": plan.chat,
        "arms": {arm.label: dict(arm.describe()) for arm in arms.arms},
        "hardware": {key: value for key, value in hardware(arms.owner).items() if key != "load_at_start"},
        "versions": versions(),
    }


def _name(owner: Pipeline, plan: Plan, told: Mapping[str, Any]) -> str:
    model = Path(owner.config.model).name
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{model}-{plan.suite.name}-{digest}"


def _about(owner: Pipeline) -> dict[str, Any]:
    return {
        "model": owner.config.model,
        "created": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "hardware": dict(hardware(owner)),
        "versions": versions(),
        "command": sys.argv[1:],
    }


def _decoder(owner: Pipeline) -> Any:
    tokenizer: Any = owner.target.tokenizer
    return lambda tokens: tokenizer.decode(list(tokens))
