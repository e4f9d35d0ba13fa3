"""Reacher: motion as in the DeepMind Control Suite, goals of joint angles, and an invisible target."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from vwm.envs.opengl import prepare_for_opengl
from vwm.envs.reacher import ReacherEnv

prepare_for_opengl()
suite = pytest.importorskip("dm_control.suite", reason="dm_control is not installed")


@pytest.fixture(scope="module")
def env() -> Iterator[ReacherEnv]:
    made = ReacherEnv(render_mode="rgb_array", terminate=True)
    yield made
    made.close()


def test_steps_equal_those_of_the_suite_and_follow_from_the_state_alone(env: ReacherEnv) -> None:
    reference = suite.load("reacher", "easy", task_kwargs={"random": 0})
    reference.reset()
    start = np.concatenate([reference.physics.data.qpos, reference.physics.data.qvel])
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    env.reset(seed=0)
    for _ in range(2):  # the second time after other steps
        env.set_state(start)
        for action in actions:
            env.step(action)
        reached = env.full_state
    for action in actions:
        reference.step(action)
    expected = np.concatenate([reference.physics.data.qpos, reference.physics.data.qvel])
    assert reached == pytest.approx(expected, abs=1e-9)
    assert np.abs(expected - start).max() > 0.1


def test_arms_that_are_simulated_at_once_move_as_one_by_one(env: ReacherEnv) -> None:
    rng = np.random.default_rng(0)
    states, actions = rng.uniform(-2, 2, (8, 4)), rng.uniform(-1.5, 1.5, (8, 2)).astype(np.float32)
    env.reset(seed=1)
    before = env.full_state
    simulated = env.simulate(states, actions, 10)
    assert (env.full_state == before).all()
    for state, action, reached in zip(states, actions, simulated, strict=True):
        env.set_state(state)
        for _ in range(10):
            env.step(action)
        assert env.full_state == pytest.approx(reached, abs=1e-9)


@pytest.mark.parametrize(
    ("offset", "reward"), [((0.049, -0.049), 1), ((0.051, 0), 0), ((0, 0.051), 0), ((2 * np.pi, 0), 0)]
)
def test_the_reward_is_1_where_both_joints_are_within_a_twentieth_rad(
    env: ReacherEnv, offset: tuple[float, float], reward: float
) -> None:
    env.reset(seed=0, options={"state": [1, 1, 0, 0], "goal": np.array([1, 1]) + offset})
    assert env.step(np.zeros(2))[1:3] == (reward, bool(reward))


def test_resets_are_a_function_of_the_seed_and_check_their_options(env: ReacherEnv) -> None:
    first, info = env.reset(seed=3)
    assert (env.reset(seed=3)[0] == first).all() and (env.reset(seed=4)[0] != first).any()
    assert (first[2:] == 0).all() and np.abs(info["goal"][1]) <= np.deg2rad(160)
    with pytest.raises(ValueError, match="must be 4 finite numbers"):
        env.reset(options={"state": [0, 0]})
    with pytest.raises(ValueError, match="there are state and goal"):
        env.reset(options={"target": 1})


def test_images_show_the_arm_and_no_target(env: ReacherEnv) -> None:
    env.reset(seed=0, options={"state": [0.3, 0.4, 0, 0]})
    try:
        image = env.render()
    except Exception as error:  # noqa: BLE001 (a machine without OpenGL: the kind depends on the library)
        pytest.skip(f"there is no OpenGL: {error}")
    env.physics.named.data.geom_xpos["target"] += 0.05
    assert image is not None and image.shape == (64, 64, 3) and (image == env.render()).all()
    env.set_state([2.0, 0.4, 0, 0])
    assert (image != env.render()).any()


def test_pytorchs_compiler_is_imported_after_an_image_was_drawn() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    script = (
        "from vwm.envs.env_ids import make_env\n"
        "env = make_env('vwm/Reacher-v0', {'render_mode': 'rgb_array'})\n"
        "env.reset(seed=0)\n"
        "assert env.render().any()\n"
        "print('drawn', flush=True)\n"
        "import triton\n"  # crashes where Mesa's LLVM was loaded first
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if "drawn" not in done.stdout:
        pytest.skip(f"MuJoCo cannot draw here: {done.stderr[-300:]}")
    assert done.returncode == 0
