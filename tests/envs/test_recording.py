"""Recording: actions align with frames, and workers or interruptions do not change a byte."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vwm.core.folder_lock import lock_folder
from vwm.data.shard_index import build_shard_index, list_shards, load_shard_index
from vwm.envs.action_spec import EnvActionSpec
from vwm.envs.behavior_policies import BEHAVIOR_POLICIES, HeldKeysPolicy, MixedPolicy, RandomPolicy, StickyPolicy
from vwm.envs.lane_following import road_mask
from vwm.envs.procgen import partition_levels
from vwm.envs.recording import record_dataset
from vwm.envs.recording_envs import ShardAssignment, make_recording_env
from vwm.envs.wrapped_env import WrappedEnv

ENV_SOURCE = '''
"""An environment whose frames contain the number of steps and the last action."""
import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    metadata = {"render_fps": 30, "render_modes": []}
    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def __init__(self, length=7, continuous=False, fail_at=None):
        self.length, self.continuous, self.fail_at = length, continuous, fail_at
        box = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))
        self.action_space = box if continuous else spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.last, self.noise = 0, 99, int(self.np_random.integers(256))
        return self.observe(), {}

    def observe(self):
        frame = np.zeros((8, 8, 3), np.uint8)
        frame[..., 0], frame[..., 1], frame[..., 2] = self.steps, self.last, self.noise
        return frame

    def step(self, action):
        self.steps += 1
        self.last = 50 if self.continuous else int(action)
        if self.steps == self.fail_at:
            raise RuntimeError("the game broke")
        reward = float(action @ [1, 100] if self.continuous else action)
        return self.observe(), reward, self.steps == self.length and self.length % 2 == 1, self.steps == self.length, {}


class Vector(Counter):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    metadata = {"render_fps": 30, "render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        super().__init__()

    def observe(self):
        return np.array([self.steps, self.last], np.float32)

    def render(self):
        return Counter.observe(self)


class StatefulCounter(Counter):
    state_names = ("step", "last action")

    @property
    def state(self):
        return np.array([self.steps, self.last])


gymnasium.register("Counter-v0", Counter)
gymnasium.register("StatefulCounter-v0", StatefulCounter)
gymnasium.register("Vector-v0", Vector)
'''


@pytest.fixture(scope="module", autouse=True)
def _test_environments(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Put the environments into a module that spawned workers can import."""
    folder = tmp_path_factory.mktemp("games")
    (folder / "vwm_test_games.py").write_text(ENV_SOURCE)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


COUNTER_ENV = "vwm_test_games:Counter-v0"


def read_episodes(folder: Path) -> list[dict[str, Any]]:
    episodes = []
    for shard in list_shards(folder):
        with tarfile.open(shard) as tar:
            samples: dict[str, dict[str, Any]] = {}
            for member in tar:
                key, _, extension = member.name.partition(".")
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                value = json.loads(data) if extension == "json" else np.load(io.BytesIO(data))
                samples.setdefault(key, {})[extension] = value
            episodes += samples.values()
    return episodes


def file_contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_actions_lead_from_their_frame_to_the_next(tmp_path: Path) -> None:
    record_dataset(COUNTER_ENV, tmp_path, frames=104, size=8, policy="random", workers=0, frames_per_shard=52)
    episodes = read_episodes(tmp_path)
    assert sum(len(e["frames.npy"]) for e in episodes) == 104
    for episode in episodes:
        frames, actions, rewards = (episode[f"{n}.npy"] for n in ("frames", "actions", "rewards"))
        assert actions.dtype == np.int64 and rewards.dtype == np.float32
        np.testing.assert_array_equal(frames[:, 0, 0, 0], np.arange(len(frames)))  # the first frame is that of a reset
        np.testing.assert_array_equal(frames[1:, 0, 0, 1], actions[:-1])
        np.testing.assert_array_equal(rewards, actions)
        assert len(np.unique(frames[..., 2])) == 1  # of one episode only
    assert {len(e["frames.npy"]) for e in episodes} == {7, 52 % 7}
    assert [e["json"]["terminated"] for e in episodes] == [len(e["frames.npy"]) == 7 for e in episodes]
    assert all(e["json"]["truncated"] != e["json"]["terminated"] for e in episodes)
    assert episodes[0]["json"]["fps"] == 30 and episodes[0]["json"]["source"] == COUNTER_ENV


