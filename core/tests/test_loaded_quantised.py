"""Weights that transformers' `quantization_config` quantises on a CPU, by torchao, which few have: skipped without it.

In float32, so that texts can be compared: what is rounded is then the weights alone, the same in every forward.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TorchAoConfig

from fastllm_core import load
from fastllm_core.testing import tiny_model
from fastllm_core.testing.loaded import NEW, PROMPTS, check_loaded, generated

torchao = pytest.importorskip("torchao.quantization")


def quantised(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A model of int8 weights, each row with its scale."""
    tiny_model(num_hidden_layers=3, hidden_size=64).save_pretrained(folder)
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config)


def test_int8_weights(tmp_path: Path) -> None:
    given = quantised(tmp_path)
    assert type(given.model.layers[0].mlp.up_proj.weight.data) is not torch.Tensor
    assert generated(given) != generated(tiny_model(num_hidden_layers=3, hidden_size=64))
    check_loaded(given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_has_the_dtype_that_the_model_computes_in(tmp_path: Path, dtype: torch.dtype) -> None:
    with load(quantised(tmp_path, dtype), "plain") as pipeline:
        assert pipeline.target.dtype is dtype
        pipeline.generate([1, 2, 3], max_new_tokens=2)
        layers = pipeline.engine.parts.cache.layers(slice(0, 1), 8)
    assert {store.dtype for pair in layers for store in pair} == {dtype}


def test_a_folder_of_quantised_weights(tmp_path: Path) -> None:
    given = quantised(tmp_path / "float")
    given.save_pretrained(tmp_path / "int8")
    with load(tmp_path / "int8", "plain", device="cpu", dtype="float32") as pipeline:
        texts = pipeline.generate(PROMPTS, max_new_tokens=NEW)
        assert type(pipeline.target.model.model.layers[0].mlp.up_proj.weight.data) is not torch.Tensor
    assert [list(text.token_ids) for text in texts] == generated(given)
