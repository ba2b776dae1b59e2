"""What a model's generation_config asks for, read as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .request import SamplingParams

TRANSFORMERS_TOP_K: Final = 50
"""What `generate(do_sample=True)` takes where nobody set top_k."""

AS_THEY_ARE: Final = (
    *("temperature", "top_k", "top_p", "min_p", "max_new_tokens"),
    *("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens", "min_length"),
)
"""Settings that are taken over by name."""

NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "typical_p": (1.0,),
    "top_h": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "begin_suppress_tokens": ((), []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "force_words_ids": ((), []),
    "constraints": ((), []),
    "exponential_decay_length_penalty": (),
    "dola_layers": (),
    "watermarking_config": (),
    "stop_strings": ((), [], ""),
    "max_time": (),
    "token_healing": (False,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
}
"""Settings that change the text and are not applied yet, with the values (beside None) that change nothing."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Settings as the generation_config states them; None where it is silent."""

    eos_token_ids: frozenset[int] = frozenset()
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    """Of prompt and text together."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    unapplied: tuple[str, ...] = ()
    """`repetition_penalty = 1.1` and the like: what `model.generate` would apply and fastllm does not yet."""

    @classmethod
    def of(cls, config: Any, tokenizer_eos: int | None = None) -> GenerationDefaults:
        """From a transformers GenerationConfig; None counts as an empty one."""
        eos = getattr(config, "eos_token_id", None)
        if eos is None:
            eos = tokenizer_eos
        ids = frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)
        if config is None:
            return cls(ids)
        values = {name: getattr(config, name, None) for name in AS_THEY_ARE}
        unapplied = tuple(f"{name} = {getattr(config, name)!r}" for name in NEUTRAL if _matters(config, name))
        bad_words = [tuple(words) for words in getattr(config, "bad_words_ids", None) or ()]
        biases = getattr(config, "sequence_bias", None) or ()
        pairs = biases.items() if isinstance(biases, Mapping) else biases
        return cls(
            ids,
            bool(getattr(config, "do_sample", None)),
            **values,
            bad_words=tuple(words for words in bad_words if len(words) > 1 or words[0] not in ids),  # as transformers
            suppress_tokens=tuple(getattr(config, "suppress_tokens", None) or ()),
            sequence_bias=tuple((tuple(tokens), float(bias)) for tokens, bias in pairs),
            unapplied=unapplied,
        )

    def controls(self, prompt: int) -> dict[str, Any]:
        """What `model.generate()` does to the logits behind a prompt of so many tokens: fields of `Controls`."""
        least = max(self.min_new_tokens or 0, (self.min_length or 0) - prompt)
        values = {
            "sequence_bias": self.sequence_bias,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "bad_words": self.bad_words,
            "min_new_tokens": least,
        }
        return {name: value for name, value in values.items() if value}

    def sampling(self) -> SamplingParams:
        """What `model.generate()` does when nobody says otherwise."""
        if not self.do_sample:
            return SamplingParams()
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=TRANSFORMERS_TOP_K if self.top_k is None else self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=0.0 if self.min_p is None else self.min_p,
        )


def _matters(config: Any, name: str) -> bool:
    value = getattr(config, name, None)
    return value is not None and all(value != neutral for neutral in NEUTRAL[name])
