"""Plugins that are wrong in one way each, as a third party might write them, and one that is right.

test_kit.py installs this file as a distribution and expects each to be caught by the check meant for it.
"""

from __future__ import annotations

from typing import Any

import fastllm_core
from fastllm_core import Draft, Drafter, Guarantee, Options, Proposal, Purpose, Verdict, hookimpl

SHARED: dict[int, list[int]] = {}


class Plugin:
    """What they have in common."""

    api_version = 1

    def __init__(self, options: Options) -> None:
        self.options = options


def chain_of(rows: list[list[int]], device: Any) -> Draft:
    import torch

    width = max(map(len, rows), default=0)
    tokens = [row + [0] * (width - len(row)) for row in rows]
    return Draft(
        torch.tensor(tokens, dtype=torch.long, device=device).reshape(len(rows), width),
        torch.tensor([len(row) for row in rows], device=device),
    )


class LookupDrafter(Drafter):
    """What followed the last token when it stood in the text before."""

    proposal = Proposal.ONE_HOT

    def propose(self, batch: Any) -> Draft:
        pairs = zip(batch.rows, batch.draft_lengths, strict=True)
        return chain_of([self.guess(row.tokens, count) for row, count in pairs], batch.device)

    def guess(self, tokens: list[int], count: int) -> list[int]:
        for at in range(len(tokens) - 2, -1, -1):
            if tokens[at] == tokens[-1]:
                return tokens[at + 1 : at + 1 + count]
        return []


class Right(Plugin):
    """A look-up of the last token. Nothing is wrong with it."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        return LookupDrafter()


class OffByOne(Plugin):
    """Drafts one token more than it was asked for."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        class Greedy(LookupDrafter):
            def guess(self, tokens: list[int], count: int) -> list[int]:
                return super().guess(tokens, count + 1)

        return Greedy()


class SoftDrafter(Drafter):
    """Draws from a fixed law."""

    proposal = Proposal.SAMPLED

    def __init__(self, vocab_size: int) -> None:
        import torch

        self.law = torch.arange(1.0, vocab_size + 1) / (vocab_size * (vocab_size + 1) / 2)

    def propose(self, batch: Any) -> Draft:
        import torch

        count = max(batch.draft_lengths)
        probs = self.law.expand(len(batch), count, -1)
        tokens = self.tokens(probs, batch.uniforms(Purpose.DRAFT, count))
        return Draft(tokens, torch.tensor(batch.draft_lengths), probs=probs)

    def tokens(self, probs: Any, uniforms: Any) -> Any:
        return fastllm_core.draw(probs, uniforms)


class ArgMaxWithSoftQ(Plugin):
    """Drafts the likeliest token and says that it was drawn."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        class Wrong(SoftDrafter):
            def tokens(self, probs: Any, uniforms: Any) -> Any:
                return probs.argmax(-1)

        return Wrong(context.network.vocab_size)


class DroppedToken(Plugin):
    """Cuts a draft before a token that turned out unlikely, after it was drawn."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        class Wrong(SoftDrafter):
            def propose(self, batch: Any) -> Draft:
                draft = super().propose(batch)
                sure = draft.probs.gather(2, draft.tokens[:, :, None])[:, :, 0] >= 0.25
                kept = sure.long().cumprod(1).sum(1)
                return Draft(draft.tokens, draft.lengths.minimum(kept), probs=draft.probs)

        return Wrong(context.network.vocab_size)


