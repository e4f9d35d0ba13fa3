"""Trajectory sampling: which member predicts which particle."""

from __future__ import annotations

import pytest
import torch
from pets_worlds import pets_world

from vwm.models.pets.simulator import TrajectorySampling


def constant_world(sampling: TrajectorySampling, logits: tuple[float, ...] = (-1, -1, -1, -1)):
    """Each member changes every number by its own constant, and gives it as a reward, without noise."""
    world = pets_world(3, sampling, members=4)
    for parameter in world.dynamics.linear_layers.parameters():
        parameter.data.zero_()
    bias = world.dynamics.linear_layers[-1].bias.data
    bias[:, :, :6] = torch.tensor([1.0, 10, 100, 1000])[:, None, None]
    bias[:, 0, -1] = torch.tensor(logits)
    world.dynamics.max_log_variance.data.fill_(-60)
    world.dynamics.min_log_variance.data.fill_(-61)
    return world


@pytest.mark.parametrize("resample", [0, 1])
def test_members_predict_equally_many_particles_once_or_anew(resample: int) -> None:
    world = constant_world(TrajectorySampling(8, resample))
    state, _ = world.reset(torch.zeros(3, 1, 5), seed=0)
    sums = []
    for _ in range(3):
        before = state.observation
        state, output = world.step(state, torch.zeros(3, 3))
        change = (state.observation - before).mean(-1).round()
        assert (change.sort(1).values == torch.tensor([1.0, 1, 10, 10, 100, 100, 1000, 1000])).all()
        torch.testing.assert_close(output.reward, torch.full((3,), 1111 / 4))
        sums.append(change)
    stays = torch.equal(sums[0], sums[1]) and torch.equal(sums[1], sums[2])
    assert stays == (resample == 0)
    assert not torch.equal(sums[0][0], sums[0][1])  # worlds draw by their own seeds


def test_a_simulation_of_one_particle_keeps_its_member() -> None:
    world = constant_world(TrajectorySampling())
    state, _ = world.reset(torch.zeros(40, 1, 5), seed=0)
    first, output = world.step(state, torch.zeros(40, 3))
    second, _ = world.step(first, torch.zeros(40, 3))
    torch.testing.assert_close(second.observation, 2 * first.observation, rtol=1e-4, atol=0)
    assert set(output.reward.round().tolist()) == {1.0, 10.0, 100.0, 1000.0}


def test_particles_that_have_terminated_earn_nothing_more() -> None:
    world = constant_world(TrajectorySampling(4), (-1, 1, -1, 1))
    state, _ = world.reset(torch.zeros(1, 1, 5))
    state, output = world.step(state, torch.zeros(1, 3))
    assert output.reward.item() == pytest.approx(1111 / 4) and not output.terminated.item()
    state, output = world.step(state, torch.zeros(1, 3))
    assert output.reward.item() == pytest.approx(101 / 4) and state.running.sum() == 2


def test_particles_must_be_divided_among_the_members() -> None:
    with pytest.raises(ValueError, match="particles=5 must be 1, or a multiple of the 2 members"):
        pets_world(sampling=TrajectorySampling(5))
    with pytest.raises(ValueError, match="resample=2 must be 0"):
        pets_world(sampling=TrajectorySampling(4, 2))
