"""An engine around a drafter, without plugins, files or configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..acceptor import ExactAcceptor, Rule
from ..backend import Backend, Eager
from ..cache import SlotCache
from ..clock import Clock
from ..config import config_from
from ..context import Context
from ..controllers import make_controller
from ..device import select_device
from ..engine import Engine, Parts
from ..errors import PluginNotFound
from ..exact import ExactVerifier, batch_experts
from ..models import load_model
from ..network import Network
from ..protocols import Drafter, Observer, Proposal
from ..request import Request
from ..verifier import TargetVerifier


def make_engine(
    model: PreTrainedModel,
    drafter: Drafter | None = None,
    *,
    draft_length: int = 4,
    acceptance: Rule = "auto",
    controller: str = "fixed",
    tokenizer: PreTrainedTokenizerBase | None = None,
    observers: Sequence[Observer] = (),
    exact: bool = False,
    max_rows: int = 16,
    backend: Backend | None = None,
    **sizes: Any,
) -> Engine:
    """The core's own roles around a model on the CPU and a drafter. sizes: `prefill_chunk`."""
    backend = backend or Eager()
    target = load_model(model, tokenizer)
    clock = Clock()
    network = Network(target, clock)
    if exact:
        batch_experts(network)
    network.runner = backend.runner(network)
    cache = SlotCache(network)
    context = Context(
        config=config_from({"exact": exact, "engine.max_rows": max_rows}),
        device=select_device("cpu", "float32"),
        target=target,
        network=network,
        draft_length=draft_length,
        cache=cache,
        load_model=load_model,
        make_network=Network,
        make_cache=SlotCache,
        make_drafter=_no_other,
    )
    parts = Parts(
        network=network,
        cache=cache,
        verifier=(ExactVerifier if exact else TargetVerifier)(context, drafter.hidden_layers if drafter else ()),
        acceptor=ExactAcceptor(drafter.proposal if drafter else Proposal.ONE_HOT, acceptance),
        controller=make_controller(controller, draft_length),
        clock=clock,
        drafter=drafter,
        observers=observers,
        tokenizer=tokenizer,
    )
    sizes |= {"max_rows": max_rows, "exact": exact}
    return Engine(parts, draft_length=draft_length, context_length=target.context_length, **sizes)


def decode(engine: Engine, requests: Sequence[Request], *, every: int = 0) -> list[list[int]]:
    """Run some requests to their ends and return each one's tokens. every: steps from one's joining to the next's."""
    waiting = list(requests)
    tokens: dict[int, list[int]] = {}
    steps = 0
    while waiting or not engine.idle:
        while waiting and (not every or steps >= every * len(tokens)):
            tokens[engine.add(waiting.pop(0))] = []
        for event in engine.step():
            tokens[event.row] += event.tokens
        steps += 1
    return list(tokens.values())


def _no_other(name: str, *arguments: object) -> Drafter:
    raise PluginNotFound(f"plugin '{name}': an engine without plugins has no other drafter")
