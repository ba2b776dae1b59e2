"""Options of a method's trainer or converter, from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fastllm_core import ConfigError, Options


def options_of(model: type[Options], given: Mapping[str, Any]) -> Options:
    """The options; all values are as typed. Raises ConfigError with the names that there are."""
    try:
        return model.model_validate_strings(dict(given))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(map(str, detail["loc"]))
        known = "; ".join(f"{name}: {field.description}" for name, field in model.model_fields.items())
        raise ConfigError(f"--set {key}: {detail['msg']}. There are {known}") from error
