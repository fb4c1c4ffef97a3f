"""Devices, and the requirements for compiling kernels."""

import importlib.util
import shutil

import pytest
import torch

from ollm_rl.devices import Fetched, has_triton, resolve_device


@pytest.mark.parametrize(
    ("packages", "programs", "expected"),
    [({"triton"}, {"clang"}, True), ({"triton"}, {"mycc"}, True), ({"triton"}, set(), False), (set(), {"gcc"}, False)],
)
def test_kernels_need_triton_and_a_c_compiler(
    packages: set[str], programs: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in packages else None)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.setenv("CC", "mycc")
    assert has_triton() is expected


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="device 'tpu9' is not available here; give cpu, cuda or auto"):
        resolve_device("tpu9")


@pytest.mark.parametrize(("name", "current"), [("cuda:1", [1]), ("cuda", []), ("cpu", [])])
def test_a_gpu_with_a_number_becomes_the_current_one(
    name: str, current: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, zeros = [], torch.zeros(1)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: zeros)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made.append(device.index))
    assert str(resolve_device(name)) == name
    assert made == current


def test_what_is_fetched_does_not_change_later_and_a_cpu_has_it_at_once() -> None:
    tensor = torch.tensor([[1, 2], [3, 4]])
    fetched = Fetched(tensor[1])
    tensor.zero_()
    assert fetched.ready()
    assert fetched() == fetched.numpy().tolist() == [3, 4]
