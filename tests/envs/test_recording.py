"""Recording: the alignment rule to the frame, and the same bytes from any number of workers, interrupted or not."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vwm.data.shard_index import build_shard_index, list_shards, load_shard_index
from vwm.envs.action_spec import EnvActionSpec
from vwm.envs.behavior_policies import BEHAVIOR_POLICIES, MixedPolicy, RandomPolicy, StickyPolicy
from vwm.envs.lane_following import road_mask
from vwm.envs.procgen import partition_levels
from vwm.envs.recording import record_dataset
from vwm.envs.recording_envs import ShardAssignment, make_recording_env

COUNTER = '''
"""A game whose frame tells how many steps it has made and which action came last."""
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
        self.steps, self.last, self.luck = 0, 99, int(self.np_random.integers(256))
        return self.see(), {}

    def see(self):
        frame = np.zeros((8, 8, 3), np.uint8)
        frame[..., 0], frame[..., 1], frame[..., 2] = self.steps, self.last, self.luck
        return frame

    def step(self, action):
        self.steps += 1
        self.last = 50 if self.continuous else int(action)
        if self.steps == self.fail_at:
            raise RuntimeError("the game broke")
        earned = float(action @ [1, 100] if self.continuous else action)
        return self.see(), earned, self.steps == self.length and self.length % 2 == 1, self.steps == self.length, {}


class Vector(Counter):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    metadata = {"render_fps": 30, "render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        super().__init__()

    def see(self):
        return np.array([self.steps, self.last], np.float32)

    def render(self):
        return Counter.see(self)


class Teller(Counter):
    state_names = ("step", "last action")

    @property
    def state(self):
        return np.array([self.steps, self.last])


gymnasium.register("Counter-v0", Counter)
gymnasium.register("Teller-v0", Teller)
gymnasium.register("Vector-v0", Vector)
'''


@pytest.fixture(scope="module", autouse=True)
def _games(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Put the games into a module that spawned workers can import."""
    folder = tmp_path_factory.mktemp("games")
    (folder / "vwm_test_games.py").write_text(COUNTER)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


GAME = "vwm_test_games:Counter-v0"


def episodes(folder: Path) -> list[dict[str, Any]]:
    found = []
    for shard in list_shards(folder):
        with tarfile.open(shard) as tar:
            samples: dict[str, dict[str, Any]] = {}
            for member in tar:
                key, _, extension = member.name.partition(".")
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                value = json.loads(data) if extension == "json" else np.load(io.BytesIO(data))
                samples.setdefault(key, {})[extension] = value
            found += samples.values()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_every_action_leads_from_its_frame_to_the_next(tmp_path: Path) -> None:
    record_dataset(GAME, tmp_path, frames=104, size=8, policy="random", workers=0, frames_per_shard=52)
    found = episodes(tmp_path)
    assert sum(len(e["frames.npy"]) for e in found) == 104
    for episode in found:
        frames, actions, rewards = (episode[f"{n}.npy"] for n in ("frames", "actions", "rewards"))
        assert actions.dtype == np.int64 and rewards.dtype == np.float32
        np.testing.assert_array_equal(frames[:, 0, 0, 0], np.arange(len(frames)))  # the first is a first
        np.testing.assert_array_equal(frames[1:, 0, 0, 1], actions[:-1])
        np.testing.assert_array_equal(rewards, actions)
        assert len(np.unique(frames[..., 2])) == 1  # of one game only
    assert {len(e["frames.npy"]) for e in found} == {7, 52 % 7}
    assert [e["json"]["terminated"] for e in found] == [len(e["frames.npy"]) == 7 for e in found]
    assert all(e["json"]["truncated"] != e["json"]["terminated"] for e in found)
    assert found[0]["json"]["fps"] == 30 and found[0]["json"]["source"] == GAME


def test_frame_skip_holds_the_action_and_sums_the_reward(tmp_path: Path) -> None:
    options = {"length": 40}
    record_dataset(GAME, tmp_path, frames=20, size=8, workers=0, frame_skip=4, env_options=options)
    for episode in episodes(tmp_path):
        np.testing.assert_array_equal(episode["frames.npy"][:, 0, 0, 0], 4 * np.arange(10))
        np.testing.assert_array_equal(episode["rewards.npy"], 4 * episode["actions.npy"])
        assert episode["json"]["fps"] == 7.5
        assert episode["json"]["truncated"] and not episode["json"]["terminated"]


