"""Training heads: what they learn from the target, and what they would have drafted.

Head k reads place t and says token t + 2 + k. A round whose root is place s drafts what the heads say at place s - 1,
which the target has read by then: draft d of that round is token s + 1 + d.

    Medusa-1    sum over k of lambda_k CE_k                 the target is frozen
    Medusa-2    L + c sum over k of lambda_k CE_k           it learns as well; L keeps it what it is

Source: Medusa, arXiv:2401.10774, section 2.2. Shapes: B rows, S tokens of a row, C counted places, K heads, H hidden
size, V vocabulary, R candidates of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import pi, sin
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, pad
from torch.utils.checkpoint import checkpoint

from fastllm_core import Head, Judgement, Lesson, Network, Trainer

from .heads import TOKEN_MAP, HeadsShape, MedusaHeads, build_heads, make_head, new_weights, trained
from .recipe import COEFFICIENTS, MedusaRecipe, float_weights
from .student import Student
from .tree import grown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANKS: Final = 10
"""R, candidates of a head that are looked at, as in the paper's trees."""
IGNORED: Final = -100
"""The label of a place whose token the heads do not have."""
AT_ONCE: Final = 1 << 27
"""Numbers of logits that are held for the backward pass; beyond it they are computed again (0.5 GB in float32)."""


class Learners(nn.Module):
    """All that learns: the heads, and the target if it does."""

    def __init__(self, heads: MedusaHeads, target: nn.Module | None) -> None:
        """target: whose parameters learn as far as they require a gradient."""
        super().__init__()
        self.heads, self.target = heads, target

    def forward(self, head: int, hidden: Tensor) -> Tensor:
        """What one head says: float[..., H] to float32[..., V]."""
        return self.heads.head(head, hidden).float()


