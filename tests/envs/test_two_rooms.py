"""Two-Rooms: no move passes a wall, recordings contain the true motion, and rendering is sub-pixel accurate."""

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
WALL_REACH = WALL_THICKNESS / 2 + AGENT_RADIUS


def sample_positions(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Sample free positions, each with a wall and a door of its own."""
    rng = np.random.default_rng(seed)
    wall, door = np.array([sample_room_layout(rng) for _ in range(8 * count)]).T
    positions = rng.uniform(MIN_COORDINATE, MAX_COORDINATE, (8 * count, 2))
    free = np.flatnonzero(is_free_position(positions, wall, door))[:count]
    return positions[free], wall[free], door[free]


def test_it_passes_the_gymnasium_checker():
    env = gymnasium.make(ENV, random_wall=True, render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.spec.max_episode_steps == 100


@pytest.mark.parametrize("size", [0.5, 3.0, 200.0])
def test_no_move_ends_in_or_crosses_a_wall(size):
    before, wall, door = sample_positions(4000)
    step = np.random.default_rng(1).uniform(-size, size, before.shape)
    after = move_with_collisions(before, step, wall, door)
    assert is_free_position(after, wall, door).all()
    crossed = (before[:, 0] < wall) != (after[:, 0] < wall)
    at_door = np.abs(before[:, 1] - door) <= DOOR_WIDTH / 2 - AGENT_RADIUS  # a move goes along x first
    assert not (crossed & ~at_door).any() and (size < 1 or crossed.any())
    # A long move ends where many short ones would.
    horizontal = np.zeros_like(step)
    horizontal[:, 0] = step[:, 0]
    position = before
    for _ in range(100):
        position = move_with_collisions(position, horizontal / 100, wall, door)
    assert np.allclose(position, move_with_collisions(before, horizontal, wall, door))


def test_walls_block_the_motion_into_them_and_keep_the_rest():
    center = ARENA_SIZE / 2
    assert move_with_collisions([20, 20], [3, -2], center, center).tolist() == [23, 18]
    assert move_with_collisions([25, 10], [9, 2], center, center).tolist() == [center - WALL_REACH, 12]
    assert move_with_collisions([40, 10], [-9, 2], center, center).tolist() == [center + WALL_REACH, 12]
    assert move_with_collisions([5, 5], [-3, -3], center, center).tolist() == [MIN_COORDINATE, MIN_COORDINATE]
    assert move_with_collisions([25, center], [9, 0], center, center).tolist() == [34, center]  # through the door
    assert move_with_collisions([center, center], [0, 9], center, center).tolist() == [
        center,
        center + DOOR_WIDTH / 2 - AGENT_RADIUS,
    ]


def test_rendering_is_sub_pixel_accurate():
    center = ARENA_SIZE / 2
    assert (render_two_rooms([20, 20], center, center) != render_two_rooms([20.1, 20], center, center)).any()
    assert (render_two_rooms([20, 20], center, center) != render_two_rooms([20, 20], center + 0.1, center)).any()
    for position in ((20.0, 15.0), (20.3, 15.8), (45.5, 40.25)):
        agent = (render_two_rooms(position, center, center)[..., 0].astype(float) - 70).clip(0) / (AGENT_COLOR[0] - 70)
        agent[:, :BORDER_WIDTH] = agent[:, -BORDER_WIDTH:] = 0
        pixel_centers = np.arange(ARENA_SIZE) + 0.5
        estimated = [(agent.sum(axis) * pixel_centers).sum() / agent.sum() for axis in (0, 1)]
        assert np.abs(np.subtract(estimated, position)).max() < 0.05
    empty = render_two_rooms([20, 20], center, center)
    assert (empty[0, 0] == empty[10, 31]).all() and empty[32, 32].sum() == 0  # wall, and the open door


def test_episodes_are_functions_of_their_seed_and_a_given_start_does_not_change_the_goal():
    env = TwoRoomsEnv(random_wall=True)
    frame, info = env.reset(seed=5)
    state = env.state
    same_frame, same_info = TwoRoomsEnv(random_wall=True).reset(seed=5)
    assert (frame == same_frame).all() and (info["goal"] == same_info["goal"]).all()
    start = env.position + 0.5 * np.sign(env.wall - env.position) * [-1, 0]  # away from the wall
    _, moved_info = env.reset(seed=5, options={"start": start.clip(MIN_COORDINATE, MAX_COORDINATE)})
    assert (moved_info["goal"] == info["goal"]).all() and (env.state[2:] == state[2:]).all()
    layouts = {tuple(env.reset()[1]["goal"]) + tuple(env.state[2:]) for _ in range(5)}
    assert len(layouts) == 5
    fixed = TwoRoomsEnv()
    assert {tuple((fixed.reset(), fixed.state[2:])[1]) for _ in range(3)} == {(ARENA_SIZE / 2, ARENA_SIZE / 2)}


def test_reaching_the_goal_is_rewarded():
    env = TwoRoomsEnv(terminate=True)
    _, info = env.reset(seed=0, options={"start": (10, 10), "goal": (18, 10)})
    assert info["distance"] == 8
    frame, reward, terminated, truncated, info = env.step(np.array([1, 0], np.float32))
    assert (reward, terminated, truncated, info["distance"]) == (0, False, False, 5)
    assert (frame == env.render_at((13, 10))).all()
    _, reward, terminated, _, info = env.step(np.array([9, 0], np.float32))  # clipped to 1
    assert (reward, terminated, info["distance"]) == (1, True, 2)
    endless = TwoRoomsEnv()
    endless.reset(seed=0, options={"start": (10, 10), "goal": (10, 10)})
    assert endless.step(np.zeros(2, np.float32))[1:3] == (1.0, False)
    rng = np.random.default_rng(0)
    goals = np.array([endless.sample_goal(rng) for _ in range(300)])
    assert (np.linalg.norm(goals - [10, 10], axis=1) > GOAL_RADIUS).all()
    assert is_free_position(goals, ARENA_SIZE / 2, ARENA_SIZE / 2).all() and (goals[:, 0] > 32).mean() == pytest.approx(
        0.5, abs=0.1
    )


def test_a_recording_contains_the_true_motion_and_its_frames(tmp_path: Path):
    options = {"random_wall": True, "step_size": 2.0}
    record_dataset(
        ENV, tmp_path, frames=250, frames_per_shard=250, policy="sticky", workers=0, env_options=options, state=True
    )
    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            files.setdefault(key, {})[extension] = tar.extractfile(member).read()
    assert len(files) == 3  # cut at 100 steps
    for files_of_episode in files.values():
        state, actions, frames = (
            np.load(io.BytesIO(files_of_episode[f"{n}.npy"])) for n in ("state", "actions", "frames")
        )
        meta = json.loads(files_of_episode["json"])
        assert meta["state_names"] == ["x", "y", "wall", "door"] and meta["action_names"] == ["right", "down"]
        after = move_with_collisions(state[:-1, :2], 2.0 * actions[:-1], state[:-1, 2], state[:-1, 3])
        assert np.allclose(after, state[1:, :2], atol=1e-4)
        rendered = np.stack([render_two_rooms(s[:2], *s[2:].tolist()) for s in state])
        assert np.abs(rendered.astype(int) - frames).max() <= 1  # the state was rounded to float32
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
def test_rejects_impossible_positions(options, message):
    with pytest.raises(ValueError, match=message):
        TwoRoomsEnv().reset(seed=0, options=options)


def test_rejects_invalid_settings():
    with pytest.raises(ValueError, match="step_size"):
        TwoRoomsEnv(step_size=0)
    with pytest.raises(ValueError, match="render_mode"):
        TwoRoomsEnv(render_mode="human")
    with pytest.raises(gymnasium.error.ResetNeeded):
        TwoRoomsEnv().step(np.zeros(2, np.float32))
