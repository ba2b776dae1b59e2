"""A plugin under test: how it is composed with tiny models, and with what a toy drafter proposes beside it."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import discovery
from ..backend import Backend
from ..compose import Selection, select
from ..config import config_from
from ..context import Context
from ..defaults import CORE, CoreDefaults
from ..device import select_device
from ..discovery import SELECTABLE
from ..hookspecs import PROJECT, hookimpl
from ..models import load_model
from ..pipeline import Pipeline
from ..protocols import Drafter
from ..selection import PLAIN, options_class, plugin_class
from .tiny import tiny_model, tiny_tokenizer

POSITIONS: Final = 1024
"""Context of the tiny targets."""


@dataclass(frozen=True)
class TinyTarget:
    """A tiny random causal LM that a plugin is checked on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    """An empty folder of this target's own, for files that a plugin's options must name."""

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.model.config.get_text_config().vocab_size)

    def relative(self, noise: float = 0.02) -> str:
        """The folder of another model with the same tokenizer that says the same most of the time: a draft model.

        noise: standard deviation of what is added to every matrix, whose own is 0.15.
        """
        folder = self.folder / f"relative-{noise}"
        if not folder.exists():
            model = copy.deepcopy(self.model)
            generator = torch.Generator().manual_seed(7)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        return str(folder)


@dataclass(frozen=True)
class Toy:
    """A toy drafter to put beside a plugin that makes none."""

    label: str
    """As failures say it: "beside a tree"."""
    make: Callable[[Context], Drafter]


SubjectOptions = Mapping[str, Any] | Callable[[TinyTarget], Mapping[str, Any]]
"""A plugin's options, or what makes them for a target."""


class Subject:
    """An installed plugin and the options to check it with.

    Options come from the caller, else from the plugin class's `conformance_options(target)` if it has one, a static
    method that returns what its defaults cannot know: `{"draft_model": target.relative()}`.
    """

    def __init__(self, name: str, options: SubjectOptions | None = None) -> None:
        """name: as in the configuration.  options: in place of what the class says.

        Raises PluginNotFound, PluginLoadError or PluginContractError.
        """
        self.installed, value = discovery.load(name, *SELECTABLE)
        self.cls = plugin_class(self.installed, value)
        self.name = name
        self.given = options
        self._folder = Path(tempfile.mkdtemp(prefix="fastllm-check-"))
        self._cleanup = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._targets: dict[str, TinyTarget] = {}

    @cached_property
    def hooks(self) -> frozenset[str]:
        """Names of the hooks that the plugin implements."""
        return frozenset(name for name in dir(self.cls) if hasattr(getattr(self.cls, name), f"{PROJECT}_impl"))

    @property
    def drafts(self) -> bool:
        """Whether it makes the drafter; otherwise a toy one is put beside it."""
        return "fastllm_make_drafter" in self.hooks

    @cached_property
    def lossy(self) -> bool:
        """Whether a role of it says that it changes the text; then texts are not compared."""
        with self.pipeline(self.target()) as pipeline:
            return bool(pipeline.lossy)

    def target(self, family: str = "llama", **settings: Any) -> TinyTarget:
        """A tiny target with its tokenizer, the same one for the same arguments."""
        key = f"{family}-{sorted(settings.items())}"
        if key not in self._targets:
            settings = {"max_position_embeddings": POSITIONS, **settings}
            model = tiny_model(family, **settings)
            folder = self._folder / str(len(self._targets))
            folder.mkdir()
            self._targets[key] = TinyTarget(model, tiny_tokenizer(settings.get("vocab_size", 64)), folder)
        return self._targets[key]

    def options(self, target: TinyTarget) -> dict[str, Any]:
        """The plugin's options for a target."""
        made = getattr(self.cls, "conformance_options", {}) if self.given is None else self.given
        return dict(made(target) if callable(made) else made)

    def pipeline(
        self,
        target: TinyTarget,
        *,
        config: Mapping[str, Any] | None = None,
        beside: Toy | None = None,
        backend: Backend | None = None,
    ) -> Pipeline:
        """A pipeline with the plugin in it, on the CPU in float32, drafting a fixed number of tokens.

        beside: the drafter, for a plugin that makes none.  backend: how forwards run; eagerly by default.
        """
        table = {f"options.{self.name}": self.options(target)} if options_class(self.cls).model_fields else {}
        chosen: dict[str, Any] = (
            {"method": self.name} if self.installed.kind == "method" else {"method": PLAIN, "use": [self.name]}
        )
        return _pipeline(target, {**chosen, **table, "lossy": True, **(config or {})}, beside, backend)

    def plain(self, target: TinyTarget, config: Mapping[str, Any] | None = None) -> Pipeline:
        """The core's plain decoding: what the plugin is compared with."""
        return _pipeline(target, {"method": PLAIN, **(config or {})}, None)

    def close(self) -> None:
        """Delete the temporary files."""
        self._cleanup()


class _Beside(CoreDefaults):
    """The core's offers, and a toy drafter."""

    def __init__(self, defaults: CoreDefaults, toy: Toy) -> None:
        super().__init__(defaults.config)
        self.toy = toy

    @hookimpl(trylast=True)
    def fastllm_make_drafter(self, context: Context) -> Drafter:
        """The toy drafter."""
        self.filled.add("drafter")
        return self.toy.make(context)


def _pipeline(
    target: TinyTarget, settings: Mapping[str, Any], beside: Toy | None, backend: Backend | None = None
) -> Pipeline:
    fixed = {"draft.controller": "fixed", "device": "cpu", "dtype": "float32", "forward": "eager"}
    selection = select(config_from({**fixed, **settings}), model=target.model)
    if beside is not None:
        selection = _with_drafter(selection, beside)
    place = select_device("cpu", "float32")
    return Pipeline(selection, load_model(target.model, target.tokenizer), place, backend=backend)


def _with_drafter(selection: Selection, toy: Toy) -> Selection:
    core = _Beside(selection.core, toy)
    selection.manager.unregister(name=CORE)
    selection.manager.register(core, CORE)
    return replace(selection, core=core)