class MedusaTrainer(Trainer):
    """Heads in training, with their target or without."""

    Options = MedusaRecipe

    def __init__(self, options: MedusaRecipe, network: Network) -> None:
        """options: the heads'.  network: the frozen target. Raises UserError if they do not fit."""
        self.options, self.network = options, network
        self.student = None if options.joint == "no" else Student(options, network)
        self.hidden_layers: tuple[int, ...] = () if self.student else (network.layers,)
        target = self.student.network if self.student else network
        shape = HeadsShape.of(target, options.heads, options.blocks, options.output, options.rank, options.vocabulary)
        shape.check(target, "the heads")
        self.token_map = torch.arange(shape.vocab_size) if shape.vocab_size < target.vocab_size else None
        self.heads = build_heads(shape, target, new_weights(shape, target, self.token_map), "the heads")
        self.module: nn.Module = Learners(self.heads, self.student.network.model if self.student else None)
        self.rates: Mapping[str, float] = {"heads.": options.heads_rate} if self.student else {}
        self.weights = float_weights(options)
        self.accuracies: list[list[float]] | None = None

    def recipe(self, parameters: int) -> Mapping[str, Any]:
        """What suits a target of a size.

        Up to 30 million parameters what was tried on the demo model; beyond, the rates of the authors' scripts (1e-3
        for heads, 1e-4 for adapters), which were not tried here.
        """
        small = parameters <= 3e7
        if self.student is not None:
            return {"learning_rate": 1e-3 if small else 1e-4}
        return {"learning_rate": 5e-3 if small else 1e-3}

    def loss(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """The summed loss of all counted places, and their number.

        Source: sections 2.2.1 and 2.2.2.
        """
        alone, share = self._share(lesson.progress)
        hidden, logits = self._read(lesson)
        hidden = hidden.detach() if alone else hidden
        total = hidden.new_zeros(())
        for head, weight in enumerate(self.weights):
            if share * weight:
                total = total + share * weight * self._head_loss(head, hidden, lesson)
        if self.student is not None and not alone:
            total = total + self._own_loss(lesson, logits)
        return total, lesson.counted().sum()

    def _share(self, progress: float) -> tuple[bool, float]:
        """Whether heads learn alone, and c."""
        options = self.options
        coefficient = options.coefficient or COEFFICIENTS[options.joint]
        if self.student is None or options.warmup == "none":
            return False, coefficient
        if options.warmup == "two-stage":
            alone = progress < options.alone
            return alone, 1.0 if alone else coefficient
        return False, coefficient * sin(pi / 2 * progress)

    def _read(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """What the target says of a lesson, as it is now: last hidden states float[B, S, H], logits float[B, S, V]."""
        if self.student is None:
            return lesson.hidden[self.network.layers].float(), lesson.logits
        return self.student.read(lesson)

    def _head_loss(self, head: int, hidden: Tensor, lesson: Lesson) -> Tensor:
        """Summed over places: -log q(label), in part -sum_v p(v) log q(v) with p the frozen target's."""
        ahead = head + 2
        counted = lesson.counted(ahead)
        if self.options.labels == "text":
            labels = pad(lesson.tokens[:, ahead:], (0, ahead))[counted]
        else:
            labels = self._target(lesson, head)[counted].argmax(-1)
        wanted = self._target(lesson, head)[counted] if self.options.soft else None
        read = hidden[counted]
        at_once = max(1, AT_ONCE // self.heads.shape.vocab_size)
        if len(read) <= at_once:
            return self._of_places(head, read, labels, wanted)
        total = hidden.new_zeros(())
        for part in torch.split(torch.arange(len(read), device=read.device), at_once):
            arguments = (head, read[part], labels[part], None if wanted is None else wanted[part])
            total = total + checkpoint(self._of_places, *arguments, use_reentrant=False)
        return total

    def _of_places(self, head: int, read: Tensor, labels: Tensor, wanted: Tensor | None) -> Tensor:
        """read: float[C, H].  labels: int64[C].  wanted: float[C, V], the target's logits."""
        said: Tensor = self.module(head, read)
        known = labels.masked_fill(labels >= said.shape[1], IGNORED)  # a truncated vocabulary is the first entries
        loss: Tensor = cross_entropy(said, known, ignore_index=IGNORED, reduction="sum")
        if wanted is None:
            return loss
        wanted = wanted[:, : said.shape[1]].float().softmax(-1)
        share = self.options.soft
        return (1 - share) * loss - share * (wanted * said.log_softmax(-1)).sum()

    def _target(self, lesson: Lesson, head: int) -> Tensor:
        """float[B, S, V]: the frozen target's logits for the token that a head says at each place."""
        return pad(lesson.logits[:, head + 1 :], (0, 0, 0, head + 1))

    def _own_loss(self, lesson: Lesson, logits: Tensor) -> Tensor:
        """What keeps a target that learns what it is: the text, or what it said before, KL(before || now)."""
        counted = lesson.counted()
        said = logits[counted].float()
        if (self.options.own or ("teacher" if self.options.joint == "lora" else "text")) == "text":
            return cross_entropy(said, pad(lesson.tokens[:, 1:], (0, 1))[counted], reduction="sum")
        before = lesson.logits[counted].float().log_softmax(-1)
        return kl_div(said.log_softmax(-1), before, reduction="sum", log_target=True)

    @torch.no_grad()
    def judge(self, lesson: Lesson, length: int) -> Judgement:
        """Drafts from every place: what the heads say one place before it."""
        hidden, logits = self._read(lesson)
        count = min(length, len(self.weights))
        shape = (*lesson.tokens.shape, count)
        ranks = torch.full(shape, -2, device=hidden.device)
        chance, losses = torch.zeros(shape, device=hidden.device), torch.full(shape, torch.nan, device=hidden.device)
        overlap, own = (torch.zeros(shape[:2], device=hidden.device) for _ in range(2))
        tokens = lesson.tokens
        for row in range(shape[0]):
            target = logits[row].float()
            choice = target.argmax(-1)
            own[row, :-1] = cross_entropy(target[:-1], tokens[row, 1:], reduction="none")
            for head in range(count):
                said = self.module(head, hidden[row]).log_softmax(-1)
                top = said.topk(min(RANKS, said.shape[1]), dim=-1)
                roots = _roots(lesson, row, head)
                before = roots - 1
                found = top.indices[before] == choice[roots + head][:, None]
                ranks[row, roots, head] = torch.where(found.any(-1), found.int().argmax(-1), -1)
                chance[row, roots, head] = top.values[before, 0].exp()
                label = tokens[row, roots + head + 1]
                known = label < said.shape[1]
                losses[row, roots[known], head] = -said[before[known], label[known]]
                if head == 0:
                    overlap[row, roots] = target[roots].softmax(-1).gather(1, top.indices[before, :1])[:, 0]
        figures = {"loss of each head": losses}
        if self.student is not None:
            figures["loss of the target"] = own
        return Judgement(ranks == 0, chance, overlap, ranks, figures)

    def tree(self, accuracies: Tensor) -> Sequence[tuple[int, ...]] | None:
        """The tree of `nodes` that is grown from how often each rank is right."""
        self.accuracies = [[round(share, 5) for share in head] for head in accuracies.tolist()]
        return grown(self.accuracies, self.options.nodes).paths

    def tuned(self) -> PreTrainedModel | None:
        """The target as it has been tuned, in the number format of the frozen one."""
        return None if self.student is None else self.student.tuned()

    def head(self) -> Head:
        """The heads as they are now, in float32, with how often each rank was right when they were last judged."""
        weights = {name: part.detach().clone() for name, part in trained(self.heads)}
        if self.token_map is not None:
            weights[TOKEN_MAP] = self.token_map
        made = make_head(self.heads.shape, self.network, weights)
        return replace(made, settings={**made.settings, "accuracies": self.accuracies})

    def load(self, head: Head) -> None:
        """Take a head's weights."""
        with torch.no_grad():
            for name, part in trained(self.heads):
                part.copy_(head.weights[name])

    def generating(self, head: str) -> dict[str, Any]:
        """Options that draft with a head."""
        return {"heads": head, "nodes": self.options.nodes}


def _roots(lesson: Lesson, row: int, head: int) -> Tensor:
    """int64[C]: places of a row from which a head's draft is an answer, and before which the text has a place."""
    documents = lesson.documents[row]
    begins = pad(documents[1:] != documents[:-1], (1, 0), value=True)
    return (lesson.counted(head + 1)[row] & ~begins).nonzero()[:, 0]
