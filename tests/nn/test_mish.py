import pytest
import torch
from torch.nn import functional as F

from vwm.nn.mish import TORCH_KERNEL_MAX_ELEMENTS, mish


@pytest.mark.parametrize("count", [5, 4 * TORCH_KERNEL_MAX_ELEMENTS])
def test_mish_is_x_times_tanh_of_softplus(count):
    x = torch.linspace(-60, 60, count, dtype=torch.float64).requires_grad_()
    y = mish(x)
    y.sum().backward()
    torch.testing.assert_close(y, x * x.exp().log1p().tanh(), rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(F.mish(x).sum(), x)
    torch.testing.assert_close(x.grad, slope)
    with torch.no_grad():
        assert torch.equal(mish(x), y)


def test_gradients_agree_with_finite_differences():
    x = torch.randn(
        TORCH_KERNEL_MAX_ELEMENTS + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    torch.autograd.gradcheck(mish, x, fast_mode=True)


def test_float32_results_agree_with_float64():
    x = torch.cat((torch.linspace(-80, 80, 2 * TORCH_KERNEL_MAX_ELEMENTS), torch.tensor([1e30, -1e30])))
    torch.testing.assert_close(mish(x).double(), F.mish(x.double()), rtol=2e-6, atol=1e-33)
