"""Which drafted tokens are kept, and which token follows them: the exact rules, as pure functions.

Whatever the rule, the kept tokens and the extra one are distributed as if the target alone had written them. Only a
`lenience` below 1 changes that.

Shapes: B rows of the batch, N drafted nodes, W = N + 1 rows of a verification, V vocabulary. Row 0 is the root and row
i + 1 is node i, so the row of a node's parent is `parents + 1`. Uniforms are float64 in [0, 1). Nothing here waits for
the device. A verdict has D = N, also for a tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from .protocols import Verdict
from .sampling import draw
from .verdicts import HostVerdict, chain_verdict, of_tokens, real, row_of, sum_to_root, tree_verdict

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING_LEFT: Final = 1e-12
"""A residual below this is the rounding of p = q, not a distribution."""
_FEW: Final = 512
"""Tokens that are compared sooner one by one than by tensor operations, where no device is waited for."""


def match(tokens: Tensor, lengths: Tensor, parents: Tensor | None, choices: Tensor) -> Verdict:
    """Follow the target's own choices for as long as they were drafted. Lossless for any drafter.

    tokens: int64[B, N]; lengths: int64[B]; parents: int64[B, N], or None for a chain.
    choices: int64[B, W], the token that the target chose (arg max or one draw) after each row.
    The choice at which the draft ends is the extra token; drawing it afresh would favour the tokens not drafted.
    """
    if parents is None or not tokens.shape[1]:
        if tokens.is_cpu and tokens.numel() <= _FEW:
            return _match_chain_on_host(tokens, lengths, choices)
        return _match_chain(tokens, lengths, choices)
    return _match_tree(tokens, lengths, parents, choices)


def reject_chain(
    tokens: Tensor,
    lengths: Tensor,
    q: Tensor | None,
    p: Tensor,
    accept_u: Tensor,
    extra_u: Tensor,
    *,
    lenience: float = 1.0,
) -> Verdict:
    """Speculative sampling: keep token y with probability min(1, p(y) / q(y)), up to the first that fails.

    tokens: int64[B, N], drawn from q; lengths: int64[B].
    q: float[B, N, V] or float[B, W, V], whose last row is not read; None if each token was certain.
    p: float[B, W, V].  accept_u: float64[B, N]; extra_u: float64[B].
    lenience: below 1, lossy: p(y) / (lenience * q(y)) decides, and no token is likelier than p / lenience.
    Source: Leviathan, Kalman, Matias 2023, arXiv:2211.17192, algorithm 1 and appendix A.5.
    """
    if not tokens.shape[1]:
        return match(tokens, lengths, None, draw(p, extra_u[:, None]))
    p_y = of_tokens(p, tokens, lengths)
    q_y = torch.ones_like(p_y) if q is None else of_tokens(q, tokens, lengths)
    kept = (accept_u * lenience * q_y < p_y) & real(tokens, lengths)  # strict: p(y) = 0 is never kept
    accepted = kept.cumprod(1).sum(1)
    law = row_of(p, accepted)
    share = row_of(q, accepted) if q is not None else _certain(row_of(tokens, accepted), law)
    law = torch.where((accepted < lengths)[:, None], residual(law, share), law)
    return chain_verdict(tokens, accepted, draw(law, extra_u))


def reject_tree(
    tokens: Tensor,
    lengths: Tensor,
    parents: Tensor,
    q: Tensor | None,
    p: Tensor,
    accept_u: Tensor,
    extra_u: Tensor,
    *,
    without_replacement: bool,
    lenience: float = 1.0,
) -> Verdict:
    """Recursive rejection sampling: try the children of a node in order, each against what the earlier ones left.

    tokens, parents: int64[B, N]; lengths: int64[B].
    q, p: float[B, W, V]; the children of row r were drawn from q[:, r], independently or, with
    `without_replacement`, in order and each from what the earlier ones left of q. If q is None, each was certain.
    accept_u: float64[B, N]; extra_u: float64[B].  lenience: as in `reject_chain`.
    Source: SpecInfer, arXiv:2305.09781, algorithm 2; without replacement Sequoia, arXiv:2402.12374, algorithm 2.
    """
    if not tokens.shape[1]:
        return match(tokens, lengths, None, draw(p, extra_u[:, None]))
    drafted = real(tokens, lengths)
    children = tokens.where(drafted, 0)
    at = torch.zeros_like(lengths)  # the row whose children are being tried
    p_left = p[:, 0].double()
    q_left = p_left if q is None else q[:, 0].double()
    kept = torch.zeros_like(drafted)
    for node in range(tokens.shape[1]):
        y = children[:, node, None]
        if q is None:
            q_left = _certain(y[:, 0], p_left)
        tried = drafted[:, node] & (parents[:, node] + 1 == at)
        p_y, q_y = p_left.gather(1, y)[:, 0], q_left.gather(1, y)[:, 0]
        # A q that is used up (q_y = 0) drew no child: accepting one would need no luck at all.
        passed = tried & (q_y > 0) & (accept_u[:, node] * lenience * q_y < p_y)
        failed = (tried & ~passed)[:, None]
        p_left = torch.where(failed, residual(p_left, q_left), p_left)  # of q as the child was drawn
        p_left = torch.where(passed[:, None], p[:, node + 1], p_left)
        if q is not None:
            if without_replacement:
                q_left = torch.where(failed, _without(q_left, y), q_left)
            q_left = torch.where(passed[:, None], q[:, node + 1], q_left)
        at = torch.where(passed, node + 1, at)
        kept[:, node] = passed
    return tree_verdict(tokens, kept, draw(p_left, extra_u))


def reject_block(tokens: Tensor, lengths: Tensor, q: Tensor, p: Tensor, accept_u: Tensor, extra_u: Tensor) -> Verdict:
    """Block verification: judge prefixes as wholes and keep the longest that passes. Never shorter than reject_chain.

    Shapes as in `reject_chain`. The uniforms must be fresh in every round: those behind the kept tokens had a say.
    Source: Sun et al. 2024, arXiv:2403.10444, algorithm 2. `reach` is P_i, `spare` is S_i and `pass_at` is h_i.
    """
    count = tokens.shape[1]
    if not count:
        return match(tokens, lengths, None, draw(p, extra_u[:, None]))
    reach = _reach(of_tokens(p, tokens, lengths), of_tokens(q, tokens, lengths))
    spare = (reach[:, 1:-1, None] * p[:, 1:-1] - q[:, 1:count]).clamp(min=0).sum(-1)
    ends = reach[:, 1:]
    inner = spare / (spare + 1 - ends[:, :-1])
    inner = torch.cat([inner.nan_to_num(1.0), torch.ones_like(ends[:, :1])], 1)  # 0 / 0: p = q, kept for certain
    size = torch.arange(1, count + 1, device=tokens.device)  # of the prefix that a column judges
    pass_at = torch.where(size == lengths[:, None], ends, inner)
    accepted = (size * ((accept_u < pass_at) & real(tokens, lengths))).amax(1)
    law = row_of(p, accepted)
    rest = residual(law, row_of(q, accepted), reach.gather(1, accepted[:, None]))
    return chain_verdict(tokens, accepted, draw(torch.where((accepted < lengths)[:, None], rest, law), extra_u))


def residual(p: Tensor, q: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """What is left of p once q has had its share: max(weight * p - q, 0), normalised; p if nothing is left.

    p, q: float[B, V]; weight: float64[B, 1]. Returns float64[B, V].
    """
    left = (weight * p.double() - q).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total < _NOTHING_LEFT, p, left / total)


def _match_chain(tokens: Tensor, lengths: Tensor, choices: Tensor) -> Verdict:
    # Every greedy round of a GPU, or of many texts, passes here: as few tensor operations as possible.
    count = tokens.shape[1]
    if not count:
        return Verdict(lengths, tokens, choices)
    row = torch.arange(count + 1, device=tokens.device)
    node = row[:count]
    hits = (tokens == choices[:, :count]) & (node < lengths[:, None])
    accepted = hits.cumprod(1).sum(1)
    last = accepted[:, None]
    # What was kept equals what was chosen, so the choices are the committed tokens.
    return Verdict(accepted, torch.where(node < last, node, -1), torch.where(row <= last, choices, -1))


def _match_chain_on_host(tokens: Tensor, lengths: Tensor, choices: Tensor) -> Verdict:
    """The same number by number: behind a forward each kind of tensor operation costs a processor 10 to 20 us."""
    width, committed, drafts = tokens.shape[1], [], lengths.tolist()
    if not width:
        return HostVerdict(choices.tolist(), drafts, width)
    for drafted, length, chosen in zip(tokens.tolist(), drafts, choices.tolist(), strict=True):
        kept = 0
        while kept < length and drafted[kept] == chosen[kept]:
            kept += 1
        committed.append(chosen[: kept + 1])
    return HostVerdict(committed, drafts, width)


def _match_tree(tokens: Tensor, lengths: Tensor, parents: Tensor, choices: Tensor) -> Verdict:
    count = tokens.shape[1]
    node = torch.arange(count, device=tokens.device).expand_as(tokens)
    hits = (tokens == choices.gather(1, parents + 1)) & real(tokens, lengths)
    # Of equal siblings the first is the child, or both would be walked.
    child = torch.full_like(choices, count).scatter_reduce(1, parents + 1, node.where(hits, count), "amin")
    hits &= child.gather(1, parents + 1) == node
    kept = sum_to_root((~hits).long(), parents)[:, 1:] == 0
    last_row = ((node + 1) * kept).amax(1, keepdim=True)
    return tree_verdict(tokens, kept, choices.gather(1, last_row)[:, 0])


def _reach(p_y: Tensor, q_y: Tensor) -> Tensor:
    """float64[B, W]: P_0 = 1, P_i = min(P_{i-1} * p(y_i) / q(y_i), 1)."""
    ratio = p_y / q_y.clamp(min=torch.finfo(q_y.dtype).tiny)
    reach = [torch.ones_like(ratio[:, 0])]
    for step in ratio.unbind(1):
        reach.append((reach[-1] * step).clamp(max=1))
    return torch.stack(reach, 1)


def _certain(y: Tensor, law: Tensor) -> Tensor:
    """float[B, V]: the law under which each row's token y, int64[B], is certain; one out of range is padding."""
    return torch.zeros_like(law).scatter(1, y.clamp(0, law.shape[1] - 1)[:, None], 1.0)


def _without(q: Tensor, y: Tensor) -> Tensor:
    """q after token y has been drawn and put aside; all 0 if it was the last."""
    left = q.scatter(1, y, 0)
    return left / left.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
