"""Goals from recordings, and planning to them in the true dynamics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.envs.recording import record_dataset
from vwm.planning.cem import CEM
from vwm.planning.goal_task import RecordedGoals, StateGoalTask
from vwm.planning.goal_tasks import GOAL_TASKS, LampGoalTask, PendulumGoalTask, TwoRoomsGoalTask
from vwm.planning.mpc_policy import random_task_policy, run_task_policy, still_task_policy
from vwm.planning.recorded_goals import draw_recorded_goals
from vwm.planning.true_dynamics import TrueDynamicsPolicy


def write_episodes(path: Path, lengths: list[int], names: tuple[str, ...] = ("episode", "frame")) -> None:
    """Write episodes whose states are the numbers of episode and frame."""
    path.parent.mkdir(exist_ok=True)
    with ShardWriter(path) as writer:
        for number, length in enumerate(lengths):
            frames = np.zeros((length, 8, 8, 3), np.uint8)
            state = np.stack([np.full(length, number), np.arange(length)], axis=1).astype(np.float32)
            meta = {"fps": 10.0, "state_names": list(names)}
            writer.write(f"{number:05d}", Episode(frames=frames, state=state if names else None, meta=meta))


def test_start_and_goal_are_of_one_episode_the_offset_apart_and_every_pair_is_drawn_once(tmp_path: Path) -> None:
    write_episodes(tmp_path / "data" / "shard-000000.tar", [7, 3, 4])
    write_episodes(tmp_path / "data" / "shard-000001.tar", [6])
    drawn = draw_recorded_goals(tmp_path / "data", episodes=8, offset=3)  # 4 + 0 + 1 + 3 pairs
    assert drawn.names == ("episode", "frame")
    assert drawn.starts.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [2, 0], [0, 0], [0, 1], [0, 2]]
    assert (drawn.goals - drawn.starts == [0, 3]).all()
    some, other = (draw_recorded_goals(tmp_path / "data", 4, 3, seed) for seed in (0, 1))
    assert (some.starts == draw_recorded_goals(tmp_path / "data", 4, 3, 0).starts).all()
    assert some.starts.tolist() != other.starts.tolist()
    with pytest.raises(ValueError, match="has 8 pairs of frames 3 apart, fewer than 9"):
        draw_recorded_goals(tmp_path / "data", 9, 3)
    with pytest.raises(ValueError, match="offset must be 1 or more"):
        draw_recorded_goals(tmp_path / "data", 1, 0)


def test_recordings_without_states_or_with_different_ones_are_refused(tmp_path: Path) -> None:
    write_episodes(tmp_path / "none" / "shard-000000.tar", [7], names=())
    with pytest.raises(ValueError, match="record with --state"):
        draw_recorded_goals(tmp_path / "none", 1, 3)
    write_episodes(tmp_path / "two" / "shard-000000.tar", [4])
    write_episodes(tmp_path / "two" / "shard-000001.tar", [4], names=("x", "y"))
    with pytest.raises(ValueError, match="episodes with different states"):
        draw_recorded_goals(tmp_path / "two", 2, 3)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rooms") / "data"
    options = {"step_size": 1.2, "random_wall": True}
    record_dataset(
        "vwm/TwoRooms-v0", out, frames=200, policy="sticky", workers=0, frame_skip=5, state=True, env_options=options
    )
    return out


def test_episodes_begin_at_recorded_states_with_images_of_recorded_goals(rooms: Path) -> None:
    pairs = draw_recorded_goals(rooms, 6, 5)
    task = TwoRoomsGoalTask(6, size=64, frame_skip=5, options={"step_size": 1.2}, recorded=pairs)
    assert np.abs(task.states() - pairs.starts).max() < 1e-6
    assert np.allclose(task.distances(), np.linalg.norm(pairs.goals[:, :2] - pairs.starts[:, :2], axis=1))
    for env, goal in zip(task.envs, pairs.goals, strict=True):
        task.set_state(env, goal)
    assert (task.frames() == task.goals).all() and task.distances().max() == 0
    with pytest.raises(ValueError, match="has states of x, y, wall, door and 5 episodes"):
        TwoRoomsGoalTask(5, recorded=pairs)
    with pytest.raises(ValueError, match="sprite x"):
        LampGoalTask(6, recorded=pairs)
    with pytest.raises(ValueError, match="cannot be set to recorded states"):
        PendulumGoalTask(6, recorded=pairs)


def test_an_episode_is_solved_where_the_goal_is_passed_within_a_held_action() -> None:
    names = ("x", "y", "wall", "door")
    pairs = RecordedGoals(np.array([[10.0, 10, 32, 32]]), np.array([[20.0, 10, 32, 32]]), names)
    task = TwoRoomsGoalTask(1, frame_skip=8, options={"step_size": 2.0}, recorded=pairs)
    task.step(np.array([[1.0, 0.0]], np.float32), np.array([True]))
    assert task.states()[0, :2].tolist() == [16, 10]  # within 4 pixels after 3 of 8 steps; all would end at 26
    assert task.solved(task.distances()[:, None]).all()


@pytest.mark.parametrize("kind", [kind for kind in GOAL_TASKS.values() if issubclass(kind, StateGoalTask)])
def test_the_simulated_dynamics_are_those_of_the_environments(kind: type[StateGoalTask]) -> None:
    if kind.ENV == "vwm/Reacher-v0":
        pytest.importorskip("dm_control", reason="dm_control is not installed")
    elif kind.ENV == "vwm/PushT-v0":
        pytest.importorskip("pymunk", reason="pymunk is not installed")
    try:
        task = kind(2, seed=1, size=16, frame_skip=3)
    except Exception as error:  # noqa: BLE001 (a machine without OpenGL: the kind depends on the library)
        pytest.skip(f"{kind.ENV} cannot be rendered: {error}")
    task.ends = False
    policy, before = random_task_policy(task, 0), task.states()
    for _ in range(2):
        actions = policy(task.goals, np.ones(2, bool))
        simulated = task.simulate(task.states(), actions)
        task.step(actions, np.ones(2, bool))
        assert simulated == pytest.approx(task.states(), abs=1e-4)
    assert np.abs(task.states() - before).max() > 0.1
    for env in task.envs:
        goal = task.goal_state(env)
        task.set_state(env, np.concatenate((goal, before[0, len(goal) :])))
    assert (task.frames() == task.goals).all() and task.distances().max() < 1e-6
    task.close()


def test_planning_in_the_true_dynamics_reaches_recorded_goals(rooms: Path) -> None:
    pairs = draw_recorded_goals(rooms, 12, 5)
    solved = {}
    for name in ("true", "still"):
        task = TwoRoomsGoalTask(12, frame_skip=5, options={"step_size": 1.2}, recorded=pairs)
        planner = CEM(horizon=5, samples=64, iterations=6, elites=8, keep_elites=0)
        policy = TrueDynamicsPolicy(task, planner, "end", replan_every=5) if name == "true" else still_task_policy(task)
        solved[name] = run_task_policy(task, policy, 10).solved
    assert solved["true"].sum() >= 11 and solved["still"].sum() < 6
