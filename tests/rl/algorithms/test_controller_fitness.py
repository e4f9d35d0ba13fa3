"""Rollouts of a population: as each controller would fare alone."""

import numpy as np
import pytest
import torch
from factories import dream

from vwm.core.seeds import world_seeds
from vwm.core.states import select_worlds
from vwm.rl.algorithms.controller_fitness import SimulatedFitness
from vwm.rl.algorithms.linear_controller import linear_controller_actions


def population(size: int = 5, parameters: int = 84) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(size, parameters)) * 2


def test_a_population_fares_as_each_of_it_alone():
    world = dream(predict_reward=True)
    fitness = SimulatedFitness(world, world.starts[:, -1:], 3, 8, "model", 1.0)
    together = fitness(population(), seed=4)
    alone = np.concatenate([fitness(one[None], seed=4) for one in population()])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert len(np.unique(together)) > 1 and not np.allclose(together, fitness(population(), seed=5))


def test_a_return_is_the_sum_of_a_rollout_s_rewards_until_its_end():
    world = dream(predict_reward=True)
    fitness = SimulatedFitness(world, world.starts[:, -1:], 4, 12, "model", 1.0)
    own = torch.from_numpy(population(1)).float()
    begun = torch.from_numpy(np.random.default_rng(9).integers(3, size=4))
    totals, ended = [], 0
    for start, seed in zip(begun.tolist(), world_seeds(9, 4).tolist(), strict=True):
        state = select_worlds(fitness.initial_states, torch.tensor([start]))._replace(seed=torch.tensor([seed]))
        total = 0.0
        for _ in range(12):
            state, out = world.step(state, linear_controller_actions(own, world.features(state), world.spec.actions))
            total += out.reward.item()
            if out.terminated:
                ended += 1
                break
        totals.append(total)
    assert 0 < ended  # else nothing here was cut by an end
    np.testing.assert_allclose(fitness(population(1), seed=9), np.mean(totals), rtol=1e-4)


def test_survival_counts_steps_and_the_horizon_is_the_most():
    world = dream()
    survived = [
        SimulatedFitness(world, world.starts, 4, horizon, "survival", 1.0)(population(), 0) for horizon in (1, 30)
    ]
    assert (
        (survived[0] == 1).all() and (survived[1] <= 30).all() and (survived[1] * 4 == np.round(survived[1] * 4)).all()
    )


def test_temperature_is_the_dream_s_and_leaves_the_world_s_alone():
    world = dream(predict_reward=True)
    cold, hot = (SimulatedFitness(world, world.starts, 4, 6, "model", t)(population(), 0) for t in (0.2, 2.0))
    assert not np.allclose(cold, hot) and world.sampling.temperature == 1.0


def test_a_controller_of_the_latent_alone_is_blind_to_memory():
    """Two worlds that differ in what they remember, and not in what they show: their first steps are alike."""
    world = dream()
    blind = torch.randn(1, 4 * 4 + 4)
    state, _ = world.reset(world.starts)
    other = state._replace(memory=state.memory._make(x + 1 for x in state.memory))
    one, two = (
        linear_controller_actions(blind.expand(3, -1), world.features(s)[:, :4], world.spec.actions)
        for s in (state, other)
    )
    assert torch.equal(one, two)


def test_wrong_settings_are_named():
    world = dream()
    with pytest.raises(ValueError, match="predicts no rewards"):
        SimulatedFitness(world, world.starts, 4, 6, "model", 1.0)
    with pytest.raises(ValueError, match="rollouts=0"):
        SimulatedFitness(world, world.starts, 0, 6, "survival", 1.0)
