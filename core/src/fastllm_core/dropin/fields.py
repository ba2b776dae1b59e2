"""Every setting of a GenerationConfig: what becomes of it here. One that nobody has thought about is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from transformers import GenerationConfig

from ..errors import RequestError

HONOURED: Final = frozenset(
    {
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_new_tokens",
        "max_time",
        "stop_strings",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "repetition_penalty",
        "encoder_repetition_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "renormalize_logits",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "sequence_bias",
        "token_healing",
        "guidance_scale",
        "watermarking_config",
        "num_return_sequences",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    }
)
"""Translated, or made into processors and criteria by transformers, which are then called as it calls them."""

IRRELEVANT: Final[Mapping[str, str]] = {
    "use_cache": "the cache is fastllm's own",
    "cache_config": "the cache is fastllm's own",
    "max_cache_len": "the cache is fastllm's own",
    "prefill_chunk_size": "engine.prefill_chunk says it",
    "compile_config": "forward says it",
    "disable_compile": "forward says it",
    "continuous_batching_config": "for generate_batch",
    "low_memory": "for contrastive search",
    "early_stopping": "for beams",
    "length_penalty": "for beams",
    "decoder_start_token_id": "for encoder-decoders",
    "num_assistant_tokens": "for an assistant",
    "num_assistant_tokens_schedule": "for an assistant",
    "assistant_confidence_threshold": "for an assistant",
    "assistant_lookbehind": "for an assistant",
    "target_lookbehind": "for an assistant",
    "max_matching_ngram_size": "for transformers' own prompt look-up",
    "transformers_version": "who wrote the file",
}
"""What changes no text that is decoded here, and why."""

ALLOWED: Final[Mapping[str, tuple[object, ...]]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "constraints": ((), []),
    "force_words_ids": ((), []),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "use_mtp": (False,),
    "is_assistant": (False,),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (),
    "speculation_type": (),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "cache_implementation": ("dynamic", "dynamic_full", "static", "hybrid", "hybrid_chunked", "sliding_window"),
}
"""What cannot be honoured, and its values (beside None) that ask for nothing."""

HINTS: Final[Mapping[str, str]] = {
    "num_beams": "it decodes one sequence per row",
    "num_beam_groups": "it decodes one sequence per row",
    "use_mtp": "it drafts by its own method",
    "prompt_lookup_num_tokens": 'it drafts by its own method, such as "prompt-lookup"',
    "assistant_early_exit": 'it drafts by its own method, such as "self-speculative"',
    "cache_implementation": "its cache is its own, in the model's number format and on its device",
}


def check(config: GenerationConfig, defaults: GenerationConfig) -> None:
    """Raise RequestError if something is asked that cannot be honoured.

    config: of the call, as `generate` has prepared it.  defaults: the model's own, whose file may hold keys that
    transformers does not know and does not read.
    """
    known = vars(GenerationConfig())
    general = {**known, **{k: v for k, v in GenerationConfig._get_default_generation_params().items() if k in known}}
    for name, value in vars(config).items():
        if name.startswith("_") or value is None or name in HONOURED or name in IRRELEVANT:
            continue
        if name in ALLOWED:
            if not any(value == allowed for allowed in ALLOWED[name]):
                raise refusal(name, value, HINTS.get(name, ""))
        elif name in known:
            if value != general[name]:
                raise refusal(name, value, "it does not know this setting of a newer transformers")
        elif value != getattr(defaults, name, None):
            raise refusal(name, value, "no such setting is known")


def refusal(name: str, value: object, hint: str = "") -> RequestError:
    """What is said where an argument of `generate` cannot be honoured."""
    shown = repr(value) if isinstance(value, bool | int | float | str | list | tuple | dict) else type(value).__name__
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    reason = f": {hint}" if hint else ""
    return RequestError(
        f"{name} = {shown} cannot be honoured by fastllm{reason}; leave it out, or leave custom_generate out"
    )