def test_frame_skip_holds_the_action_and_sums_the_reward(tmp_path: Path) -> None:
    options = {"length": 40}
    record_dataset(COUNTER_ENV, tmp_path, frames=20, size=8, workers=0, frame_skip=4, env_options=options)
    for episode in read_episodes(tmp_path):
        np.testing.assert_array_equal(episode["frames.npy"][:, 0, 0, 0], 4 * np.arange(10))
        np.testing.assert_array_equal(episode["rewards.npy"], 4 * episode["actions.npy"])
        assert episode["json"]["fps"] == 7.5
        assert episode["json"]["truncated"] and not episode["json"]["terminated"]


def test_long_episodes_are_split_at_the_maximum_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_dataset(COUNTER_ENV, tmp_path, frames=14, size=8, workers=0, max_episode_frames=3)
    firsts = [e["frames.npy"][:, 0, 0, 0].tolist() for e in read_episodes(tmp_path)]
    assert firsts == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]  # and the seventh frame alone is dropped
    assert [e["json"]["terminated"] for e in read_episodes(tmp_path)] == [False] * 4
    assert "2 episodes shorter than 2 frames were dropped" in capsys.readouterr().out


def test_the_first_frames_of_every_episode_can_be_skipped(tmp_path: Path) -> None:
    record_dataset(COUNTER_ENV, tmp_path / "a", frames=18, size=8, workers=0, skip_first_frames=2, max_episode_frames=3)
    episodes = read_episodes(tmp_path / "a")
    assert [e["frames.npy"][:, 0, 0, 0].tolist() for e in episodes] == [[2, 3, 4], [5, 6]] * 3 + [[2, 3, 4]]
    for episode in episodes:
        np.testing.assert_array_equal(episode["frames.npy"][1:, 0, 0, 1], episode["actions.npy"][:-1])
        np.testing.assert_array_equal(episode["rewards.npy"], episode["actions.npy"])
    with pytest.raises(ValueError, match="100 episodes in a row ended within skip_first_frames=7 frames"):
        record_dataset(COUNTER_ENV, tmp_path / "b", frames=18, size=8, workers=0, skip_first_frames=7)


def test_a_recording_without_the_skip_first_frames_setting_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_dataset(COUNTER_ENV, tmp_path, frames=20, size=8, workers=0)
    settings = json.loads((tmp_path / "recording.json").read_text())
    del settings["skip_first_frames"]
    (tmp_path / "recording.json").write_text(json.dumps(settings))
    record_dataset(COUNTER_ENV, tmp_path, frames=20, size=8, workers=0)
    assert "Nothing to do" in capsys.readouterr().out


def test_recordings_support_continuous_actions_rendered_frames_and_state(tmp_path: Path) -> None:
    record_dataset(COUNTER_ENV, tmp_path / "a", frames=20, size=16, workers=0, env_options={"continuous": True})
    episodes = read_episodes(tmp_path / "a")
    actions, rewards = (np.concatenate([e[f"{n}.npy"] for e in episodes]) for n in ("actions", "rewards"))
    assert actions.shape == (20, 2) and actions.dtype == np.float32
    assert (np.abs(actions) <= 1).all() and (actions.min(axis=0) < 0).all()
    # actions stored in [-1, 1] were scaled to -2..2 and 0..1 for the environment
    np.testing.assert_allclose(rewards, actions @ [2, 50] + 50, rtol=1e-5)
    meta = episodes[0]["json"]
    assert [meta[k] for k in ("action_low", "action_high", "action_rest")] == [[-2, 0], [2, 1], [0, -1]]
    record_dataset("vwm_test_games:Vector-v0", tmp_path / "b", frames=14, size=8, workers=0, state=True)
    for episode in read_episodes(tmp_path / "b"):
        assert episode["state.npy"].dtype == np.float32
        np.testing.assert_array_equal(episode["state.npy"], episode["frames.npy"][:, 0, 0, :2])
        assert episode["json"]["state_names"] == ["observation_0", "observation_1"]
    assert "state_names" not in meta
    with pytest.raises(ValueError, match="has no known state"):
        record_dataset(COUNTER_ENV, tmp_path / "c", frames=14, size=8, workers=0, state=True)


