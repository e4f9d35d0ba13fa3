"""RMSNorm: values and gradients equal torch's."""

import pytest
import torch
import torch.nn.functional as F

from vwm.nn.norm import RMSNorm


@pytest.mark.parametrize("weighted", [True, False])
def test_values_and_gradients_equal_torchs(weighted):
    torch.manual_seed(0)
    norm = RMSNorm(8, weighted).double()
    weight = None
    if weighted:
        torch.nn.init.normal_(norm.weight)
        weight = norm.weight.detach().clone().requires_grad_()
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    y, expected = norm(x), F.rms_norm(z, (8,), weight, 1e-6)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    output_grad = torch.randn_like(y)
    y.backward(output_grad)
    expected.backward(output_grad)
    torch.testing.assert_close(x.grad, z.grad, rtol=0, atol=1e-12)
    if weighted:
        torch.testing.assert_close(norm.weight.grad, weight.grad, rtol=0, atol=1e-12)


def test_passes_gradcheck_and_keeps_the_dtype():
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RMSNorm(6, elementwise_affine=False), (x,))
    assert RMSNorm(6)(torch.ones(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
