"""Tiny random models and a tokenizer, made in memory."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def tiny_model(family: str = "llama", *, seed: int = 0, sharpness: float = 8.0, **config: Any) -> PreTrainedModel:
    """A causal LM of a family (its `model_type`) with random float32 weights that depend on the seed alone.

    sharpness: factor on the output matrix, so that the arg max is clear and greedy text is not one token repeated.
    config: settings of the family's configuration, on top of `SMALL`.
    """
    settings = AutoConfig.for_model(family, **{**SMALL, **config})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.15)
            model.get_output_embeddings().weight.mul_(sharpness)
    model.generation_config.eos_token_id = settings.eos_token_id
    model.eval()
    return model


def tiny_tokenizer(size: int = 64) -> PreTrainedTokenizerFast:
    """A character-level tokenizer: letters, digits, space and some marks, then `<n>` up to `size` entries."""
    marks = list(" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?0123456789")[: size - 1]
    words = ["<unk>", *marks, *(f"<{index}>" for index in range(len(marks) + 1, size))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
