"""Training an adapter: what it learns from the frozen target, and what it would have drafted.

Shapes: B rows, S tokens of a row, C counted places, H hidden size, V vocabulary, D drafted tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from fastllm_core import Head, Judgement, Lesson, Network, Options, TargetIdentity, Trainer

from .adapter import METHOD, AdapterShape, Mode, build, new_weights, output_matrix, skipped

PLACES = 2048
"""Places whose logits are held at once: with a vocabulary of 128,000 entries, 1 GB in float32."""


class KangarooRecipe(Options):
    """The adapter, and what it is asked to match."""

    exit_layer: int = Field(2, ge=1, description="The adapter reads what this many first layers give.")
    mode: Mode = Field("attention", description="attention: the paper's adapter; layer: a whole decoder layer.")
    hard: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the loss that goes to the target's most likely token alone; the rest goes to its "
        "distribution, which is the paper's loss.",
    )
    overlap: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the loss that is the chance of being refused under sampling, 1 - sum of min(p, q).",
    )
    seed: int = Field(0, description="Of the first weights.")


class KangarooTrainer(Trainer):
    """An adapter in training."""

    Options = KangarooRecipe

    def __init__(self, options: KangarooRecipe, network: Network) -> None:
        """options: the adapter's.  network: the frozen target. Raises UserError if they do not fit."""
        self.options, self.network = options, network
        self.shape = AdapterShape.of(network, options.exit_layer, options.mode)
        self.shape.check(network, "the adapter")
        self.hidden_layers: tuple[int, ...] = (options.exit_layer,)
        loaded = build(self.shape, network, new_weights(self.shape, options.seed), "the adapter")
        adapter = Network(loaded)  # the module of which inference runs a view
        view: Any = adapter.view(adapter.whole._replace(skip_mlp=skipped(self.shape)))
        self.output = output_matrix(network)
        self.module: nn.Module = view.model.float()
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in self.shape.tensors())

    def loss(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """The summed loss of all counted places, and their number.

        -sum_v p(v) log q(v) with p the target's distribution and q the adapter's, both at the same place; in part
        -log q(arg max p), or 1 - sum_v min(p(v), q(v)), if the recipe says so.
        Source: arXiv:2404.18911, section 3.1, equation 3.
        """
        said, wanted = self._counted(lesson)
        total = said.new_zeros(())
        for ours, theirs in zip(torch.split(said, PLACES), torch.split(wanted, PLACES), strict=True):
            total = total + self._loss_of(self._logits(ours), theirs.float())
        return total, torch.tensor(len(said), device=total.device)

    def _loss_of(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """ours, theirs: float[C, V], logits."""
        options = self.options
        log_q, p = ours.log_softmax(-1), theirs.softmax(-1)
        soft = -(p * log_q).sum(-1)
        hard = -log_q.gather(1, theirs.argmax(-1, keepdim=True))[:, 0]
        matched = (1 - options.hard) * soft + options.hard * hard
        if not options.overlap:
            return matched.sum()
        refused = 1 - torch.minimum(p, log_q.exp()).sum(-1)
        return ((1 - options.overlap) * matched + options.overlap * refused).sum()

    def _counted(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """What the adapter reads out at counted places, float[C, H], and the target's logits there, float[C, V]."""
        counted = lesson.counted()
        return self._features(lesson)[counted], lesson.logits[counted]

    def _features(self, lesson: Lesson) -> Tensor:
        """float[B, S, H]: what the output matrix reads."""
        features = lesson.hidden[self.shape.exit_layer].float()
        # Padding sees itself alone: a row of nothing would become NaN.
        mask = torch.zeros(lesson.sees.shape, device=features.device).masked_fill(~lesson.sees, float("-inf"))
        answer = self.module(
            inputs_embeds=features, attention_mask=mask[:, None], position_ids=lesson.positions, use_cache=False
        )
        read: Tensor = answer.last_hidden_state
        return read

    def _logits(self, read: Tensor) -> Tensor:
        """The logits, float32[..., V]."""
        weight = getattr(self.output, "weight", read)
        logits: Tensor = self.output(read.to(weight.dtype))
        return logits[..., : self.network.vocab_size].float()

    @torch.no_grad()
    def judge(self, lesson: Lesson, length: int) -> Judgement:
        """Drafts from every place: the d-th is what the adapter says d places on, since its features are exact."""
        read = self._features(lesson)
        shape = lesson.tokens.shape
        right, chance, overlap = (torch.zeros(shape, device=read.device) for _ in range(3))
        for row in range(shape[0]):
            q, p = self._logits(read[row]).softmax(-1), lesson.logits[row].float().softmax(-1)
            best = q.max(-1)
            right[row], chance[row] = (best.indices == p.argmax(-1)).float(), best.values
            overlap[row] = torch.minimum(p, q).sum(-1)
        return Judgement(_ahead(right, length) > 0, _ahead(chance, length), overlap)

    def head(self) -> Head:
        """The adapter as it is now, in float32."""
        weights = {name: part.detach().clone() for name, part in self._trained().items()}
        identity = TargetIdentity.of(self.network)
        return Head(METHOD, identity, self.shape.settings(), weights, growth=self.shape.growth())

    def load(self, head: Head) -> None:
        """Take a head's weights."""
        with torch.no_grad():
            for name, part in self._trained().items():
                part.copy_(head.weights[name])

    def generating(self, head: str) -> dict[str, Any]:
        """Options that draft with a head, without the second exit."""
        return {"adapter": head, "threshold": 0.0}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: part for name, part in self.module.named_parameters() if part.requires_grad}


def _ahead(values: Tensor, length: int) -> Tensor:
    """float[B, S, D]: the values d places on, 0 beyond the end. values: float[B, S]."""
    size = values.shape[1]
    return torch.stack([pad(values[:, d:], (0, min(d, size))) for d in range(length)], dim=-1)
