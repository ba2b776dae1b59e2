"""The target of a head, run as transformers runs it."""

from __future__ import annotations

import fastllm_core
from fastllm_core import Config, Pipeline


def plain(config: Config, trust_remote_code: bool = False) -> Pipeline:
    """The configured model, decoding plainly. Not compiled: programs are made for the shapes of generation."""
    return loaded(config, {"method": "plain", "forward": "eager"}, trust_remote_code)


def loaded(config: Config, settings: dict[str, object], trust_remote_code: bool = False) -> Pipeline:
    """The configured model with other settings by dotted key, and without the options of other methods."""
    return fastllm_core.load(config=fastllm_core.configuration(config, settings), trust_remote_code=trust_remote_code)
