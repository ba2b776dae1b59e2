"""Composing a pipeline: asking the selected plugins for their role objects, once. Nothing here runs inside the loop.

`select` settles what needs no weights; `build_roles` comes after the target is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

from .defaults import CORE
from .errors import ConfigError, PluginContractError
from .protocols import Guarantee, Proposal
from .selection import ROLE_HOOKS, WORDS, Selection, lone_plugin, offers, select

if TYPE_CHECKING:
    from .context import Context
    from .network import Network
    from .protocols import Acceptor, Drafter, KVCache, Observer, Verifier

__all__ = ["Roles", "Selection", "build_roles", "make_kv_cache", "select"]

METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "drafter": (
        "propose",
        "proposal",
        "prefill",
        "copy",
        "observe",
        "release",
        "close",
        "guarantee",
        "hidden_layers",
        "resume_layer",
        "heeds_thresholds",
        "expected_acceptance",
    ),
    "verifier": ("score",),
    "kv_cache": ("lengths", "capacity", "reserve", "layers", "extent", "commit", "move", "copy", "release"),
    "acceptor": ("decide", "guarantee"),
}
"""What the engine asks of each role's object."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The role objects of a pipeline."""

    context: Context
    """What the plugins were given; its `cache` is the target's."""
    cache: KVCache
    drafter: Drafter | None
    verifier: Verifier
    acceptor: Acceptor
    observers: tuple[Observer, ...]
    names: Mapping[str, str]
    """Who fills each role: `kangaroo`, `core`, or `kvquant(core)` where one wraps another. No drafter, no entry."""
    lossy: tuple[str, ...] = ()
    """What changes the text or its distribution, in words: "typical acceptance". Empty if nothing does."""


def make_kv_cache(selection: Selection, context: Context, network: Network) -> KVCache:
    """A cache for a network. Raises PluginContractError or ConfigError as `build_roles` does."""
    return cast("KVCache", _make(selection, "kv_cache", context=context, network=network))


def build_roles(selection: Selection, context: Context) -> Roles:
    """Fill every role.

    context: the pipeline's; if it has no cache yet, one is made first with its `make_cache`.
    Raises PluginContractError if an object does not fit its role, ConfigError if it is lossy and `lossy` is not set.
    """
    cache = context.cache if context.cache is not None else context.make_cache(context.network)
    context = replace(context, cache=cache)
    drafter: Drafter | None = _make(selection, "drafter", context=context)
    verifier: Verifier = _make(selection, "verifier", context=context, drafter=drafter)
    acceptor: Acceptor = _make(selection, "acceptor", context=context, drafter=drafter)
    watchers = selection.manager.hook.fastllm_observers(context=context)
    observers = tuple(observer for answer in watchers for observer in answer)
    made = {"drafter": drafter, "verifier": verifier, "kv_cache": cache, "acceptor": acceptor}
    names = {role: _maker(selection, role) for role, thing in made.items() if thing is not None}
    if selection.config.exact:
        _check_exact(names)
    lossy = tuple(_label(selection, role, thing) for role, thing in made.items() if _is_lossy(thing))
    return Roles(context, cache, drafter, verifier, acceptor, observers, names, lossy)


def make_lone_drafter(name: str, options: Mapping[str, Any], context: Context) -> Drafter:
    """The drafter of a method that is not selected, over the texts of `context.target`; see `Context.make_drafter`.

    Raises ConfigError if it needs more than tokens, and what `select` raises.
    """
    plugin, manager = lone_plugin(name, options)
    made: Drafter | None = manager.hook.fastllm_make_drafter(context=context)
    if made is None:
        raise ConfigError(f"{plugin} makes no drafter, so it cannot draft for another plugin")
    _check_contract("drafter", made, str(plugin))
    if made.hidden_layers or made.resume_layer is not None:
        raise ConfigError(f"{plugin} drafts from the target's hidden states, so it cannot draft over other tokens")
    return made


def _make(selection: Selection, role: str, **arguments: object) -> Any:
    """Ask for a role's object: the chosen plugin or, behind it, the core; then whoever wraps it."""
    chosen = offers(selection, role)
    hook = getattr(selection.manager.hook, ROLE_HOOKS[role])
    rest = [impl for impl in hook.get_hookimpls() if not (impl.wrapper or impl.hookwrapper)]
    dropped = [impl.plugin for impl in rest if impl.plugin_name not in (*chosen, CORE)]
    if dropped:
        hook = selection.manager.subset_hook_caller(ROLE_HOOKS[role], dropped)
    made = hook(**arguments)
    if made is None and role == "drafter":
        return None
    _check_contract(role, made, _culprit(selection, role))
    _check_guarantee(selection, role, made)
    return made


def _check_contract(role: str, made: object, culprit: str) -> None:
    lacking = [name for name in METHODS[role] if not hasattr(made, name)]
    if lacking:
        optional = "; inherit from fastllm_core.Drafter to get the optional ones" if role == "drafter" else ""
        raise PluginContractError(
            f"{culprit}: its {WORDS.get(role, role)} ({type(made).__name__}) lacks {', '.join(lacking)}{optional}"
        )
    proposal = getattr(made, "proposal", None)
    if role == "drafter" and proposal not in list(Proposal):
        kinds = ", ".join(kind.value for kind in Proposal)
        raise PluginContractError(f"{culprit}: its drafter's proposal must be one of {kinds}, not {proposal!r}")


def _check_guarantee(selection: Selection, role: str, made: object) -> None:
    if not _is_lossy(made) or selection.config.lossy:
        return
    raise ConfigError(
        f"lossy: {_label(selection, role, made)} changes the text or its distribution; "
        "set lossy = true if that is wanted"
    )


def _is_lossy(made: object) -> bool:
    return getattr(made, "guarantee", Guarantee.EXACT) != Guarantee.EXACT


def _label(selection: Selection, role: str, made: object) -> str:
    """What a lossy object calls itself, else whose it is."""
    return str(getattr(made, "label", f"the {WORDS.get(role, role)} of '{_maker(selection, role)}'"))


def _check_exact(names: Mapping[str, str]) -> None:
    """In exact mode everything behind the drafter is the core's, whose shapes are fixed."""
    for role in ("kv_cache", "verifier", "acceptor"):
        if names[role] != CORE:
            raise ConfigError(
                f"exact: the {WORDS.get(role, role)} comes from '{names[role]}', and the same bits are promised for "
                "the core's only; set exact = false, or leave that plugin out"
            )


def _maker(selection: Selection, role: str) -> str:
    """Who made a role's object, and who wraps it: `outer(inner(core))`."""
    name = CORE if role in selection.core.filled else next(iter(offers(selection, role)), CORE)
    for wrapper in _wrappers(selection, role):
        name = f"{wrapper}({name})"
    return name


def _wrappers(selection: Selection, role: str) -> list[str]:
    impls = getattr(selection.manager.hook, ROLE_HOOKS[role]).get_hookimpls()
    wrapping = {impl.plugin_name for impl in impls if impl.wrapper or impl.hookwrapper}
    return [name for name in selection.plugins if name in wrapping]


def _culprit(selection: Selection, role: str) -> str:
    """The plugin that handed out a role's object: the outermost wrapper, else the maker."""
    name = ([*offers(selection, role), *_wrappers(selection, role)] or [CORE])[-1]
    return str(selection.installed.get(name, f"the core's {role}"))
