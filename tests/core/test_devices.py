"""A device that this machine lacks is an error that says what it has."""

from __future__ import annotations

import os

import pytest
import torch

from vwm.core import devices as devices_module
from vwm.core.devices import allow_tf32, resolve_device, resolve_precision
from vwm.train.fit import check_trainer_devices


def test_a_missing_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="no device cuda: this machine has no CUDA device; give auto or cpu"):
        resolve_device("cuda")
    with pytest.raises(ValueError, match="there is no device 'gpu0'"):
        resolve_device("gpu0")
    for other in ("meta", "xla"):
        with pytest.raises(ValueError, match=f"there is no device {other} that vwm computes on: give auto, cpu"):
            resolve_device(other)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="no device cuda:2: this machine has 2 CUDA devices"):
        resolve_device("cuda:2")


def test_a_trainer_takes_the_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    cores = os.cpu_count()
    for devices in ("auto", 1, cores):
        check_trainer_devices("cpu", devices)
    for devices in (-1, 0, cores + 1, "99999"):
        with pytest.raises(ValueError, match=rf"trainer.devices={devices}: this machine has {cores} CPU cores"):
            check_trainer_devices("auto", devices)
    with pytest.raises(ValueError, match=r"trainer.accelerator=gpu, and this machine has no GPU"):
        check_trainer_devices("gpu", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check_trainer_devices("gpu", -1)
    with pytest.raises(ValueError, match="this machine has 4 GPUs; give a number from 1 to 4"):
        check_trainer_devices("gpu", 5)


def test_tf32_is_allowed_on_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", settings.append)
    allow_tf32(torch.device("cpu"))
    assert not settings
    allow_tf32(torch.device("cuda", 1))
    assert settings == ["high"]


def test_bfloat16_is_the_default_on_a_gpu_and_in_play(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices_module, "multiplies_bfloat16", lambda device: True)
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert resolve_precision("auto", gpu) == torch.bfloat16
    assert resolve_precision("auto", cpu) == torch.float32
    assert resolve_precision("auto", cpu, bfloat16_on_cpu=True) == torch.bfloat16
    assert resolve_precision("float32", gpu) == torch.float32
    assert resolve_precision("bfloat16", cpu) == torch.bfloat16
    monkeypatch.setattr(devices_module, "multiplies_bfloat16", lambda device: False)
    assert resolve_precision("auto", gpu) == torch.float32
    with pytest.raises(ValueError, match="precision='half' must be auto, float32 or bfloat16"):
        resolve_precision("half", cpu)
