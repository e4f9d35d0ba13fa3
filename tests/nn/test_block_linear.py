"""A block-diagonal matrix by any way is the same matrix."""

import pytest
import torch

from vwm.nn.block_linear import BlockLinear


def dense(layer: BlockLinear, part: int) -> torch.Tensor:
    """One output's matrix, zeros and all."""
    size = layer.bias.shape[1] // len(layer.weight)
    return torch.block_diag(*(block[part * size : (part + 1) * size] for block in layer.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parts", [1, 3])
def test_it_is_the_matrix_with_zeros_written_out_and_so_are_its_gradients(dtype, parts):
    torch.manual_seed(0)
    layer = BlockLinear(12, 8, blocks=4, num_outputs=parts).to(dtype)
    torch.nn.init.normal_(layer.bias)
    x, toward = torch.randn(5, 12, dtype=dtype, requires_grad=True), torch.randn(5, parts, 8, dtype=dtype)
    y = layer(x)
    expected = torch.stack([x @ dense(layer, p).T + layer.bias[p] for p in range(parts)], dim=1)
    torch.testing.assert_close(y, expected)
    inputs = (x, layer.weight, layer.bias)
    for one, other in zip(*(torch.autograd.grad((z * toward).sum(), inputs) for z in (y, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_widths_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="blocks=3 must divide inputs=8"):
        BlockLinear(8, 9, 3)