def test_long_episodes_are_cut_and_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_dataset(GAME, tmp_path, frames=14, size=8, workers=0, max_episode_frames=3)
    firsts = [e["frames.npy"][:, 0, 0, 0].tolist() for e in episodes(tmp_path)]
    assert firsts == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]  # and the seventh frame alone is dropped
    assert [e["json"]["terminated"] for e in episodes(tmp_path)] == [False] * 4
    assert "2 episodes shorter than 2 frames were dropped" in capsys.readouterr().out


def test_the_start_of_every_episode_can_be_left_out(tmp_path: Path) -> None:
    record_dataset(GAME, tmp_path / "a", frames=18, size=8, workers=0, skip_first_frames=2, max_episode_frames=3)
    found = episodes(tmp_path / "a")
    assert [e["frames.npy"][:, 0, 0, 0].tolist() for e in found] == [[2, 3, 4], [5, 6]] * 3 + [[2, 3, 4]]
    for episode in found:
        np.testing.assert_array_equal(episode["frames.npy"][1:, 0, 0, 1], episode["actions.npy"][:-1])
        np.testing.assert_array_equal(episode["rewards.npy"], episode["actions.npy"])
    with pytest.raises(ValueError, match="100 episodes in a row ended within skip_first_frames=7 frames"):
        record_dataset(GAME, tmp_path / "b", frames=18, size=8, workers=0, skip_first_frames=7)


def test_a_recording_from_before_skip_start_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_dataset(GAME, tmp_path, frames=20, size=8, workers=0)
    settings = json.loads((tmp_path / "recording.json").read_text())
    del settings["skip_first_frames"]
    (tmp_path / "recording.json").write_text(json.dumps(settings))
    record_dataset(GAME, tmp_path, frames=20, size=8, workers=0)
    assert "Nothing to do" in capsys.readouterr().out


def test_continuous_actions_and_rendered_frames_with_state(tmp_path: Path) -> None:
    record_dataset(GAME, tmp_path / "a", frames=20, size=16, workers=0, env_options={"continuous": True})
    found = episodes(tmp_path / "a")
    actions, rewards = (np.concatenate([e[f"{n}.npy"] for e in found]) for n in ("actions", "rewards"))
    assert actions.shape == (20, 2) and actions.dtype == np.float32
    assert (np.abs(actions) <= 1).all() and (actions.min(axis=0) < 0).all()
    # what is stored in [-1, 1] was played from -2 to 2 and from 0 to 1
    np.testing.assert_allclose(rewards, actions @ [2, 50] + 50, rtol=1e-5)
    meta = found[0]["json"]
    assert [meta[k] for k in ("action_low", "action_high", "action_rest")] == [[-2, 0], [2, 1], [0, -1]]
    record_dataset("vwm_test_games:Vector-v0", tmp_path / "b", frames=14, size=8, workers=0, state=True)
    for episode in episodes(tmp_path / "b"):
        assert episode["state.npy"].dtype == np.float32
        np.testing.assert_array_equal(episode["state.npy"], episode["frames.npy"][:, 0, 0, :2])
        assert episode["json"]["state_names"] == ["observation_0", "observation_1"]
    assert "state_names" not in meta
    with pytest.raises(ValueError, match="has no known state"):
        record_dataset(GAME, tmp_path / "c", frames=14, size=8, workers=0, state=True)


def test_a_game_of_ones_own_tells_and_names_its_state(tmp_path: Path) -> None:
    record_dataset("vwm_test_games:Teller-v0", tmp_path, frames=20, size=8, workers=0, state=True)
    for episode in episodes(tmp_path):
        np.testing.assert_array_equal(episode["state.npy"], episode["frames.npy"][:, 0, 0, :2])
        assert episode["json"]["state_names"] == ["step", "last action"]