class StaleQ(Plugin):
    """Draws two siblings without replacement and says that both were drawn independently."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        class Wrong(SoftDrafter):
            proposal = Proposal.INDEPENDENT

            def __init__(self, vocab_size: int) -> None:
                super().__init__(vocab_size)
                self.law = self.law**4 / (self.law**4).sum()  # one token far ahead, so that the second is another

            def propose(self, batch: Any) -> Draft:
                import torch

                law = self.law.expand(len(batch), 1, -1)
                uniforms = batch.uniforms(Purpose.DRAFT, 2)
                first = fastllm_core.draw(law, uniforms[:, :1])
                second = fastllm_core.draw(law.scatter(2, first[:, :, None], 0.0), uniforms[:, 1:])
                lengths = 2 * (torch.tensor(batch.draft_lengths) > 0)
                return Draft(
                    torch.cat([first, second], 1),
                    lengths,
                    parents=torch.full((len(batch), 2), -1),
                    probs=self.law.expand(len(batch), 3, -1),
                )

        return Wrong(context.network.vocab_size)


class NeverRollsBack(Plugin):
    """Runs the target itself as a drafter and claims to have read what was then rejected."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        class Wrong(LookupDrafter):
            def __init__(self) -> None:
                self.network = context.make_network(context.target)
                self.cache = context.make_cache(self.network)

            def propose(self, batch: Any) -> Draft:
                for row in batch.rows:
                    have = self.cache.lengths[row.slot]
                    # Reads up to the last token once, and never again what changed since.
                    want = max(have, row.length - 1)
                    if want > have:
                        piece = [(token + 1) % 64 for token in row.tokens[have:want]]
                        fastllm_core.read(self.network, self.cache, row.slot, piece, have)
                return super().propose(batch)

        return Wrong()


class MutatesTheModel(Plugin):
    """Turns off dropout for good, on the user's own configuration."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        context.target.model.config.attention_dropout = 0.125
        return LookupDrafter()


class SharesState(Plugin):
    """Keeps what it learnt in a dictionary of the module, by slot."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        class Wrong(LookupDrafter):
            def propose(self, batch: Any) -> Draft:
                drafts = [
                    SHARED.get(row.slot, [])[:count] for row, count in zip(batch.rows, batch.draft_lengths, strict=True)
                ]
                for row in batch.rows:
                    SHARED[row.slot] = row.tokens[-3:]
                return chain_of(drafts, batch.device)

        return Wrong()


