"""oneDNN linear layers equal torch's."""

import copy

import pytest
import torch
from torch import nn

from vwm.nn.linear import HAS_ONEDNN, OneDNNLinear


def make_inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_values_and_gradients_equal_torchs(dtype, bias, transposed):
    torch.manual_seed(0)
    onednn = OneDNNLinear(24, 40, bias=bias).to(dtype)
    reference = nn.Linear(24, 40, bias=bias).to(dtype)
    reference.load_state_dict(onednn.state_dict())
    results = []
    for layer in (onednn, reference):
        x = make_inputs(dtype)
        y = layer(x.transpose(0, 1) if transposed else x)
        gradient = torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)
        results.append((y, *torch.autograd.grad((y * gradient).sum(), (x, *layer.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_frozen_inputs_and_weights_get_no_gradient():
    layer = OneDNNLinear(24, 40)
    x = make_inputs().detach()
    layer(x).sum().backward()
    assert layer.weight.grad is not None and x.grad is None
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    y = make_inputs()
    layer(y).sum().backward()
    torch.testing.assert_close(y.grad, layer.weight.sum(0).expand_as(y), rtol=0, atol=1e-5)


def test_supports_autocast_and_deepcopy():
    layer = OneDNNLinear(24, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(make_inputs()).dtype == torch.bfloat16
    assert torch.equal(copy.deepcopy(layer)(make_inputs()), layer(make_inputs()))


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
def test_errors_are_at_the_level_of_float32_rounding():
    x, layer = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1)), OneDNNLinear(1024, 64)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    with torch.no_grad():
        assert (layer(x) - exact).abs().max() < 1e-5 * exact.abs().max()
