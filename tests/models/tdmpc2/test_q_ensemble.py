import pytest
import torch
from torch.nn import functional as F

from vwm.models.tdmpc2.q_ensemble import QEnsemble


def make_ensemble(**changes) -> QEnsemble:
    torch.manual_seed(0)
    ensemble = QEnsemble(
        **{
            "latent_size": 8,
            "action_dims": 2,
            "num_members": 4,
            "width": 16,
            "num_bins": 11,
            "symlog_limit": 3.0,
            **changes,
        }
    )
    with torch.no_grad():
        for p in ensemble.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return ensemble


def apply_member(ensemble: QEnsemble, i: int, x: torch.Tensor) -> torch.Tensor:
    """Apply one member with torch's own layers."""
    for layer in (ensemble.first, ensemble.second):
        x = F.mish(
            F.layer_norm(F.linear(x, layer.weight[i], layer.bias[i]), (16,), layer.norm_weight[i], layer.norm_bias[i])
        )
    return F.linear(x, ensemble.output.weight[i], ensemble.output.bias[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by oneDNN, and by batched matrix products
def test_values_and_gradients_equal_those_of_the_single_members(dtype):
    ensemble = make_ensemble().to(dtype)
    latent, action = torch.randn(3, 5, 8, dtype=dtype), torch.randn(3, 5, 2, dtype=dtype, requires_grad=True)
    output = ensemble(latent, action)
    expected = torch.stack([apply_member(ensemble, i, torch.cat((latent, action), -1)) for i in range(4)])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    weight, inputs = torch.randn_like(expected), [action, *ensemble.parameters()]
    for grad, expected_grad in zip(
        torch.autograd.grad((output * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-3)
    member_indices = torch.tensor([2, 0])
    torch.testing.assert_close(ensemble(latent, action, member_indices), output[member_indices])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_detached_weights_get_no_gradient_and_actions_do(dtype):
    ensemble = make_ensemble().to(dtype)
    action = torch.randn(5, 2, dtype=dtype, requires_grad=True)
    pair = torch.tensor([3, 1])
    ensemble.values(torch.randn(5, 8, dtype=dtype), action, pair, detach_weights=True).sum().backward()
    assert action.grad.abs().sum() > 0 and all(p.grad is None for p in ensemble.parameters())


def test_dropout_is_independent_for_each_member_and_off_by_default():
    ensemble = make_ensemble(dropout=0.5)
    with torch.no_grad():
        for p in ensemble.parameters():
            p.copy_(p[:1].expand_as(p))  # four times the same member
    latent, action = torch.randn(5, 8), torch.randn(5, 2)
    torch.testing.assert_close(ensemble(latent, action)[0], ensemble(latent, action)[3])
    dropped = ensemble(latent, action, use_dropout=True)
    assert not torch.allclose(dropped[0], dropped[3])


def test_member_pairs_are_distinct_and_all_pairs_occur():
    torch.manual_seed(0)
    pairs = make_ensemble().sample_member_pair(200)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == {(a, b) for a in range(4) for b in range(a + 1, 4)}


def test_initial_values_are_0_and_a_single_member_is_rejected():
    torch.manual_seed(0)
    fresh = QEnsemble(8, 2, 2, 16)
    assert fresh.values(torch.randn(5, 8), torch.randn(5, 2)).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"num_members=1 must be at least 2"):
        QEnsemble(8, 2, 1, 16)
