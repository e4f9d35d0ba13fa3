"""Goal tasks: unsolved starts, goal images, and episodes as a function of the seed."""

import numpy as np
import pytest
import torch

from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.lamp import LAMP_SPEED, MOVES, SPRITE_SPEED, LampEnv
from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance
from vwm.planning.goal_task import StateGoalTask
from vwm.planning.goal_tasks import (
    GOAL_TASKS,
    LampGoalTask,
    MountainCarGoalTask,
    PendulumGoalTask,
    TwoRoomsGoalTask,
    find_goal_task,
)
from vwm.planning.mpc_policy import random_task_policy, run_task_policy
from vwm.planning.mppi import MPPI


class ExactDynamics(Simulator):
    """The true dynamics of Pendulum or MountainCarContinuous; a state is (angle or position, speed)."""

    def __init__(self, pendulum: bool, frame_skip: int) -> None:
        self.pendulum, self.frame_skip = pendulum, frame_skip
        self.spec = SimulatorSpec(ObservationSpace.image(16, 16), ActionSpace("continuous", 1), stochastic=False)

    def reset(self, context, seed=0, context_actions=None):
        raise NotImplementedError  # an image shows no velocity

    def step(self, state, action, decode=True):
        (position, speed), force = state, action[:, 0].double()
        for _ in range(self.frame_skip):
            if self.pendulum:
                speed = (speed + (15 * position.sin() + 6 * force) * 0.05).clamp(-8, 8)
                position = position + 0.05 * speed
            else:
                speed = (speed + 0.0015 * force - 0.0025 * (3 * position).cos()).clamp(-0.07, 0.07)
                position = (position + speed).clamp(-1.2, 0.6)
                speed = torch.where((position == -1.2) & (speed < 0), 0, speed)
        latent = torch.stack((position.cos(), position.sin()), dim=1) if self.pendulum else position[:, None]
        zeros = torch.zeros(len(position))
        return (position, speed), StepOutput(None, latent.float(), zeros, zeros.bool())


@pytest.mark.parametrize(("kind", "skip", "horizon"), [(PendulumGoalTask, 2, 12), (MountainCarGoalTask, 8, 16)])
def test_planning_in_the_true_dynamics_solves_the_task_with_its_default_reduction(kind, skip, horizon):
    task, planner, plan = kind(4, size=16, frame_skip=skip), CEM(horizon=horizon), None
    world = ExactDynamics(kind is PendulumGoalTask, skip)
    goal = torch.tensor([[1.0, 0.0]] if world.pendulum else [[MountainCarGoalTask.FLAG]]).expand(4, -1)
    objective, distances = GoalDistance(goal, "l2", task.reduction), []
    for t in range(50):
        state = tuple(torch.from_numpy(np.array([env.state[i] for env in task.envs], float)) for i in (0, 1))
        plan = planner.plan(world, state, objective, t, None if plan is None else planner.shift_plan(plan, 1))
        task.step(plan.actions[:, 0].numpy(), np.ones(4, bool))
        after = np.array([env.state for env in task.envs])
        assert np.allclose(np.stack(world.step(state, plan.actions[:, 0])[0], axis=1), after, atol=1e-5)
        distances.append(task.distances())
    assert task.solved(np.stack(distances, axis=1)).sum() >= 3
    task.close()


class ExactLamp(Simulator):
    """The true dynamics of the lamp's room; a state is that of the environment, and its latent scales the color."""

    spec = SimulatorSpec(ObservationSpace.image(64, 64), ActionSpace.composite(*LampEnv.action_parts), stochastic=False)

    def reset(self, context, seed=0, context_actions=None):
        raise NotImplementedError

    def step(self, state, action, decode=True):
        self.check_action(action, len(state))
        color, keys, pointer = action.split([1, 4, 2], dim=1)
        sprite = (state[:, :2] + SPRITE_SPEED * keys @ torch.tensor(list(MOVES.values())).float()).clamp(4, 60)
        lamp = (state[:, 2:4] + LAMP_SPEED * pointer).clamp(0, 64)
        state, zeros = torch.cat((sprite, lamp, color), dim=1), torch.zeros(len(state))
        return state, StepOutput(None, self.latent(state), zeros, zeros.bool())

    @staticmethod
    def latent(state):
        return torch.cat((state[:, :4] / 64, torch.nn.functional.one_hot(state[:, 4].long(), 3)), dim=1)


@pytest.mark.parametrize("planner", [CEM(horizon=8, samples=128), MPPI(horizon=8, samples=128)], ids=["cem", "mppi"])
def test_keys_a_pointer_and_a_choice_are_planned_together(planner):
    task, world, plan = LampGoalTask(4, seed=3, size=16), ExactLamp(), None
    goals = torch.from_numpy(np.stack([env.goal for env in task.envs]))
    objective, distances = GoalDistance(world.latent(goals), "l1", task.reduction), []
    for t in range(30):
        state = torch.from_numpy(task.states()).float()
        plan = planner.plan(world, state, objective, t, None if plan is None else planner.shift_plan(plan, 1))
        task.step(plan.actions[:, 0].numpy(), np.ones(4, bool))
        assert np.allclose(world.step(state, plan.actions[:, 0])[0], task.states(), atol=1e-3)
        distances.append(task.distances())
    assert task.solved(np.stack(distances, axis=1)).all()
    rollout = run_task_policy(LampGoalTask(4, seed=3, size=16), random_task_policy(task, 0), 30)
    assert rollout.solved.sum() < 2
    task.close()


