"""Worlds that begin, play and begin again: what the faces share. What they make of it is in their own tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from count_world import CountWorld
from factories import diffusion_world
from gymnasium.error import ResetNeeded

from vwm.worlds.world_batch import WorldBatch


def mask(*each: bool) -> np.ndarray:
    return np.array(each)


def counts(worlds: WorldBatch) -> list[float]:
    return worlds.current.observation[:, 1].tolist()


def latents(count: int = 3, limit: int | None = None) -> WorldBatch:
    worlds = WorldBatch(CountWorld(shows="latents"), count, max_episode_steps=limit, observe="latent")
    worlds.seed(range(count))
    return worlds


def test_some_begin_and_the_others_stay_where_they_are() -> None:
    worlds = latents(limit=2)
    worlds.reset()
    worlds.step(torch.tensor([1, 2, 3]))
    kept = worlds.current
    assert worlds.reset(mask(False, True, False), start=4) == {1: 4}
    now = worlds.current
    assert counts(worlds) == [1, 0, 3] and now.steps.tolist() == [1, 0, 1] and now.observation[1, 0] == 5
    assert kept.observation[:, 1].tolist() == [1, 2, 3]  # what was present is a value
    worlds.step(torch.tensor([1, 1, 1]))
    assert worlds.current.truncated.tolist() == [True, False, True]
    worlds.reset(mask(True, False, False))
    assert worlds.current.truncated.tolist() == [False, False, True]
    assert worlds.reset(mask(False, False, False)) == {}


def test_random_numbers_of_a_world_come_from_its_own_generator() -> None:
    """How often the others begin does not matter to it, nor whether its context is named."""
    often, seldom = latents(), latents()
    for worlds in (often, seldom):
        worlds.reset()
    for _ in range(5):
        often.reset(mask(True, False, True))
    often.reset(mask(False, True, False), start=0), seldom.reset(mask(False, True, False))
    assert often.reset()[1] == seldom.reset()[1]
    assert torch.equal(often.current.observation[1], seldom.current.observation[1])
    assert not torch.equal(often.current.observation, seldom.current.observation)


def test_worlds_that_are_not_played_stand_still_and_earn_nothing() -> None:
    worlds = latents()
    worlds.reset()
    rewards = worlds.step(torch.tensor([3, 3, 3]), torch.tensor([True, False, True]))
    assert rewards.tolist() == [3, 0, 3] and counts(worlds) == [3, 0, 3]
    assert worlds.current.steps.tolist() == [1, 0, 1]


def test_seeds_may_be_given_to_some() -> None:
    worlds, other = latents(), latents()
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


def test_features_are_the_networks_own_of_the_present() -> None:
    world = diffusion_world()
    worlds = WorldBatch(world, 2, observe="features")
    worlds.reset()
    worlds.step(torch.tensor([1, 2]))
    present = worlds.current
    assert torch.equal(present.observation, world.features(present.state))
    assert worlds.observation_shape == present.observation.shape[1:] == (32,)
    with pytest.raises(ValueError, match="keeps no features"):
        WorldBatch(CountWorld(), 2, observe="features")


def test_before_the_first_reset_there_is_no_state() -> None:
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        _ = latents().current
    with pytest.raises(ResetNeeded, match="all worlds"):
        latents().reset(mask(True, False, False))
    with pytest.raises(ValueError, match=r"0\.\.4, got -1"):
        latents().reset(start=-1)
