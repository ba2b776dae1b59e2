"""Exact mode: a text is the same bits whatever is drafted, whoever decodes beside it, and in any dtype.

Arithmetic in floating point depends on the shape of a forward. So here every round has the same shape, `max_rows` rows
of `draft_length + 1` tokens or a few more, and then a token's logits depend on its prefix alone (docs/decisions/0010).
That holds where kernels treat the rows of a matrix alike, so `steady_width` looks for a width at which these do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from . import layout
from .cache import SlotCache
from .errors import ConfigError, PluginContractError
from .protocols import Draft, Scores

if TYPE_CHECKING:
    from .batch import Batch
    from .context import Context
    from .network import Network

FAR: Final = 640
"""Slots of the long cache that is compared with a short one; attention kernels split what is longer than 512."""
STEP: Final = 4
"""Widths that are tried after the narrowest are multiples of this."""


class ExactVerifier:
    """Scores chains in forwards of one shape: every slot, live or not, and all rows. Implements `Verifier`.

    Work of the target that a drafter has done in another shape (`Draft.resume`) is done again.
    """

    def __init__(self, context: Context, hidden_layers: tuple[int, ...] = ()) -> None:
        """context: the target's network and cache.  hidden_layers: what `Scores.hidden` shall hold.

        Raises ConfigError if the model or the device breaks the promise in every shape.
        """
        assert context.cache is not None
        self.network, self.cache = context.network, context.cache
        self.slots = context.config.engine.max_rows
        self.drafted = context.draft_length
        self.width = steady_width(self.network, self.slots, self.drafted + 1)
        self.hidden_layers = hidden_layers

    def score(self, batch: Batch, draft: Draft) -> Scores:
        """Score root and nodes in one forward. See `Verifier.score`."""
        self._check(draft)
        width = draft.width + 1
        rows = torch.cat([batch.roots[:, None], draft.tokens], dim=1)
        rows = torch.cat([rows, rows[:, -1:].expand(-1, self.width - width)], dim=1)
        tokens = torch.zeros(self.slots, self.width, dtype=torch.long, device=rows.device)
        tokens[: len(batch)] = rows
        starts = self._starts(batch)
        extent = self.cache.extent(max(starts) + self.width)
        self.cache.reserve(self.slots, extent)
        inputs = layout.chain(tokens, torch.tensor(starts, device=rows.device), extent)
        layers = self.cache.layers(slice(0, self.slots), extent)
        outputs = self.network.forward(inputs, layers, hidden_layers=self.hidden_layers)
        assert outputs.logits is not None
        hidden = {layer: states[: len(batch), :width] for layer, states in outputs.hidden.items()}
        return Scores(outputs.logits[: len(batch), :width], hidden)

    def _starts(self, batch: Batch) -> list[int]:
        """Where each slot's rows go: one without a live row writes behind what is stored there, which nobody sees."""
        live = [length - 1 for length in batch.lengths]
        stored = [*self.cache.lengths, *[0] * self.slots][: self.slots]
        return live + stored[len(live) :]

    def _check(self, draft: Draft) -> None:
        if draft.parents is not None or draft.extra is not None:
            raise ConfigError(
                "exact: bits are promised for chains, and this drafter proposes trees or rows of its own; "
                "set exact = false, or let it draft chains"
            )
        if draft.width > self.drafted:
            raise PluginContractError(
                f"the drafter proposed {draft.width} tokens where at most {self.drafted} were asked for"
            )


def batch_experts(network: Network) -> None:
    """Let a mixture of experts compute every token's experts alike, not sorted by who else chose them."""
    model: Any = network.model
    if getattr(model, "_can_set_experts_implementation", bool)():
        model.config._experts_implementation = "batched_mm"


def steady_width(network: Network, slots: int, width: int) -> int:
    """The fewest rows, at least `width`, with which a row's logits are the same bits wherever it stands in a round.

    slots: rows of the batch. Some widths fail: a kernel may divide a matrix so that its last rows are summed in another
    order. Raises ConfigError if none of a few serves.
    """
    wider = (width // STEP + 1) * STEP
    widths: list[int] = [width, *range(wider, wider + 4 * STEP, STEP)]
    differences: list[float] = []
    for rows in widths:
        differences.append(_difference(network, slots, rows))
        if not differences[-1]:
            return rows
    raise ConfigError(
        f"exact: model '{network.loaded.name}' on {network.device} in {str(network.dtype).removeprefix('torch.')} "
        f"does not give the same bits in every arrangement (logits change by {min(differences):.2g}); set exact = false"
    )


@torch.inference_mode()
def _difference(network: Network, slots: int, width: int) -> float:
    """The largest change of a logit in another slot, company, alignment and extent; infinite if one is no number."""
    text = (torch.arange(3 * width, device=network.device) * 7 + 3) % network.vocab_size
    strangers = (torch.arange(slots * 3 * width, device=network.device).view(slots, -1) * 5 + 1) % network.vocab_size
    alone = torch.zeros_like(strangers)
    alone[0] = text
    last = strangers.clone()
    last[-1] = text
    shared = 2 * width - 1  # what every arrangement reads
    wanted = _logits(network, alone, width, accepted=width, capacity=4 * width)[0, :shared].float()
    differences = [
        # One row fewer is accepted, so that each row stands where its neighbour stood.
        (_logits(network, texts, width, accepted=width - 1, capacity=FAR)[row, :shared].float() - wanted).abs().max()
        for texts, row in ((last, slots - 1), (last.roll(1, 0), 0), (alone, 0))
    ]
    return float(torch.stack(differences).nan_to_num(torch.inf).max())


def _logits(network: Network, texts: Tensor, width: int, *, accepted: int, capacity: int) -> Tensor:
    """float[slots, width + accepted, V]: two rounds over each text, the first of which accepts so many rows."""
    slots = texts.shape[0]
    cache = SlotCache(network)
    cache.reserve(slots, capacity)
    drafted = texts[:, :width].clone()
    drafted[:, accepted:] = 0  # what is rejected may be anything
    first = _round(network, cache, drafted, 0, cache.extent(width))
    second = _round(network, cache, texts[:, accepted : accepted + width], accepted, cache.extent(capacity))
    return torch.cat([first[:, :accepted], second], dim=1)


def _round(network: Network, cache: SlotCache, tokens: Tensor, start: int, extent: int) -> Tensor:
    starts = torch.full((len(tokens),), start, device=network.device)
    logits = network.forward(layout.chain(tokens, starts, extent), cache.layers(slice(0, len(tokens)), extent)).logits
    assert logits is not None
    return logits
