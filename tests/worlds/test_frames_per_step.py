"""Consumers of a world whose step shows k frames: environments, planners, imagination, the player, and evaluation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from factories import diffusion_world, genie_of_latent_frames, latent_frames_world

from vwm.cli.bench_play import _time_steps
from vwm.core.action_parts import ActionPart
from vwm.core.capabilities import DecodesLatents, EncodesFrames
from vwm.core.seeds import world_seeds
from vwm.core.spaces import ObservationSpace
from vwm.envs.time_step import EnvSpaces
from vwm.eval.control import shuffled_action_loss
from vwm.eval.reconstruction import reconstruct_clips
from vwm.eval.rollouts import open_loop_rollout
from vwm.planning.cem import CEM
from vwm.planning.sampling_planner import NegativeReturnObjective
from vwm.play.session import PlaySession
from vwm.rl.algorithms.encoded_env import EncodedBatchedEnv
from vwm.worlds.ensemble import EnsembleSimulator
from vwm.worlds.families import find_family
from vwm.worlds.gymnasium_env import SimulatorEnv, SimulatorVectorEnv

K = 4


@pytest.fixture(scope="module")
def world():
    return latent_frames_world(K, outcomes=True)


def test_a_step_of_an_environment_holds_the_action_and_shows_the_last_frame(world):
    env = SimulatorEnv(world, max_episode_steps=3, render_mode="rgb_array")
    assert env.metadata["render_fps"] == world.spec.fps / K
    observation, _ = env.reset(seed=5)
    state = env.worlds.current.state
    assert observation.shape == (8, 8, 3)
    for number in range(1, 4):
        state, out = world.step(state, torch.tensor([number]))
        observation, reward, terminated, truncated, _ = env.step(number)
        assert np.array_equal(observation, out.frame[0, -1].numpy()) and np.array_equal(env.render(), observation)
        assert (reward, terminated, truncated) == (float(out.reward), bool(out.terminated), number == 3)
    vector = SimulatorVectorEnv(world, 2)
    first, _ = vector.reset(seed=5)
    alone, _ = SimulatorEnv(world).reset(seed=6)
    assert np.array_equal(first[1], alone) and vector.step(np.array([1, 2]))[0].shape == (2, 8, 8, 3)


def test_torchrl_shows_the_last_frame_too(world):
    pytest.importorskip("torchrl")
    from vwm.worlds.torchrl_env import SimulatorTorchRLEnv

    env = SimulatorTorchRLEnv(world, 2)
    env.set_seed(0)
    step = env.reset()
    state = env.worlds.current.state
    step["action"] = torch.tensor([1, 3])
    after = env.step(step)["next"]
    _, out = world.step(state, torch.tensor([1, 3]))
    assert torch.equal(after["pixels"], out.frame[:, -1]) and torch.equal(after["reward"][:, 0], out.reward)


def test_planners_hold_each_planned_action_for_a_step(world):
    state, _ = world.reset(world.starts[:2], seed=1)
    planner = CEM(horizon=2, samples=6, elites=2, iterations=1)
    plan = planner.plan(world, state, NegativeReturnObjective(), world_seeds(0, 2))
    assert plan.actions.shape == (2, 2)


def test_an_ensemble_shows_the_frames_of_its_members(world):
    ensemble = EnsembleSimulator([world, latent_frames_world(K, outcomes=True)])
    state, _ = ensemble.reset(world.starts[:2], seed=1)
    state, out = ensemble.step(state, torch.tensor([[0, 1, 2, 3], [1, 1, 1, 1]]))
    assert out.frame.shape == (2, K, 8, 8, 3) and ensemble.uncertainty(state).shape == (2,)
    with pytest.raises(ValueError, match="members show 4 and 1 frames per step"):
        EnsembleSimulator([world, diffusion_world()])


def test_an_environment_of_single_frames_cannot_be_encoded(world):
    spaces = EnvSpaces(ObservationSpace.image(8, 8), world.spec.actions)
    env = SimpleNamespace(count=1, spaces=spaces, frames_per_step=1)
    with pytest.raises(ValueError, match="the world shows 4 frames per step, the environment 1"):
        EncodedBatchedEnv(env, world, "features", 0)


def test_a_player_gets_and_records_every_frame(world):
    session = PlaySession(world, world.starts)
    first = session.reset(0, 3)
    session.start_recording()
    steps = [session.step(1), session.step(2)]
    assert first.frames.shape == (1, 8, 8, 3) and steps[0].frames.shape == (K, 8, 8, 3)
    every = np.concatenate([first.frames, *(step.frames for step in steps)])
    assert np.array_equal(session.recorded_frames(), every)
    session.undo()
    assert np.array_equal(session.recorded_frames(), every[: 1 + K])
    assert np.array_equal(session.current.frame, steps[0].frames[-1])
    assert np.array_equal(session.step(2).frames, steps[1].frames)


def test_rollouts_take_the_action_of_every_frame(world):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 5 + 2 * K, 8, 8, 3), dtype=torch.uint8, generator=generator)
    actions = torch.randint(0, 4, (3, 4 + 2 * K), generator=generator)

    def rollout(actions):
        return open_loop_rollout(world, frames, actions, 5, world_seeds(0, 3), 2, "test")

    predicted = rollout(actions)
    assert predicted.shape == (3, 2 * K, 8, 8, 3)
    for at, first in ((0, 0), (4, 0), (7, 0), (8, K), (11, K)):  # of the context, the first step, the second one
        other = actions.clone()
        other[:, at] = (other[:, at] + 1) % 4
        changed = (rollout(other) != predicted).flatten(2).any(2).any(0).nonzero()
        assert changed.min() >= first
    clips = reconstruct_clips(world, frames, 2)
    assert isinstance(world, EncodesFrames) and isinstance(world, DecodesLatents)
    assert clips.frames.shape == frames.shape and clips.latents.shape[:2] == (3, 4)
    cost = shuffled_action_loss(world, clips.latents, actions, 2)
    assert cost is not None and cost.own != cost.shuffled


@pytest.mark.parametrize("make", [latent_frames_world, genie_of_latent_frames])
def test_features_are_those_of_two_latents(make):
    simulator = make(K)
    extractor = find_family(simulator).feature_extractor(simulator)
    assert extractor.frames == 1 + K
    frames = simulator.starts[:2, : extractor.frames]
    tokens = extractor(frames)
    assert tokens.shape[:2] == (2, 2 * simulator.tokenizer.tokens_per_frame)


def test_composite_actions_are_held_or_one_per_frame():
    parts = (ActionPart("keys", 2, names=("left", "jump")), ActionPart("axes", 1, names=("x",)))
    simulator = latent_frames_world(K, parts=parts)
    state, _ = simulator.reset(simulator.starts[:2], seed=1)
    each = torch.tensor([[1.0, 0.0, 0.5]]).expand(2, K, 3).clone()
    _, held = simulator.step(state, each[:, 0])
    assert torch.equal(simulator.step(state, each)[1].frame, held.frame)
    each[0, -1, 1] = 1.0
    _, other = simulator.step(state, each)
    assert not torch.equal(other.latent[0], held.latent[0])
    torch.testing.assert_close(other.latent[1], held.latent[1])


def test_a_benchmark_times_steps(world):
    assert len(_time_steps(world, world.starts[:1], lambda number: torch.tensor([number % 4]), 2, 3)) == 3
