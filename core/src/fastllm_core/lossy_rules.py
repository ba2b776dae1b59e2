"""Rules that keep more of a draft than the exact ones do, and change the text for it, as pure functions.

What comes out has no law that could be named without the drafter: both prefer what was drafted. Shapes, uniforms and
verdicts are those of `acceptance`, whose `reject_chain` and `reject_tree` take a `lenience` as well.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .acceptance import match
from .sampling import draw
from .verdicts import chain_verdict, depths, of_tokens, path_to_root, real, row_of, sum_to_root, tree_verdict

if TYPE_CHECKING:
    from torch import Tensor

    from .protocols import Verdict


def typical(
    tokens: Tensor,
    lengths: Tensor,
    parents: Tensor | None,
    p: Tensor,
    extra_u: Tensor,
    *,
    epsilon: float,
    delta: float,
) -> Verdict:
    """Keep the longest path of tokens that the target finds typical: p(y) > min(epsilon, delta * exp(-H(p))).

    Of equally long paths the likelier one is kept, of equally likely ones the first. The extra token is drawn from p.
    tokens: int64[B, N]; lengths: int64[B]; parents: int64[B, N], or None for a chain.
    p: float[B, W, V], after temperature and truncation; where it is one-hot this is greedy decoding, if epsilon < 1.
    extra_u: float64[B, W]: `extra_u[:, a]` draws the token that follows a kept ones.
    Source: Cai et al. 2024, arXiv:2401.10774, section 2.3.1. What is always kept there, the first token of a candidate,
    is the root here: the extra token of the round before, drawn from p and not the most likely one.
    """
    if not tokens.shape[1]:
        return match(tokens, lengths, parents, draw(p, extra_u[:, :1]))
    floor = (delta * torch.special.entr(p).sum(-1).neg().exp()).clamp(max=epsilon)
    p_y = of_tokens(p, tokens, lengths, parents)
    passes = p_y > _of_parents(floor, parents)
    last, accepted, kept = _longest(tokens, lengths, parents, passes, p_y.log())
    extra = draw(row_of(p, last), row_of(extra_u, accepted))
    return chain_verdict(tokens, accepted, extra) if parents is None else tree_verdict(tokens, kept, extra)


def lenient_greedy(
    tokens: Tensor, lengths: Tensor, parents: Tensor | None, logits: Tensor, *, lenience: float
) -> Verdict:
    """Keep the longest path of tokens that are nearly the most likely: p(y) >= lenience * max p.

    Paths are chosen between as in `typical`. The extra token is the most likely one.
    tokens: int64[B, N]; lengths: int64[B]; parents: int64[B, N], or None for a chain.  logits: float[B, W, V].
    Source: Leviathan, Kalman, Matias 2023, arXiv:2211.17192, appendix A.5.
    """
    if not tokens.shape[1]:
        return match(tokens, lengths, parents, logits.argmax(-1))
    log_p = logits.float().log_softmax(-1)
    log_p_y = of_tokens(log_p, tokens, lengths, parents)
    passes = log_p_y >= _of_parents(log_p.amax(-1) + math.log(lenience), parents)
    last, accepted, kept = _longest(tokens, lengths, parents, passes, log_p_y)
    extra = row_of(logits, last).argmax(-1)
    return chain_verdict(tokens, accepted, extra) if parents is None else tree_verdict(tokens, kept, extra)


def _of_parents(values: Tensor, parents: Tensor | None) -> Tensor:
    """[B, N]: what the row before each node says. values: [B, W]."""
    return values[:, :-1] if parents is None else values.gather(1, parents + 1)


def _longest(
    tokens: Tensor, lengths: Tensor, parents: Tensor | None, passes: Tensor, log_p_y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The longest path all of whose nodes pass: its last row and its length, int64[B], and its nodes, bool[B, N].

    passes: bool[B, N]; log_p_y: float[B, N].
    """
    passes = passes & real(tokens, lengths)
    if parents is None:
        kept = passes.cumprod(1)
        accepted = kept.sum(1)
        return accepted, accepted, kept > 0
    alive = sum_to_root((~passes).long(), parents) == 0  # the root always is
    depth = depths(parents).where(alive, -1)
    deepest = depth == depth.amax(1, keepdim=True)
    last = sum_to_root(log_p_y, parents).where(deepest, -torch.inf).argmax(1)  # the first of equals
    return last, row_of(depth, last), path_to_root(last, parents)