def test_any_number_of_workers_and_any_interruption_write_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, workers: int) -> dict[str, bytes]:
        record_dataset(GAME, tmp_path / name, frames=130, size=8, workers=workers, frames_per_shard=50, seed=3)
        return contents(tmp_path / name)

    whole = run("a", 0)
    assert [n for n in whole if n.endswith(".tar")] == [f"shard-00000{i}.tar" for i in range(3)]
    assert len({build_shard_index(str(tmp_path / "a" / n)).hash for n in whole if n.endswith(".tar")}) == 3
    assert run("b", 2) == whole
    (tmp_path / "b" / "shard-000001.tar").unlink()
    (tmp_path / "b" / "shard-000001.tar.tmp").write_bytes(b"half")
    assert run("b", 0) == whole
    capsys.readouterr()
    assert run("b", 2) == whole
    assert "Nothing to do" in capsys.readouterr().out


def test_other_settings_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    record_dataset(GAME, tmp_path / "a", frames=20, size=8, workers=0)
    with pytest.raises(ValueError, match="seed was 0 and is now 1"):
        record_dataset(GAME, tmp_path / "a", frames=20, size=8, workers=0, seed=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "shard-000000.tar").touch()
    with pytest.raises(ValueError, match="is no recording"):
        record_dataset(GAME, tmp_path / "b", frames=20, size=8, workers=0)
    with pytest.raises(ValueError, match="Nope"):
        record_dataset("Nope-v0", tmp_path / "c", frames=20, size=8, workers=0)
    record_dataset(
        GAME, tmp_path / "c", frames=20, size=8, workers=0
    )  # a mistake from which nothing came can be mended


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_game_stops_with_its_own_error(tmp_path: Path, workers: int) -> None:
    with pytest.raises(RuntimeError, match="the game broke"):
        record_dataset(GAME, tmp_path, frames=20, size=8, workers=workers, env_options={"fail_at": 5})
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
def test_settings_that_make_no_sense_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_dataset(**{"env": GAME, "out": tmp_path, "workers": 0, "frames": 20, "size": 8, **settings})


def test_levels_are_dealt_out_without_overlap() -> None:
    dealt = [partition_levels(10, 503, ShardAssignment(i, 7, 0)) for i in range(7)]
    assert [level for start, count in dealt for level in range(start, start + count)] == list(range(10, 513))
    assert partition_levels(0, 0, ShardAssignment(3, 7, 0)) == (0, 0)
    assert [partition_levels(5, 2, ShardAssignment(i, 3, 0)) for i in range(3)] == [(5, 1), (6, 1), (5, 1)]


# ---------------------------------------------------------------------------------------------------- policies


def discrete(count: int) -> EnvActionSpec:
    return EnvActionSpec(count, np.zeros(0, np.float32), np.zeros(0, np.float32))


def blank_frames(num_envs: int) -> np.ndarray[Any, Any]:
    return np.zeros((num_envs, 8, 8, 3), np.uint8)


def play(policy: RandomPolicy, steps: int) -> np.ndarray[Any, Any]:
    first = np.zeros(policy.num_envs, bool)
    return np.stack([policy.act(first, blank_frames(policy.num_envs)) for _ in range(steps)])


def test_random_play_follows_the_weights() -> None:
    policy = RandomPolicy(discrete(4), 2, np.random.default_rng(0), {1: 5.0, 2: 0.0, 3: 4.0})
    shares = np.bincount(play(policy, 4000).ravel(), minlength=4) / 8000
    np.testing.assert_allclose(shares, [0.1, 0.5, 0, 0.4], atol=0.02)


def test_sticky_play_repeats_but_not_across_episodes() -> None:
    policy = StickyPolicy(discrete(10), 1, np.random.default_rng(0))
    actions = play(policy, 4000)[:, 0]
    assert abs((actions[1:] == actions[:-1]).mean() - (0.8 + 0.2 / 10)) < 0.02
    fresh = np.array([policy.act(np.ones(1, bool), blank_frames(1))[0] for _ in range(4000)])
    assert abs((fresh[1:] == fresh[:-1]).mean() - 0.1) < 0.03


