"""MuZero's model as a world: saved and loaded, seen through the frames it needs, and planned in by its own search."""

from __future__ import annotations

import pytest
import torch
from factories import muzero_world

import vwm
from vwm.core.spaces import ActionSpace
from vwm.models.muzero.simulator import MuZeroSimulator
from vwm.planning.puct_search import PUCTSearch
from vwm.worlds.bundle import save_simulator

KINDS = {"pictures": (32, 32, 3), "vectors": (5,)}


def context(world, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if world.spec.context.is_vector:
        return torch.randn(3, frames, world.spec.context.shape[0], generator=generator)
    return torch.randint(0, 256, (3, frames, *world.spec.context.image_size, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_loaded_goes_on_as_what_was_saved(kind, tmp_path):
    world = muzero_world(KINDS[kind])
    save_simulator(world, tmp_path / "world")
    again = vwm.load(tmp_path / "world")
    assert isinstance(again, MuZeroSimulator)
    assert (again.spec.context, again.spec.context_frames) == (world.spec.context, 2)
    for one, other in zip(*(play(w, context(world, 2)) for w in (world, again)), strict=True):
        assert torch.equal(one.latent, other.latent) and torch.equal(one.reward, other.reward)


def play(world, start):
    state, _ = world.reset(start)
    for step in range(6):
        state, output = world.step(state, (torch.arange(3) + step) % 4)
        yield output


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_last_frames_are_seen_and_one_stands_for_those_that_lack(kind):
    world = muzero_world(KINDS[kind])
    clip = context(world, 5)
    latents = world.reset(clip)[0].latent
    assert torch.equal(world.reset(clip[:, 3:])[0].latent, latents)
    assert not torch.equal(world.reset(clip[:, 4:])[0].latent, latents)
    assert torch.equal(
        world.reset(clip[:, 4:])[0].latent, world.reset(clip[:, 4:].repeat_interleave(2, dim=1))[0].latent
    )
    assert torch.equal(world.reset(clip)[1], clip[:, -1])  # it has no pictures of its own


def test_it_is_planned_in_by_its_own_rewards_and_values():
    world = muzero_world((5,), value_prefix_horizon=3)
    state, _ = world.reset(context(world, 2))
    found = PUCTSearch(40).plan(world, state, 0.9, world.value)
    assert found.visits.sum(1).tolist() == [40] * 3
    # One simulation an action: what each is worth by a step and the value there.
    once, worth = PUCTSearch(1).plan(world, state, 0.9, world.value), []
    for action in range(4):
        there, output = world.step(state, torch.full((3,), action))
        worth.append(output.reward + 0.9 * world.value(there))
    tried = torch.stack(worth, 1).gather(1, once.action[:, None])[:, 0]
    torch.testing.assert_close(once.value, (world.value(state) + tried) / 2)


def test_rejects_actions_that_do_not_fit():
    with pytest.raises(ValueError, match="3 discrete actions named, but the dynamics takes 4 discrete ones"):
        MuZeroSimulator(muzero_world().dynamics, ActionSpace("discrete", 3))
