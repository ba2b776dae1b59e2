"""From a selection of plugins to the engine that runs them: networks, caches, roles and the controller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .clock import Clock
from .compose import Roles, Selection, build_roles, make_kv_cache, make_lone_drafter
from .context import Context
from .controllers import Controller, Threshold, make_controller
from .engine import Engine, Parts
from .errors import ConfigError
from .exact import batch_experts
from .models import LoadedModel, load_model
from .network import Network
from .probe import check_hidden, check_port, check_split
from .programs import ProgramFolder
from .selection import adapters

if TYPE_CHECKING:
    from .backend import Backend
    from .config import Config
    from .device import Device
    from .protocols import Drafter, KVCache


def assemble(
    selection: Selection, target: LoadedModel, device: Device, backend: Backend, trust_remote_code: bool = False
) -> tuple[Roles, Engine]:
    """The roles of a pipeline and the engine that runs them. Raises UnsupportedModel if the port does not fit."""
    config, clock, place = selection.config, Clock(), device.name
    caches: list[KVCache] = []
    foreign_caches: list[KVCache] = []
    known = adapters(selection)
    network = Network(target, clock, known)
    if config.exact:
        batch_experts(network)
    folder = ProgramFolder()
    check_port(network, None if folder.refusal() else folder.digests)
    network.runner = backend.runner(network)

    def load_another(name: str, device: str = "auto", dtype: str = "auto", revision: str | None = None) -> LoadedModel:
        where = place if device == "auto" else device
        number_format = str(target.dtype).removeprefix("torch.") if dtype == "auto" else dtype
        return load_model(
            name, None, where, number_format, revision, trust_remote_code=trust_remote_code, adapters=known
        )

    def make_network(loaded: LoadedModel) -> Network:
        made = Network(loaded, clock, known)
        made.runner = backend.runner(made)
        return made

    def make_cache(of: Network, foreign: bool = False) -> KVCache:
        made = make_kv_cache(selection, context, of)
        (foreign_caches if foreign else caches).append(made)
        return made

    def make_drafter(
        name: str,
        loaded: LoadedModel,
        make_cache: Callable[[Network], KVCache],
        options: Mapping[str, Any] | None = None,
    ) -> Drafter:
        there = replace(context, target=loaded, network=make_network(loaded), make_cache=make_cache, cache=None)
        return make_lone_drafter(name, options or {}, there)

    context = Context(
        config=config,
        device=device,
        target=target,
        network=network,
        draft_length=config.draft.length,
        cache=None,
        load_model=load_another,
        make_network=make_network,
        make_cache=make_cache,
        make_drafter=make_drafter,
    )
    roles = build_roles(selection, context)
    if roles.drafter is not None and roles.drafter.hidden_layers:
        check_hidden(network, roles.drafter.hidden_layers)
    if roles.drafter is not None and roles.drafter.resume_layer is not None:
        check_split(network, roles.drafter.resume_layer, roles.drafter.hidden_layers)
    parts = Parts(
        network=network,
        cache=roles.cache,
        verifier=roles.verifier,
        acceptor=roles.acceptor,
        controller=_controller(config, roles),
        clock=clock,
        drafter=roles.drafter,
        drafter_caches=[cache for cache in caches if cache is not roles.cache],
        foreign_caches=foreign_caches,
        observers=roles.observers,
        tokenizer=target.tokenizer,
        lossy=roles.lossy,
    )
    engine = Engine(
        parts,
        draft_length=config.draft.length,
        context_length=target.context_length,
        max_rows=config.engine.max_rows,
        prefill_chunk=config.engine.prefill_chunk,
        exact=config.exact,
    )
    return roles, engine


def _controller(config: Config, roles: Roles) -> Controller:
    """The configuration's. Raises ConfigError if the drafter takes no notice of it."""
    draft = config.draft
    made = make_controller(draft.controller, draft.length, draft.threshold, draft.acceptance)
    if isinstance(made, Threshold) and roles.drafter is not None and not roles.drafter.heeds_thresholds:
        raise ConfigError(
            f"draft.controller: 'threshold' ends a draft where the drafter is unsure, and '{roles.names['drafter']}' "
            'does not tell; choose "auto", "heuristic" or "fixed"'
        )
    return made
