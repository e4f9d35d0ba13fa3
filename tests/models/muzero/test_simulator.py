"""MuZero's network as a simulator: saving and loading, short contexts, and planning by tree search."""

from __future__ import annotations

import pytest
import torch
from factories import muzero_world

import vwm
from vwm.core.spaces import ActionSpace
from vwm.models.muzero.simulator import MuZeroSimulator
from vwm.planning.puct_search import PUCTSearch
from vwm.worlds.bundle import save_simulator

KINDS = {"images": (32, 32, 3), "vectors": (5,)}


def make_context(world, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if world.spec.context.is_vector:
        return torch.randn(3, frames, world.spec.context.shape[0], generator=generator)
    return torch.randint(0, 256, (3, frames, *world.spec.context.image_size, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_loaded_simulator_equals_the_saved_one(kind, tmp_path):
    world = muzero_world(KINDS[kind])
    save_simulator(world, tmp_path / "world")
    loaded = vwm.load(tmp_path / "world")
    assert isinstance(loaded, MuZeroSimulator)
    assert (loaded.spec.context, loaded.spec.context_frames) == (world.spec.context, 2)
    for one, other in zip(*(rollout(w, make_context(world, 2)) for w in (world, loaded)), strict=True):
        assert torch.equal(one.latent, other.latent) and torch.equal(one.reward, other.reward)


def rollout(world, context):
    state, _ = world.reset(context)
    for step in range(6):
        state, output = world.step(state, (torch.arange(3) + step) % 4)
        yield output


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_context_is_cut_to_its_last_frames_and_padded_with_its_first(kind):
    world = muzero_world(KINDS[kind])
    clip = make_context(world, 5)
    latents = world.reset(clip)[0].latent
    assert torch.equal(world.reset(clip[:, 3:])[0].latent, latents)
    assert not torch.equal(world.reset(clip[:, 4:])[0].latent, latents)
    assert torch.equal(
        world.reset(clip[:, 4:])[0].latent, world.reset(clip[:, 4:].repeat_interleave(2, dim=1))[0].latent
    )
    assert torch.equal(world.reset(clip)[1], clip[:, -1])  # without a decoder, the frame is the context's


def test_tree_search_plans_by_predicted_rewards_and_values():
    world = muzero_world((5,), value_prefix_horizon=3)
    state, _ = world.reset(make_context(world, 2))
    result = PUCTSearch(40).plan(world, state, 0.9, world.value)
    assert result.visits.sum(1).tolist() == [40] * 3
    # After one simulation, the root's value is the mean of its own prediction and of the selected action's value.
    result, q = PUCTSearch(1).plan(world, state, 0.9, world.value), []
    for action in range(4):
        next_state, output = world.step(state, torch.full((3,), action))
        q.append(output.reward + 0.9 * world.value(next_state))
    action_value = torch.stack(q, 1).gather(1, result.action[:, None])[:, 0]
    torch.testing.assert_close(result.value, (world.value(state) + action_value) / 2)


def test_rejects_another_action_space():
    with pytest.raises(ValueError, match="3 discrete actions named, but the dynamics takes 4 discrete ones"):
        MuZeroSimulator(muzero_world().dynamics, ActionSpace("discrete", 3))
