"""State readers of Gymnasium environments: every number has a name and the value that the name states."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from vwm.envs.state_readers import OBSERVATION_NAMES, RAM_NAMES, atari_ram_names, make_state_reader


@pytest.mark.parametrize("game", RAM_NAMES)
def test_every_ram_byte_has_a_unique_name(game: str) -> None:
    names = atari_ram_names(game)
    assert len(names) == len(set(names)) == 128
    for name, byte in RAM_NAMES[game].items():
        assert names[byte] == name
    assert atari_ram_names("Unheard") == tuple(f"ram_{i}" for i in range(128))


@pytest.mark.parametrize(("name", "version"), [*zip(OBSERVATION_NAMES, (1, 1, 0, 0, 1), strict=True)])
def test_observations_of_classic_control_are_named(name: str, version: int) -> None:
    env = gymnasium.make(f"{name}-v{version}")
    observation, _ = env.reset(seed=0)
    reader = make_state_reader(f"{name}-v{version}", env.unwrapped, observation)
    assert reader.names == OBSERVATION_NAMES[name]
    observation = env.step(env.action_space.sample())[0]
    np.testing.assert_array_equal(reader.read(observation), observation)
    assert reader.read(observation).dtype == np.float32
    values = dict(zip(reader.names, reader.read(observation), strict=True))
    for angle in {n.removeprefix("cos_") for n in reader.names if n.startswith("cos_")}:
        assert values[f"cos_{angle}"] ** 2 + values[f"sin_{angle}"] ** 2 == pytest.approx(1)


def test_reading_returns_a_copy_of_the_current_state() -> None:
    env: Any = SimpleNamespace(state=np.zeros(2), state_names=["a", "b"])
    reader = make_state_reader("Own-v0", env, None)
    before = reader.read(None)
    env.state = np.array([1, 2])
    np.testing.assert_array_equal(reader.read(None), [1, 2])
    env.state[0] = 7
    np.testing.assert_array_equal(before, 0)
    mujoco_env: Any = SimpleNamespace(data=SimpleNamespace(qpos=np.arange(3.0), qvel=np.ones(2)))
    reader = make_state_reader("Robot-v5", mujoco_env, np.zeros(9))
    assert reader.names == ("qpos_0", "qpos_1", "qpos_2", "qvel_0", "qvel_1")
    mujoco_env.data.qpos = mujoco_env.data.qpos + 5
    np.testing.assert_array_equal(reader.read(None), [5, 6, 7, 1, 1])


def test_the_number_of_names_must_match_the_state() -> None:
    env: Any = SimpleNamespace(state=np.zeros(3), state_names=["a", "b"])
    with pytest.raises(ValueError, match=r"state has shape \[3\], but there are 2 state_names"):
        make_state_reader("Own-v0", env, None)
    with pytest.raises(ValueError, match="Own-v0: has no known state"):
        make_state_reader("Own-v0", SimpleNamespace(state=np.zeros(3)), np.zeros((8, 8, 3), np.uint8))
