"""The folder of a grown model: weights, configuration, tokenizer and card."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from string import Template

from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from .grow import assemble, grow
from .shape import Shape

COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Files of the source that hold for the grown model as they are."""

BAR_DELAY_S = 2.0


def load(folder: Path) -> LlamaForCausalLM:
    """The Llama of a folder in the dtype of its weights."""
    return assemble(LlamaConfig.from_pretrained(folder), load_file(folder / "model.safetensors"))


def build(name: str, source: Path, shape: Shape, seed: int, folder: Path) -> None:
    """Grow the model of `source` and write it to the empty `folder`, in the dtype of the source."""
    # disable=None: no bar where standard error is not a terminal.
    with tqdm(desc=name, total=shape.layers, unit="layer", delay=BAR_DELAY_S, disable=None, leave=False) as bar:
        model = grow(load(source), shape, seed, on_layer=bar.update)
        bar.set_description(f"{name}: writing")
        # Parameters, unlike the state dict, name a tied matrix once, as a published checkpoint does.
        weights = {key: tensor.detach() for key, tensor in model.named_parameters()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    # safetensors makes files that only their owner may read, whatever the umask says.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    for file in COPIED:
        shutil.copyfile(source / file, folder / file)
    count = sum(tensor.numel() for tensor in weights.values())
    card = Template((files(__package__) / "card.md").read_text(encoding="utf-8"))
    text = card.substitute(name=name, source=source.name, seed=seed, shape=shape, millions=f"{count / 1e6:.0f}")
    (folder / "README.md").write_text(text, encoding="utf-8")
