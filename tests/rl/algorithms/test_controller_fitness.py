"""Fitness of a population equals that of each controller alone."""

import numpy as np
import pytest
import torch
from factories import dream

from vwm.core.seeds import world_seeds
from vwm.core.states import select_worlds
from vwm.rl.algorithms.controller_fitness import SimulatedFitness
from vwm.rl.algorithms.linear_controller import linear_controller_actions


def make_population(size: int = 5, parameters: int = 84) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(size, parameters)) * 2


def test_fitness_does_not_depend_on_the_rest_of_the_population():
    world = dream(predict_reward=True)
    fitness = SimulatedFitness(world, world.starts[:, -1:], 3, 8, "model", 1.0)
    batched = fitness(make_population(), seed=4)
    alone = np.concatenate([fitness(one[None], seed=4) for one in make_population()])
    np.testing.assert_allclose(batched, alone, rtol=1e-4)
    assert len(np.unique(batched)) > 1 and not np.allclose(batched, fitness(make_population(), seed=5))


def test_fitness_is_the_mean_sum_of_rewards_until_termination():
    world = dream(predict_reward=True)
    fitness = SimulatedFitness(world, world.starts[:, -1:], 4, 12, "model", 1.0)
    parameters = torch.from_numpy(make_population(1)).float()
    start_indices = torch.from_numpy(np.random.default_rng(9).integers(3, size=4))
    returns, num_terminated = [], 0
    for start, seed in zip(start_indices.tolist(), world_seeds(9, 4).tolist(), strict=True):
        state = select_worlds(fitness.initial_states, torch.tensor([start]))._replace(seed=torch.tensor([seed]))
        total = 0.0
        for _ in range(12):
            state, output = world.step(
                state, linear_controller_actions(parameters, world.features(state), world.spec.actions)
            )
            total += output.reward.item()
            if output.terminated:
                num_terminated += 1
                break
        returns.append(total)
    assert 0 < num_terminated  # otherwise termination would not be tested
    np.testing.assert_allclose(fitness(make_population(1), seed=9), np.mean(returns), rtol=1e-4)


def test_survival_counts_steps_up_to_the_horizon():
    world = dream()
    survived = [
        SimulatedFitness(world, world.starts, 4, horizon, "survival", 1.0)(make_population(), 0) for horizon in (1, 30)
    ]
    assert (
        (survived[0] == 1).all() and (survived[1] <= 30).all() and (survived[1] * 4 == np.round(survived[1] * 4)).all()
    )


def test_temperature_applies_to_rollouts_and_does_not_change_the_world():
    world = dream(predict_reward=True)
    cold, hot = (SimulatedFitness(world, world.starts, 4, 6, "model", t)(make_population(), 0) for t in (0.2, 2.0))
    assert not np.allclose(cold, hot) and world.sampling.temperature == 1.0


def test_a_controller_on_the_latent_ignores_the_memory():
    """Two states with different memories and equal latents give equal actions."""
    world = dream()
    parameters = torch.randn(1, 4 * 4 + 4)
    state, _ = world.reset(world.starts)
    other_state = state._replace(memory=state.memory._make(x + 1 for x in state.memory))
    actions, other_actions = (
        linear_controller_actions(parameters.expand(3, -1), world.features(s)[:, :4], world.spec.actions)
        for s in (state, other_state)
    )
    assert torch.equal(actions, other_actions)


def test_rejects_settings_out_of_range():
    world = dream()
    with pytest.raises(ValueError, match="predicts no rewards"):
        SimulatedFitness(world, world.starts, 4, 6, "model", 1.0)
    with pytest.raises(ValueError, match="rollouts=0"):
        SimulatedFitness(world, world.starts, 0, 6, "survival", 1.0)
