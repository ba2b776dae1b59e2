"""`fastllm train`: from a configuration and files to a head, its curves and its card."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from accelerate import Accelerator

from fastllm_core import Config, ModelError, Pipeline, TargetIdentity, load_head, trainer

from . import card, distill, plot, progress, target
from . import state as states
from .data import Text, documents, tokenized
from .evaluation import cut
from .fit import TARGET, Run, fit
from .options import options_of
from .proof import Proof, network_of, prove
from .recipe import HELD_OUT, Recipe, recipe_for
from .rows import pack, split
from .state import State
from .teacher import Teacher

CURVES: Final = "curves.json"
PICTURE: Final = "curves.svg"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for; None is what suits the model."""

    method: str
    config: Config
    data: Sequence[Path]
    output: Path
    options: Mapping[str, Any]
    """Of the method's trainer."""
    recipe: Mapping[str, Any]
    """Fields of `Recipe` that were given."""
    limit: int | None = None
    """Documents that are read at most."""
    micro: int | None = None
    draft_length: int = 6
    save_every: int = 50
    regenerate: str | None = None
    """The method that regenerates answers, "plain" or any; None leaves them as they are."""
    new_tokens: int = 128
    temperature: float = 0.0
    proofs: int = 24
    """Held-out prompts that are generated from at the end; 0 leaves that out."""
    fresh: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What a session ends with."""

    state: State
    recipe: Recipe
    proof: Proof | None
    output: Path

    @property
    def done(self) -> bool:
        """Whether training came to its end."""
        return self.state.step >= self.recipe.steps or self.state.stopped is not None


def session(wishes: Wishes, say: Callable[[str], None] = print) -> Result:
    """Train, or go on. Raises UserError for what the person can mend."""
    made = trainer(wishes.method)
    options = options_of(made.Options, wishes.options)
    if wishes.fresh and wishes.output.exists():
        _throw_away(wishes.output)
    wishes.output.mkdir(parents=True, exist_ok=True)
    with target.plain(wishes.config, wishes.trust_remote_code) as plain:
        network = network_of(plain)
        if plain.target.tokenizer is None:
            raise ModelError(f"model '{plain.target.name}' has no tokenizer, and data is text")
        count = sum(part.numel() for part in plain.target.model.parameters())
        learner: Any = made(options, network)
        recipe = recipe_for(count, plain.target.context_length, learner.recipe(count), **wishes.recipe)
        texts = _texts(wishes, plain)
        every = pack(texts, recipe.length)
        rows, held = split(every, recipe.held_out, HELD_OUT, recipe.seed)
        accelerator = Accelerator(cpu=network.device.type == "cpu", mixed_precision=recipe.precision)
        run = Run(
            trainer=learner,
            teacher=Teacher(network, learner.hidden_layers),
            rows=rows,
            held=held,
            recipe=recipe,
            output=wishes.output,
            identity={
                "method": wishes.method,
                "options": options.model_dump(mode="json"),
                "recipe": recipe.to_json(),
                "data": every.digest(),
                "target": TargetIdentity.of(network).head,
            },
            micro=wishes.micro or recipe.batch,
            draft_length=wishes.draft_length,
            save_every=wishes.save_every,
            accelerator=accelerator,
        )
        say(
            f"{wishes.method} for {plain.target.name}: {len(rows)} rows of {recipe.length} tokens, {len(held)} held "
            f"out; {recipe.steps} steps of {recipe.batch} rows"
        )
        with progress.watched(recipe.steps) as bar, _interruptible() as interrupted:
            state = fit(run, bar, interrupted)
        result = Result(state, recipe, None, wishes.output)
        if accelerator.is_main_process:
            result = _finished(wishes, run, plain, texts, result)
    return result


def _finished(wishes: Wishes, run: Run, plain: Pipeline, texts: Sequence[Text], result: Result) -> Result:
    """Curves, and at the end of training the proof and the card."""
    state, output = result.state, wishes.output
    (output / PICTURE).write_text(plot.curves(state), encoding="utf-8")
    if result.done and wishes.proofs:
        with _settled(wishes, run, plain) as (learner, tuned):
            learner.load(load_head(str(output)))  # the best, not the last
            result = replace(result, proof=_proof(wishes, run, learner, tuned, state))
    told = {
        "recipe": result.recipe.to_json(),
        "options": dict(run.identity["options"]),
        "data": [path.name for path in wishes.data],
        "rows": len(run.rows),
        "steps": state.step,
        "stopped": state.stopped,
        "seconds": round(state.seconds, 1),
        "losses": state.losses,
        "evaluations": state.evaluations,
        "proof": result.proof and result.proof.to_json(),
    }
    (output / CURVES).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    head = load_head(str(output))
    told["generating"] = dict(run.trainer.generating("FOLDER"))
    kept = {name: told[name] for name in ("recipe", "options", "data", "steps")}
    replace(head, training=kept).save(output)
    (output / "README.md").write_text(card.card(head, told), encoding="utf-8")
    return result


@contextmanager
def _settled(wishes: Wishes, run: Run, plain: Pipeline) -> Iterator[tuple[Any, Pipeline]]:
    """The trainer and the target as they are once nothing is trained: others, if the target was trained as well."""
    folder = wishes.output / TARGET
    if not folder.is_dir():
        yield run.trainer, plain
        return
    made = trainer(wishes.method)
    settings: dict[str, object] = {"method": "plain", "forward": "eager", "model": str(folder)}
    with target.loaded(wishes.config, settings, wishes.trust_remote_code) as tuned:
        yield made(options_of(made.Options, wishes.options), network_of(tuned)), tuned


def _proof(wishes: Wishes, run: Run, learner: Any, plain: Pipeline, state: State) -> Proof:
    """Texts from held-out prompts, with the best head."""
    held = _held_texts(run, wishes.proofs)
    room = (plain.target.context_length or 1 << 30) - max(len(text.tokens) for text in held)
    best = min(state.evaluations, key=lambda each: float(each["loss"]))
    tree = learner.tree(torch.tensor(best["accuracies"])) if "accuracies" in best else None
    return prove(
        learner,
        wishes.method,
        wishes.output,
        plain,
        held,
        length=wishes.draft_length,
        new_tokens=max(8, min(wishes.new_tokens, room)),
        tree=cut(tree, wishes.draft_length),
    )


def _held_texts(run: Run, most: int) -> list[Text]:
    """Documents of the held-out rows."""
    found: list[Text] = []
    for tokens, owners, answers in zip(run.held.tokens, run.held.documents, run.held.answers, strict=True):
        for owner in range(int(owners.max()) + 1):
            mine = owners == owner
            text = Text(tokens[mine].tolist(), answers[mine].tolist())
            if len(text.tokens) >= 4:
                found.append(text)
    return found[:most]


def _texts(wishes: Wishes, plain: Pipeline) -> list[Text]:
    tokenizer: Any = plain.target.tokenizer
    read = (tokenized(document, tokenizer) for document in islice(documents(wishes.data, tokenizer), wishes.limit))
    texts = list(read)
    if wishes.regenerate is None:
        return texts
    settings: dict[str, object] = {"method": wishes.regenerate}
    with (
        progress.counted("regenerating answers", len(texts)) as tell,
        target.loaded(wishes.config, settings, wishes.trust_remote_code) as pipeline,
    ):
        return distill.regenerated(
            pipeline,
            texts,
            wishes.output,
            prompt_tokens=16,
            new_tokens=wishes.new_tokens,
            temperature=wishes.temperature,
            seed=wishes.recipe.get("seed") or 0,
            tell=tell,
        )


def _throw_away(folder: Path) -> None:
    """What an earlier session left, and nothing else."""
    for name in (states.FILE, distill.FILE, CURVES, PICTURE, "README.md", "config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / TARGET, ignore_errors=True)
    if not any(folder.iterdir()):
        shutil.rmtree(folder)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C or SIGTERM lets the step end and be saved; a second one stops at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
