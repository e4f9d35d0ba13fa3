"""Lambda-returns, against the definition: the weighted mean of all n-step returns, computed one by one in float64."""

import pytest
import torch

from vwm.rl.lambda_returns import cumulative_discount, lambda_returns


def n_step_return(reward, value, step_discount, start: int, steps: int) -> torch.Tensor:
    """Discounted rewards of ``steps`` steps, and the discounted value after them."""
    total, discount = torch.zeros_like(value[0]), torch.ones_like(value[0])
    for t in range(start + 1, start + steps + 1):
        total = total + discount * reward[t]
        discount = discount * step_discount[t]
    return total + discount * value[start + steps]


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_are_the_weighted_mean_of_all_n_step_returns(lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reward, value, step_discount = (torch.rand(6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    returns = lambda_returns(reward, value, step_discount, lam)
    assert returns.shape == (5, 4)
    for start in range(5):
        remaining = 5 - start
        weights = [(1 - lam) * lam**i for i in range(remaining - 1)] + [lam ** (remaining - 1)]
        expected = sum(w * n_step_return(reward, value, step_discount, start, i + 1) for i, w in enumerate(weights))
        assert torch.allclose(returns[start], expected, atol=1e-12)


def test_returns_stop_at_termination_and_bootstrap_at_truncation() -> None:
    reward, value = torch.ones(4, 1), torch.full((4, 1), 100.0)
    terminated = lambda_returns(reward, value, torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None], 1.0)
    assert terminated[0].item() == 1  # only the reward of the terminal step
    lam = torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None]
    truncated = lambda_returns(reward, value, torch.ones(4, 1), lam)
    assert truncated[0].item() == 101  # the reward, and the critic's value as a bootstrap


def test_time_steps_are_weighted_by_the_probability_of_reaching_them() -> None:
    step_discount = torch.tensor([0.5, 0.0, 1.0, 0.9])[:, None]
    assert cumulative_discount(step_discount).flatten().tolist() == [1.0, 0.5, 0.0, 0.0]
