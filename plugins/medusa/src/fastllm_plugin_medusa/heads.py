"""The heads: K small networks on the target's last hidden state h, the k-th of which guesses the token k + 2 ahead.

    u_k = ResBlock^m(h)    ResBlock(x) = x + SiLU(W x + b)    logits_k = U_k u_k

The target's own head says the next token; head 0 says the one behind it. What U is, an `Output` says; each may cover
part of the vocabulary, and `token_map` then says which tokens these are.

Source: Medusa, arXiv:2401.10774, section 2.1. Shapes: K heads, m blocks each, H hidden size, V entries of a head's
output, r its rank, B rows, T places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedModel

from fastllm_core import Head, ModelError, Network, TargetIdentity, UnsupportedModel, load_model

METHOD: Final = "medusa"
TOKEN_MAP: Final = "token_map"
"""The tensor int64[V] of a truncated vocabulary: the target's token for each entry of the heads' outputs."""

Output = Literal["own", "shared", "low-rank", "delta"]
"""own       U_k of its own, the paper's
shared    the target's output matrix, for all heads
low-rank  U_k = A_k D_k of rank r
delta     the target's output matrix and A_k D_k added to it
"""
OUTPUTS: Final[tuple[Output, ...]] = get_args(Output)


@dataclass(frozen=True, slots=True)
class HeadsShape:
    """What a head's settings say of its sizes."""

    heads: int
    """K"""
    blocks: int
    """m, ResBlocks of each head."""
    hidden_size: int
    vocab_size: int
    """V: the target's, or less if the vocabulary is truncated."""
    output: Output = "own"
    rank: int = 0
    """r, if the output has one, else 0."""

    @classmethod
    def of(
        cls,
        network: Network,
        heads: int,
        blocks: int = 1,
        output: Output = "own",
        rank: int = 0,
        vocab_size: int | None = None,
    ) -> HeadsShape:
        """One that suits a target. vocab_size: None is all of it."""
        entries = network.vocab_size if vocab_size is None else min(vocab_size, network.vocab_size)
        return cls(heads, blocks, network.hidden_size, entries, output, rank if _has_rank(output) else 0)

    @classmethod
    def read(cls, settings: Mapping[str, Any], source: str) -> HeadsShape:
        """From a head's settings. Raises ModelError if one is missing."""
        try:
            return cls(**{each.name: settings[each.name] for each in fields(cls)})
        except KeyError as error:
            raise ModelError(f"{source}: its settings lack {error.args[0]}") from error

    def settings(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def reads_target(self) -> bool:
        """Whether the target's output matrix is part of the heads."""
        return self.output in ("shared", "delta")

    def check(self, network: Network, source: str) -> None:
        """Raise ModelError or UnsupportedModel if no such heads can be, or the target cannot have them."""
        if self.output not in OUTPUTS or self.heads < 1 or self.blocks < 0:
            raise ModelError(
                f"{source}: {self.heads} heads of {self.blocks} blocks with the output '{self.output}' cannot be; "
                f"outputs: {', '.join(OUTPUTS)}"
            )
        if _has_rank(self.output) != (self.rank > 0):
            need = "needs a rank" if _has_rank(self.output) else "has no rank"
            raise ModelError(f"{source}: the output '{self.output}' {need}, and {self.rank} is given")
        if self.hidden_size != network.hidden_size or self.vocab_size > network.vocab_size:
            raise UnsupportedModel(
                f"{source}: the heads read {self.hidden_size} dimensions and say {self.vocab_size} tokens, model "
                f"'{network.loaded.name}' has {network.hidden_size} and {network.vocab_size}"
            )
        if self.reads_target:
            output_weight(network, self.hidden_size)

    def tensors(self, network: Network) -> dict[str, tuple[int, ...]]:
        """Names and sizes of the weights that a head's folder holds."""
        sizes: dict[str, tuple[int, ...]] = {}
        for head in range(self.heads):
            for block in range(self.blocks):
                sizes[f"blocks.{head}.layers.{block}.weight"] = (self.hidden_size, self.hidden_size)
                sizes[f"blocks.{head}.layers.{block}.bias"] = (self.hidden_size,)
            if self.output == "own":
                sizes[f"lm_heads.{head}.weight"] = (self.vocab_size, self.hidden_size)
            elif _has_rank(self.output):
                sizes[f"lm_heads.{head}.down.weight"] = (self.rank, self.hidden_size)
                sizes[f"lm_heads.{head}.up.weight"] = (self.vocab_size, self.rank)
        if self.vocab_size < network.vocab_size:
            sizes[TOKEN_MAP] = (self.vocab_size,)
        return sizes

    def growth(self) -> dict[str, Any]:
        """Which axes are the target's hidden ones: see docs/authors/heads.md."""
        layers = [f"blocks.{head}.layers.{block}" for head in range(self.heads) for block in range(self.blocks)]
        reader = {"own": "weight", "low-rank": "down.weight", "delta": "down.weight"}.get(self.output)
        readers = [f"lm_heads.{head}.{reader}" for head in range(self.heads) if reader]
        makers = [[f"{layer}.weight", f"{layer}.bias"] for layer in layers]
        return {"features": {"makers": makers, "readers": readers}, "settings": {"hidden": "hidden_size"}}


class Blocks(nn.Module):
    """The ResBlocks of one head."""

    def __init__(self, size: int, count: int) -> None:
        """size: H.  count: m."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(count))

    def forward(self, hidden: Tensor) -> Tensor:
        """x + SiLU(W x + b), m times: float[..., H] to float[..., H]."""
        for layer in self.layers:
            hidden = hidden + silu(layer(hidden))
        return hidden


class LowRank(nn.Module):
    """An output matrix of rank r."""

    def __init__(self, size: int, rank: int, entries: int) -> None:
        """size: H.  rank: r.  entries: V."""
        super().__init__()
        self.down = nn.Linear(size, rank, bias=False)
        self.up = nn.Linear(rank, entries, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """float[..., H] to float[..., V]."""
        entries: Tensor = self.up(self.down(hidden))
        return entries


class MedusaHeads(nn.Module):
    """All heads. Weights have the names of `HeadsShape.tensors`; `shared` is the target's and no part of a checkpoint.

    A trainer takes this module with `load_state_dict(weights, strict=False)`; drafting takes it through `build`.
    """

    def __init__(self, shape: HeadsShape, shared: Tensor | None = None) -> None:
        """shared: float[V, H], the target's output matrix at the entries that the heads say, if the shape needs it."""
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleList(Blocks(shape.hidden_size, shape.blocks) for _ in range(shape.heads))
        self.lm_heads = nn.ModuleList(_output(shape) for _ in range(shape.heads) if shape.output != "shared")
        self.shared = None if shared is None else nn.Parameter(shared, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """What every head says at every place: float[B, T, H] to float[K, B, T, V]."""
        read = torch.stack([blocks(hidden) for blocks in self.blocks])
        if self.shared is None:
            return self._own(read)
        said = nn.functional.linear(read.to(self.shared.dtype), self.shared)  # the large matrix is read once
        return said + self._own(read) if self.lm_heads else said

    def _own(self, read: Tensor) -> Tensor:
        return torch.stack([output(states) for output, states in zip(self.lm_heads, read, strict=True)])

    def first(self, count: int) -> MedusaHeads:
        """The first few heads alone, on the same weights."""
        few = MedusaHeads.__new__(MedusaHeads)
        nn.Module.__init__(few)
        few.shape = replace(self.shape, heads=count)
        few.blocks, few.lm_heads, few.shared = self.blocks[:count], self.lm_heads[:count], self.shared
        return few

    def head(self, index: int, hidden: Tensor) -> Tensor:
        """One head alone: float[..., H] to float[..., V]. A trainer saves memory with it."""
        read: Tensor = self.blocks[index](hidden)
        own: Tensor | None = self.lm_heads[index](read) if self.lm_heads else None
        if self.shared is None:
            assert own is not None
            return own
        said = nn.functional.linear(read.to(self.shared.dtype), self.shared)
        return said if own is None else said + own


def build_heads(shape: HeadsShape, network: Network, weights: Mapping[str, Tensor], source: str) -> MedusaHeads:
    """The heads with copies of some weights, in their dtype, on the target's device; the shared matrix is the target's.

    Raises ModelError if the weights are not those of the shape.
    """
    checked = _checked(shape, network, weights, source)
    shared = output_weight(network, shape.hidden_size) if shape.reads_target else None
    if shared is not None and TOKEN_MAP in checked:
        shared = shared[checked[TOKEN_MAP].to(shared.device)]
    with torch.device("meta"):
        heads = MedusaHeads(shape)
    own = {name: tensor.to(network.device, copy=True) for name, tensor in checked.items() if name != TOKEN_MAP}
    heads.load_state_dict(own, assign=True)
    heads.shared = None if shared is None else nn.Parameter(shared, requires_grad=False)
    return heads


def output_weight(network: Network, width: int) -> Tensor:
    """float[V, H]: the target's own output matrix. Raises UnsupportedModel if it has none that reads hidden states."""
    found: Any = network.model.get_output_embeddings()  # type: ignore[operator]
    weight = getattr(found, "weight", None)
    if weight is None or weight.is_meta or not weight.dtype.is_floating_point or weight.shape[1] != width:
        kind = type(network.model).__name__
        raise UnsupportedModel(
            f"model '{network.loaded.name}' ({kind}) has no output matrix that reads its hidden states: heads for it "
            "need one of their own"
        )
    cut: Tensor = weight.detach()[: network.vocab_size]
    return cut


def new_weights(shape: HeadsShape, network: Network, token_map: Tensor | None = None) -> dict[str, Tensor]:
    """float32 weights to start from: every head says what the target's own does, up to the rank of its output.

    W and b are 0 and U_k is a copy of the target's output matrix (section 2.2.1); of low rank, the nearest to it; a
    delta is 0.  token_map: int64[V], the tokens of a truncated vocabulary.
    """
    given = {} if token_map is None else {TOKEN_MAP: token_map.long().cpu()}
    made = dict(given)
    base: Tensor | None = None
    if shape.output != "shared":
        base = output_weight(network, shape.hidden_size).float().cpu()
        base = base if token_map is None else base[given[TOKEN_MAP]]
    near = _nearest(base, shape.rank) if base is not None and shape.output == "low-rank" else None
    noise = torch.Generator().manual_seed(0)
    for name, size in shape.tensors(network).items():
        if name == TOKEN_MAP:
            continue
        if name.startswith("blocks."):
            made[name] = torch.zeros(size)
        elif name.endswith(".down.weight"):
            # Of a delta one factor may be 0 and not both: nothing would be learned.
            small = torch.randn(size, generator=noise) * size[1] ** -0.5
            made[name] = small if near is None else near[0].clone()
        elif name.endswith(".up.weight"):
            made[name] = torch.zeros(size) if near is None else near[1].clone()
        else:
            assert base is not None
            made[name] = base.clone()
    return made


def random_head(
    model: PreTrainedModel,
    heads: int = 3,
    blocks: int = 1,
    output: Output = "own",
    rank: int = 0,
    vocab_size: int | None = None,
    seed: int = 0,
) -> Head:
    """Untrained heads for a loaded model, for tests: they draft, and are right by chance."""
    network = Network(load_model(model))
    shape = HeadsShape.of(network, heads, blocks, output, rank, vocab_size)
    noise = torch.Generator().manual_seed(seed)
    weights = {name: 0.1 * torch.randn(size, generator=noise) for name, size in shape.tensors(network).items()}
    if TOKEN_MAP in weights:
        weights[TOKEN_MAP] = torch.randperm(network.vocab_size, generator=noise)[: shape.vocab_size].sort().values
    return make_head(shape, network, weights)


def make_head(shape: HeadsShape, network: Network, weights: Mapping[str, Tensor]) -> Head:
    """A head's folder for a target, from what the shape's weights are."""
    return Head(METHOD, TargetIdentity.of(network), shape.settings(), dict(weights), growth=shape.growth())


def _output(shape: HeadsShape) -> nn.Module:
    if shape.output == "own":
        return nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
    return LowRank(shape.hidden_size, shape.rank, shape.vocab_size)


def _has_rank(output: Output) -> bool:
    return output in ("low-rank", "delta")


def _nearest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """D [r, H] and A [V, r] with A D the matrix of rank r that is nearest to one of float[V, H].

    The rows of D are the first eigenvectors of U' U, which is small where U is tall (Eckart and Young, 1936).
    """
    values, vectors = torch.linalg.eigh(matrix.double().T @ matrix.double())
    down = vectors[:, values.argsort(descending=True)[:rank]].T.float()
    return down, matrix @ down.T


def _checked(shape: HeadsShape, network: Network, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights, if they are all there and fit."""
    wanted = shape.tensors(network)
    missing = sorted(wanted.keys() - weights.keys())
    unknown = sorted(weights.keys() - wanted.keys())
    wrong = [name for name, size in wanted.items() if name in weights and tuple(weights[name].shape) != size]
    told = [f"lacks {missing[0]}"] if missing else []
    told += [f"has {unknown[0]}, which heads of this shape have not"] if unknown else []
    told += [f"{name} is {tuple(weights[name].shape)}, not {wanted[name]}" for name in wrong[:1]]
    if not told and TOKEN_MAP in weights:
        tokens = weights[TOKEN_MAP]
        if len(tokens) != len(set(tokens.tolist())) or tokens.min() < 0 or tokens.max() >= network.vocab_size:
            told = [f"{TOKEN_MAP} does not name {shape.vocab_size} tokens of the target"]
    if told:
        raise ModelError(f"{source}: its weights do not fit its settings: {'; '.join(told)}")
    return dict(weights)


def trained(heads: MedusaHeads) -> Iterator[tuple[str, nn.Parameter]]:
    """What a checkpoint holds, by name: all parameters but the target's own matrix."""
    return ((name, part) for name, part in heads.named_parameters() if name != "shared")