def test_an_environment_can_define_and_name_its_state(tmp_path: Path) -> None:
    record_dataset("vwm_test_games:StatefulCounter-v0", tmp_path, frames=20, size=8, workers=0, state=True)
    for episode in read_episodes(tmp_path):
        np.testing.assert_array_equal(episode["state.npy"], episode["frames.npy"][:, 0, 0, :2])
        assert episode["json"]["state_names"] == ["step", "last action"]


def test_workers_and_interruptions_do_not_change_the_written_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(name: str, workers: int) -> dict[str, bytes]:
        record_dataset(COUNTER_ENV, tmp_path / name, frames=130, size=8, workers=workers, frames_per_shard=50, seed=3)
        return file_contents(tmp_path / name)

    expected = record("a", 0)
    assert [n for n in expected if n.endswith(".tar")] == [f"shard-00000{i}.tar" for i in range(3)]
    assert len({build_shard_index(str(tmp_path / "a" / n)).hash for n in expected if n.endswith(".tar")}) == 3
    assert record("b", 2) == expected
    (tmp_path / "b" / "shard-000001.tar").unlink()
    (tmp_path / "b" / "shard-000002.index.json").unlink()  # killed between the shard and its index
    ended = subprocess.Popen(["true"])
    ended.wait()
    leftover = f".shard-000001.tar.{re.sub('[^A-Za-z0-9-]', '-', socket.gethostname())}.{ended.pid}.0123abcd.tmp"
    (tmp_path / "b" / leftover).write_bytes(b"half")
    assert record("b", 0) == expected
    with lock_folder(tmp_path / "b", "recording"), pytest.raises(ValueError, match="another recording writes there"):
        record("b", 0)
    capsys.readouterr()
    assert record("b", 2) == expected
    assert "Nothing to do" in capsys.readouterr().out


def test_rejects_changed_settings_and_foreign_folders(tmp_path: Path) -> None:
    record_dataset(COUNTER_ENV, tmp_path / "a", frames=20, size=8, workers=0)
    with pytest.raises(ValueError, match="seed was 0 and is now 1"):
        record_dataset(COUNTER_ENV, tmp_path / "a", frames=20, size=8, workers=0, seed=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "shard-000000.tar").touch()
    with pytest.raises(ValueError, match="is no recording"):
        record_dataset(COUNTER_ENV, tmp_path / "b", frames=20, size=8, workers=0)
    with pytest.raises(ValueError, match="Nope"):
        record_dataset("Nope-v0", tmp_path / "c", frames=20, size=8, workers=0)
    record_dataset(
        COUNTER_ENV, tmp_path / "c", frames=20, size=8, workers=0
    )  # a failed call that wrote nothing does not block the folder


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_environment_is_raised(tmp_path: Path, workers: int) -> None:
    with pytest.raises(RuntimeError, match="the game broke"):
        record_dataset(COUNTER_ENV, tmp_path, frames=20, size=8, workers=workers, env_options={"fail_at": 5})
    assert [p.name for p in tmp_path.iterdir()] == ["recording.json"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "frames must be 1 or more"),
        ({"skip_first_frames": -1}, "skip_first_frames must be 0 or more"),
        ({"policy": "road"}, "this environment takes unnamed actions"),
        ({"max_episode_frames": 1}, "max_episode_frames must be 2 or more"),
        ({"policy": "clever"}, "'clever' is not known; there are random, sticky, mixed, road"),
        ({"workers": -1}, "workers must be 0"),
        ({"env": "NoSuchGame-v0"}, "NoSuchGame"),
        ({"env_options": {"color": 1}}, "color"),
        ({"prefer": {9: 1.0}}, "actions go from 0 to 4"),
        ({"frame_skip": 0}, "frame_skip must be 1 or more"),
    ],
)
def test_rejects_invalid_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_dataset(**{"env": COUNTER_ENV, "out": tmp_path, "workers": 0, "frames": 20, "size": 8, **settings})


