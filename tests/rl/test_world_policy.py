"""The policy that a world comes with acts in the world and in other environments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diamond_worlds import csgo_world, diamond_world
from published_worlds import dreamer4_world

from vwm.cli.watch_policy import watch_policy
from vwm.core.seeds import seeded_uniform
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.world_policy import WorldPolicy
from vwm.worlds.bundle import save_simulator


def time_step(frames: torch.Tensor, first: list[bool]) -> TimeStep:
    no = torch.zeros(len(frames), dtype=torch.bool)
    return TimeStep(frames, torch.zeros(len(frames)), torch.tensor(first), no, no)


def test_actions_are_drawn_from_the_policy_and_a_new_episode_forgets() -> None:
    world = diamond_world()
    policy = WorldPolicy(world, EnvSpaces(world.spec.observation, world.spec.actions))
    frames = (seeded_uniform(torch.arange(3), 16, 16, 3) * 256).byte()
    carry = policy.act(policy.init_carry(3), time_step(frames, [True] * 3), explore=False).carry
    again = policy.act(carry, time_step(frames, [True, False, True]), explore=False).carry
    for part, first in zip(again, carry, strict=True):
        torch.testing.assert_close(part[[0, 2]], first[[0, 2]])
        assert not torch.allclose(part[1], first[1], atol=1e-3)
    with torch.no_grad():
        world.trained_policy.actor_linear.bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
    assert policy.act(carry, time_step(frames, [False] * 3), explore=False).action.tolist() == [2, 2, 2]
    with torch.no_grad():
        world.trained_policy.actor_linear.weight.zero_()
        world.trained_policy.actor_linear.bias.copy_(torch.tensor([0.0, -50.0, 0.0, -50.0]))
    many = time_step(frames[:1].expand(200, -1, -1, -1), [True] * 200)
    drawn = policy.act(policy.init_carry(200), many, explore=False).action.bincount(minlength=4)
    assert drawn[1] == drawn[3] == 0 and 60 < drawn[0] < 140


def test_a_cloned_policy_of_continuous_actions_plays_in_its_world() -> None:
    world = dreamer4_world(rotary=True)
    policy = WorldPolicy(world, EnvSpaces(world.spec.observation, world.spec.actions))
    frames = (seeded_uniform(torch.arange(3), 16, 16, 3) * 256).byte()
    first = policy.act(policy.init_carry(3), time_step(frames, [True] * 3), explore=False)
    assert first.action.shape == (3, 3) and first.action.abs().max() < 1
    others = frames.flip(0)
    forgotten = policy.act(policy.init_carry(3), time_step(others, [True] * 3), explore=False).action
    again = policy.act(first.carry, time_step(others, [True, False, True]), explore=False).action
    torch.testing.assert_close(again[[0, 2]], forgotten[[0, 2]])
    assert not torch.allclose(again[1], forgotten[1], atol=1e-5)
    state, shown = world.reset(frames[:, None].expand(-1, 2, -1, -1, -1), torch.arange(3))
    chosen = policy.act(first.carry, time_step(shown, [True] * 3), explore=False).action
    assert world.step(state, chosen)[1].frame.shape == frames.shape


def test_the_command_writes_videos_and_names_what_does_not_fit(tmp_path: Path, capsys) -> None:
    world = diamond_world()
    world.starts = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    save_simulator(world, tmp_path / "world")
    watch_policy(str(tmp_path / "world"), tmp_path / "videos", episodes=2, time_limit=3, device="cpu")
    assert sorted(file.name for file in (tmp_path / "videos").iterdir()) == ["000.mp4", "001.mp4"]
    assert "(random actions:" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"shows frames \(210, 160, 3\)|shows frames|takes actions"):
        watch_policy(str(tmp_path / "world"), tmp_path / "other", env="CartPole-v1", device="cpu")
    with pytest.raises(ValueError, match="noise comes with no policy"):
        WorldPolicy(csgo_world(), EnvSpaces(world.spec.observation, world.spec.actions))
