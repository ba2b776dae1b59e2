"""Models by registered name, local folder or hub name, and what the rest of the core asks of a loaded one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from . import discovery
from .errors import ModelError, PluginContractError
from .generation_defaults import GenerationDefaults
from .suggest import did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .adapters import Adapter
    from .device import Device
    from .origin import Origin

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")


@runtime_checkable
class RegisteredModel(Protocol):
    """What an entry point of the group `fastllm.models` holds."""

    @property
    def description(self) -> str:
        """One line about the model."""

    @property
    def method(self) -> str | None:
        """The method that `method = "auto"` takes, if it is installed."""

    @property
    def options(self) -> Mapping[str, Mapping[str, object]]:
        """Default options by plugin name; the user's win."""

    def path(self) -> Path:
        """The folder with the weights. The first call may build or unpack it."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are."""

    name: str
    location: str
    """A local folder or a hub name."""
    local: bool
    registered: RegisteredModel | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM that is ready to run, with its tokenizer. Nothing in fastllm mutates it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    device: torch.device
    dtype: torch.dtype
    origin: Origin | None = None
    """The files that its weights were read from, if they were read here."""

    @cached_property
    def config(self) -> Any:
        """The text part of the model's config."""
        return cast(Any, self.model.config).get_text_config(decoder=True)

    @cached_property
    def context_length(self) -> int | None:
        """The most tokens that the model can read, or None if its config knows no limit.

        LongRoPE (arXiv:2402.13753) ends where its frequencies change: keys in the cache would have to change with them.
        """
        values = (getattr(self.config, key, None) for key in CONTEXT_KEYS)
        limits = [next((value for value in values if isinstance(value, int) and value > 0), None)]
        ropes = getattr(self.config, "rope_parameters", None) or {}
        for rope in (ropes, *ropes.values()):
            if isinstance(rope, Mapping) and rope.get("rope_type") == "longrope":
                own = getattr(self.config, "original_max_position_embeddings", None)
                limits.append(rope.get("original_max_position_embeddings", own))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def vocab_size(self) -> int:
        """V, the width of the logits, which may be padded beyond the tokenizer's entries."""
        return int(self.config.vocab_size)

    @cached_property
    def generation(self) -> GenerationDefaults:
        """What the model's generation_config sets, and what of it is not applied yet."""
        eos = None if self.tokenizer is None else self.tokenizer.eos_token_id
        return GenerationDefaults.of(self.model.generation_config, eos)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text: the generation_config's, else the tokenizer's."""
        return self.generation.eos_token_ids


def registered_model(name: str) -> RegisteredModel | None:
    """The model that an installed plugin registers under this name, or None.

    Raises PluginConflict, PluginLoadError, or PluginContractError if it is no RegisteredModel.
    """
    if all(plugin.name != name for plugin in discovery.installed("model")):
        return None
    plugin, value = discovery.load(name, "model")
    if not isinstance(value, RegisteredModel):
        raise PluginContractError(f"{plugin} is no RegisteredModel: it needs description, method, options and path()")
    return value


def resolve_model(name: str) -> ModelSource:
    """Where the model's files are: of a registered name, a local folder, or a hub name (`owner/name`).

    A registered model may be built here, which takes seconds the first time. Raises ModelError.
    """
    registered = registered_model(name)
    if registered is not None:
        return ModelSource(name, str(registered.path()), True, registered)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model '{name}': the folder has no config.json; give the folder of a Hugging Face model")
        return ModelSource(name, str(folder), True)
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return ModelSource(name, name, False)
    known = sorted({plugin.name for plugin in discovery.installed("model")})
    raise ModelError(
        f"model '{name}': no such registered model or folder{did_you_mean(name, known) or '.'} "
        f"Registered: {', '.join(known) or 'none'}. A model on the hub is written owner/name"
    )


def load_model(
    model: str | Path | PreTrainedModel,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    device: str | Device = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    adapters: Sequence[Adapter] = (),
) -> LoadedModel:
    """Load a model with its tokenizer, from safetensors only, or take an already loaded one as it is.

    model: a registered name, a local folder, a hub name, or a loaded causal LM, which is neither moved nor changed.
    tokenizer: a tokenizer, or where to load it from; None is the model's own. A model without one takes token ids only.
    device, dtype: as in `select_device`. A `Device` brings its own dtype.
    revision: branch, tag or commit on the hub, of config, weights, tokenizer and generation config alike.
    adapters: what plugins know of model families, so that what cannot be run is refused before its weights are read.
    Raises ModelError, UnsupportedModel or DeviceError.
    """
    from . import weights  # torch and transformers enter here

    if isinstance(model, str | Path):
        source = resolve_model(str(model))
        return weights.load(source, tokenizer, weights.placed(device, dtype), revision, trust_remote_code, adapters)
    return weights.adopt(model, tokenizer, device, dtype, trust_remote_code, adapters)


def verify_same_vocabulary(target: LoadedModel, draft: LoadedModel) -> None:
    """Raise ModelError unless every token that both tokenizers know has the same id in both.

    Tokenizers are compared as maps: equal sizes prove nothing, and padded embeddings are no difference.
    """
    if target.tokenizer is None or draft.tokenizer is None:
        _verify_same_size(target, draft)
        return
    ours, theirs = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    names = {index: token for token, index in theirs.items()}
    conflicts = {token for token, index in ours.items() if theirs.get(token, index) != index}
    conflicts |= {token for token, index in ours.items() if names.get(index, token) != token}
    if conflicts or not ours.keys() & theirs.keys():
        examples = _examples(conflicts, ours, theirs, names)
        raise ModelError(
            f"'{draft.name}' and '{target.name}' have different vocabularies: {len(conflicts) or len(ours)} of "
            f'{len(ours)} entries differ ({examples}). For a drafter with another tokenizer use method = "uag" '
            "(pip install fastllm-plugin-uag)"
        )


def _verify_same_size(target: LoadedModel, draft: LoadedModel) -> None:
    lacking = " and ".join(f"'{model.name}'" for model in (target, draft) if model.tokenizer is None)
    if target.vocab_size != draft.vocab_size:
        raise ModelError(
            f"the vocabularies of '{draft.name}' and '{target.name}' have {draft.vocab_size} and {target.vocab_size} "
            f"entries, and {lacking} came without a tokenizer to compare; give the tokenizers"
        )
    logging.getLogger("fastllm").warning(
        "%s came without a tokenizer: only the vocabularies' sizes were compared, and they agree", lacking
    )


def _examples(
    conflicts: Iterable[str], ours: Mapping[str, int], theirs: Mapping[str, int], names: Mapping[int, str]
) -> str:
    """The first three entries that differ, by the target's id."""
    shown = []
    for token in sorted(conflicts, key=lambda token: ours[token])[:3]:
        there = str(theirs[token]) if token in theirs else f"missing, and {ours[token]} is {names[ours[token]]!r}"
        shown.append(f"{token!r} is {ours[token]} in the target, {there} in the drafter")
    return "; ".join(shown) or "nothing in common"
