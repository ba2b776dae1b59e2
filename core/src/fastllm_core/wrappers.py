"""What people put around a model they have loaded: torch.compile, PEFT's adapters, accelerate's hooks.

The model below is taken as it stands: with its adapters where PEFT injected them into its layers, with the hooks that
fetch offloaded weights, and uncompiled.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .errors import ModelError, UnsupportedModel

REPLICAS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
LOSS_ONLY = "ADALORA"
"""The one PEFT type whose own forward changes nothing but a loss."""


def unwrapped(model: object) -> PreTrainedModel:
    """The transformers model below whatever it is wrapped in.

    Raises ModelError if there is none, UnsupportedModel if the wrapper adds something that the model alone lacks.
    """
    if isinstance(model, nn.Module) and "_orig_mod" in model._modules:  # torch.compile
        return unwrapped(model._orig_mod)
    peft = sys.modules.get("peft")  # whoever holds a PeftModel has imported it
    if peft is not None and isinstance(model, peft.PeftModel | peft.PeftMixedModel):
        _check_adapters(peft, model)
        return unwrapped(model.base_model.model)
    kind = type(model).__name__
    if isinstance(model, REPLICAS):
        raise ModelError(f"model: a {kind} feeds replicas; give the model inside, its .module")
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"model: expected a name, a folder or a transformers causal LM, not {kind}")
    if not model.can_generate():
        raise ModelError(f"model: a {kind} has no language-model head; load it with AutoModelForCausalLM")
    return model


def execution_device(name: str, model: PreTrainedModel) -> torch.device:
    """The one device on which the model computes, wherever accelerate keeps its weights. Raises ModelError."""
    kept = {parameter.device for parameter in model.parameters()}
    fetched = {torch.empty(0, device=place).device for module in model.modules() for place in _fetched_to(module)}
    places = (kept - {torch.device("meta")}) | fetched if fetched else kept
    if len(places) != 1 or torch.device("meta") in places:
        where = ", ".join(sorted(str(place) for place in places)) or "no device"
        raise ModelError(f"model '{name}': its weights lie on {where}; fastllm needs them on one device")
    return places.pop()


def quantization_refusal(config: Any) -> str:
    """Why a model's quantisation cannot be run, as the end of "model 'x' (type) ...", or "".

    LLM.int8() (arXiv:2208.07339, section 3.2) takes the columns out that hold an outlier in any row of a forward: a
    token's logits then depend on what is drafted after it, and with them the text.
    """
    given = getattr(config, "quantization_config", None) or {}
    settings = given if isinstance(given, dict) else given.to_dict()
    if settings.get("load_in_8bit") and settings.get("llm_int8_threshold", 6.0) > 0:
        return (
            "is quantised by LLM.int8(), whose outliers are those of all rows of a forward together, so that a token's "
            "logits depend on later ones; load it with llm_int8_threshold=0.0, in 4 bits or as torchao int8"
        )
    return ""


def _check_adapters(peft: Any, model: Any) -> None:
    """Refuse adapters that act outside of the layers, where a forward of the model itself would miss them."""
    tuner = model.base_model
    own_forward = not isinstance(tuner, peft.tuners.tuners_utils.BaseTuner) or (
        type(tuner).forward is not peft.tuners.tuners_utils.BaseTuner.forward
    )
    for name in tuner.active_adapters if isinstance(model, peft.PeftMixedModel) else model.active_adapters:
        config = model.peft_config[name]
        kind = getattr(config.peft_type, "value", config.peft_type)
        if (own_forward and kind != LOSS_ONLY) or getattr(config, "alora_invocation_tokens", None):
            raise UnsupportedModel(
                f"model: the adapter '{name}' ({kind}) acts on the prompt or around the model, which fastllm does not "
                "see; adapters that stay within the layers (such as LoRA) work, and so does what merge_and_unload() "
                "returns"
            )


def _fetched_to(module: nn.Module) -> Iterator[Any]:
    """Where accelerate's hooks bring a module's offloaded weights for the time of its forward."""
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if getattr(one, "offload", False):
            yield one.execution_device
