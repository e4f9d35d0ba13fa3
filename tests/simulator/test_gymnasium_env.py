"""Gymnasium faces: outside checkers, Gymnasium's own vectoriser as the oracle of ours, and exact indices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import Tensor

from vwm.genie.dynamics import MaskGITDynamics, Sampling
from vwm.genie.latent_action import LatentActionModel
from vwm.nn.random import fold, uniform, world_seeds
from vwm.simulator.bundle import save_simulator
from vwm.simulator.genie import GenieSimulator
from vwm.simulator.gymnasium_env import SimulatorEnv, SimulatorVectorEnv
from vwm.simulator.interface import ActionSpace, Simulator, StepOutput
from vwm.tokenizer.space_time import SpaceTimeTokenizer

SIZE = 36  # the smallest picture that Stable-Baselines3 takes for one
WORLD = "vwm.simulator.gymnasium_env:vwm/World-v0"


class CountState(NamedTuple):
    ground: Tensor
    count: Tensor
    seed: Tensor


class CountWorld(Simulator):
    """Counts up by the action (or by 1 where actions are continuous) and ends at 7 or more.

    Pixel (0, 0) shows the context's value, (0, 1) the count, (0, 2) noise from seed and count. The reward is the count.
    """

    def __init__(self, kind: str = "discrete") -> None:
        self.actions = ActionSpace(kind, 4)
        self.image_size, self.fps, self.context_frames = (SIZE, SIZE), 12.0, 2
        self.starts = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1, 1).expand(5, 2, SIZE, SIZE, 3).clone()

    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[CountState, Tensor]:
        self.check_context(context)
        batch = len(context)
        state = CountState(context[:, -1, 0, 0, 0], torch.zeros(batch, dtype=torch.int64), world_seeds(seed, batch))
        return state, self._draw(state)

    def step(self, state: CountState, action: Tensor, decode: bool = True) -> tuple[CountState, StepOutput]:
        self.check_action(action, len(state.count))
        count = state.count + (action if self.actions.kind == "discrete" else 1)
        new = state._replace(count=count)
        return new, StepOutput(self._draw(new) if decode else None, count, count.float(), count >= 7)

    def _draw(self, state: CountState) -> Tensor:
        frame = torch.zeros(len(state.count), SIZE, SIZE, 3, dtype=torch.uint8)
        noise = uniform(fold(state.seed, state.count), 1)[:, 0] * 256
        for column, value in enumerate((state.ground, state.count, noise)):
            frame[:, 0, column] = value[:, None].to(torch.uint8)
        return frame


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    return GenieSimulator(*parts, ActionSpace("discrete", 3), sampling=Sampling(3), context_frames=3, starts=starts)


@pytest.fixture(scope="module")
def bundle(genie: GenieSimulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "world"
    save_simulator(genie, path)
    return path


def test_gymnasium_checker_finds_nothing(bundle: Path) -> None:
    env = gymnasium.make(WORLD, bundle=bundle, max_episode_steps=9, render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.spec is not None and env.spec.id == "vwm/World-v0"
    assert env.metadata["render_fps"] == 15


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_stable_baselines_checker_finds_nothing(kind: str) -> None:
    sb3_check_env(SimulatorEnv(CountWorld(kind), render_mode="rgb_array"), warn=True, skip_render_check=False)


def test_spaces() -> None:
    env = SimulatorEnv(CountWorld())
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    assert env.action_space == gymnasium.spaces.Discrete(4)
    envs = SimulatorVectorEnv(CountWorld("continuous"), 3)
    assert envs.single_action_space == gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    assert envs.action_space.shape == (3, 4) and envs.observation_space.shape == (3, SIZE, SIZE, 3)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP and envs.metadata["render_fps"] == 12
    observation, _ = envs.reset(seed=0)
    assert observation in envs.observation_space


def test_single_world_step_by_step() -> None:
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


def test_everything_random_comes_from_the_seed() -> None:
    def life(seed: int | None, env: SimulatorEnv) -> list[int]:
        frames = [env.reset(seed=seed)[0], env.step(1)[0], env.reset()[0], env.step(2)[0]]
        return [int(v) for frame in frames for v in frame[0, :3, 0]]

    one, other = SimulatorEnv(CountWorld()), SimulatorEnv(CountWorld())
    assert life(5, one) == life(5, other) == life(5, one)
    assert life(6, one) != life(5, other)
    # Naming the context takes as many random numbers as drawing it.
    one.reset(seed=5, options={"start": 0}), other.reset(seed=5)
    assert (one.reset()[0] == other.reset()[0]).all()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_a_batch_lives_as_gymnasiums_vector_of_single_worlds(mode: AutoresetMode, kind: str) -> None:
    ours = SimulatorVectorEnv(CountWorld(kind), 3, max_episode_steps=5, autoreset_mode=mode, render_mode="rgb_array")
    single = [lambda: SimulatorEnv(CountWorld(kind), max_episode_steps=5, render_mode="rgb_array")] * 3
    theirs = SyncVectorEnv(single, autoreset_mode=mode)
    assert ours.metadata == theirs.metadata
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    theirs.action_space.seed(0)
    assert data_equivalence(ours.reset(seed=7), theirs.reset(seed=7), exact=True)
    assert ours.np_random_seed == theirs.np_random_seed == (7, 8, 9)
    for _ in range(40):
        action = theirs.action_space.sample()
        mine, expected = ours.step(action), theirs.step(action)
        assert data_equivalence(mine, expected, exact=True)
        assert all((a == b).all() for a, b in zip(ours.render() or (), theirs.render(), strict=True))
    assert data_equivalence(ours.reset(), theirs.reset(), exact=True)  # the generators stand at the same place
    assert data_equivalence(ours.reset(seed=[3, None, 4]), theirs.reset(seed=[3, None, 4]), exact=True)


def test_same_step_hands_over_the_last_frame() -> None:
    envs = SimulatorVectorEnv(CountWorld(), 2, autoreset_mode="SameStep")
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.array([3, 1]))
    frames, rewards, terminated, _, infos = envs.step(np.array([3, 1]))
    assert rewards.tolist() == [9, 3] and terminated.tolist() == [True, False]
    assert frames[:, 0, 1, 0].tolist() == [0, 3]
    assert infos["final_obs"][0][0, 1, 0] == 9 and infos["final_obs"][1] is None
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == infos["_start"].tolist() == [True, False]


def test_next_step_spends_a_step_on_the_reset() -> None:
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


def test_observations_are_the_callers_to_change() -> None:
    envs = SimulatorVectorEnv(CountWorld(), 2, render_mode="rgb_array")
    first, _ = envs.reset(seed=0)
    kept = first.copy()
    envs.step(np.array([1, 1]))[0][:] = 0
    assert (first == kept).all() and (envs.render() or ())[0][0, 1, 0] == 1


def test_make_vec_and_genie_worlds(bundle: Path, genie: GenieSimulator) -> None:
    envs = gymnasium.make_vec(WORLD, num_envs=2, bundle=bundle, max_episode_steps=3)
    assert isinstance(envs, SimulatorVectorEnv) and envs.max_episode_steps == 3
    frames = [envs.reset(seed=4)[0], *(envs.step(np.array([0, 2]))[0] for _ in range(3))]
    for world, action in enumerate((0, 2)):
        env = SimulatorEnv(genie)
        alone = [env.reset(seed=4 + world)[0], *(env.step(action)[0] for _ in range(3))]
        # A matrix product of another batch size may round otherwise, by one grey level.
        assert max(int(np.abs(a.astype(int) - f[world]).max()) for a, f in zip(alone, frames, strict=True)) <= 1


def test_errors_name_the_way_out() -> None:
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
