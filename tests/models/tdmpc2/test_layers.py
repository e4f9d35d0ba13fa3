import pytest
import torch
from torch.nn import functional as F

from vwm.models.tdmpc2.layers import TDMPC2MLP, NormedLinear, sim_norm


def test_each_simplex_is_a_separate_softmax():
    x = (3 * torch.randn(5, 2, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    y = sim_norm(x, 8)
    expected = torch.cat(
        [x[..., i : i + 8].exp() / x[..., i : i + 8].exp().sum(-1, keepdim=True) for i in (0, 8, 16)], -1
    )
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(y.unflatten(-1, (3, 8)).sum(-1), torch.ones(5, 2, 3, dtype=torch.float64))
    weight = torch.randn_like(expected)
    grad, expected_grad = (
        torch.autograd.grad((output * weight).sum(), x, retain_graph=True)[0] for output in (y, expected)
    )
    torch.testing.assert_close(grad, expected_grad)
    with torch.no_grad():
        assert torch.equal(sim_norm(x, 8), y)


def test_a_layer_on_several_inputs_equals_one_on_their_concatenation_and_inputs_broadcast():
    torch.manual_seed(0)
    layer = NormedLinear([6, 2], 16, simplex=4).double()
    latent, actions = torch.randn(3, 1, 6, dtype=torch.float64), torch.randn(3, 7, 2, dtype=torch.float64)
    weight = torch.cat([part.weight for part in layer.input_projections], dim=1)
    product = F.linear(torch.cat((latent.expand(3, 7, 6), actions), -1), weight, layer.input_projections[0].bias)
    expected = (product - product.mean(-1, keepdim=True)) / (product.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(latent, actions), expected.unflatten(-1, (4, 4)).softmax(-1).flatten(-2))


@pytest.mark.parametrize(("hidden", "simplex"), [([8], 0), ([8, 8], 0), ([8], 4), ([8, 8], 4), ([], 4)])
def test_an_mlp_ends_in_a_linear_layer_or_in_simplices(hidden, simplex):
    torch.manual_seed(0)
    mlp = TDMPC2MLP([3, 2], hidden, 12, simplex)
    output = mlp(torch.randn(5, 3), torch.randn(5, 2))
    assert output.shape == (5, 12)
    assert torch.allclose(output.unflatten(-1, (3, 4)).sum(-1), torch.ones(5, 3)) == bool(simplex)
    matrices = [p for p in mlp.parameters() if p.ndim == 2]
    assert len(matrices) == len(hidden) + 2
    assert all(p.std() < 0.03 for p in matrices)  # 0.02, as published


def test_rejects_sizes_that_simplex_does_not_divide():
    with pytest.raises(ValueError, match="the size 20 must be divisible by simplex=8"):
        TDMPC2MLP([3], [8], 20, 8)
