import pytest
import torch
from torch.nn import functional as F

from vwm.models.tdmpc2.q_ensemble import QEnsemble


def ensemble(**changes) -> QEnsemble:
    torch.manual_seed(0)
    made = QEnsemble(
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
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made


def alone(made: QEnsemble, i: int, x: torch.Tensor) -> torch.Tensor:
    """One member, by torch's own layers."""
    for layer in (made.first, made.second):
        x = F.mish(
            F.layer_norm(F.linear(x, layer.weight[i], layer.bias[i]), (16,), layer.norm_weight[i], layer.norm_bias[i])
        )
    return F.linear(x, made.output.weight[i], made.output.bias[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by oneDNN, and by batched products
def test_an_ensemble_is_its_members_each_alone_with_gradients_and_all(dtype):
    made = ensemble().to(dtype)
    latent, action = torch.randn(3, 5, 8, dtype=dtype), torch.randn(3, 5, 2, dtype=dtype, requires_grad=True)
    said = made(latent, action)
    wanted = torch.stack([alone(made, i, torch.cat((latent, action), -1)) for i in range(4)])
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-4)
    weight, inputs = torch.randn_like(wanted), [action, *made.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((said * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    chosen = torch.tensor([2, 0])
    torch.testing.assert_close(made(latent, action, chosen), said[chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_weights_get_no_gradient_but_pass_one_on(dtype):
    made = ensemble().to(dtype)
    action = torch.randn(5, 2, dtype=dtype, requires_grad=True)
    pair = torch.tensor([3, 1])
    made.values(torch.randn(5, 8, dtype=dtype), action, pair, detach_weights=True).sum().backward()
    assert action.grad.abs().sum() > 0 and all(p.grad is None for p in made.parameters())


def test_dropout_is_drawn_for_each_member_and_only_when_asked_for():
    made = ensemble(dropout=0.5)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(p[:1].expand_as(p))  # four times the same member
    latent, action = torch.randn(5, 8), torch.randn(5, 2)
    torch.testing.assert_close(made(latent, action)[0], made(latent, action)[3])
    dropped = made(latent, action, use_dropout=True)
    assert not torch.allclose(dropped[0], dropped[3])


def test_pairs_are_two_different_members_and_each_comes_up():
    torch.manual_seed(0)
    pairs = ensemble().sample_member_pair(200)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == {(a, b) for a in range(4) for b in range(a + 1, 4)}


def test_values_are_0_at_first_and_one_member_is_no_ensemble():
    torch.manual_seed(0)
    fresh = QEnsemble(8, 2, 2, 16)
    assert fresh.values(torch.randn(5, 8), torch.randn(5, 2)).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"num_members=1 must be at least 2"):
        QEnsemble(8, 2, 1, 16)
