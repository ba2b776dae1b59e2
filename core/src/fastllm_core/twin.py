"""The twin of a loaded model: a copy of its module tree that shares every weight and owns its configuration.

The user's model is never touched: what transformers hangs onto a module at run time (hooks, an attention
implementation) lands on the twin, and so does what a view takes out of it.

What others have hung onto a module is led over to the twin. accelerate puts `partial(new_forward, module)` into a
module's attributes, and `torch.compile(model.forward)` a wrapper around a bound method: copied as they are, both would
run the user's model in place of the twin.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial
from types import MethodType
from typing import Any, cast

from torch import nn
from transformers import PreTrainedConfig

from .errors import UnsupportedModel


def share(model: nn.Module) -> nn.Module:
    """Copy the module tree of `model` in evaluation mode: parameters and buffers are shared, the config is owned.

    The state of everything else is that of this moment: active adapters, hooks. What torch.compile made of a module is
    left behind, and the module itself is taken. Raises UnsupportedModel if a forward was replaced by a function that
    may hold on to the original.
    """
    memo: dict[int, Any] = {}
    copy.deepcopy(getattr(model, "config", None), memo)
    return cast("nn.Module", _twin(model, memo))


def _twin(value: Any, memo: dict[int, Any]) -> Any:
    """The twin's counterpart of an attribute: modules and configurations get their own, all else stays shared."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module):
        return _twin_module(value, memo)
    if isinstance(value, PreTrainedConfig):
        return copy.deepcopy(value, memo)
    if isinstance(value, dict):
        twin = memo[id(value)] = copy.copy(value)
        if type(value) in (dict, OrderedDict):
            twin.update({key: _twin(item, memo) for key, item in value.items()})
        return twin
    if type(value) in (list, tuple, set):
        twin = memo[id(value)] = type(value)(_twin(item, memo) for item in value)
        return twin
    return _twin_callable(value, memo)


def _twin_callable(value: Any, memo: dict[int, Any]) -> Any:
    """What is bound to a module is bound to its twin; anything else is shared."""
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, _twin(value.__self__, memo))
    if isinstance(value, partial):
        keywords = {name: _twin(item, memo) for name, item in value.keywords.items()}
        twin = partial(_twin(value.func, memo), *(_twin(item, memo) for item in value.args), **keywords)
        twin.__dict__.update({name: _twin(item, memo) for name, item in value.__dict__.items()})
        return twin
    compiled = getattr(value, "_torchdynamo_orig_callable", None)
    while compiled is not None and not isinstance(compiled, MethodType):
        compiled = getattr(compiled, "__wrapped__", None)
    return value if compiled is None else _twin_callable(compiled, memo)


def _twin_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    compiled = module._modules.get("_orig_mod")
    if compiled is not None:  # torch.compile's OptimizedModule, which calls the original
        return cast("nn.Module", _twin(compiled, memo))
    twin = memo[id(module)] = module.__class__.__new__(module.__class__)
    attributes = twin.__dict__
    attributes.update({name: _twin(item, memo) for name, item in module.__dict__.items()})
    attributes["training"] = False
    forward = attributes.get("forward")
    if forward is not None and forward is module.__dict__["forward"]:
        raise UnsupportedModel(
            f"the forward of a {type(module).__name__} was replaced by "
            f"{getattr(forward, '__qualname__', type(forward).__name__)}, which may run only the module it was made "
            "for: bind the function to the module (types.MethodType), or load the model without it"
        )
    return twin
