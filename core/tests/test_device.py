"""Choosing a device and a number format."""

from __future__ import annotations

import pytest
import torch

from fastllm_core import device as module
from fastllm_core.device import DeviceInfo, available_devices, select_device
from fastllm_core.errors import DeviceError

CARD = DeviceInfo("cuda:1", "cuda", "Old Card", 1, ("float32", "float16", "float64"), "float16", chosen=False)
FIRST = DeviceInfo("cuda:0", "cuda", "Card", 1, ("float32", "bfloat16", "float16", "float64"), "bfloat16", chosen=True)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = available_devices()[-1]
    monkeypatch.setattr(module, "available_devices", lambda: [FIRST, CARD, processor])


def test_processor() -> None:
    chosen = select_device("cpu")
    assert (chosen.kind, chosen.device, chosen.name) == ("cpu", torch.device("cpu"), "cpu")
    assert chosen.dtype in (torch.float32, torch.bfloat16)
    assert select_device("cpu", "float64").dtype is torch.float64


@pytest.mark.parametrize(("native", "picked"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_only_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, picked: torch.dtype
) -> None:
    monkeypatch.setattr(module, "native_cpu_bfloat16", lambda: native)
    assert select_device("cpu").dtype is picked


def test_exactly_one_device_is_what_auto_picks() -> None:
    devices = available_devices()
    assert [each.chosen for each in devices] == [True] + [False] * (len(devices) - 1)
    assert select_device().name == devices[0].name


@pytest.mark.usefixtures("cards")
def test_cards() -> None:
    assert select_device().device == torch.device("cuda", 0)
    assert select_device("cuda").dtype is torch.bfloat16
    assert select_device("cuda:1").dtype is torch.float16
    with pytest.raises(DeviceError, match=r"cuda:1 \(Old Card\) lacks bfloat16; it has float32, float16, float64"):
        select_device("cuda:1", "bfloat16")
    with pytest.raises(DeviceError, match="there is no 'cuda:7' here; this machine has cuda:0, cuda:1, cpu"):
        select_device("cuda:7")


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [
        ("mps", "auto", "MPS is not supported"),
        ("cqu", "auto", "unknown device 'cqu'; did you mean 'cpu'"),
        ("tpu:0", "auto", "this machine has"),
        ("cpu", "float23", "did you mean 'float32'"),
        ("cpu", "int8", "there are float32, bfloat16"),
    ],
)
def test_wrong_choice_lists_what_exists(device: str, dtype: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        select_device(device, dtype)


def test_rocm_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_devices", lambda: [available_devices()[-1]])
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(DeviceError, match="built for rocm: write 'rocm'"):
        select_device("cuda")


def test_threads() -> None:
    before = torch.get_num_threads()
    try:
        select_device("cpu", threads=1)
        assert torch.get_num_threads() == 1
        with pytest.raises(DeviceError, match="at least 1"):
            select_device("cpu", threads=0)
    finally:
        torch.set_num_threads(before)
