"""Tasks: unsolved starts, goals as pictures, the same episodes from the same seed."""

import numpy as np
import pytest

from vwm.agents.tasks import TASKS, MountainCarTask, PendulumTask, TwoRoomsTask, find_task


@pytest.fixture(params=list(TASKS))
def kind(request):
    return TASKS[request.param]


def test_episodes_begin_unsolved_and_are_a_function_of_the_seed(kind):
    task, same, other = kind(4, seed=1, size=32), kind(3, seed=1, size=32), kind(3, seed=2, size=32)
    assert not task.solved(task.distances()[:, None]).any() and (task.distances() > 0).all()
    assert task.goals.shape == task.frames().shape == (4, 32, 32, 3) and task.goals.dtype == np.uint8
    assert (task.states()[:3] == same.states()).all() and (task.frames()[:3] == same.frames()).all()
    assert (task.goals[:3] == same.goals).all()
    assert (same.states() != other.states()).any() and len(task.groups()) == 4
    for each in (task, same, other):
        each.close()


def test_what_a_goal_shows_is_what_is_seen_there(kind):
    task = kind(2)
    for game in task.games:
        if isinstance(task, TwoRoomsTask):
            game.position = game.goal
        else:
            game.state = np.array([MountainCarTask.FLAG if isinstance(task, MountainCarTask) else 0.0, 0.0])
    assert (task.frames() == task.goals).all() and (task.distances() < 1e-6).all()
    task.close()


def test_actions_move_those_that_play_for_as_long_as_the_frame_skip_says(kind):
    once, thrice = kind(2, size=16), kind(2, size=16, frame_skip=3)
    actions = np.full((2, once.action_size), 0.5, np.float32)
    before = once.states()
    for _ in range(3):
        once.act(actions, np.array([True, False]))
    thrice.act(actions, np.array([True, False]))
    assert np.allclose(once.states(), thrice.states())
    assert (once.states()[0] != before[0]).any() and (once.states()[1] == before[1]).all()
    assert thrice.fps == pytest.approx(once.fps / 3)
    once.close(), thrice.close()


def test_actions_are_in_the_games_own_numbers():
    task = PendulumTask(1, size=16)
    task.games[0].state = np.array([np.pi, 0.0])
    task.act(np.ones((1, 1), np.float32), np.array([True]))
    assert task.states()[0, 1] == pytest.approx(3 * 2.0 * 0.05, rel=1e-5)  # 2 is the greatest torque; dt is 0.05
    task.close()


def test_two_rooms_splits_by_room_and_knows_the_straight_way():
    task = TwoRoomsTask(40, options={"random_wall": True})
    kinds = task.groups()
    assert set(kinds) == {"same room", "other room"}
    for _ in range(40):
        task.act(task.references()["straight line"](), np.ones(40, bool))
    there = task.distances() <= 4
    assert there[[k == "same room" for k in kinds]].all()
    assert not there[[k == "other room" for k in kinds]].all()
    assert (task.distances()[there] < 1e-3).all()  # it stops there
    picture = task.picture(0)
    assert (picture == task.goals[0]).all()
    assert {tuple(s[2:]) for s in task.states()} != {(32.0, 32.0)}


def test_what_counts_as_solved():
    rooms, car = TwoRoomsTask(1), MountainCarTask(1)
    assert rooms.solved(np.array([[9.0, 4.0, 9.0], [9, 4.1, 5]])).tolist() == [True, False]
    assert car.solved(np.array([[0.5, 0.0, 0.2], [0.5, 0.1, 0.1]])).tolist() == [True, False]
    pendulum = PendulumTask(1)
    held, late = np.full((1, 12), 0.2), np.full((1, 12), 0.2)
    held[:, :2], late[:, 3] = 3, 3
    assert pendulum.solved(np.concatenate([held, late])).tolist() == [True, False]
    assert not pendulum.solved(np.full((1, 9), 0.1)).any() and not pendulum.ends
    for task in (rooms, car, pendulum):
        task.close()


def test_angles_are_measured_from_upright():
    task = PendulumTask(1, size=16)
    for angle, distance in ((0.1, 0.1), (-0.1, 0.1), (2 * np.pi - 0.1, 0.1), (np.pi, np.pi), (7 * np.pi, np.pi)):
        task.games[0].state = np.array([angle, 0.0])
        assert task.distances()[0] == pytest.approx(distance)
    task.close()


def test_games_and_options_that_are_not_known_are_refused():
    assert find_task("vwm.data.two_rooms:vwm/TwoRooms-v0") is TwoRoomsTask
    with pytest.raises(ValueError, match=r"CartPole-v1.*Pendulum-v1"):
        find_task("CartPole-v1")
    with pytest.raises(ValueError, match=r"Pendulum-v1.*flavour"):
        PendulumTask(1, options={"flavour": 3})