def test_levels_are_partitioned_without_overlap() -> None:
    ranges = [partition_levels(10, 503, ShardAssignment(i, 7, 0)) for i in range(7)]
    assert [level for start, count in ranges for level in range(start, start + count)] == list(range(10, 513))
    assert partition_levels(0, 0, ShardAssignment(3, 7, 0)) == (0, 0)
    assert [partition_levels(5, 2, ShardAssignment(i, 3, 0)) for i in range(3)] == [(5, 1), (6, 1), (5, 1)]


# ---------------------------------------------------------------------------------------------------- policies


def discrete(count: int) -> EnvActionSpec:
    return EnvActionSpec(count, np.zeros(0, np.float32), np.zeros(0, np.float32))


def blank_frames(num_envs: int) -> np.ndarray[Any, Any]:
    return np.zeros((num_envs, 8, 8, 3), np.uint8)


def sample_actions(policy: RandomPolicy, steps: int) -> np.ndarray[Any, Any]:
    first = np.zeros(policy.num_envs, bool)
    return np.stack([policy.act(first, blank_frames(policy.num_envs)) for _ in range(steps)])


def test_the_random_policy_follows_the_action_weights() -> None:
    policy = RandomPolicy(discrete(4), 2, np.random.default_rng(0), {1: 5.0, 2: 0.0, 3: 4.0})
    shares = np.bincount(sample_actions(policy, 4000).ravel(), minlength=4) / 8000
    np.testing.assert_allclose(shares, [0.1, 0.5, 0, 0.4], atol=0.02)


def test_the_sticky_policy_repeats_actions_within_episodes_only() -> None:
    policy = StickyPolicy(discrete(10), 1, np.random.default_rng(0))
    actions = sample_actions(policy, 4000)[:, 0]
    assert abs((actions[1:] == actions[:-1]).mean() - (0.8 + 0.2 / 10)) < 0.02
    first_actions = np.array([policy.act(np.ones(1, bool), blank_frames(1))[0] for _ in range(4000)])
    assert abs((first_actions[1:] == first_actions[:-1]).mean() - 0.1) < 0.03


def test_the_mixed_policy_prefers_an_action_per_segment_and_follows_the_weights_overall() -> None:
    policy = MixedPolicy(discrete(6), 4, np.random.default_rng(0), {5: 5.0, 0: 0.0})
    actions = sample_actions(policy, 8000)
    shares = np.bincount(actions.ravel(), minlength=6) / actions.size
    assert shares[0] == 0 and abs(shares[5] - 5 / 9) < 0.1
    segments = actions[:, 0].reshape(-1, 16)
    assert np.mean([len(np.unique(p)) <= 2 for p in segments]) > 0.5
    assert len({int(np.bincount(p).argmax()) for p in segments}) == 5


@pytest.mark.parametrize("name", sorted(set(BEHAVIOR_POLICIES) - {"ball", "push"}))  # see their own tests
def test_policies_are_deterministic_given_a_seed_and_stay_in_bounds(name: str) -> None:
    box = EnvActionSpec(0, np.array([-1, 0, 0], np.float32), np.array([1, 3, 1], np.float32), ("steer", "gas", "brake"))
    for actions in (box,) if name in ("road", "keys") else (discrete(5), box):
        first, second = (
            sample_actions(BEHAVIOR_POLICIES[name](actions, 3, np.random.default_rng(7)), 200) for _ in range(2)
        )
        np.testing.assert_array_equal(first, second)
    assert first.shape == (200, 3, 3) and first.dtype == np.float32
    assert (np.abs(first) <= 1).all() and (first.min(axis=(0, 1)) < -0.5).all() and (first.max(axis=(0, 1)) > 0.5).all()
    with pytest.raises(ValueError, match="these are continuous"):
        BEHAVIOR_POLICIES[name](box, 1, np.random.default_rng(0), {1: 2.0})


