"""Growing a small Llama into a large one that computes the same function.

The text of the small model at the cost of the large one. Every unit of a layer (a key head with its query heads, or a
neuron of the MLP) first reads the residual stream and then writes to it, and three facts make room for new units:

    the stream   New dimensions start at zero in the embeddings and nobody writes to them, so they may be read with any
                 weight. RMSNorm averages over them as well: its weight and epsilon are rescaled to make up for it.
    units        New ones are random, but come in equal pairs that write +w and -w. Three of them, where their number
                 is odd, write +w, +w and -2w: exact in bfloat16 too.
    layers       New ones have only such units. They stand between the old ones.

So no matrix of a layer holds blocks of zeros or repeats another's, which a runtime could fold: it is as dense and as
large as in a trained model of that size. Say *grown* wherever a number measured with such a model is shown.

`python -m fastllm_plugin_demo.grow NAME` builds one of the registered ones and prints its folder; with `--source` and
`--output` it grows another model of `demo`'s kind to the same shape.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from .shape import Shape

if TYPE_CHECKING:
    from .models import Grown


@dataclass(frozen=True, slots=True)
class Noise:
    """Random weights, drawn in order from a generator of their own, so that a seed fixes the whole model."""

    generator: torch.Generator
    std: float
    dtype: torch.dtype

    def draw(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=self.dtype).normal_(0.0, self.std, generator=self.generator)


def grow(
    small: LlamaForCausalLM,
    shape: Shape,
    seed: int = 0,
    *,
    on_layer: Callable[[], object] = lambda: None,
) -> LlamaForCausalLM:
    """A Llama of the given shape, in `small`'s dtype on the CPU, whose logits are `small`'s up to rounding.

    `on_layer` is called after each finished layer. `small` is not changed and shares no memory with the result.
    Raises ValueError if the shape cannot hold `small`.
    """
    config = _grown_config(small.config, shape)
    noise = Noise(torch.Generator().manual_seed(seed), config.initializer_range, small.dtype)
    body = small.model
    embedding = body.embed_tokens.weight.detach()
    width = embedding.shape[1]
    tensors = {
        "model.embed_tokens.weight": _zero_padded(embedding, shape.hidden),
        "model.norm.weight": grown_norm(body.norm.weight, shape.hidden),
    }
    if not config.tie_word_embeddings:
        head = noise.draw(config.vocab_size, shape.hidden)
        head[:, :width] = small.lm_head.weight.detach()
        tensors["lm_head.weight"] = head
    old_count = len(body.layers)
    old_layers = {i * shape.layers // old_count: layer for i, layer in enumerate(body.layers)}  # spread evenly
    for index in range(shape.layers):
        layer = _grown_layer(old_layers.get(index), shape, _head_dim(config), noise)
        tensors |= {f"model.layers.{index}.{name}.weight": tensor for name, tensor in layer.items()}
        on_layer()
    return assemble(config, tensors)


def assemble(config: LlamaConfig, tensors: dict[str, Tensor]) -> LlamaForCausalLM:
    """A model that owns `tensors` as its parameters, made without initialising any that would be thrown away."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    _, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    # The only buffers, which no checkpoint holds: they would stay without data.
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing or unexpected:
        raise ValueError(f"weights do not fit the configuration: missing {missing}, unexpected {unexpected}")
    model.eval()
    return model


def _grown_config(small: LlamaConfig, shape: Shape) -> LlamaConfig:
    old = Shape(
        small.hidden_size,
        small.num_hidden_layers,
        small.intermediate_size,
        small.num_attention_heads,
        small.num_key_value_heads or small.num_attention_heads,
    )
    smaller = [name for name in Shape.__slots__ if getattr(shape, name) < getattr(old, name)]
    if smaller:
        raise ValueError(f"{shape} is smaller than {old} in {', '.join(smaller)}")
    if shape.heads * old.kv_heads != old.heads * shape.kv_heads:
        raise ValueError(f"{shape} must have {old.heads / old.kv_heads:g} query heads per key head, as {old} has")
    if small.attention_bias or small.mlp_bias:
        raise ValueError("a Llama with biases cannot be grown")
    config = deepcopy(small)
    config.head_dim = _head_dim(small)  # else it would follow from the new sizes
    config.hidden_size = shape.hidden
    config.num_hidden_layers = shape.layers
    config.intermediate_size = shape.intermediate
    config.num_attention_heads = shape.heads
    config.num_key_value_heads = shape.kv_heads
    config.rms_norm_eps = small.rms_norm_eps * old.hidden / shape.hidden
    return config


def _head_dim(config: LlamaConfig) -> int:
    return config.head_dim or config.hidden_size // config.num_attention_heads


