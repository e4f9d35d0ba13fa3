"""Two-Rooms: nothing passes a wall, a recording holds the true motion, and fractions of a pixel show."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vwm.envs.recording import record_dataset
from vwm.envs.two_rooms import (
    AGENT_COLOR,
    AGENT_RADIUS,
    ARENA_SIZE,
    BORDER_WIDTH,
    DOOR_WIDTH,
    GOAL_RADIUS,
    MAX_COORDINATE,
    MIN_COORDINATE,
    WALL_THICKNESS,
    TwoRoomsEnv,
    is_free_position,
    move_with_collisions,
    render_two_rooms,
    sample_room_layout,
)

ENV = "vwm/TwoRooms-v0"
REACH = WALL_THICKNESS / 2 + AGENT_RADIUS


def places(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Free places, each under a wall and a door of its own."""
    rng = np.random.default_rng(seed)
    wall, door = np.array([sample_room_layout(rng) for _ in range(8 * count)]).T
    at = rng.uniform(MIN_COORDINATE, MAX_COORDINATE, (8 * count, 2))
    free = np.flatnonzero(is_free_position(at, wall, door))[:count]
    return at[free], wall[free], door[free]


def test_gymnasiums_checker_finds_nothing():
    env = gymnasium.make(ENV, random_wall=True, render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.spec.max_episode_steps == 100


@pytest.mark.parametrize("size", [0.5, 3.0, 200.0])
def test_no_move_ends_in_a_wall_or_passes_one(size):
    at, wall, door = places(4000)
    step = np.random.default_rng(1).uniform(-size, size, at.shape)
    after = move_with_collisions(at, step, wall, door)
    assert is_free_position(after, wall, door).all()
    passed = (at[:, 0] < wall) != (after[:, 0] < wall)
    in_door = np.abs(at[:, 1] - door) <= DOOR_WIDTH / 2 - AGENT_RADIUS  # a move goes along x first
    assert not (passed & ~in_door).any() and (size < 1 or passed.any())
    # However long a move, it ends where many short ones would.
    along = np.zeros_like(step)
    along[:, 0] = step[:, 0]
    short = at
    for _ in range(100):
        short = move_with_collisions(short, along / 100, wall, door)
    assert np.allclose(short, move_with_collisions(at, along, wall, door))


def test_walls_take_away_what_goes_into_them_and_the_rest_slides():
    middle = ARENA_SIZE / 2
    assert move_with_collisions([20, 20], [3, -2], middle, middle).tolist() == [23, 18]
    assert move_with_collisions([25, 10], [9, 2], middle, middle).tolist() == [middle - REACH, 12]
    assert move_with_collisions([40, 10], [-9, 2], middle, middle).tolist() == [middle + REACH, 12]
    assert move_with_collisions([5, 5], [-3, -3], middle, middle).tolist() == [MIN_COORDINATE, MIN_COORDINATE]
    assert move_with_collisions([25, middle], [9, 0], middle, middle).tolist() == [34, middle]  # through the door
    assert move_with_collisions([middle, middle], [0, 9], middle, middle).tolist() == [
        middle,
        middle + DOOR_WIDTH / 2 - AGENT_RADIUS,
    ]


def test_fractions_of_a_pixel_show():
    middle = ARENA_SIZE / 2
    assert (render_two_rooms([20, 20], middle, middle) != render_two_rooms([20.1, 20], middle, middle)).any()
    assert (render_two_rooms([20, 20], middle, middle) != render_two_rooms([20, 20], middle + 0.1, middle)).any()
    for at in ((20.0, 15.0), (20.3, 15.8), (45.5, 40.25)):
        agent = (render_two_rooms(at, middle, middle)[..., 0].astype(float) - 70).clip(0) / (AGENT_COLOR[0] - 70)
        agent[:, :BORDER_WIDTH] = agent[:, -BORDER_WIDTH:] = 0
        center = np.arange(ARENA_SIZE) + 0.5
        found = [(agent.sum(axis) * center).sum() / agent.sum() for axis in (0, 1)]
        assert np.abs(np.subtract(found, at)).max() < 0.05
    empty = render_two_rooms([20, 20], middle, middle)
    assert (empty[0, 0] == empty[10, 31]).all() and empty[32, 32].sum() == 0  # wall, and the open door


def test_an_episode_is_a_function_of_its_seed_and_naming_a_start_leaves_the_goal():
    env = TwoRoomsEnv(random_wall=True)
    frame, info = env.reset(seed=5)
    state = env.state
    again, same = TwoRoomsEnv(random_wall=True).reset(seed=5)
    assert (frame == again).all() and (info["goal"] == same["goal"]).all()
    start = env.position + 0.5 * np.sign(env.wall - env.position) * [-1, 0]  # away from the wall
    _, moved = env.reset(seed=5, options={"start": start.clip(MIN_COORDINATE, MAX_COORDINATE)})
    assert (moved["goal"] == info["goal"]).all() and (env.state[2:] == state[2:]).all()
    layouts = {tuple(env.reset()[1]["goal"]) + tuple(env.state[2:]) for _ in range(5)}
    assert len(layouts) == 5
    fixed = TwoRoomsEnv()
    assert {tuple((fixed.reset(), fixed.state[2:])[1]) for _ in range(3)} == {(ARENA_SIZE / 2, ARENA_SIZE / 2)}


def test_goals_are_pictures_and_pay_when_reached():
    env = TwoRoomsEnv(terminate=True)
    _, info = env.reset(seed=0, options={"start": (10, 10), "goal": (18, 10)})
    assert info["distance"] == 8
    frame, reward, terminated, truncated, info = env.step(np.array([1, 0], np.float32))
    assert (reward, terminated, truncated, info["distance"]) == (0, False, False, 5)
    assert (frame == env.render_at((13, 10))).all()
    _, reward, terminated, _, info = env.step(np.array([9, 0], np.float32))  # counts as 1
    assert (reward, terminated, info["distance"]) == (1, True, 2)
    lasting = TwoRoomsEnv()
    lasting.reset(seed=0, options={"start": (10, 10), "goal": (10, 10)})
    assert lasting.step(np.zeros(2, np.float32))[1:3] == (1.0, False)
    rng = np.random.default_rng(0)
    goals = np.array([lasting.sample_goal(rng) for _ in range(300)])
    assert (np.linalg.norm(goals - [10, 10], axis=1) > GOAL_RADIUS).all()
    assert is_free_position(goals, ARENA_SIZE / 2, ARENA_SIZE / 2).all() and (goals[:, 0] > 32).mean() == pytest.approx(
        0.5, abs=0.1
    )


def test_a_recording_holds_the_true_motion_and_its_pictures(tmp_path: Path):
    options = {"random_wall": True, "step_size": 2.0}
    record_dataset(
        ENV, tmp_path, frames=250, frames_per_shard=250, policy="sticky", workers=0, env_options=options, state=True
    )
    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            files.setdefault(key, {})[kind] = tar.extractfile(member).read()
    assert len(files) == 3  # cut at 100 steps
    for parts in files.values():
        state, actions, frames = (np.load(io.BytesIO(parts[f"{n}.npy"])) for n in ("state", "actions", "frames"))
        meta = json.loads(parts["json"])
        assert meta["state_names"] == ["x", "y", "wall", "door"] and meta["action_names"] == ["right", "down"]
        after = move_with_collisions(state[:-1, :2], 2.0 * actions[:-1], state[:-1, 2], state[:-1, 3])
        assert np.allclose(after, state[1:, :2], atol=1e-4)
        drawn = np.stack([render_two_rooms(s[:2], *s[2:].tolist()) for s in state])
        assert np.abs(drawn.astype(int) - frames).max() <= 1  # the state was rounded to float32
        assert len({tuple(s) for s in state[:, 2:]}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": (32, 10)}, "not within the wall"),
        ({"goal": (3, 10)}, r"goal.*4\.5\.\.59\.5"),
        ({"start": (1, 2, 3)}, "start"),
        ({"wall": 4}, "wall"),
        ({"door": 60}, "door"),
        ({"place": (10, 10)}, "place.*not known"),
    ],
)
def test_impossible_places_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TwoRoomsEnv().reset(seed=0, options=options)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="step_size"):
        TwoRoomsEnv(step_size=0)
    with pytest.raises(ValueError, match="render_mode"):
        TwoRoomsEnv(render_mode="human")
    with pytest.raises(gymnasium.error.ResetNeeded):
        TwoRoomsEnv().step(np.zeros(2, np.float32))
