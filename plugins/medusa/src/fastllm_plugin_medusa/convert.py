"""Heads as others publish them, in and out.

original  `{k}.{j}.linear.weight`, `.bias` and `{k}.{m}.weight`, in medusa_lm_head.safetensors or .pt. Heads are counted
          in the file: published configurations are wrong about them. Without `{k}.{m}.weight` the target's own
          output matrix is meant, as in text-generation-inference's second version.
Medusa-2  the same below `medusa_head.`, beside the weights of the model that was tuned with them
vllm      `blocks.{k}.layers.{j}.weight`, `lm_heads.{k}.weight`, `token_map`; `original_lm_head` for the target's
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field
from torch import Tensor

from fastllm_core import ConfigError, Head, ModelError, Network, Options, Published, TargetIdentity

from .heads import TOKEN_MAP, HeadsShape, build_heads, make_head, output_weight

TUNED: Final = "medusa_head."
"""Before the heads in the weights of a Medusa-2 model."""
PREFIXES: Final = (TUNED, "medusa_heads.", "medusa.", "module.")
ORIGINAL: Final = re.compile(r"(\d+)\.(\d+)\.(linear\.weight|linear\.bias|weight)")
VLLM: Final = re.compile(r"(blocks\.\d+\.layers\.\d+|lm_heads\.\d+)\.(weight|bias)")


class Incoming(Options):
    """What becomes of what is not the heads'."""

    target: str | None = Field(
        None, description="A Medusa-2 model: the folder for the model that was tuned with the heads, without them."
    )


