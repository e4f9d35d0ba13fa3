"""Resets, steps and seeds of a batch of worlds, which the Gymnasium, TorchRL and SB3 interfaces share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from count_world import CountWorld
from factories import diffusion_world
from gymnasium.error import ResetNeeded

from vwm.worlds.world_batch import WorldBatch


def mask(*values: bool) -> np.ndarray:
    return np.array(values)


def observed_counts(worlds: WorldBatch) -> list[float]:
    return worlds.current.observation[:, 1].tolist()


def make_latent_worlds(count: int = 3, limit: int | None = None) -> WorldBatch:
    worlds = WorldBatch(CountWorld(shows="latents"), count, max_episode_steps=limit, observe="latent")
    worlds.seed(range(count))
    return worlds


def test_a_masked_reset_leaves_the_other_worlds_unchanged() -> None:
    worlds = make_latent_worlds(limit=2)
    worlds.reset()
    worlds.step(torch.tensor([1, 2, 3]))
    before = worlds.current
    assert worlds.reset(mask(False, True, False), start=4) == {1: 4}
    after = worlds.current
    assert observed_counts(worlds) == [1, 0, 3] and after.steps.tolist() == [1, 0, 1] and after.observation[1, 0] == 5
    assert before.observation[:, 1].tolist() == [1, 2, 3]  # the earlier current state is unchanged
    worlds.step(torch.tensor([1, 1, 1]))
    assert worlds.current.truncated.tolist() == [True, False, True]
    worlds.reset(mask(True, False, False))
    assert worlds.current.truncated.tolist() == [False, False, True]
    assert worlds.reset(mask(False, False, False)) == {}


def test_every_world_has_its_own_generator() -> None:
    """Neither resets of other worlds nor a given context change the random numbers of a world."""
    frequent, rare = make_latent_worlds(), make_latent_worlds()
    for worlds in (frequent, rare):
        worlds.reset()
    for _ in range(5):
        frequent.reset(mask(True, False, True))
    frequent.reset(mask(False, True, False), start=0), rare.reset(mask(False, True, False))
    assert frequent.reset()[1] == rare.reset()[1]
    assert torch.equal(frequent.current.observation[1], rare.current.observation[1])
    assert not torch.equal(frequent.current.observation, rare.current.observation)


def test_masked_worlds_do_not_step_and_have_zero_reward() -> None:
    worlds = make_latent_worlds()
    worlds.reset()
    rewards = worlds.step(torch.tensor([3, 3, 3]), torch.tensor([True, False, True]))
    assert rewards.tolist() == [3, 0, 3] and observed_counts(worlds) == [3, 0, 3]
    assert worlds.current.steps.tolist() == [1, 0, 1]


def test_single_worlds_can_be_seeded() -> None:
    worlds, other = make_latent_worlds(), make_latent_worlds()
    other.seed([None, 9, 9], mask(True, True, False))
    assert other.seeds == [0, 9, 2]
    first, second = worlds.reset(), other.reset()
    assert (first[0], first[2]) == (second[0], second[2])
    with pytest.raises(ValueError, match="2 seeds for 3 worlds"):
        worlds.seed([1, 2])


def test_frames_are_decoded_only_where_they_are_used() -> None:
    world = CountWorld()
    for observe, renders, decoded in (("frame", False, True), ("latent", False, False), ("latent", True, True)):
        worlds = WorldBatch(world, 2, observe=observe, keep_frames=renders)
        worlds.reset()
        worlds.step(torch.tensor([1, 1]))
        assert world.decoded[-1] == decoded and len(worlds.current.frames) == renders


def test_feature_observations_are_those_of_the_current_state() -> None:
    world = diffusion_world()
    worlds = WorldBatch(world, 2, observe="features")
    worlds.reset()
    worlds.step(torch.tensor([1, 2]))
    current = worlds.current
    assert torch.equal(current.observation, world.features(current.state))
    assert worlds.observation_shape == current.observation.shape[1:] == (32,)
    with pytest.raises(ValueError, match="keeps no features"):
        WorldBatch(CountWorld(), 2, observe="features")


def test_there_is_no_current_state_before_the_first_reset() -> None:
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        _ = make_latent_worlds().current
    with pytest.raises(ResetNeeded, match="all worlds"):
        make_latent_worlds().reset(mask(True, False, False))
    with pytest.raises(ValueError, match=r"0\.\.4, got -1"):
        make_latent_worlds().reset(start=-1)