def _grown_layer(old: LlamaDecoderLayer | None, shape: Shape, head_dim: int, noise: Noise) -> dict[str, Tensor]:
    """The weights of one layer by module name: `old` with new units, or new units alone."""
    group = shape.heads // shape.kv_heads * head_dim
    q, k, v, o = grown_units(
        _weights(old.self_attn.q_proj, old.self_attn.k_proj, old.self_attn.v_proj) if old else None,
        old.self_attn.o_proj.weight.detach() if old else None,
        rows=[group, head_dim, head_dim],
        columns=group,
        units=shape.kv_heads,
        hidden=shape.hidden,
        noise=noise,
    )
    gate, up, down = grown_units(
        _weights(old.mlp.gate_proj, old.mlp.up_proj) if old else None,
        old.mlp.down_proj.weight.detach() if old else None,
        rows=[1, 1],
        columns=1,
        units=shape.intermediate,
        hidden=shape.hidden,
        noise=noise,
    )
    ones = torch.ones(shape.hidden, dtype=noise.dtype)
    return {
        "input_layernorm": grown_norm(old.input_layernorm.weight, shape.hidden) if old else ones,
        "self_attn.q_proj": q,
        "self_attn.k_proj": k,
        "self_attn.v_proj": v,
        "self_attn.o_proj": o,
        "post_attention_layernorm": grown_norm(old.post_attention_layernorm.weight, shape.hidden)
        if old
        else ones.clone(),
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": down,
    }


def _weights(*modules: nn.Linear) -> list[Tensor]:
    return [module.weight.detach() for module in modules]


def grown_units(
    old_readers: Sequence[Tensor] | None,
    old_writer: Tensor | None,
    *,
    rows: Sequence[int],
    columns: int,
    units: int,
    hidden: int,
    noise: Noise,
) -> list[Tensor]:
    """Readers and, last, their writer: the old units, then new ones that cancel.

    readers: [units * rows_i, hidden].  writer: [hidden, units * columns].
    """
    kept = 0 if old_writer is None else old_writer.shape[1] // columns
    leader, factor = cancelling(units - kept)
    leaders = int(leader.max()) + 1 if len(leader) else 0
    grown = []
    for i, height in enumerate(rows):
        new = noise.draw(leaders, height, hidden)[leader].reshape(-1, hidden)
        if old_readers:
            old = old_readers[i]
            new_columns = noise.draw(len(old), hidden - old.shape[1])
            new = torch.cat([torch.cat([old, new_columns], dim=1), new])
        grown.append(new)
    writer = noise.draw(hidden, leaders, columns)[:, leader] * factor.to(noise.dtype)[:, None]
    writer = writer.reshape(hidden, -1)
    if old_writer is not None:
        padded = torch.zeros(hidden, old_writer.shape[1], dtype=old_writer.dtype)
        padded[: len(old_writer)] = old_writer
        writer = torch.cat([padded, writer], dim=1)
    return [*grown, writer]


def cancelling(count: int) -> tuple[Tensor, Tensor]:
    """For each of `count` new units: which random one it equals, and the factor of its output. They sum to nothing."""
    index = torch.arange(count)
    leader = (index // 2).clamp(max=max(count // 2 - 1, 0))
    factor = 1 - 2 * (index % 2)
    if count == 1:
        factor[0] = 0
    elif count % 2:
        factor[-3:] = torch.tensor([1, 1, -2])
    return leader, factor


def _zero_padded(weight: Tensor, hidden: int) -> Tensor:
    padded = torch.zeros(len(weight), hidden, dtype=weight.dtype)
    padded[:, : weight.shape[1]] = weight
    return padded


def grown_norm(weight: Tensor, hidden: int) -> Tensor:
    """The weight of an RMSNorm over more dimensions, the new of which are zero."""
    grown = torch.ones(hidden, dtype=weight.dtype)
    # The mean of squares is smaller by len(weight) / hidden; exact in bfloat16 where the root is a power of two.
    grown[: len(weight)] = weight.detach().float() * math.sqrt(len(weight) / hidden)
    return grown


def main() -> int:
    """Build a registered grown model, or another of its shape, and print its folder."""
    from fastllm_core import FastllmError

    from .models import GROWN

    parser = argparse.ArgumentParser(
        prog="python -m fastllm_plugin_demo.grow",
        description="Build a grown model, unless the cache has it, and print its folder.",
    )
    parser.add_argument("name", choices=sorted(GROWN), metavar="NAME", help=", ".join(GROWN))
    parser.add_argument("--source", type=Path, metavar="DIR", help="grow this model, one trained from demo, instead")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where that goes; a new or empty folder")
    asked = parser.parse_args()
    if (asked.source is None) != (asked.output is None):
        parser.error("--source and --output belong together")
    try:
        folder = GROWN[asked.name].path() if asked.source is None else _grown_from(asked, GROWN[asked.name])
    except (FastllmError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{folder}\n")
    return 0


def _grown_from(asked: argparse.Namespace, model: Grown) -> Path:
    """Raises OSError or ValueError if the source is no such model, or the output not an empty folder."""
    from .build import build

    output: Path = asked.output
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise ValueError(f"--output {output}: is not empty; name a new folder")
    build(output.name, asked.source, model.shape, model.seed, output)
    return output


if __name__ == "__main__":
    sys.exit(main())