def test_the_keys_policy_keeps_straight_on_for_long_and_lets_go_where_an_episode_begins() -> None:
    box = EnvActionSpec(0, np.array([-1, 0, 0], np.float32), np.ones(3, np.float32), ("steer", "gas", "brake"))
    policy = HeldKeysPolicy(box, 4, np.random.default_rng(0))
    actions = sample_actions(policy, 3000)
    half_gas = (actions == np.array([0, 0, -1], np.float32)).all(axis=-1)
    held = np.lib.stride_tricks.sliding_window_view(half_gas, HeldKeysPolicy.longest_hold, axis=0)
    assert held.all(axis=-1).any()
    policy.frames_left[:] = 1000
    policy.act(np.array([True, False, True, False]), blank_frames(4))
    assert (policy.frames_left[[1, 3]] == 999).all() and (policy.frames_left[[0, 2]] < 200).all()


# ------------------------------------------------------------------------------------------ real environments


def test_coinrun_recordings_are_reproducible_and_their_shards_differ(tmp_path: Path) -> None:
    pytest.importorskip("gym3", reason="Procgen is not installed")
    options = {"num_levels": 50, "distribution_mode": "easy", "use_backgrounds": False}
    for name in ("a", "b"):
        record_dataset(
            "procgen:coinrun", tmp_path / name, frames=400, workers=0, frames_per_shard=200, env_options=options
        )
    hashes = [[load_shard_index(s).hash for s in list_shards(tmp_path / n)] for n in ("a", "b")]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 2
    first = read_episodes(tmp_path / "a")[0]
    assert first["frames.npy"].shape[1:] == (64, 64, 3)
    assert first["json"]["fps"] == 15 and first["json"]["action_names"][8] == "RIGHT+UP"
    for env_id, options in (("procgen:coinrun", {"color": 1}), ("procgen:color", {})):
        with pytest.raises(ValueError, match="color"):
            record_dataset(env_id, tmp_path / "c", workers=0, env_options=options)


def test_the_atari_state_is_the_ram_with_the_ball_position(tmp_path: Path) -> None:
    pytest.importorskip("ale_py", reason="ale-py is not installed")
    env = make_recording_env("ALE/Pong-v5", ShardAssignment(0, 1, 5), size=84, frame_skip=4, state=True)
    assert env.reset().observation.shape == (1, 84, 84, 3)
    state = env.read_state()
    assert state is not None and state.shape == (1, 128)
    assert env.fps == 15 and env.actions.names[0] == "NOOP"
    assert env.state_names[49:52] == ("ball_x", "enemy_y", "player_y") and env.state_names[127] == "ram_127"
    env.close()
    record_dataset("ALE/Pong-v5", tmp_path, frames=300, size=96, workers=0, frame_skip=4, state=True)
    (episode,) = read_episodes(tmp_path)
    # The ball in the blue channel, between bars and paddles.
    field = episode["frames.npy"][:, 17:87, 14:82, 2].astype(float) - 17
    blue = field.sum(axis=(1, 2))
    visible = (blue > 300) & (blue < 1000)
    assert visible.sum() > 50
    names = episode["json"]["state_names"]
    for name, axis in (("ball_x", 1), ("ball_y", 2)):
        along = field[visible].sum(axis=axis)
        center = along @ np.arange(along.shape[1]) / along.sum(axis=1)
        recorded = episode["state.npy"][visible, names.index(name)]
        aligned, delayed = (np.corrcoef(recorded, np.roll(center, k))[0, 1] for k in (0, 1))
        assert aligned > 0.99 > delayed