def test_mixed_play_leans_for_a_while_and_keeps_the_preference_overall() -> None:
    policy = MixedPolicy(discrete(6), 4, np.random.default_rng(0), {5: 5.0, 0: 0.0})
    actions = play(policy, 8000)
    shares = np.bincount(actions.ravel(), minlength=6) / actions.size
    assert shares[0] == 0 and abs(shares[5] - 5 / 9) < 0.1
    pieces = actions[:, 0].reshape(-1, 16)
    assert np.mean([len(np.unique(p)) <= 2 for p in pieces]) > 0.5
    assert len({int(np.bincount(p).argmax()) for p in pieces}) == 5


@pytest.mark.parametrize("name", BEHAVIOR_POLICIES)
def test_policies_are_seeded_and_stay_in_bounds(name: str) -> None:
    box = EnvActionSpec(0, np.array([-1, 0, 0], np.float32), np.array([1, 3, 1], np.float32), ("steer", "gas", "brake"))
    for actions in (box,) if name == "road" else (discrete(5), box):
        one, two = (play(BEHAVIOR_POLICIES[name](actions, 3, np.random.default_rng(7)), 200) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    assert one.shape == (200, 3, 3) and one.dtype == np.float32
    assert (np.abs(one) <= 1).all() and (one.min(axis=(0, 1)) < -0.5).all() and (one.max(axis=(0, 1)) > 0.5).all()
    with pytest.raises(ValueError, match="these are continuous"):
        BEHAVIOR_POLICIES[name](box, 1, np.random.default_rng(0), {1: 2.0})


# ------------------------------------------------------------------------------------------------- real games


def test_coinrun_is_recorded_the_same_twice_and_pieces_differ(tmp_path: Path) -> None:
    pytest.importorskip("gym3", reason="Procgen is not installed")
    options = {"num_levels": 50, "distribution_mode": "easy", "use_backgrounds": False}
    for name in ("a", "b"):
        record_dataset(
            "procgen:coinrun", tmp_path / name, frames=400, workers=0, frames_per_shard=200, env_options=options
        )
    hashes = [[load_shard_index(s).hash for s in list_shards(tmp_path / n)] for n in ("a", "b")]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 2
    first = episodes(tmp_path / "a")[0]
    assert first["frames.npy"].shape[1:] == (64, 64, 3)
    assert first["json"]["fps"] == 15 and first["json"]["action_names"][8] == "RIGHT+UP"
    for game, options in (("procgen:coinrun", {"color": 1}), ("procgen:color", {})):
        with pytest.raises(ValueError, match="color"):
            record_dataset(game, tmp_path / "c", workers=0, env_options=options)


def test_atari_tells_its_memory_and_where_the_ball_is(tmp_path: Path) -> None:
    pytest.importorskip("ale_py", reason="ale-py is not installed")
    game = make_recording_env("ALE/Pong-v5", ShardAssignment(0, 1, 5), size=84, frame_skip=4, state=True)
    assert game.reset().observation.shape == (1, 84, 84, 3)
    state = game.read_state()
    assert state is not None and state.shape == (1, 128)
    assert game.fps == 15 and game.actions.names[0] == "NOOP"
    assert game.state_names[49:52] == ("ball_x", "enemy_y", "player_y") and game.state_names[127] == "ram_127"
    game.close()
    record_dataset("ALE/Pong-v5", tmp_path, frames=300, size=96, workers=0, frame_skip=4, state=True)
    (episode,) = episodes(tmp_path)
    field = episode["frames.npy"][:, 17:87, 14:82, 2].astype(float) - 17  # of blue, between bars and paddles: the ball
    blue = field.sum(axis=(1, 2))
    shown = (blue > 300) & (blue < 1000)
    assert shown.sum() > 50
    names = episode["json"]["state_names"]
    for name, axis in (("ball_x", 1), ("ball_y", 2)):
        along = field[shown].sum(axis=axis)
        center = along @ np.arange(along.shape[1]) / along.sum(axis=1)
        told = episode["state.npy"][shown, names.index(name)]
        aligned, late = (np.corrcoef(told, np.roll(center, k))[0, 1] for k in (0, 1))
        assert aligned > 0.99 > late


def test_a_car_is_driven_along_the_road_and_strays_on_purpose(tmp_path: Path) -> None:
    pytest.importorskip("Box2D", reason="Box2D is not installed")
    record_dataset(
        "CarRacing-v3", tmp_path, 120, policy="road", workers=0, frame_skip=4, skip_first_frames=13, state=True, seed=1
    )
    (episode,) = episodes(tmp_path)
    meta, actions, frames = episode["json"], episode["actions.npy"], episode["frames.npy"]
    assert meta["fps"] == 12.5 and meta["action_names"] == ["steer", "gas", "brake"]
    assert meta["action_rest"] == [0, -1, -1]
    under = road_mask(frames)[:, 42:52, 28:36].any(axis=(1, 2))  # around the car
    assert under.mean() > 0.6
    assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).mean() > 0.9
    assert (actions.std(axis=0) > 0.15).all()
    names, state = meta["state_names"], episode["state.npy"]
    assert names[:6] == ["x", "y", "angle", "vx", "vy", "angular_velocity"]
    angle, vx, vy, forward, lateral = (
        state[:, names.index(n)] for n in ("angle", "vx", "vy", "forward_speed", "lateral_speed")
    )
    # seen along the car's own axes, which the picture is turned by, the speed keeps its length
    np.testing.assert_allclose(np.hypot(vx, vy), np.hypot(forward, lateral), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.exp(1j * angle) * (lateral + 1j * forward), vx + 1j * vy, rtol=1e-4, atol=1e-4)
    assert forward.mean() > 10 * abs(lateral.mean())
    wheels = state[:, names.index("steering_angle")]
    assert np.corrcoef(wheels[1:], actions[:-1, 0])[0, 1] < -0.6  # the wheels turn as steered, left is positive
    # the wheel's motion follows the action of its frame: the hull turns right (its angle falls) after steering right
    turned = np.diff(episode["state.npy"][:, 5])
    aligned, late = (np.corrcoef(a[:-1], turned)[0, 1] for a in (actions[:, 0], np.roll(actions[:, 0], 1)))
    assert aligned < late


