"""The state of Procgen games: it obeys their physics, follows the picture, and another layout is no silent garbage."""

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


def play(game: str, actions: list[int], **options: Any) -> tuple[NDArray[np.uint8], NDArray[np.float32], Any]:
    """Frames [T, 64, 64, 3] and state [T, S] of the first lane, each before its action; and where episodes began."""
    opened = make_recording_env(
        f"procgen:{game}", ShardAssignment(0, 1, 3), 64, options={**EASY, **options}, state=True
    )
    frames, states, first = [], [], [True]
    assert opened.state_names == procgen_state_names(game)
    time_step = opened.reset()
    for action in actions:
        state = opened.read_state()
        assert state is not None
        frames.append(time_step.observation[0].numpy())
        states.append(state[0])
        time_step = opened.step(torch.full((opened.count,), action))
        first.append(bool(time_step.is_first[0]))
    opened.close()
    return np.stack(frames), np.stack(states), np.array(first[:-1])


def test_every_game_tells_a_player_that_moves_by_its_velocity() -> None:
    from procgen.env import ENV_NAMES

    for game in ENV_NAMES:
        actions = np.random.default_rng(0).integers(0, 9, 60).tolist()
        _, state, first = play(game, actions)
        assert np.isfinite(state).all() and state.shape == (60, len(procgen_state_names(game)))
        assert np.ptp(state[:, 0]) > 0.1, game
        # where nothing is in its way, a step leads on by the velocity after it
        moved = np.abs(np.diff(state[:, :2], axis=0) - state[1:, 2:4])[~first[1:]]
        assert np.median(moved) < 0.05, game


def test_in_coinrun_a_jump_follows_gravity_and_ends_on_the_ground() -> None:
    _, state, first = play("coinrun", [NOOP] * 2 + [UP] + [NOOP] * 25)
    assert first.sum() == 1
    x, y, vx, vy, ground = state[:, :5].T
    np.testing.assert_allclose(vy[3:10], 1.5 - 0.2 * np.arange(7), atol=1e-5)  # up at 1.5, gravity 0.2
    np.testing.assert_allclose(np.diff(y)[2:9], vy[3:10], atol=1e-5)
    assert ground[:3].all() and not ground[3:10].any() and ground[-1]
    np.testing.assert_allclose([x[-1], y[-1], vx[-1]], [x[0], y[0], 0], atol=1e-4)
    _, state, _ = play("coinrun", [RIGHT] * 4 + [LEFT] * 6)
    assert state[1:5, 2].min() > 0 > state[-1, 2]
    np.testing.assert_array_equal(state[:, 5], [1] * 5 + [0] * 5)


def test_the_state_is_that_of_its_frame() -> None:
    """CoinRun's camera follows the player, 13 tiles high: what a jump moved it by, the picture scrolled by."""
    frames, state, first = play("coinrun", ([NOOP] * 2 + [UP] + [NOOP] * 18) * 4)
    scrolled = np.array([scroll(a, b) for a, b in itertools.pairwise(frames)])
    moved = np.diff(state[:, 1]) * 64 / 13
    assert first.sum() == 1 and scrolled.max() == 7
    errors = {k: np.abs(scrolled - np.roll(moved, k)) for k in (-1, 0, 1)}
    assert errors[0].max() < 0.7  # to whole pixels
    assert min(errors[-1].max(), errors[1].max()) > 5


def scroll(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> int:
    """By how many pixels a picture moved down, from -8 to 8; the middle, where the player is, left out."""
    beside = np.r_[:24, 40:64]
    one, two = (f[:, beside].any(axis=2) for f in (before, after))  # the plain sky is black
    return min(range(-8, 9), key=lambda k: int((one[8 - k : 56 - k] != two[8:56]).sum()))


def test_the_nearest_danger_in_view_is_told() -> None:
    for seed in range(3):
        _, state, _ = play("coinrun", [RIGHT] * 60, start_level=100 * seed)
        seen, dx, dy = state[:, 6:].T
        assert (np.abs(np.stack([dx, dy])) <= 6.5 + 1e-4).all()
        np.testing.assert_array_equal(dx[seen == 0], 0)
        assert (np.hypot(dx, dy)[seen == 1] > 0.5).all()  # nearer is death
        if seen.any():
            return
    raise AssertionError("no level has dangers")


def test_a_recording_has_names_and_the_picture_is_the_same_without_state(tmp_path: Path) -> None:
    from envs.test_recording import episodes

    for name, state in (("with", True), ("without", False)):
        record_dataset("procgen:coinrun", tmp_path / name, frames=200, workers=0, env_options=EASY, state=state)
    told, silent = episodes(tmp_path / "with"), episodes(tmp_path / "without")
    for a, b in zip(told, silent, strict=True):
        np.testing.assert_array_equal(a["frames.npy"], b["frames.npy"])
        np.testing.assert_array_equal(a["rewards.npy"], b["rewards.npy"])
        assert a["json"]["state_names"] == list(procgen_state_names("coinrun")) and "state.npy" not in b
        assert a["state.npy"].shape == (len(a["frames.npy"]), 9)


def test_what_cannot_be_read_is_refused() -> None:
    from procgen.env import ProcgenGym3Env

    saved: bytes = ProcgenGym3Env(num=1, env_name="coinrun", rand_seed=1).callmethod("get_state")[0]
    assert len(read_procgen_state("coinrun", saved)) == 9
    for broken, message in (
        (b"\1" + saved[1:], "version 1 of 'coinrun'"),
        (saved[:-8], "cannot be read"),
        (saved + bytes(4), "4 bytes more"),
        (saved[:2000], "a string of"),
        (saved[:40], "ends after 40 bytes"),
        (b"", "ends after 0 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            read_procgen_state("coinrun", broken)
    with pytest.raises(ValueError, match="of 'coinrun', expected version 0 of 'maze'"):
        read_procgen_state("maze", saved)
    with pytest.raises(ValueError, match="use_generated_assets"):
        play("coinrun", [NOOP], use_generated_assets=True)
