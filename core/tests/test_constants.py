"""Weights of programs as files: the same numbers, once, and oneDNN's packed again."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from fastllm_core import constants
from fastllm_core.constants import Constant, Mapped, files, of, told, unmapped_bytes, write


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12, dtype=torch.float32).reshape(3, 4),
        torch.arange(12, dtype=torch.bfloat16).reshape(3, 4).t(),
        torch.arange(12)[2:9:3],
        torch.tensor(3.5),
        torch.empty(0, 4),
        torch.tensor([True, False]),
    ],
    ids=["plain", "transposed", "part", "scalar", "empty", "bool"],
)
def test_a_tensor_comes_back_as_it_was(tensor: torch.Tensor, tmp_path: Path) -> None:
    constant = write("w", tensor, tmp_path)
    (again,) = of({"constants": told([constant])})
    assert again == constant
    back = Mapped([again], tmp_path).tensors["w"]
    assert (back.dtype, back.stride()) == (tensor.dtype, tensor.stride())
    assert torch.equal(back, tensor)


def test_the_same_bytes_are_one_file_and_one_mapping(tmp_path: Path) -> None:
    weight = torch.randn(64, 64)
    both = [write("a", weight, tmp_path), write("b", weight.clone().reshape(32, 128), tmp_path)]
    assert len(list(tmp_path.iterdir())) == 1
    assert files(both) == {both[0].sha256: weight.nbytes}
    assert unmapped_bytes(both, tmp_path) == weight.nbytes
    first, second = Mapped(both[:1], tmp_path), Mapped(both[1:], tmp_path)
    assert first.tensors["a"].data_ptr() == second.tensors["b"].data_ptr()
    assert unmapped_bytes(both, tmp_path) == 0
    del first, second
    gc.collect()
    assert unmapped_bytes(both, tmp_path) == weight.nbytes, "unmapped with the last program that read it"


def test_what_is_mapped_is_not_written(tmp_path: Path) -> None:
    constant = write("w", torch.zeros(8), tmp_path)
    Mapped([constant], tmp_path).tensors["w"].fill_(1)
    assert torch.equal(Mapped([constant], tmp_path).tensors["w"], torch.zeros(8)), "a private mapping"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_what_onednn_packed_is_packed_again(tmp_path: Path) -> None:
    weight, entry = torch.randn(48, 32), torch.randn(7, 32)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, constants.ROWS)
    constant = write("w", packed, tmp_path)
    assert constant.packed
    back = Mapped([constant], tmp_path).tensors["w"]
    assert back.is_mkldnn
    given = torch.ops.mkldnn._linear_pointwise(entry, back, None, "none", [], "")
    torch.testing.assert_close(given, entry @ weight.t())


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="No such file"):
        Mapped([Constant("w", "0" * 64, 16, "float32", (4,), (1,), 0)], tmp_path)