def test_a_car_shows_the_same_whether_skipped_steps_were_drawn_or_not() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("Box2D", reason="Box2D is not installed")
    game = make_recording_env(
        "CarRacing-v3", ShardAssignment(0, 1, 5), 96, frame_skip=4, options={"max_episode_steps": 22}
    )
    env = gymnasium.make("CarRacing-v3", max_episode_steps=22)
    observation, _ = env.reset(seed=5)
    time_step = game.reset()
    for t in range(8):
        np.testing.assert_array_equal(time_step.observation[0], observation)
        action = np.array([np.sin(t), 0.5, -1], np.float32)
        time_step = game.step(torch.from_numpy(action[None]))
        earned = 0.0
        for _ in range(4):
            observation, reward, _, truncated, _ = env.step(game.actions.denormalize(action))
            earned += reward
            if truncated:
                observation, _ = env.reset()
                break
        assert (
            bool(time_step.is_last[0] & ~time_step.is_terminal[0]) == truncated == (t == 5)
        )  # in the second of four steps
        assert time_step.reward[0] == pytest.approx(earned)
    game.close()
    env.close()


def test_mujoco_tells_its_joints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed: pip install 'gymnasium[mujoco]'")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    game = make_recording_env("InvertedPendulum-v5", ShardAssignment(0, 1, 5), size=32, state=True)
    try:
        time_step = game.reset()
    except Exception as error:  # noqa: BLE001 (whatever the graphics driver raises that is missing)
        pytest.skip(f"MuJoCo cannot draw here without a screen: {error}")
    assert game.state_names == ("qpos_0", "qpos_1", "qvel_0", "qvel_1")
    for _ in range(3):
        before = game.read_state()
        time_step = game.step(torch.full((1, 1), 0.2))
        state = game.read_state()
    assert before is not None and state is not None and time_step.observation.shape == (1, 32, 32, 3)
    assert state[0, 0] > before[0, 0] and state[0, 2] > 0  # pushed to the right, the cart goes there
    game.close()
