"""Push-T: motion as in the published environment, errors of states, and a policy that finds disc and block by color."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vwm.envs.action_spec import EnvActionSpec
from vwm.envs.behavior_policies import BlockPushingPolicy
from vwm.envs.block_tracking import AGENT_COLOR, BLOCK_COLOR, find_color
from vwm.envs.env_ids import make_env
from vwm.envs.push_t import PushTEnv, push_t_errors
from vwm.envs.push_t_physics import ARENA_SIZE, PushTPhysics, draw_push_t

pytest.importorskip("pymunk", reason="pymunk is not installed")

START = np.array([180.0, 200.0, 260.0, 220.0, 0.7, 0.0, 0.0])
ACTIONS = [(1, 0.3)] * 4 + [(-0.2, 0.9)] * 3 + [(-1, -0.5)] * 3


def test_ten_steps_of_pushing_end_where_the_published_environment_ends() -> None:
    # gym-pusht 0.1.8 with pymunk 6.11.1, with targets of 100 times the actions from the disc.
    agent, block = [207.3308697020, 303.1904663206], [352.0453407529, 397.8104684690, 1.8829553021]
    velocity = [-371.7121584446, -185.8561838492]
    physics = PushTPhysics.at(START)
    for action in ACTIONS:
        physics.step(np.array(action))
    assert physics.state == pytest.approx([*agent, *block, *velocity], abs=1e-6)


def test_what_follows_a_state_depends_on_it_alone() -> None:
    env = PushTEnv()
    env.reset(seed=0, options={"state": START, "goal": START})
    for action in ACTIONS:
        env.step(np.array(action))
    env.set_state(START)
    assert env.state == pytest.approx(START)
    reached = [env.step(np.array(action))[0] for action in ACTIONS][-1]
    physics = PushTPhysics.at(START)
    for action in ACTIONS:
        physics.step(np.array(action))
    assert (reached == physics.state.astype(np.float32)).all()


def test_the_disc_stays_in_the_arena() -> None:
    physics = PushTPhysics.at(START)
    for _ in range(12):
        physics.step(np.array([-1.0, 1.0]))
    assert np.abs(physics.state[:2] - [0, ARENA_SIZE]).max() < 2


def test_errors_are_the_distance_of_both_and_the_smaller_angle() -> None:
    goal = np.array([100.0, 100, 200, 200, 0.1, 0, 0])
    state = goal + [3, 0, 0, 4, 2 * np.pi - 0.3, 9, 9]
    position, angle = push_t_errors(np.stack([state, goal]), goal)
    assert position == pytest.approx([5, 0]) and angle == pytest.approx([0.3, 0])


@pytest.mark.parametrize(
    ("offset", "reward"),
    [
        ((19.9, 0, 0, 0, 0), 1),
        ((20.1, 0, 0, 0, 0), 0),
        ((12, 0, 17, 0, 0), 0),
        ((0, 0, 0, 0, 0.34), 1),
        ((0, 0, 0, 0, 0.36), 0),
    ],
)
def test_the_reward_is_1_within_20_units_and_20_degrees(offset: tuple[float, ...], reward: float) -> None:
    env = PushTEnv(terminate=True)
    at = np.array([50.0, 50, 300, 300, 1, 0, 0])
    env.reset(seed=0, options={"state": at, "goal": at + [*offset, 0, 0]})
    assert env.step(np.zeros(2))[1:3] == (reward, bool(reward))


def test_where_pymunk_is_not_installed_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymunk", None)
    with pytest.raises(ImportError, match=r"vwm/PushT-v0 needs a package.*'\.\[pusht\]'"):
        make_env("vwm/PushT-v0")


def test_the_environment_follows_gymnasiums_rules_and_starts_without_contact() -> None:
    env = gymnasium.make("vwm/PushT-v0", render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)
    for seed in range(20):
        state = env.reset(seed=seed)[0]
        assert PushTPhysics.at(state.astype(np.float64)).gap(state[:2]) > 15 - 1e-3
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.reset(options={"state": [1, 2]})
    with pytest.raises(ValueError, match="there are state and goal"):
        env.reset(options={"start": START})
    with pytest.raises(ValueError, match="image_size must be 1 or more"):
        make_env("vwm/PushT-v0", {"image_size": 0})


def test_images_show_disc_and_block_where_they_are() -> None:
    physics = PushTPhysics.at(START)
    image = draw_push_t(physics, 128)
    agent, block = find_color(image, AGENT_COLOR), find_color(image, BLOCK_COLOR)
    assert agent is not None and agent * ARENA_SIZE == pytest.approx(START[:2], abs=3)
    # The bar and the stem have areas of 3,600 and 2,700; their middles lie 15 and 75 from the origin along the stem.
    along = (3600 * 15 + 2700 * 75) / 6300
    middle = START[2:4] + along * np.array([-np.sin(0.7), np.cos(0.7)])
    assert block is not None and block * ARENA_SIZE == pytest.approx(middle, abs=3)
    assert find_color(np.full((8, 8, 3), 255, np.uint8), AGENT_COLOR) is None


def test_the_policy_keeps_the_disc_near_the_block_and_pushes_it() -> None:
    box = EnvActionSpec(0, -np.ones(2, np.float32), np.ones(2, np.float32))
    policy, physics, pushes = BlockPushingPolicy(box, 1, np.random.default_rng(0)), PushTPhysics.at(START), 0
    for t in range(60):
        before = physics.state[2:5]
        action = policy.act(np.array([t == 0]), draw_push_t(physics, 64)[None])
        assert action.shape == (1, 2) and action.dtype == np.float32 and np.abs(action).max() <= 1
        for _ in range(5):
            physics.step(action[0])
        pushes += np.abs(physics.state[2:5] - before).max() > 1
    assert pushes > 20
    unseen = policy.act(np.array([True]), np.full((1, 8, 8, 3), 255, np.uint8))
    assert np.abs(unseen).max() <= 1
    with pytest.raises(ValueError, match="two continuous actions"):
        BlockPushingPolicy(EnvActionSpec.discrete(("a", "b")), 1, np.random.default_rng(0))
