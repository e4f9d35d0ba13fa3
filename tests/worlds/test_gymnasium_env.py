"""Gymnasium interfaces: external checkers, equality with Gymnasium's own vectorizer, and exact resets."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from count_world import SIZE, CountWorld
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from vwm.core.spaces import ActionSpace
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.sampling import MaskGITSampling
from vwm.models.genie.simulator import GenieSimulator
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer
from vwm.worlds.bundle import save_simulator
from vwm.worlds.gymnasium_env import SimulatorEnv, SimulatorVectorEnv
from vwm.worlds.vector_env_conformance import check_vector_env

WORLD = "vwm.worlds.gymnasium_env:vwm/World-v0"


@pytest.fixture(scope="module")
def genie() -> GenieSimulator:
    torch.manual_seed(0)
    parts = (
        SpaceTimeTokenizer((64, 64), patch_size=16, width=32, depth=1, heads=2, window=4),
        MaskGITDynamics(tokens_per_frame=16, num_actions=3, width=32, depth=1, heads=2, window=4),
        LatentActionModel(image_size=(64, 64), patch_size=16, codebook=3, width=32, depth=1, heads=2),
    )
    for part in parts:
        for weight in part.parameters():
            if weight.ndim == 2 and not weight.any():
                torch.nn.init.normal_(weight, std=0.1)
    starts = torch.randint(0, 256, (4, 3, 64, 64, 3), dtype=torch.uint8)
    return GenieSimulator(
        *parts, ActionSpace("discrete", 3), sampling=MaskGITSampling(3), context_frames=3, starts=starts
    )


@pytest.fixture(scope="module")
def bundle(genie: GenieSimulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "world"
    save_simulator(genie, path)
    return path


def test_it_passes_the_gymnasium_checker(bundle: Path) -> None:
    env = gymnasium.make(WORLD, bundle=bundle, max_episode_steps=9, render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.spec is not None and env.spec.id == "vwm/World-v0"
    assert env.metadata["render_fps"] == 15


@pytest.mark.parametrize("kind", ["discrete", "continuous", "composite"])
def test_it_passes_the_stable_baselines_checker(kind: str) -> None:
    env = SimulatorEnv(CountWorld(kind), render_mode="rgb_array", flat_actions=True)
    sb3_check_env(env, warn=True, skip_render_check=False)


@pytest.mark.parametrize(("shows", "observe"), [("pictures", "frame"), ("vectors", "frame"), ("latents", "latent")])
def test_it_passes_our_conformance_checker(shows: str, observe: str) -> None:
    """See test_vector_env_conformance.py for the faults that it detects."""
    kind = "composite" if shows == "vectors" else "discrete"
    check_vector_env(
        lambda num_envs, autoreset_mode, max_episode_steps: SimulatorVectorEnv(
            CountWorld(kind, shows), num_envs, None, max_episode_steps, autoreset_mode, observe=observe
        )
    )


def test_spaces_and_metadata_follow_the_world() -> None:
    env = SimulatorEnv(CountWorld())
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    assert env.action_space == gymnasium.spaces.Discrete(4)
    envs = SimulatorVectorEnv(CountWorld("continuous"), 3)
    assert envs.single_action_space == gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    assert envs.action_space.shape == (3, 4) and envs.observation_space.shape == (3, SIZE, SIZE, 3)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP and envs.metadata["render_fps"] == 12
    observation, _ = envs.reset(seed=0)
    assert observation in envs.observation_space


def test_a_single_world_counts_truncates_and_terminates() -> None:
    env = SimulatorEnv(CountWorld(), max_episode_steps=4, render_mode="rgb_array")
    frame, info = env.reset(seed=1, options={"start": 2})
    assert info == {"start": 2} and frame[0, :2, 0].tolist() == [3, 0]
    for count, truncated in ((1, False), (2, False), (3, False), (4, True)):
        frame, reward, *ended, info = env.step(1)
        assert (frame[0, 1, 0], reward, ended, info) == (count, count, [False, truncated], {})
        assert (env.render() == frame).all()
    env.reset()
    _, _, terminated, truncated, _ = [env.step(a) for a in (3, 3, 3)][-1]
    assert terminated and not truncated


def test_all_randomness_comes_from_the_seed() -> None:
    def two_episodes(seed: int | None, env: SimulatorEnv) -> list[int]:
        frames = [env.reset(seed=seed)[0], env.step(1)[0], env.reset()[0], env.step(2)[0]]
        return [int(v) for frame in frames for v in frame[0, :3, 0]]

    first, second = SimulatorEnv(CountWorld()), SimulatorEnv(CountWorld())
    assert two_episodes(5, first) == two_episodes(5, second) == two_episodes(5, first)
    assert two_episodes(6, first) != two_episodes(5, second)
    # A given context consumes as many random numbers as a sampled one.
    first.reset(seed=5, options={"start": 0}), second.reset(seed=5)
    assert (first.reset()[0] == second.reset()[0]).all()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("kind", ["discrete", "continuous", "composite"])
def test_a_batch_equals_a_gymnasium_vector_of_single_worlds(mode: AutoresetMode, kind: str) -> None:
    envs = SimulatorVectorEnv(CountWorld(kind), 3, max_episode_steps=5, autoreset_mode=mode, render_mode="rgb_array")
    make_single = [lambda: SimulatorEnv(CountWorld(kind), max_episode_steps=5, render_mode="rgb_array")] * 3
    sync_envs = SyncVectorEnv(make_single, autoreset_mode=mode)
    assert envs.metadata == sync_envs.metadata
    assert envs.observation_space == sync_envs.observation_space and envs.action_space == sync_envs.action_space
    sync_envs.action_space.seed(0)
    assert data_equivalence(envs.reset(seed=7), sync_envs.reset(seed=7), exact=True)
    assert envs.np_random_seed == sync_envs.np_random_seed == (7, 8, 9)
    for _ in range(40):
        action = sync_envs.action_space.sample()
        actual, expected = envs.step(action), sync_envs.step(action)
        assert data_equivalence(actual, expected, exact=True)
        assert all((a == b).all() for a, b in zip(envs.render() or (), sync_envs.render(), strict=True))
    assert data_equivalence(envs.reset(), sync_envs.reset(), exact=True)  # the generators have advanced equally
    assert data_equivalence(envs.reset(seed=[3, None, 4]), sync_envs.reset(seed=[3, None, 4]), exact=True)


def test_same_step_mode_returns_the_final_frame_in_the_infos() -> None:
    envs = SimulatorVectorEnv(CountWorld(), 2, autoreset_mode="SameStep")
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.array([3, 1]))
    frames, rewards, terminated, _, infos = envs.step(np.array([3, 1]))
    assert rewards.tolist() == [9, 3] and terminated.tolist() == [True, False]
    assert frames[:, 0, 1, 0].tolist() == [0, 3]
    assert infos["final_obs"][0][0, 1, 0] == 9 and infos["final_obs"][1] is None
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == infos["_start"].tolist() == [True, False]


def test_next_step_mode_resets_in_a_step_of_its_own() -> None:
    envs = SimulatorVectorEnv(CountWorld(), 2)
    envs.reset(seed=0)
    for _ in range(3):
        frames, _, terminated, _, infos = envs.step(np.array([3, 1]))
    assert frames[:, 0, 1, 0].tolist() == [9, 3] and terminated.tolist() == [True, False] and not infos
    frames, rewards, terminated, truncated, infos = envs.step(np.array([3, 1]))
    assert frames[:, 0, 1, 0].tolist() == [0, 4] and rewards.tolist() == [0, 4]
    assert not (terminated | truncated).any() and infos["_start"].tolist() == [True, False]


def test_disabled_mode_leaves_resets_to_the_caller() -> None:
    envs = SimulatorVectorEnv(CountWorld(), 2, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=3)
    with pytest.raises(ResetNeeded, match="all worlds"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.array([1, 1]))
    frames, _ = envs.reset(options={"reset_mask": np.array([False, True]), "start": 4})
    assert frames[:, 0, :2, 0].tolist()[1] == [5, 0] and frames[0, 0, 1, 0] == 2
    assert envs.step(np.array([1, 1]))[3].tolist() == [True, False]
    with pytest.raises(ResetNeeded, match=r"worlds \[0\]"):
        envs.step(np.array([1, 1]))
    envs.reset(options={"reset_mask": np.array([True, False])})
    assert envs.step(np.array([1, 1]))[0][:, 0, 1, 0].tolist() == [1, 2]


def test_callers_may_modify_returned_observations() -> None:
    envs = SimulatorVectorEnv(CountWorld(), 2, render_mode="rgb_array")
    first, _ = envs.reset(seed=0)
    copied = first.copy()
    envs.step(np.array([1, 1]))[0][:] = 0
    assert (first == copied).all() and (envs.render() or ())[0][0, 1, 0] == 1


def test_a_vector_env_by_make_vec_equals_single_environments(bundle: Path, genie: GenieSimulator) -> None:
    envs = gymnasium.make_vec(WORLD, num_envs=2, bundle=bundle, max_episode_steps=3)
    assert isinstance(envs, SimulatorVectorEnv) and envs.max_episode_steps == 3
    frames = [envs.reset(seed=4)[0], *(envs.step(np.array([0, 2]))[0] for _ in range(3))]
    for world, action in enumerate((0, 2)):
        env = SimulatorEnv(genie)
        alone = [env.reset(seed=4 + world)[0], *(env.step(action)[0] for _ in range(3))]
        # A matrix product of another batch size may round differently, by one gray level.
        assert max(int(np.abs(a.astype(int) - f[world]).max()) for a, f in zip(alone, frames, strict=True)) <= 1


def test_errors_name_the_remedy() -> None:
    world = CountWorld()
    with pytest.raises(ResetNeeded, match="reset"):
        SimulatorEnv(world).step(0)
    with pytest.raises(ResetNeeded, match="reset"):
        SimulatorVectorEnv(world, 2).step(np.array([0, 0]))
    with pytest.raises(ValueError, match=r"start.*0\.\.4"):
        SimulatorEnv(world).reset(options={"start": 5})
    with pytest.raises(ValueError, match="max_episode_steps"):
        SimulatorEnv(world, max_episode_steps=0)
    with pytest.raises(ValueError, match="render_mode"):
        SimulatorEnv(world, render_mode="human")
    with pytest.raises(ValueError, match="context must be uint8"):
        SimulatorEnv(world, starts=torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="3 seeds for 2 worlds"):
        SimulatorVectorEnv(world, 2).reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="reset_mask"):
        SimulatorVectorEnv(world, 2).reset(options={"reset_mask": np.array([False, False])})
    world.starts = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="pass starts"):
        SimulatorEnv(world)


@pytest.mark.parametrize("observe", ["frame", "latent"])
def test_vector_worlds_have_vector_observations(observe: str) -> None:
    world = CountWorld(shows="vectors")
    env = SimulatorEnv(world, observe=observe)
    envs = SimulatorVectorEnv(world, 2, starts=world.starts[3:], observe=observe)  # type: ignore[index]
    space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert env.observation_space == envs.single_observation_space == space
    assert env.metadata["render_modes"] == [] and envs.observation_space.shape == (2, 3)
    vector, _ = env.reset(seed=0, options={"start": 1})
    assert vector in space and vector[:2].tolist() == [2, 0]
    assert env.step(3)[0][:2].tolist() == [2, 3]
    envs.reset(seed=0, options={"start": 1})
    vectors = envs.step(np.array([1, 2]))[0]
    assert vectors in envs.observation_space and vectors[:, :2].tolist() == [[5, 1], [5, 2]]
    with pytest.raises(ValueError, match="no images to render"):
        SimulatorEnv(world, render_mode="rgb_array")
    with pytest.raises(ValueError, match=r"context must be float32 \[b, t, 3\]"):
        SimulatorEnv(world, starts=CountWorld().starts)


def test_latent_observations_are_decoded_only_for_rendering() -> None:
    for shows in ("pictures", "latents"):
        world = CountWorld(shows=shows)
        env = SimulatorEnv(world, observe="latent")
        latent, _ = env.reset(seed=0, options={"start": 1})
        assert latent.dtype == np.float32 and latent[:2].tolist() == [2, 0]
        assert env.step(3)[0][:2].tolist() == [2, 3] and world.decoded == [False]
    with pytest.raises(ValueError, match="observe='latent'"):
        SimulatorEnv(CountWorld(shows="latents"))
    with pytest.raises(ValueError, match="observe must be"):
        SimulatorEnv(CountWorld(), observe="pixels")
    env = SimulatorEnv(CountWorld(), observe="latent", render_mode="rgb_array")
    env.reset(seed=0, options={"start": 1})
    latent, image = env.step(3)[0], env.render()
    assert image is not None and image[0, :3, 0].tolist() == latent.astype(int).tolist()


def test_latent_observations_of_a_video_world_are_codes(genie: GenieSimulator) -> None:
    envs = SimulatorVectorEnv(genie, 2, observe="latent")
    assert envs.single_observation_space.shape == (16 * 32,)  # tokens, each with a code as wide as the tokenizer
    frames = SimulatorVectorEnv(genie, 2)
    envs.reset(seed=0), frames.reset(seed=0)
    for _ in range(3):
        latents, _ = envs.step(np.array([0, 1]))[:2]
        frames.step(np.array([0, 1]))
    tokens = genie.latent(frames.worlds.current.state)
    assert latents in envs.observation_space
    assert (latents == genie.flatten_latents(tokens).numpy()).all()


def test_a_fork_continues_exactly_and_independently() -> None:
    """A fork copies worlds, their generators (across episodes) and the generators of the spaces."""
    env = SimulatorEnv(CountWorld(), max_episode_steps=4)
    early_fork = env.fork()  # before any random number was drawn
    assert data_equivalence(env.reset(), early_fork.reset(), exact=True)
    env.step(1)
    fork = env.fork()
    trajectories = [_three_episodes(e) for e in (fork, env.fork(), env)]  # stepping one does not change the next
    assert data_equivalence(trajectories[0], trajectories[1], exact=True) and data_equivalence(
        trajectories[0], trajectories[2], exact=True
    )


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_fork_of_a_batch_continues_exactly_and_independently(mode: AutoresetMode) -> None:
    envs = SimulatorVectorEnv(CountWorld(), 3, max_episode_steps=5, autoreset_mode=mode)
    envs.reset(seed=0)
    for _ in range(4):
        envs.step(envs.action_space.sample())
    first_fork, second_fork = envs.fork(), envs.fork()
    trajectories = [[e.step(e.action_space.sample()) for _ in range(20)] for e in (first_fork, second_fork, envs)]
    assert data_equivalence(trajectories[0], trajectories[1], exact=True) and data_equivalence(
        trajectories[0], trajectories[2], exact=True
    )
    assert first_fork.np_random_seed == (0, 1, 2) and first_fork.simulator is envs.simulator


def _three_episodes(env: SimulatorEnv) -> list[object]:
    """Play three episodes and return everything that the environment returned."""
    trajectory: list[object] = []
    for _ in range(3):
        ended = False
        while not ended:
            trajectory.append(env.step(env.action_space.sample()))
            ended = trajectory[-1][2] or trajectory[-1][3]  # type: ignore[index]
        trajectory.append(env.reset())
    return trajectory
