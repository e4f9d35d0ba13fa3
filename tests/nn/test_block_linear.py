"""BlockLinear equals a linear layer with a block-diagonal matrix."""

import pytest
import torch

from vwm.nn.block_linear import BlockLinear


def dense_matrix(layer: BlockLinear, output: int) -> torch.Tensor:
    """One output's block-diagonal matrix, including the zeros."""
    size = layer.bias.shape[1] // len(layer.weight)
    return torch.block_diag(*(block[output * size : (output + 1) * size] for block in layer.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_values_and_gradients_equal_those_of_the_dense_matrix(dtype, num_outputs):
    torch.manual_seed(0)
    layer = BlockLinear(12, 8, blocks=4, num_outputs=num_outputs).to(dtype)
    torch.nn.init.normal_(layer.bias)
    x, output_grad = torch.randn(5, 12, dtype=dtype, requires_grad=True), torch.randn(5, num_outputs, 8, dtype=dtype)
    y = layer(x)
    expected = torch.stack([x @ dense_matrix(layer, p).T + layer.bias[p] for p in range(num_outputs)], dim=1)
    torch.testing.assert_close(y, expected)
    inputs = (x, layer.weight, layer.bias)
    for grad, expected_grad in zip(
        *(torch.autograd.grad((z * output_grad).sum(), inputs) for z in (y, expected)), strict=True
    ):
        torch.testing.assert_close(grad, expected_grad)


def test_rejects_blocks_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="blocks=3 must divide inputs=8"):
        BlockLinear(8, 9, 3)
