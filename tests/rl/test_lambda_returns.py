"""Returns, against the definition: the weighted mean of all n-step returns, computed one by one in float64."""

import pytest
import torch

from vwm.rl.lambda_returns import cumulative_discount, lambda_returns


def n_step(reward, value, live, start: int, steps: int) -> torch.Tensor:
    """What is earned in so many steps, and the critic's word for the rest."""
    total, discount = torch.zeros_like(value[0]), torch.ones_like(value[0])
    for t in range(start + 1, start + steps + 1):
        total = total + discount * reward[t]
        discount = discount * live[t]
    return total + discount * value[start + steps]


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_are_the_mean_of_all_n_step_returns(lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reward, value, live = (torch.rand(6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    found = lambda_returns(reward, value, live, lam)
    assert found.shape == (5, 4)
    for start in range(5):
        left = 5 - start
        weights = [(1 - lam) * lam**i for i in range(left - 1)] + [lam ** (left - 1)]
        expected = sum(w * n_step(reward, value, live, start, i + 1) for i, w in enumerate(weights))
        assert torch.allclose(found[start], expected, atol=1e-12)


def test_nothing_after_an_end_counts_and_a_cut_asks_the_critic() -> None:
    reward, value = torch.ones(4, 1), torch.full((4, 1), 100.0)
    ended = lambda_returns(reward, value, torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None], 1.0)
    assert ended[0].item() == 1  # the reward of arriving at the end, and no more
    cut = torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None]
    truncated = lambda_returns(reward, value, torch.ones(4, 1), cut)
    assert truncated[0].item() == 101  # what would have come is the critic's to say


def test_time_steps_are_weighted_by_the_probability_of_reaching_them() -> None:
    live = torch.tensor([0.5, 0.0, 1.0, 0.9])[:, None]
    assert cumulative_discount(live).flatten().tolist() == [1.0, 0.5, 0.0, 0.0]