class LeaksIntoNeighbour(Plugin):
    """Looks up in the text of the first row for every row."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        class Wrong(LookupDrafter):
            def propose(self, batch: Any) -> Draft:
                first = batch.rows[0].tokens
                return chain_of([self.guess(first, count) for count in batch.draft_lengths], batch.device)

        return Wrong()


class HoldsRows(Plugin):
    """Never forgets a row."""

    @hookimpl
    def fastllm_make_drafter(self, context: Any) -> Drafter:
        class Wrong(LookupDrafter):
            def __init__(self) -> None:
                self.seen: list[Any] = []

            def propose(self, batch: Any) -> Draft:
                self.seen += batch.rows
                return super().propose(batch)

        return Wrong()


class OverrunsTheEnd(Plugin):
    """An observer that makes rows forget which tokens end them."""

    @hookimpl
    def fastllm_observers(self, context: Any) -> list[Any]:
        class Wrong:
            def observe(self, batch: Any, *_: Any) -> None:
                for row in batch.rows:
                    object.__setattr__(row.request, "eos_token_ids", frozenset())

        return [Wrong()]


class ResamplesTheRoot(Plugin):
    """Draws a fresh token after a failed match instead of keeping the one that did not match."""

    @hookimpl
    def fastllm_make_acceptor(self, context: Any, drafter: Any) -> Any:
        class Wrong:
            guarantee = Guarantee.EXACT

            def decide(self, batch: Any, draft: Any, scores: Any) -> Verdict:
                import torch

                p = fastllm_core.warp(scores.logits, batch.sampling)
                width = draft.width
                chosen = fastllm_core.draw(p, batch.position_uniforms(width + 1))
                if not width:
                    return Verdict(draft.lengths, draft.tokens, chosen[:, :1])
                real = torch.arange(width) < draft.lengths[:, None]
                hits = (draft.tokens == chosen[:, :-1]) & real
                kept = hits.long().cumprod(1).sum(1)
                fresh = fastllm_core.draw(p, batch.uniforms(Purpose.EXTRA, width + 1))
                if batch.sampling.greedy:
                    fresh = chosen
                at = torch.arange(width + 1)
                tokens = torch.where(at < kept[:, None], chosen, torch.where(at == kept[:, None], fresh, -1))
                return Verdict(kept, torch.where(at[:-1] < kept[:, None], at[:-1], -1), tokens)

        return Wrong()


class PositionKeyedBlock(Plugin):
    """Block verification whose uniforms depend on the position alone."""

    @hookimpl
    def fastllm_make_acceptor(self, context: Any, drafter: Any) -> Any:
        if drafter is None or drafter.proposal is not Proposal.SAMPLED:
            return None
        from fastllm_core import acceptance

        class Wrong:
            guarantee = Guarantee.EXACT

            def decide(self, batch: Any, draft: Any, scores: Any) -> Verdict:
                p = fastllm_core.warp(scores.logits, batch.sampling)
                if batch.sampling.greedy or draft.probs is None or not draft.width:
                    return acceptance.match(
                        draft.tokens, draft.lengths, draft.parents,
                        fastllm_core.draw(p, batch.position_uniforms(draft.width + 1)),
                    )  # fmt: skip
                uniforms = batch.position_uniforms(draft.width + 1)
                extra = batch.uniforms(Purpose.EXTRA, 1)[:, 0]
                return acceptance.reject_block(draft.tokens, draft.lengths, draft.probs, p, uniforms[:, :-1], extra)

        return Wrong()


class IgnoresControls(Plugin):
    """Keeps what the target's own logits say, whatever was asked to be done to them."""

    raw: Any = None

    @hookimpl
    def fastllm_make_acceptor(self, context: Any, drafter: Any) -> Any:
        from fastllm_core.acceptor import ExactAcceptor

        plugin = self

        class Wrong:
            guarantee = Guarantee.EXACT

            def decide(self, batch: Any, draft: Any, scores: Any) -> Verdict:
                return ExactAcceptor(Proposal.ONE_HOT).decide(batch, draft, plugin.raw)

        return Wrong()

    @hookimpl
    def fastllm_make_verifier(self, context: Any, drafter: Any) -> Any:
        from fastllm_core.verifier import TargetVerifier

        plugin = self

        class Spy(TargetVerifier):
            def score(self, batch: Any, draft: Draft) -> Any:
                plugin.raw = super().score(batch, draft)
                return plugin.raw

        return Spy(context, drafter.hidden_layers if drafter else ())


class WholeConfigInView(Plugin):
    """A verifier that runs the upper layers itself, in a copy whose configuration still describes every layer."""

    @hookimpl
    def fastllm_make_verifier(self, context: Any, drafter: Any) -> Any:
        import copy
        from dataclasses import replace

        import torch

        from fastllm_core import Scores, chain
        from fastllm_core.verifier import TargetVerifier

        class Wrong(TargetVerifier):
            def __init__(self) -> None:
                super().__init__(context)
                upper = copy.deepcopy(context.target.model)
                upper.model.layers = upper.model.layers[2:]
                self.upper = context.make_network(replace(context.target, model=upper))

            def score(self, batch: Any, draft: Draft) -> Scores:
                if draft.parents is not None:
                    return super().score(batch, draft)
                tokens = torch.cat([batch.roots[:, None], draft.tokens], 1)
                extent = self.cache.extent(max(batch.lengths) + draft.width)
                self.cache.reserve(len(batch), extent)
                layers = self.cache.layers(slice(0, len(batch)), extent)
                lower = self.network.forward(chain(tokens, batch.starts, extent), layers, stop=2)
                rows = chain(tokens, batch.starts, extent, hidden=lower.hidden[2])
                return Scores(self.upper.forward(rows, layers).logits)

        return Wrong()
