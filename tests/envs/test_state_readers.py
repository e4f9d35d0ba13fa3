"""The state of Gymnasium games: every number has a name, and says what the name says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from vwm.envs.state_readers import OBSERVATION_NAMES, RAM_NAMES, atari_ram_names, make_state_reader


@pytest.mark.parametrize("game", RAM_NAMES)
def test_every_byte_has_one_name_of_its_own(game: str) -> None:
    names = atari_ram_names(game)
    assert len(names) == len(set(names)) == 128
    for name, byte in RAM_NAMES[game].items():
        assert names[byte] == name
    assert atari_ram_names("Unheard") == tuple(f"ram_{i}" for i in range(128))


@pytest.mark.parametrize(("name", "version"), [*zip(OBSERVATION_NAMES, (1, 1, 0, 0, 1), strict=True)])
def test_classic_observations_are_named(name: str, version: int) -> None:
    env = gymnasium.make(f"{name}-v{version}")
    observation, _ = env.reset(seed=0)
    state = make_state_reader(f"{name}-v{version}", env.unwrapped, observation)
    assert state.names == OBSERVATION_NAMES[name]
    observation = env.step(env.action_space.sample())[0]
    np.testing.assert_array_equal(state.read(observation), observation)
    assert state.read(observation).dtype == np.float32
    told = dict(zip(state.names, state.read(observation), strict=True))
    for angle in {n.removeprefix("cos_") for n in state.names if n.startswith("cos_")}:
        assert told[f"cos_{angle}"] ** 2 + told[f"sin_{angle}"] ** 2 == pytest.approx(1)


def test_the_state_is_of_the_moment_it_is_read_at() -> None:
    game: Any = SimpleNamespace(state=np.zeros(2), state_names=["a", "b"])
    state = make_state_reader("Own-v0", game, None)
    before = state.read(None)
    game.state = np.array([1, 2])
    np.testing.assert_array_equal(state.read(None), [1, 2])
    game.state[0] = 7
    np.testing.assert_array_equal(before, 0)
    joints: Any = SimpleNamespace(data=SimpleNamespace(qpos=np.arange(3.0), qvel=np.ones(2)))
    state = make_state_reader("Robot-v5", joints, np.zeros(9))
    assert state.names == ("qpos_0", "qpos_1", "qpos_2", "qvel_0", "qvel_1")
    joints.data.qpos = joints.data.qpos + 5
    np.testing.assert_array_equal(state.read(None), [5, 6, 7, 1, 1])


def test_names_and_numbers_must_agree() -> None:
    game: Any = SimpleNamespace(state=np.zeros(3), state_names=["a", "b"])
    with pytest.raises(ValueError, match=r"state has shape \[3\], but there are 2 state_names"):
        make_state_reader("Own-v0", game, None)
    with pytest.raises(ValueError, match="Own-v0: has no known state"):
        make_state_reader("Own-v0", SimpleNamespace(state=np.zeros(3)), np.zeros((8, 8, 3), np.uint8))
