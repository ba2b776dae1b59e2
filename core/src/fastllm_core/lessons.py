"""What passes between a training harness and a method that trains a head: lessons in, a loss and judgements out.

The harness (`fastllm train`) reads data, runs the frozen target, and drives the optimiser; a method brings a module, a
loss and what its drafts would have been. Neither imports the other: a method offers a `Trainer` by an entry point of
the group `fastllm.trainers`.

Shapes: B rows, S tokens of a row, H hidden size, V vocabulary, D drafted tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from . import discovery

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .heads import Head
    from .network import Network
    from .options import Options


@dataclass(frozen=True, slots=True)
class Lesson:
    """Packed rows of text, with what the frozen target says of them."""

    tokens: Tensor
    """int64[B, S]"""
    documents: Tensor
    """int64[B, S]: which document of its row each token belongs to, -1 for padding."""
    positions: Tensor
    """int64[B, S]: place in the document, from 0."""
    answers: Tensor
    """bool[B, S]: tokens that are to be learned; the others (a prompt, what a user said) are only read."""
    hidden: Mapping[int, Tensor]
    """float[B, S, H] by layer, for each of `Trainer.hidden_layers`; as in `Outputs.hidden`."""
    logits: Tensor
    """float[B, S, V]: the target's own."""
    progress: float = 1.0
    """Share of the steps that are done, 0 in the first: what a loss is warmed up by. Evaluations count as the end."""

    def counted(self, ahead: int = 1) -> Tensor:
        """bool[B, S]: places whose token `ahead` further on is an answer, in the same document."""
        there = self.answers[:, ahead:] & (self.documents[:, ahead:] == self.documents[:, : -ahead or None])
        return nn.functional.pad(there, (0, ahead))

    @property
    def sees(self) -> Tensor:
        """bool[B, S, S]: earlier places of the same document, and itself."""
        return visible(self.documents)


def visible(documents: Tensor) -> Tensor:
    """bool[B, S, S]: which places each place may see. documents: int64[B, S]."""
    size = documents.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=documents.device).tril()
    return earlier & (documents[:, :, None] == documents[:, None])


@dataclass(frozen=True, slots=True)
class Judgement:
    """What would have been drafted from every place of a lesson as the root of a round."""

    right: Tensor
    """bool[B, S, D]: whether draft d is the target's choice, those before it being right. D may be less than asked."""
    chance: Tensor
    """float[B, S, D]: how likely the drafter finds its draft."""
    overlap: Tensor
    """float[B, S]: sum over tokens of min(p, q) for the first draft: the chance that sampling accepts it."""
    ranks: Tensor | None = None
    """int64[B, S, D]: place of the target's choice among the candidates for draft d, from 0; -1 if it is none of them,
    -2 where nothing is drafted. For methods whose candidates do not depend on earlier drafts, so that trees of them can
    be walked (Medusa)."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """float[B, S] or float[B, S, D] by name: what else to average over places and draw; NaN where it says nothing."""


class Trainer(Protocol):
    """How a method's head is trained. Inherit from it for what is optional: all that has a default here."""

    Options: ClassVar[type[Options]]
    """Settings of the head and of its loss; `fastllm train METHOD --set KEY=VALUE`."""
    hidden_layers: tuple[int, ...]
    """Hidden states of the target that lessons shall hold."""
    module: nn.Module
    """What is trained: all of its parameters that require a gradient, in float32."""
    rates: Mapping[str, float] = {}
    """Factors of the learning rate, by how a parameter's name begins; 1 for all others."""

    def __init__(self, options: Any, network: Network) -> None:
        """options: an instance of `Options`.  network: the frozen target. Raises UserError if they do not fit."""

    def loss(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """The sum over counted places, and how many these are: scalars. The harness divides and steps."""
        ...

    def judge(self, lesson: Lesson, length: int) -> Judgement:
        """What drafts of `length` tokens would be."""
        ...

    def head(self) -> Head:
        """The head as it is now."""
        ...

    def load(self, head: Head) -> None:
        """Take the weights of a head of the same shape."""
        ...

    def generating(self, head: str) -> Mapping[str, Any]:
        """Options of the method that draft with the head of a folder, and end no draft before its length."""
        ...

    def recipe(self, parameters: int) -> Mapping[str, Any]:
        """What suits a target of so many parameters in place of the harness's own: steps, batch, learning_rate, ..."""
        return {}

    def tree(self, accuracies: Tensor) -> Sequence[tuple[int, ...]] | None:
        """The tree that rounds draft with this head, as paths of ranks; None for a chain.

        accuracies: float[D, R], how often the target's choice is at rank r of draft d. What was measured last goes with
        the head (`head`). Asked only where judgements have ranks.
        """
        return None

    def tuned(self) -> PreTrainedModel | None:
        """The target as it is now, in its own dtype and apart from the frozen one; None if nothing of it is trained."""
        return None


@dataclass(frozen=True, slots=True)
class Published:
    """A head as another program reads it."""

    config: Mapping[str, Any]
    """What goes into config.json."""
    weights: Mapping[str, Tensor]
    file: str = "model.safetensors"
    """The name of the weights' file."""


class Converter(Protocol):
    """How a method's head comes in from the format that its authors published (group `fastllm.converters`)."""

    Options: ClassVar[type[Options]]
    """What the published files do not say."""
    layouts: tuple[str, ...] = ()
    """Other programs' layouts that `export` writes."""

    def __init__(self, options: Any, network: Network) -> None:
        """options: an instance of `Options`.  network: the target that the head is for."""

    def convert(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Head:
        """The head of published weights; config is their config.json, {} if there is none.

        Raises ModelError if they are not the method's.
        """
        ...

    def export(self, head: Head, layout: str) -> Published:
        """A head of the method in one of `layouts`. Raises ConfigError if the layout has no place for it."""
        raise NotImplementedError(f"{type(self).__name__} names {layout!r} in `layouts` and does not export it")


def trainer(method: str) -> type[Trainer]:
    """The trainer that an installed method offers. Raises PluginNotFound, PluginConflict or PluginLoadError."""
    return cast("type[Trainer]", discovery.load(method, "trainer")[1])


def converter(method: str) -> type[Converter]:
    """The converter that an installed method offers. Raises as `trainer` does."""
    return cast("type[Converter]", discovery.load(method, "converter")[1])