def test_the_road_policy_follows_the_road_with_deliberate_deviations(tmp_path: Path) -> None:
    pytest.importorskip("Box2D", reason="Box2D is not installed")
    record_dataset(
        "CarRacing-v3", tmp_path, 120, policy="road", workers=0, frame_skip=4, skip_first_frames=13, state=True, seed=1
    )
    (episode,) = read_episodes(tmp_path)
    meta, actions, frames = episode["json"], episode["actions.npy"], episode["frames.npy"]
    assert meta["fps"] == 12.5 and meta["action_names"] == ["steer", "gas", "brake"]
    assert meta["action_rest"] == [0, -1, -1]
    on_road = road_mask(frames)[:, 42:52, 28:36].any(axis=(1, 2))  # around the car
    assert on_road.mean() > 0.6
    assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).mean() > 0.9
    assert (actions.std(axis=0) > 0.15).all()
    names, state = meta["state_names"], episode["state.npy"]
    assert names[:6] == ["x", "y", "angle", "vx", "vy", "angular_velocity"]
    angle, vx, vy, forward, lateral = (
        state[:, names.index(n)] for n in ("angle", "vx", "vy", "forward_speed", "lateral_speed")
    )
    # rotating the velocity into the car's own axes keeps its length
    np.testing.assert_allclose(np.hypot(vx, vy), np.hypot(forward, lateral), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.exp(1j * angle) * (lateral + 1j * forward), vx + 1j * vy, rtol=1e-4, atol=1e-4)
    assert forward.mean() > 10 * abs(lateral.mean())
    wheels = state[:, names.index("steering_angle")]
    # The wheels follow the steering action; left is positive.
    assert np.corrcoef(wheels[1:], actions[:-1, 0])[0, 1] < -0.6
    # the wheel's motion follows the action of its frame: the hull turns right (its angle falls) after steering right
    angular_acceleration = np.diff(episode["state.npy"][:, 5])
    aligned, delayed = (
        np.corrcoef(a[:-1], angular_acceleration)[0, 1] for a in (actions[:, 0], np.roll(actions[:, 0], 1))
    )
    assert aligned < delayed


def test_skipping_the_rendering_of_skipped_steps_does_not_change_car_racing_frames() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("Box2D", reason="Box2D is not installed")
    recording_env = make_recording_env(
        "CarRacing-v3", ShardAssignment(0, 1, 5), 96, frame_skip=4, options={"max_episode_steps": 22}
    )
    env = gymnasium.make("CarRacing-v3", max_episode_steps=22)
    observation, _ = env.reset(seed=5)
    time_step = recording_env.reset()
    for t in range(8):
        np.testing.assert_array_equal(time_step.observation[0], observation)
        action = np.array([np.sin(t), 0.5, -1], np.float32)
        time_step = recording_env.step(torch.from_numpy(action[None]))
        reward_sum = 0.0
        for _ in range(4):
            observation, reward, _, truncated, _ = env.step(recording_env.actions.denormalize(action))
            reward_sum += reward
            if truncated:
                observation, _ = env.reset()
                break
        assert (
            bool(time_step.is_last[0] & ~time_step.is_terminal[0]) == truncated == (t == 5)
        )  # in the second of four steps
        assert time_step.reward[0] == pytest.approx(reward_sum)
    recording_env.close()
    env.close()


def test_an_episode_that_ends_in_a_skipped_step_shows_its_last_image() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("Box2D", reason="Box2D is not installed")
    wrapped = WrappedEnv("CarRacing-v3", {"max_episode_steps": 22}, 96, action_repeat=4)
    env = gymnasium.make("CarRacing-v3", max_episode_steps=22)
    wrapped.reset(seed=5)
    env.reset(seed=5)
    action = np.array([0.2, 0.5, -1], np.float32)
    outcomes = [wrapped.step(action) for _ in range(6)]
    for _ in range(22):
        observation, *_ = env.step(wrapped.actions.to_env(action))
    assert [outcome.truncated for outcome in outcomes] == [False] * 5 + [True]
    np.testing.assert_array_equal(wrapped.observe(), observation)
    wrapped.close()
    env.close()


def test_the_mujoco_state_contains_joint_positions_and_velocities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed: pip install 'gymnasium[mujoco]'")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = make_recording_env("InvertedPendulum-v5", ShardAssignment(0, 1, 5), size=32, state=True)
    try:
        time_step = env.reset()
    except Exception as error:  # noqa: BLE001 (whatever the graphics driver raises that is missing)
        pytest.skip(f"MuJoCo cannot draw here without a screen: {error}")
    assert env.state_names == ("qpos_0", "qpos_1", "qvel_0", "qvel_1")
    for _ in range(3):
        before = env.read_state()
        time_step = env.step(torch.full((1, 1), 0.2))
        state = env.read_state()
    assert before is not None and state is not None and time_step.observation.shape == (1, 32, 32, 3)
    assert state[0, 0] > before[0, 0] and state[0, 2] > 0  # pushed to the right, the cart moves right
    env.close()
