"""The linear controller, and its policy in a real environment."""

import numpy as np
import pytest
import torch
from factories import dream

from vwm.core.components import load_component, save_component
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.algorithms.linear_controller import (
    ControllerPolicy,
    LinearController,
    initial_controller_parameters,
    linear_controller_actions,
)

CONTINUOUS = ActionSpace("continuous", 3, ("steer", "gas", "brake"), rest=(0.0, -1.0, -1.0))
DISCRETE = ActionSpace("discrete", 4, ("a", "b", "c", "d"))


@pytest.mark.parametrize("space", [CONTINUOUS, DISCRETE], ids=lambda s: s.kind)
def test_each_world_has_its_own_matrix_and_bias(space):
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(5, space.size * 6 + space.size, generator=generator)
    features = torch.randn(5, 6, generator=generator)
    actions = linear_controller_actions(parameters, features, space)
    for world_parameters, world_features, action in zip(parameters.numpy(), features.numpy(), actions, strict=True):
        output = (
            world_parameters[: -space.size].reshape(space.size, 6) @ world_features + world_parameters[-space.size :]
        )
        if space.kind == "discrete":
            assert action == output.argmax()
        else:
            np.testing.assert_allclose(action.numpy(), np.tanh(output), atol=1e-6)


def test_initial_parameters_give_actions_near_the_rest_position():
    start = torch.from_numpy(initial_controller_parameters(6, CONTINUOUS))
    action = linear_controller_actions(start[None], torch.randn(1, 6).double(), CONTINUOUS)
    torch.testing.assert_close(action[0], torch.tensor([0.0, -0.95, -0.95]).double())
    assert (
        initial_controller_parameters(6, DISCRETE).shape == (28,)
        and not initial_controller_parameters(6, DISCRETE).any()
    )


def test_a_saved_controller_acts_like_its_parameters(tmp_path):
    parameters, features = torch.randn(21), torch.randn(4, 9)
    controller = LinearController.from_parameters(parameters, CONTINUOUS)
    expected = linear_controller_actions(parameters.expand(4, -1), features[:, :6], CONTINUOUS)
    torch.testing.assert_close(controller(features, CONTINUOUS), expected)  # it reads only the first six features
    save_component(controller, tmp_path / "controller")
    torch.testing.assert_close(load_component(tmp_path / "controller")(features, CONTINUOUS), expected)


def make_time_step(frames: torch.Tensor, first: list[bool]) -> TimeStep:
    false = torch.zeros(len(frames), dtype=torch.bool)
    return TimeStep(frames, torch.zeros(len(frames)), torch.tensor(first), false, false)


def test_a_policy_observes_frames_and_keeps_the_state_of_its_episode():
    world = dream()
    controller = LinearController.from_parameters(
        torch.randn(84, generator=torch.Generator().manual_seed(1)), world.spec.actions
    )
    policy = ControllerPolicy(world, controller, EnvSpaces(ObservationSpace.of_shape((8, 8, 3)), world.spec.actions))
    video = torch.randint(0, 256, (4, 2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    carry, actions = policy.init_carry(2), []
    for t, first in enumerate([[True, True], [False, False], [False, True], [False, False]]):
        policy_step = policy.act(carry, make_time_step(video[t], first), explore=False)
        carry = policy_step.carry
        actions.append(policy_step.action)
        # The state equals that of a reset with all frames and actions of the episode.
        for i, start in enumerate((0, 0 if t < 2 else 2)):
            context_actions = torch.stack(actions[start:-1], 1)[i : i + 1] if t > start else None
            state, _ = world.reset(video[start : t + 1, i][None], context_actions=context_actions)
            expected = world.features(state)
            torch.testing.assert_close(world.features(carry.state)[i : i + 1], expected, rtol=0, atol=1e-5)
            assert torch.equal(policy_step.action[i : i + 1], controller(expected, world.spec.actions))


def test_rejects_an_environment_that_does_not_fit_the_world():
    world = dream()
    controller = LinearController.from_parameters(torch.zeros(84), world.spec.actions)
    with pytest.raises(ValueError, match=r"sees frames \[8, 8, 3\], the environment shows \[4\]"):
        ControllerPolicy(world, controller, EnvSpaces(ObservationSpace.of_shape((4,)), world.spec.actions))
    with pytest.raises(ValueError, match="trained with 4 discrete actions"):
        ControllerPolicy(world, controller, EnvSpaces(ObservationSpace.of_shape((8, 8, 3)), CONTINUOUS))
