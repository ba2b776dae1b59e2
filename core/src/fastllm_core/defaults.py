"""The core's own offer for every role but the drafter: what a pipeline is made of where no plugin offers anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ConfigError
from .hookspecs import hookimpl
from .protocols import Proposal

if TYPE_CHECKING:
    from .config import Config
    from .context import Context
    from .network import Network
    from .protocols import Acceptor, Drafter, KVCache, Verifier

CORE = "core"
"""The core's name among plugins."""


class CoreDefaults:
    """Registered in every pipeline, asked last. It notes which roles it had to fill."""

    def __init__(self, config: Config) -> None:
        """config: the pipeline's."""
        self.config = config
        self.filled: set[str] = set()

    @hookimpl(trylast=True)
    def fastllm_make_verifier(self, context: Context, drafter: Drafter | None) -> Verifier:
        """One forward of the target over root and nodes; in exact mode always of one shape."""
        from .exact import ExactVerifier
        from .verifier import TargetVerifier

        self.filled.add("verifier")
        kind = ExactVerifier if self.config.exact else TargetVerifier
        return kind(context, drafter.hidden_layers if drafter else ())

    @hookimpl(trylast=True)
    def fastllm_make_kv_cache(self, network: Network) -> KVCache:
        """Preallocated slots."""
        from .cache import SlotCache

        self.filled.add("kv_cache")
        return SlotCache(network, block=self.config.engine.cache_block)

    @hookimpl(trylast=True)
    def fastllm_make_acceptor(self, drafter: Drafter | None) -> Acceptor:
        """The rule that is configured, by default the exact one that fits the drafter's proposal."""
        from .acceptor import ExactAcceptor
        from .lossy_acceptor import LossyAcceptor

        self.filled.add("acceptor")
        rule, settings = self.config.acceptance.rule, self.config.acceptance.model_dump(exclude={"rule"})
        if self.config.exact:
            if rule not in ("auto", "match"):
                raise ConfigError(
                    f"exact: under '{rule}' a sampled text depends on the draft; choose 'match' or 'auto'"
                )
            rule = "match"
        if drafter is None:  # nothing to accept: every rule is plain decoding
            return ExactAcceptor(Proposal.ONE_HOT)
        if rule == "typical" or rule == "lenient":
            return LossyAcceptor(drafter.proposal, rule, **settings)
        return ExactAcceptor(drafter.proposal, rule)