@pytest.fixture(params=sorted(set(GOAL_TASKS) - {"vwm/Reacher-v0"}))  # whose images take long; see test_recorded_goals
def kind(request):
    if request.param == "vwm/PushT-v0":
        pytest.importorskip("pymunk", reason="pymunk is not installed")
    return GOAL_TASKS[request.param]


def test_episodes_start_unsolved_and_are_a_function_of_the_seed(kind):
    task, same, other = kind(4, seed=1, size=32), kind(3, seed=1, size=32), kind(3, seed=2, size=32)
    assert not task.solved(task.distances()[:, None]).any() and (task.distances() > 0).all()
    assert task.goals.shape == task.frames().shape == (4, 32, 32, 3) and task.goals.dtype == np.uint8
    assert (task.states()[:3] == same.states()).all() and (task.frames()[:3] == same.frames()).all()
    assert (task.goals[:3] == same.goals).all()
    assert (same.states() != other.states()).any() and len(task.groups()) == 4
    for each in (task, same, other):
        each.close()


def test_goal_images_equal_the_frames_at_the_goal(kind):
    task = kind(2)
    for env in task.envs:
        if isinstance(task, StateGoalTask):
            state, goal = task.state(env), task.goal_state(env)
            task.set_state(env, np.concatenate((goal, state[len(goal) :])))
        else:
            env.state = np.array([MountainCarGoalTask.FLAG if isinstance(task, MountainCarGoalTask) else 0.0, 0.0])
    assert (task.frames() == task.goals).all() and (task.distances() < 1e-6).all()
    task.close()


def test_only_active_episodes_move_for_frame_skip_steps(kind):
    single_steps, three_steps = kind(2, size=16), kind(2, size=16, frame_skip=3)
    space = single_steps.actions.space
    actions = space.from_flat(torch.full((2, space.size), 0.5)).numpy()
    before = single_steps.states()
    for _ in range(3):
        single_steps.step(actions, np.array([True, False]))
    three_steps.step(actions, np.array([True, False]))
    assert np.allclose(single_steps.states(), three_steps.states())
    assert (single_steps.states()[0] != before[0]).any() and (single_steps.states()[1] == before[1]).all()
    assert three_steps.fps == pytest.approx(single_steps.fps / 3)
    single_steps.close(), three_steps.close()


def test_actions_are_scaled_to_the_range_of_the_environment():
    task = PendulumGoalTask(1, size=16)
    task.envs[0].state = np.array([np.pi, 0.0])
    task.step(np.ones((1, 1), np.float32), np.array([True]))
    assert task.states()[0, 1] == pytest.approx(3 * 2.0 * 0.05, rel=1e-5)  # 2 is the largest torque; dt is 0.05
    task.close()


def test_two_rooms_groups_by_room_and_has_a_straight_line_policy():
    task = TwoRoomsGoalTask(40, options={"random_wall": True})
    kinds = task.groups()
    assert set(kinds) == {"same room", "other room"}
    for _ in range(40):
        task.step(task.reference_policies()["straight line"](), np.ones(40, bool))
    reached = task.distances() <= 4
    assert reached[[k == "same room" for k in kinds]].all()
    assert not reached[[k == "other room" for k in kinds]].all()
    assert (task.distances()[reached] < 1e-3).all()  # the agent stops at the goal
    assert (task.background(0) == task.goals[0]).all()
    assert {tuple(s[2:]) for s in task.states()} != {(32.0, 32.0)}


def test_the_straight_lines_of_the_lamps_room_reach_the_goal():
    task = LampGoalTask(6, size=16)
    for _ in range(30):
        task.step(task.reference_policies()["straight lines"](), np.ones(6, bool))
    assert (task.distances() < 2).all() and task.background(0).shape == (64, 64, 3)
    task.envs[0].color = (task.envs[0].color + 1) % 3
    assert task.distances()[0] >= 64
    task.close()


def test_success_criteria():
    rooms, car = TwoRoomsGoalTask(1), MountainCarGoalTask(1)
    assert rooms.solved(np.array([[9.0, 4.0, 9.0], [9, 4.1, 5]])).tolist() == [True, False]
    assert car.solved(np.array([[0.5, 0.0, 0.2], [0.5, 0.1, 0.1]])).tolist() == [True, False]
    pendulum = PendulumGoalTask(1)
    held, late = np.full((1, 12), 0.2), np.full((1, 12), 0.2)
    held[:, :2], late[:, 3] = 3, 3
    assert pendulum.solved(np.concatenate([held, late])).tolist() == [True, False]
    assert not pendulum.solved(np.full((1, 9), 0.1)).any() and not pendulum.ends
    for task in (rooms, car, pendulum):
        task.close()


def test_pendulum_distances_are_angles_from_upright():
    task = PendulumGoalTask(1, size=16)
    for angle, distance in ((0.1, 0.1), (-0.1, 0.1), (2 * np.pi - 0.1, 0.1), (np.pi, np.pi), (7 * np.pi, np.pi)):
        task.envs[0].state = np.array([angle, 0.0])
        assert task.distances()[0] == pytest.approx(distance)
    task.close()


def test_rejects_unknown_environments_and_options():
    assert find_goal_task("vwm/TwoRooms-v0") is TwoRoomsGoalTask
    with pytest.raises(ValueError, match=r"CartPole-v1.*Pendulum-v1"):
        find_goal_task("CartPole-v1")
    with pytest.raises(ValueError, match=r"Pendulum-v1.*flavor"):
        PendulumGoalTask(1, options={"flavor": 3})
