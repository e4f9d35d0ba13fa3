"""Linear layers in float8: which ones, and what stays as it was. Values are those of float8, emulated on a CPU."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn

from vwm.core.blocks import compile_blocks
from vwm.nn import float8
from vwm.nn.float8 import check_float8_device, convert_to_float8
from vwm.nn.recomputation import recompute_blocks

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao"),
    pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning"),  # in its source
    # torchao registers its enums with torch.compile, which no longer needs it; and see test_blocks.
    pytest.mark.filterwarnings("ignore:.*Enum subclass.*"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 2048)
        self.down = nn.Linear(2048, 64)
        self.modulation = nn.Linear(64, 2048)
        self.odd = nn.Linear(72, 2056)
        self.frozen = nn.Linear(64, 2048).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last = nn.Linear(64, 2048)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def make_network() -> Network:
    torch.manual_seed(0)
    return Network()


def step(network: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))  # 18 rows, no multiple of 16
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(x).float().square().mean()
    loss.backward()
    return loss.detach(), [p.grad for p in network.parameters()]


def in_float8(network: nn.Module) -> set[str]:
    return {name for name, part in network.named_modules() if type(part).__name__ == "Float8Linear"}


def test_only_large_trained_layers_of_blocks_are_converted():
    network = make_network()
    weights = {name: p.data_ptr() for name, p in network.named_parameters()}
    assert convert_to_float8(network, "tensorwise", emulate=True) == 2
    assert in_float8(network) == {"blocks.0.up", "blocks.1.up"}
    assert {name: p.data_ptr() for name, p in network.named_parameters()} == weights


def test_weights_are_saved_and_loaded_as_without_float8():
    plain, converted = make_network(), make_network()
    convert_to_float8(converted, "tensorwise", emulate=True)
    saved = converted.state_dict()
    assert list(saved) == list(plain.state_dict()) and {type(x) for x in saved.values()} == {torch.Tensor}
    plain.load_state_dict(saved)
    converted.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_the_loss_and_its_gradients_are_those_of_bfloat16_within_float8s_precision(recipe, monkeypatch):
    monkeypatch.setattr(float8, "_gains", lambda layer, recipe: layer.weight.shape in ((64, 2048), (2048, 64)))
    plain = make_network()
    converted = copy.deepcopy(plain)
    assert convert_to_float8(converted, recipe, emulate=True) == 6
    (loss, gradients), (expected_loss, expected) = step(converted), step(plain)
    assert loss != expected_loss
    torch.testing.assert_close(loss, expected_loss, rtol=0.03, atol=0)
    for found, wanted in zip(gradients, expected, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.98


def test_float8_layers_are_compiled_and_recomputed():
    plain = make_network()
    convert_to_float8(plain, "tensorwise", emulate=True)
    compiled = copy.deepcopy(plain)
    recompute_blocks(compiled, "selective")
    compile_blocks(compiled, "aot_eager", fullgraph=True)
    (loss, gradients), (expected_loss, expected) = step(compiled.train()), step(plain.train())
    torch.testing.assert_close(loss, expected_loss)
    for found, wanted in zip(gradients, expected, strict=True):
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=0.02, atol=1e-3)


def test_what_float8_lacks_is_named(monkeypatch):
    with pytest.raises(ValueError, match="float8=rowwise: no trained linear layer of a block is large enough"):
        convert_to_float8(make_network(), "rowwise")
    with pytest.raises(ValueError, match=r"requires a GPU with float8 products .* runs on a cpu device: set float8"):
        check_float8_device("tensorwise", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ValueError, match="this training runs on NVIDIA A100"):
        check_float8_device("tensorwise", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    check_float8_device("tensorwise", torch.device("cuda"))
    check_float8_device("none", torch.device("cpu"))
    monkeypatch.setattr(float8, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"requires torchao: pip install 'vwm\[float8\]'"):
        convert_to_float8(make_network(), "tensorwise")
    network = make_network()
    assert convert_to_float8(network, "none") == 0 and not in_float8(network)
