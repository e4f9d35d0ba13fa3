"""The state of Procgen games: it obeys their physics, agrees with the frames, and unknown layouts raise an error."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vwm.envs.procgen_state import procgen_state_names, read_procgen_state
from vwm.envs.recording import record_dataset
from vwm.envs.recording_envs import ShardAssignment, make_recording_env

pytest.importorskip("gym3", reason="Procgen is not installed")

LEFT, NOOP, UP, RIGHT, RIGHT_UP = 1, 4, 5, 7, 8
EASY = {"num_levels": 50, "distribution_mode": "easy", "use_backgrounds": False, "restrict_themes": True}


def record_states(game: str, actions: list[int], **options: Any) -> tuple[NDArray[np.uint8], NDArray[np.float32], Any]:
    """Return frames [T, 64, 64, 3], states [T, S] and is_first [T] of the first environment, each before its action."""
    env = make_recording_env(f"procgen:{game}", ShardAssignment(0, 1, 3), 64, options={**EASY, **options}, state=True)
    frames, states, is_first = [], [], [True]
    assert env.state_names == procgen_state_names(game)
    time_step = env.reset()
    for action in actions:
        state = env.read_state()
        assert state is not None
        frames.append(time_step.observation[0].numpy())
        states.append(state[0])
        time_step = env.step(torch.full((env.count,), action))
        is_first.append(bool(time_step.is_first[0]))
    env.close()
    return np.stack(frames), np.stack(states), np.array(is_first[:-1])


def test_in_every_game_the_player_position_changes_by_the_velocity() -> None:
    from procgen.env import ENV_NAMES

    for game in ENV_NAMES:
        actions = np.random.default_rng(0).integers(0, 9, 60).tolist()
        _, state, is_first = record_states(game, actions)
        assert np.isfinite(state).all() and state.shape == (60, len(procgen_state_names(game)))
        assert np.ptp(state[:, 0]) > 0.1, game
        # without an obstacle, a step changes the position by the velocity after it
        errors = np.abs(np.diff(state[:, :2], axis=0) - state[1:, 2:4])[~is_first[1:]]
        assert np.median(errors) < 0.05, game


def test_a_coinrun_jump_follows_gravity_and_ends_on_the_ground() -> None:
    _, state, is_first = record_states("coinrun", [NOOP] * 2 + [UP] + [NOOP] * 25)
    assert is_first.sum() == 1
    x, y, vx, vy, ground = state[:, :5].T
    np.testing.assert_allclose(vy[3:10], 1.5 - 0.2 * np.arange(7), atol=1e-5)  # up at 1.5, gravity 0.2
    np.testing.assert_allclose(np.diff(y)[2:9], vy[3:10], atol=1e-5)
    assert ground[:3].all() and not ground[3:10].any() and ground[-1]
    np.testing.assert_allclose([x[-1], y[-1], vx[-1]], [x[0], y[0], 0], atol=1e-4)
    _, state, _ = record_states("coinrun", [RIGHT] * 4 + [LEFT] * 6)
    assert state[1:5, 2].min() > 0 > state[-1, 2]
    np.testing.assert_array_equal(state[:, 5], [1] * 5 + [0] * 5)


def test_the_state_belongs_to_its_frame() -> None:
    """CoinRun's camera shows 13 tiles vertically and follows the player: a jump scrolls the frame by its height."""
    frames, state, is_first = record_states("coinrun", ([NOOP] * 2 + [UP] + [NOOP] * 18) * 4)
    scrolled = np.array([vertical_scroll(a, b) for a, b in itertools.pairwise(frames)])
    expected = np.diff(state[:, 1]) * 64 / 13
    assert is_first.sum() == 1 and scrolled.max() == 7
    errors = {k: np.abs(scrolled - np.roll(expected, k)) for k in (-1, 0, 1)}
    assert errors[0].max() < 0.7  # to whole pixels
    assert min(errors[-1].max(), errors[1].max()) > 5


def vertical_scroll(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> int:
    """Estimate by how many pixels a frame moved down, from -8 to 8, ignoring the center, where the player is."""
    sides = np.r_[:24, 40:64]
    sky_before, sky_after = (f[:, sides].any(axis=2) for f in (before, after))  # the plain sky is black
    return min(range(-8, 9), key=lambda k: int((sky_before[8 - k : 56 - k] != sky_after[8:56]).sum()))


def test_the_state_contains_the_nearest_visible_danger() -> None:
    for seed in range(3):
        _, state, _ = record_states("coinrun", [RIGHT] * 60, start_level=100 * seed)
        visible, dx, dy = state[:, 6:].T
        assert (np.abs(np.stack([dx, dy])) <= 6.5 + 1e-4).all()
        np.testing.assert_array_equal(dx[visible == 0], 0)
        assert (np.hypot(dx, dy)[visible == 1] > 0.5).all()  # any nearer would kill the player
        if visible.any():
            return
    raise AssertionError("no level has dangers")


def test_a_recording_names_its_state_and_has_the_same_frames_without_it(tmp_path: Path) -> None:
    from envs.test_recording import read_episodes

    for name, state in (("with", True), ("without", False)):
        record_dataset("procgen:coinrun", tmp_path / name, frames=200, workers=0, env_options=EASY, state=state)
    with_state, without_state = read_episodes(tmp_path / "with"), read_episodes(tmp_path / "without")
    for a, b in zip(with_state, without_state, strict=True):
        np.testing.assert_array_equal(a["frames.npy"], b["frames.npy"])
        np.testing.assert_array_equal(a["rewards.npy"], b["rewards.npy"])
        assert a["json"]["state_names"] == list(procgen_state_names("coinrun")) and "state.npy" not in b
        assert a["state.npy"].shape == (len(a["frames.npy"]), 9)


def test_rejects_states_that_cannot_be_read() -> None:
    from procgen.env import ProcgenGym3Env

    state_bytes: bytes = ProcgenGym3Env(num=1, env_name="coinrun", rand_seed=1).callmethod("get_state")[0]
    assert len(read_procgen_state("coinrun", state_bytes)) == 9
    for broken, message in (
        (b"\1" + state_bytes[1:], "version 1 of 'coinrun'"),
        (state_bytes[:-8], "cannot be read"),
        (state_bytes + bytes(4), "4 bytes more"),
        (state_bytes[:2000], "a string of"),
        (state_bytes[:40], "ends after 40 bytes"),
        (b"", "ends after 0 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            read_procgen_state("coinrun", broken)
    with pytest.raises(ValueError, match="of 'coinrun', expected version 0 of 'maze'"):
        read_procgen_state("maze", state_bytes)
    with pytest.raises(ValueError, match="use_generated_assets"):
        record_states("coinrun", [NOOP], use_generated_assets=True)
