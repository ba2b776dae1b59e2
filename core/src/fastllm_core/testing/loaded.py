"""Does fastllm write what a loaded model itself writes, whatever is hung onto it, and does it leave it alone?

Two short prompts, in float32; and the user's module is compared before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import nn

from ..batch import Row
from ..cache import SlotCache
from ..layout import chain
from ..network import Network
from ..pipeline import load
from ..probe import check_split
from ..request import Request
from .drafters import Branching, Scripted
from .engines import decode, make_engine

NEW: Final = 10
PROMPTS: Final = ((3, 41, 7, 7, 20, 55, 12), (9, 2))
STATE: Final = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


def check_loaded(given: Any, texts: Sequence[Sequence[int]] | None = None) -> None:
    """Plain, chain and tree rounds write what `generate` writes, parts and skips are the model's; nothing is touched.

    given: a causal LM of at least three layers in float32, or what wraps one.
    texts: what to write, where the model's own `generate` cannot say.
    Raises AssertionError.
    """
    wanted = [list(text) for text in texts or generated(given)]
    before = state(given)  # not sooner: accelerate's hooks put new placeholders where weights were
    with load(given, "plain") as pipeline:
        assert [list(text.token_ids) for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)] == wanted
        check_parts(pipeline.engine.parts.network)
    for drafter in (Scripted(partly_right(wanted)), Branching(partly_right(wanted))):
        assert decode(make_engine(given, drafter), [Request(prompt, NEW) for prompt in PROMPTS]) == wanted
    assert state(given) == before


def generated(given: Any) -> list[list[int]]:
    """What the model's own `generate` writes, prompt by prompt."""
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        answer = given.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=0
        )
        texts.append(answer[0, len(prompt) :].tolist())
    return texts


def partly_right(wanted: Sequence[Sequence[int]]) -> Callable[[Row, int], list[int]]:
    """Drafts with every third token wrong."""
    whole = {prompt: [*prompt, *text] for prompt, text in zip(PROMPTS, wanted, strict=True)}

    def guess(row: Row, count: int) -> list[int]:
        tokens = whole[row.request.prompt][row.length : row.length + count]
        return [(token + (row.length + i) % 3 // 2) % 64 for i, token in enumerate(tokens)]

    return guess


def check_parts(network: Network) -> None:
    """Parts make the whole, and skipping the whole of layer 1 is going around it."""
    check_split(network, 1)
    cache = SlotCache(network)
    cache.reserve(1, 8)
    layers = cache.layers(slice(0, 1), 8)
    tokens, start = torch.arange(8)[None], torch.tensor([0])
    whole = network.forward(chain(tokens, start, 8), layers).logits
    only = frozenset({1})
    skipped = network.forward(chain(tokens, start, 8), layers, skip_attention=only, skip_mlp=only).logits
    below = network.forward(chain(tokens, start, 8), layers, stop=1).hidden[1]
    above = network.forward(chain(tokens, start, 8, hidden=below), layers, start=2).logits
    assert whole is not None
    assert skipped is not None
    assert above is not None
    assert torch.equal(skipped, above)
    assert not torch.allclose(skipped, whole, atol=0.1)


def state(given: nn.Module) -> dict[str, Any]:
    """What a careless copy could change: by identity, and the configuration by value."""
    return {
        name: (
            module.training,
            {key: id(value) for key, value in vars(module).items()},
            [{key: id(value) for key, value in vars(module)[kind].items()} for kind in STATE],
            str(getattr(module, "config", "")),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in given.named_modules()
    }
