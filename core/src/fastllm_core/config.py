"""The configuration: what may be set, what it means and what it is when nobody sets it.

Later sources win: defaults, the file, the environment, then overrides (command line or keyword arguments). All use the
same dotted keys. Names only, never import paths: what a name means is decided by what is installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from .sources import Layer, environment, file, flatten, merge, validate

CONFIG_FILE = "fastllm.toml"
"""Read from the current directory if neither an argument nor FASTLLM_CONFIG names another."""


class Section(BaseModel):
    """A table of the configuration: frozen, strict about types, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Roles(Section):
    """Which plugin fills a role, where two offer it; "core" is the core's own."""

    drafter: str | None = Field(default=None, description="Plugin whose drafter is taken.")
    verifier: str | None = Field(default=None, description="Plugin whose verifier is taken.")
    kv_cache: str | None = Field(default=None, description="Plugin whose key/value cache is taken.")
    acceptor: str | None = Field(default=None, description="Plugin whose acceptor is taken.")


class Acceptance(Section):
    """How drafts are accepted."""

    rule: Literal["auto", "match", "rejection", "block", "typical", "lenient"] = Field(
        default="auto",
        description='"auto" is the exact rule that fits how the drafter makes its tokens; "match", "rejection" and '
        '"block" are exact as well; "typical" and "lenient" change the text, which `lossy` must allow.',
    )
    epsilon: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description='For "typical": a token is kept if its probability exceeds min(epsilon, delta * exp(-entropy)); '
        "unset: 0.09.",
    )
    delta: float | None = Field(
        default=None, ge=0, description='For "typical", see `acceptance.epsilon`; unset: the square root of epsilon.'
    )
    lenience: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description='For "lenient": no token becomes likelier than its own probability divided by this; unset: 0.5.',
    )

    @field_validator("epsilon", "delta", "lenience")
    @classmethod
    def _must_be_read(cls, value: float | None, info: ValidationInfo) -> float | None:
        reader = "lenient" if info.field_name == "lenience" else "typical"
        if value is not None and info.data.get("rule", reader) != reader:
            raise ValueError(f'must be unset unless acceptance.rule = "{reader}"')
        return value


class Draft(Section):
    """How much is drafted in a round."""

    controller: str = Field(
        default="auto",
        description='Who chooses the draft length: "auto" from measured costs, nothing where drafting does not pay; '
        '"heuristic" longer after full acceptance, shorter otherwise; "threshold" until the drafter is unsure; '
        '"fixed" always `length`.',
    )
    length: PositiveInt = Field(
        default=5, description="The most tokens (for a tree: levels) that are drafted in a round."
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description='For "threshold": a draft ends behind a token less likely than this, at first; unset: 0.8 where '
        "decoding is greedy, 0.5 where it samples.",
    )
    acceptance: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description='For "threshold": the share of drafted tokens that should be accepted, by which the threshold is '
        "tuned; unset: 0.9.",
    )

    @field_validator("threshold", "acceptance")
    @classmethod
    def _must_be_read(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("controller", "threshold") != "threshold":
            raise ValueError('must be unset unless draft.controller = "threshold"')
        return value


class SamplingDefaults(Section):
    """What a request gets unless it says otherwise; unset: the model's generation_config, as in transformers."""

    temperature: NonNegativeFloat | None = Field(default=None, description="0 is greedy.")
    top_k: NonNegativeInt | None = Field(default=None, description="Keep the k most likely tokens; 0 keeps all.")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Keep the fewest most likely tokens whose probability reaches p."
    )
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="Drop tokens less likely than this share of the most likely one."
    )
    seed: int | None = Field(
        default=None, description="The same seed gives the same text; unset: another text each time."
    )
    max_new_tokens: PositiveInt | None = Field(default=None, description="The most tokens to generate for a prompt.")
    min_new_tokens: NonNegativeInt | None = Field(
        default=None, description="No token that ends the text before so many were generated."
    )
    ignore_eos: bool | None = Field(default=None, description="Go on after an end-of-text token.")
    repetition_penalty: PositiveFloat | None = Field(
        default=None, description="Above 1: tokens of the prompt and the text become less likely; 1 changes nothing."
    )
    presence_penalty: float | None = Field(
        default=None, description="Taken off the logit of every token that was generated."
    )
    frequency_penalty: float | None = Field(
        default=None, description="Taken off a token's logit for every time that it was generated."
    )
    no_repeat_ngram_size: NonNegativeInt | None = Field(
        default=None, description="No sequence of so many tokens occurs twice; 0 allows all."
    )
    bad_words: list[str] | None = Field(default=None, description="Words that are never written.")
    logit_bias: dict[str, float] = Field(
        default={}, description="Added to the logits of tokens, by id; -100 as good as forbids one."
    )


