"""What `fastllm train medusa --set KEY=VALUE` takes."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from fastllm_core import Options

from .heads import Output

Joint = Literal["no", "full", "lora"]
"""Whether the target learns as well: Medusa-1, Medusa-2 on all of its weights, or Medusa-2 on adapters."""
COEFFICIENTS: Final[dict[Joint, float]] = {"no": 1.0, "full": 0.2, "lora": 0.01}
"""c if it is not said: 0.01 with self-distillation is the paper's (section 2.3.2), 0.2 axolotl's Medusa fork's."""


class MedusaRecipe(Options):
    """The heads, and what they are asked to say."""

    heads: int = Field(4, ge=1, description="Heads, K.")
    blocks: int = Field(1, ge=0, description="ResBlocks of a head.")
    output: Output = Field(
        "own",
        description="Output matrix of a head: own, shared (the target's), low-rank, or delta (shared and low-rank).",
    )
    rank: int = Field(64, ge=1, description="Rank of an output of low rank.")
    vocabulary: int | None = Field(
        None,
        ge=2,
        description="Entries that heads say: the first so many of the tokenizer, which orders them by frequency; "
        "unset is all.",
    )
    decay: float = Field(0.8, gt=0.0, description="Head k counts decay^k in the loss.")
    weights: str | None = Field(
        None, description="What each head counts in the loss, in place of decay: numbers with commas between them."
    )
    labels: Literal["text", "target"] = Field(
        "text", description="Heads learn the text's tokens, or what the target finds most likely behind the text."
    )
    soft: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of a head's loss that goes to the target's distribution, not to a label.",
    )
    joint: Joint = Field(
        "no",
        description="no: the target is frozen (Medusa-1); full: it learns as well (Medusa-2); lora: adapters in it do, "
        "which needs the package peft.",
    )
    coefficient: float | None = Field(
        None, gt=0.0, description="What heads count beside the target's own loss, c; unset is 0.2, or 0.01 with lora."
    )
    own: Literal["text", "teacher"] | None = Field(
        None,
        description="A target that learns keeps to the text, or to what it said before (self-distillation); unset is "
        "text, or teacher with lora.",
    )
    warmup: Literal["sine", "two-stage", "none"] = Field(
        "sine",
        description="How heads enter joint training: c rises with a sine over all steps; or heads learn alone first.",
    )
    alone: float = Field(0.3, ge=0.0, lt=1.0, description="Share of the steps that heads learn alone in two stages.")
    heads_rate: float = Field(4.0, gt=0.0, description="Learning rate of the heads over the target's, if that learns.")
    lora_rank: int = Field(32, ge=1, description="Rank of the adapters.")
    lora_alpha: int = Field(16, ge=1, description="Their scale, times rank.")
    nodes: int = Field(16, ge=1, description="Drafted tokens of the tree that evaluations walk with.")
    seed: int = Field(0, description="Of the adapters' first weights.")

    @model_validator(mode="after")
    def _one_weight_a_head(self) -> Self:
        if self.weights is not None and len(self.weights.split(",")) != self.heads:
            raise ValueError(f"weights: {self.heads} heads need as many numbers, with commas between them")
        try:
            float_weights(self)
        except ValueError:
            raise ValueError("weights: must be numbers with commas between them") from None
        return self


def float_weights(recipe: MedusaRecipe) -> list[float]:
    """lambda_k of every head."""
    if recipe.weights is None:
        return [recipe.decay**head for head in range(recipe.heads)]
    return [float(weight) for weight in recipe.weights.split(",")]
