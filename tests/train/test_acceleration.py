"""What ``vwm fit`` switches on by device: precision, compilation, recomputation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import dit

from vwm.core.blocks import find_blocks
from vwm.train import acceleration
from vwm.train.acceleration import accelerate_networks, choose_precision

CUDA = torch.device("cuda")


def on_cuda(monkeypatch: pytest.MonkeyPatch, bf16: bool = True, compiler: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: compiler)
    monkeypatch.setenv("CC", "gcc")


@pytest.mark.parametrize(
    ("given", "accelerator", "expected"),
    [
        (None, "auto", "bf16-mixed"), (None, "cuda", "bf16-mixed"), (None, "gpu", "bf16-mixed"),
        (None, "cpu", "32-true"), ("32-true", "cuda", "32-true"), ("16-mixed", "auto", "16-mixed"),
    ],
)  # fmt: skip
def test_an_unset_precision_is_bfloat16_on_cuda_only(monkeypatch, given, accelerator, expected):
    on_cuda(monkeypatch)
    trainer = {"precision": given, "accelerator": accelerator}
    choose_precision(trainer)
    assert trainer["precision"] == expected


def test_an_unset_precision_is_float32_where_there_is_no_bfloat16_and_no_gpu(monkeypatch):
    trainer: dict[str, Any] = {"precision": None, "accelerator": "auto"}
    if not torch.cuda.is_available():
        choose_precision(trainer)
        assert trainer["precision"] == "32-true"
    on_cuda(monkeypatch, bf16=False)
    trainer["precision"] = None
    choose_precision(trainer)
    assert trainer["precision"] == "32-true"


@pytest.mark.parametrize(
    ("setting", "device", "compiler", "expected"),
    [
        ("auto", CUDA, True, True), ("auto", torch.device("cpu"), True, False), ("auto", CUDA, False, False),
        (True, torch.device("cpu"), False, True), (False, CUDA, True, False),
    ],
)  # fmt: skip
def test_blocks_are_compiled_by_default_on_cuda_only(monkeypatch, capsys, setting, device, compiler, expected):
    on_cuda(monkeypatch, compiler=compiler)
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(acceleration, "compile_blocks", compiled.append)
    network = dit()
    accelerate_networks(network, device, setting, "none")
    assert compiled == [network] * expected
    assert ("without torch.compile" in capsys.readouterr().out) == (setting == "auto" and not compiler)


@pytest.mark.parametrize(
    ("setting", "recomputed"), [(True, "full"), (False, "none"), ("selective", "selective"), ("none", "none")]
)
def test_gradient_checkpointing_takes_names_and_switches(monkeypatch, setting, recomputed):
    chosen: list[str] = []
    monkeypatch.setattr(acceleration, "recompute_blocks", lambda module, how: chosen.append(how))
    network = dit()
    accelerate_networks(network, torch.device("cpu"), False, setting)
    assert chosen == [recomputed] and list(find_blocks(network))