class MedusaConverter:
    """Implements `fastllm_core.Converter`."""

    Options = Incoming
    layouts = ("original", "vllm")

    def __init__(self, options: Incoming, network: Network) -> None:
        """network: the target; of a Medusa-2 model, that model itself."""
        self.options, self.network = options, network

    def convert(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Head:
        """A head from published files. Raises ModelError if they are no Medusa heads, or another model's."""
        tuned = any(name.startswith(TUNED) for name in weights)
        if tuned:
            self._check_tuned(weights)
            weights = {name: tensor for name, tensor in weights.items() if name.startswith(TUNED)}
        elif self.options.target:
            raise ConfigError("--set target: these are heads alone, and no model was tuned with them")
        found = {_plain(name): tensor for name, tensor in weights.items()}
        ours = self._from_vllm(config, found) if any(VLLM.fullmatch(name) for name in found) else _from_original(found)
        shape = self._shape(ours)
        shape.check(self.network, "the published heads")
        build_heads(shape, self.network, ours, "the published heads")
        head = make_head(shape, self.network, ours)
        return replace(head, target=self._split()) if self.options.target else head

    def export(self, head: Head, layout: str) -> Published:
        """A head in the layout of the original code, or of vLLM: outputs are whole matrices, or the target's.

        Raises ConfigError for what a layout has no place for.
        """
        shape = HeadsShape.read(head.settings, head.source)
        heads = range(shape.heads)
        outputs = {} if shape.output == "shared" else {k: self._matrix(head, shape, k) for k in heads}
        if layout == "vllm":
            return self._to_vllm(head, shape, outputs)
        if TOKEN_MAP in head.weights:
            raise ConfigError("--to original: it has no place for a truncated vocabulary; vllm has")
        made = {f"{k}.{shape.blocks}.weight": matrix for k, matrix in outputs.items()}
        for k in heads:
            for j in range(shape.blocks):
                made |= {f"{k}.{j}.linear.{part}": head.weights[_block(k, j, part)] for part in ("weight", "bias")}
        config = {
            "medusa_num_heads": shape.heads,
            "medusa_num_layers": shape.blocks,
            "base_model_name_or_path": head.target.model,
        }
        return Published(config, made, "medusa_lm_head.safetensors")

    # -- in --------------------------------------------------------------------------------------------------------

    def _from_vllm(self, config: Mapping[str, Any], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """vLLM's names are ours; biases may be missing, and an output matrix may be the target's."""
        ours = {name: tensor for name, tensor in found.items() if VLLM.fullmatch(name) or name == TOKEN_MAP}
        for name in [name for name in ours if name.startswith("blocks.") and name.endswith(".weight")]:
            bias = name.removesuffix("weight") + "bias"
            ours.setdefault(bias, ours[name].new_zeros(len(ours[name])))
        if config.get("original_lm_head"):
            ours = {name: tensor for name, tensor in ours.items() if not name.startswith("lm_heads.")}
        tokens = ours.get(TOKEN_MAP)
        if tokens is not None:
            ours[TOKEN_MAP] = tokens.long()
            for name, tensor in ours.items():
                if name.startswith("lm_heads.") and len(tensor) > len(tokens):
                    ours[name] = tensor[tokens]
        return ours

    def _shape(self, ours: Mapping[str, Tensor]) -> HeadsShape:
        """Counted in the weights, whatever a configuration says. Raises ModelError if heads differ in size."""
        first = {name: tensor.shape for name, tensor in ours.items() if name.startswith(("blocks.0.", "lm_heads.0."))}
        numbers = {int(name.split(".")[1]) for name in ours if name != TOKEN_MAP}
        if not numbers or numbers != {*range(len(numbers))} or not first:
            raise ModelError("the published weights hold no heads numbered from 0: are they Medusa's?")
        blocks = sum(name.startswith("blocks.0.") and name.endswith(".weight") for name in first)
        output = first.get("lm_heads.0.weight")
        hidden = output[1] if output else first["blocks.0.layers.0.weight"][1]
        tokens = ours.get(TOKEN_MAP)
        entries = len(tokens) if tokens is not None else output[0] if output else self.network.vocab_size
        return HeadsShape(len(numbers), blocks, hidden, entries, "own" if output else "shared")

    def _check_tuned(self, weights: Mapping[str, Tensor]) -> None:
        """The model that was tuned with the heads must be the target."""
        theirs = next(
            (weights[name] for name in ("lm_head.weight", "base_model.lm_head.weight") if name in weights), None
        )
        if theirs is None:
            return
        ours = output_weight(self.network, self.network.hidden_size)
        if theirs[: len(ours)].shape != ours.shape or not torch.equal(theirs[: len(ours)].to(ours), ours):
            raise ModelError(
                f"the published heads come with the model that was tuned with them, and '{self.network.loaded.name}' "
                "is another: give the same folder as --model, and --set target=DIR to keep that model without its heads"
            )

    def _split(self) -> TargetIdentity:
        """Write the model that the heads were tuned with; returns its identity."""
        assert self.options.target is not None
        folder, loaded = Path(self.options.target).expanduser(), self.network.loaded
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"--set target={folder}: is not empty; name a new folder")
        loaded.model.save_pretrained(folder)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(folder)
        return replace(TargetIdentity.of(self.network), model=str(folder))

    # -- out -------------------------------------------------------------------------------------------------------

    def _to_vllm(self, head: Head, shape: HeadsShape, outputs: Mapping[int, Tensor]) -> Published:
        blocks = {name: tensor for name, tensor in head.weights.items() if name.startswith("blocks.")}
        biased = any(bool(tensor.any()) for name, tensor in blocks.items() if name.endswith(".bias"))
        made = {name: tensor for name, tensor in blocks.items() if biased or name.endswith(".weight")}
        made |= {f"lm_heads.{k}.weight": matrix for k, matrix in outputs.items()}
        if shape.reads_target and not outputs:
            made["lm_heads.0.weight"] = self._own_matrix(head, shape)
        if TOKEN_MAP in head.weights:
            made[TOKEN_MAP] = head.weights[TOKEN_MAP]
        config = {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "num_heads": shape.heads,
            "num_hidden_layers": shape.blocks,
            "hidden_size": shape.hidden_size,
            "vocab_size": self.network.vocab_size,
            "truncated_vocab_size": shape.vocab_size,
            "medusa_fc_bias": biased,
            "original_lm_head": shape.output == "shared",
        }
        return Published(config, made)

    def _matrix(self, head: Head, shape: HeadsShape, index: int) -> Tensor:
        """float[V, H]: the output matrix of one head, multiplied out."""
        if shape.output == "own":
            return head.weights[f"lm_heads.{index}.weight"]
        down, up = (head.weights[f"lm_heads.{index}.{part}.weight"] for part in ("down", "up"))
        whole = up.float() @ down.float()
        return (whole + self._own_matrix(head, shape).float() if shape.output == "delta" else whole).to(up.dtype)

    def _own_matrix(self, head: Head, shape: HeadsShape) -> Tensor:
        weight = output_weight(self.network, shape.hidden_size).cpu()
        return weight[head.weights[TOKEN_MAP]] if TOKEN_MAP in head.weights else weight.clone()


def _from_original(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the original's. Raises ModelError for any other name."""
    ours = {}
    for name, tensor in found.items():
        match = ORIGINAL.fullmatch(name)
        if match is None:
            raise ModelError(f"the published weights hold {name}, which is none of Medusa's: are they heads alone?")
        k, j, part = match.groups()
        linear = part.startswith("linear.")
        ours[_block(int(k), int(j), part.removeprefix("linear.")) if linear else f"lm_heads.{k}.weight"] = tensor
    return ours


def _block(head: int, block: int, part: str) -> str:
    return f"blocks.{head}.layers.{block}.{part}"


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