class Engine(Section):
    """Sizes of the engine."""

    max_rows: PositiveInt = Field(default=16, description="The most requests that are decoded side by side.")
    prefill_chunk: PositiveInt = Field(default=256, description="Prompt tokens that are read in one forward.")
    cache_block: PositiveInt = Field(default=64, description="Slots by which the key/value cache grows.")


class Programs(Section):
    """Compiled forwards on disk, in the folder that FASTLLM_COMPILED names or in the user's cache folder."""

    limit_gib: PositiveFloat = Field(
        default=20.0, description="Gibibytes that compiled programs may take; above it the longest unused ones go."
    )


class Config(Section):
    """Everything that can be configured."""

    model: str = Field(
        default="demo", description="A registered name, a local folder, or a name on the Hugging Face hub."
    )
    method: str = Field(
        default="auto",
        description='How to speculate: the name of an installed method, "plain" for none, or "auto" for what a '
        "registered model recommends.",
    )
    use: list[str] = Field(default=[], description="Further plugins, by name; a later one wraps the earlier ones.")
    requires: list[str] = Field(
        default=[], description='Distributions that must be installed, such as "fastllm-plugin-kangaroo>=0.1,<0.2".'
    )
    device: str = Field(
        default="auto", description='"auto", "cpu", "cuda" or "rocm", with an index if need be: "cuda:1".'
    )
    dtype: str = Field(
        default="auto",
        description='"auto" is the fastest that the device supports; or "float32", "bfloat16", "float16".',
    )
    threads: PositiveInt | None = Field(default=None, description="Processor threads; unset: as many as torch chooses.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of the model on the hub.")
    forward: Literal["auto", "eager", "compiled", "graphs", "fused"] = Field(
        default="auto",
        description='How forwards run: "compiled" by programs that are compiled ahead of time, which takes a minute '
        'each, once; "graphs" captured on a GPU; "fused" the same, with kernels of our own for models like Llama; '
        '"eager" as transformers does; "auto" fused on a GPU, by programs that are there already (`fastllm compile`) '
        "on a processor, else eager.",
    )
    exact: bool = Field(
        default=False,
        description="The same bits from every method and from plain decoding, in any dtype: all rounds have one shape, "
        "`engine.max_rows` by `draft.length` + 1. For chains; sampling accepts by match.",
    )
    lossy: bool = Field(default=False, description="Allow methods that change the text or its distribution.")
    acceptance: Acceptance = Field(default_factory=Acceptance, description="How drafts are accepted.")
    roles: Roles = Field(default_factory=Roles, description="Which plugin fills a role, where two offer it.")
    draft: Draft = Field(default_factory=Draft, description="How much is drafted in a round.")
    sampling: SamplingDefaults = Field(
        default_factory=SamplingDefaults,
        description="Defaults of every request; unset: what the model's generation_config says.",
    )
    engine: Engine = Field(default_factory=Engine, description="Sizes of the engine.")
    programs: Programs = Field(default_factory=Programs, description="Compiled forwards on disk.")
    options: dict[str, dict[str, Any]] = Field(
        default={}, description="Options of each plugin by its name; `fastllm plugins show NAME` lists them."
    )


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration from a TOML file, the environment and overrides, each winning over the one before.

    path: the file; else the one that FASTLLM_CONFIG names, else `fastllm.toml` in the current directory if it exists.
    overrides: by dotted key, `{"draft.length": 3}`; strings are read as TOML values where the key is not a text.
    environ: `FASTLLM_MODEL=demo`, `FASTLLM_DRAFT__LENGTH=3`, `FASTLLM_OPTIONS__SPECULATIVE__DRAFT_MODEL=x`.
    Raises ConfigError with every problem, one to a line.
    """
    layers = []
    chosen = path or environ.get("FASTLLM_CONFIG") or (CONFIG_FILE if Path(CONFIG_FILE).is_file() else None)
    if chosen is not None:
        layers.append(file(Path(chosen)))
    layers += environment(environ, Config)
    layers.append(Layer("override", dict(flatten(overrides or {})), texts=True))
    return validate(Config, *merge(layers, Config))


def config_from(values: Mapping[str, object], source: str = "config") -> Config:
    """The configuration from a mapping alone, nested or with dotted keys, without file and environment.

    Raises ConfigError with every problem, one to a line.
    """
    return validate(Config, *merge([Layer(source, dict(flatten(values)))], Config))


def config_schema() -> dict[str, Any]:
    """JSON schema of the configuration file."""
    return Config.model_json_schema()
