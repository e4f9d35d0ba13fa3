"""Composite actions of environments: spaces become parts, and rows become the environment's own actions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from vwm.core.action_parts import ActionPart
from vwm.data.inspection import inspect_dataset
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_array, read_episode_metadata
from vwm.envs.action_spec import read_action_spec
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.behavior_policies import BEHAVIOR_POLICIES
from vwm.envs.composite_actions import CompositeEnvActions
from vwm.envs.lamp import LAMP_RADIUS, LAMP_SPEED, SPRITE_SPEED, LampEnv
from vwm.envs.recording import record_dataset

ENV = "vwm/Lamp-v0"
NESTED = spaces.Dict(
    {
        "camera": spaces.Box(-10, 10, (2,)),
        "craft": spaces.Discrete(5, start=3),
        "jump": spaces.Discrete(2),
        "inner": spaces.Tuple((spaces.MultiBinary(3), spaces.MultiDiscrete([2, 4]))),
        "gas": spaces.Box(0, np.inf, (1,)),
    }
)


def test_spaces_become_parts_and_rows_the_environments_own_actions() -> None:
    actions = CompositeEnvActions(NESTED)
    assert [(part.kind, part.size, part.name) for part in actions.parts] == [
        ("pointer", 2, "camera"),
        ("choice", 5, "craft"),
        ("axes", 1, "gas"),
        ("keys", 3, "inner.0"),
        ("choice", 2, "inner.1.0"),
        ("choice", 4, "inner.1.1"),
        ("keys", 1, "jump"),
    ]
    assert actions.parts[2].rest == (-1,)
    action = actions.to_env(np.array([0.5, -1, 4, 1, 1, 0, 1, 1, 3, 1], np.float32))
    assert NESTED.contains(action)
    assert action["camera"].tolist() == [5, -10] and action["craft"] == 7 and action["gas"].tolist() == [1]
    assert action["inner"][0].tolist() == [1, 0, 1] and action["inner"][1].tolist() == [1, 3] and action["jump"] == 1


def test_environments_state_names_or_are_refused_by_name() -> None:
    spec = read_action_spec(ENV, gymnasium.make(ENV))
    assert spec.space.names == (
        "color", "keys.left", "keys.right", "keys.up", "keys.down", "pointer.x", "pointer.y"
    )  # fmt: skip
    with pytest.raises(ValueError, match="do not fit the action space"):
        CompositeEnvActions(NESTED, [ActionPart("keys", 4)])
    with pytest.raises(ValueError, match="action picture is Box"):
        CompositeEnvActions(spaces.Dict(picture=spaces.Box(0, 1, (2, 2))))
    assert CompositeEnvActions(spaces.MultiBinary(2)).parts == (ActionPart("keys", 2),)


def test_lamp_keys_move_the_sprite_together_and_the_pointer_the_lamp() -> None:
    check_env(gymnasium.make(ENV, render_mode="rgb_array").unwrapped)
    env = LampEnv()
    env.reset(seed=0)
    env.sprite, env.lamp = np.array([32.0, 32.0]), np.array([20.0, 32.0])
    frame, reward, terminated, truncated, _ = env.step(
        {"color": 2, "keys": np.array([0, 1, 1, 0]), "pointer": np.array([1, 0.5])}
    )
    assert env.sprite.tolist() == [32 + SPRITE_SPEED, 32 - SPRITE_SPEED]
    assert env.lamp.tolist() == [20 + LAMP_SPEED, 32 + LAMP_SPEED / 2]
    assert env.state.tolist() == [34, 30, 26, 35, 2] and not (terminated or truncated)
    assert frame[35, 26].argmax() == 2 and reward == (np.hypot(8, 5) <= LAMP_RADIUS / 2)
    env.step({"color": 0, "keys": np.array([1, 1, 1, 1]), "pointer": np.array([-9.0, 0])})
    assert env.sprite.tolist() == [34, 30] and env.lamp.tolist() == [20, 35]


@pytest.mark.parametrize("name", ["random", "sticky", "mixed"])
def test_policies_hold_keys_and_move_the_pointer_independently(name: str) -> None:
    spec = read_action_spec(ENV, gymnasium.make(ENV))
    first = np.zeros(3, bool)
    runs = []
    for _ in range(2):
        policy = BEHAVIOR_POLICIES[name](spec, 3, np.random.default_rng(7))
        runs.append(np.stack([policy.act(first, np.zeros((3, 8, 8, 3), np.uint8)) for _ in range(600)]))
    np.testing.assert_array_equal(*runs)
    spec.space.check_rows(torch.from_numpy(runs[0]))
    rows = runs[0].reshape(-1, 7)
    assert set(rows[:, 0]) == {0, 1, 2} and set(rows[:, 1:5].sum(axis=1)) == {0, 1, 2, 3, 4}
    assert abs(np.corrcoef(rows[:, 1:].T) - np.eye(6)).max() < 0.5
    repeats = (runs[0][1:] == runs[0][:-1]).mean(axis=(0, 1))
    assert (repeats[5:] > 0.6).all() if name != "random" else (repeats[5:] < 0.1).all()


def test_recordings_hold_parts_and_replay_to_their_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_dataset(ENV, tmp_path, frames=40, size=64, workers=0, max_episode_frames=40, state=True)
    (shard,) = list_shards(tmp_path)
    (entry,) = load_shard_index(shard).episodes
    meta = read_episode_metadata(shard, entry)
    assert meta["action_parts"] == json.loads(json.dumps([part.to_json() for part in LampEnv.action_parts]))
    assert entry.known_parts == (True,) * 3
    frames, actions, state = (read_array(shard, entry, name) for name in ("frames", "actions", "state"))
    env = LampEnv()
    env.reset(seed=0)
    env.sprite, env.lamp, env.color = state[0, :2].astype(float), state[0, 2:4].astype(float), int(state[0, 4])
    composite = CompositeEnvActions(env.action_space, env.action_parts)
    for frame, row in zip(frames[1:], actions, strict=False):
        shown = env.step(composite.to_env(row))[0]
        assert abs(shown.astype(int) - frame).max() <= 1  # the recorded state is float32
    inspect_dataset(str(tmp_path))
    said = capsys.readouterr().out
    assert "actions        composite, color, keys, pointer" in said
    assert "  color (choice of 3): red " in said and "at most " in said and "  pointer.x (pointer): mean" in said


def test_agents_act_in_the_flat_space() -> None:
    envs = GymnasiumEnvSpec(ENV, size=64).open(1, seed=0)
    actions = envs.spaces.actions
    assert (actions.kind, actions.size) == ("continuous", 7)
    before = envs.reset().observation
    state = envs.copies[0].env.env.unwrapped.state
    flat = torch.tensor([[0.9, 0.5, -0.5, -0.5, -0.5, 0.0, 0.0]])
    envs.step(flat)
    after = envs.copies[0].env.env.unwrapped.state
    assert after[4] == 2 and after[0] == max(state[0] - SPRITE_SPEED, 4) and after[1:4].tolist() == state[1:4].tolist()
    assert before.shape == (1, 64, 64, 3)
    envs.close()


def test_action_repeat_adds_pointer_movements() -> None:
    options: dict[str, Any] = {"size": 64, "action_repeat": 3}
    envs = GymnasiumEnvSpec(ENV, **options).open(1, seed=0)
    envs.reset()
    env = envs.copies[0].env.env.unwrapped
    env.lamp = np.array([10.0, 10.0])
    envs.step(torch.tensor([[0, -1, -1, -1, -1, 0.5, 0.0]]))
    assert env.lamp.tolist() == [10 + 3 * LAMP_SPEED / 2, 10]
    envs.close()
