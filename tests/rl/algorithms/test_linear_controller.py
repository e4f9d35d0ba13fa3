"""The linear controller, and how it follows a real game."""

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

LEVERS = ActionSpace("continuous", 3, ("steer", "gas", "brake"), rest=(0.0, -1.0, -1.0))
KEYS = ActionSpace("discrete", 4, ("a", "b", "c", "d"))


@pytest.mark.parametrize("space", [LEVERS, KEYS], ids=lambda s: s.kind)
def test_every_world_has_a_matrix_and_a_bias_of_its_own(space):
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(5, space.size * 6 + space.size, generator=generator)
    features = torch.randn(5, 6, generator=generator)
    done = linear_controller_actions(parameters, features, space)
    for own, seen, action in zip(parameters.numpy(), features.numpy(), done, strict=True):
        said = own[: -space.size].reshape(space.size, 6) @ seen + own[-space.size :]
        if space.kind == "discrete":
            assert action == said.argmax()
        else:
            np.testing.assert_allclose(action.numpy(), np.tanh(said), atol=1e-6)


def test_a_search_begins_with_every_lever_near_its_rest():
    start = torch.from_numpy(initial_controller_parameters(6, LEVERS))
    action = linear_controller_actions(start[None], torch.randn(1, 6).double(), LEVERS)
    torch.testing.assert_close(action[0], torch.tensor([0.0, -0.95, -0.95]).double())
    assert initial_controller_parameters(6, KEYS).shape == (28,) and not initial_controller_parameters(6, KEYS).any()


def test_what_is_kept_does_what_was_bred(tmp_path):
    parameters, features = torch.randn(21), torch.randn(4, 9)
    controller = LinearController.from_parameters(parameters, LEVERS)
    expected = linear_controller_actions(parameters.expand(4, -1), features[:, :6], LEVERS)
    torch.testing.assert_close(controller(features, LEVERS), expected)  # it looks at the first six alone
    save_component(controller, tmp_path / "controller")
    torch.testing.assert_close(load_component(tmp_path / "controller")(features, LEVERS), expected)


def time_step(frames: torch.Tensor, first: list[bool]) -> TimeStep:
    no = torch.zeros(len(frames), dtype=torch.bool)
    return TimeStep(frames, torch.zeros(len(frames)), torch.tensor(first), no, no)


def test_a_policy_observes_frames_and_keeps_the_state_of_its_episode():
    world = dream()
    controller = LinearController.from_parameters(
        torch.randn(84, generator=torch.Generator().manual_seed(1)), world.spec.actions
    )
    driver = ControllerPolicy(world, controller, EnvSpaces(ObservationSpace.of_shape((8, 8, 3)), world.spec.actions))
    video = torch.randint(0, 256, (4, 2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    carry, done = driver.init_carry(2), []
    for t, first in enumerate([[True, True], [False, False], [False, True], [False, False]]):
        acted = driver.act(carry, time_step(video[t], first), explore=False)
        carry = acted.carry
        done.append(acted.action)
        # What the world says of the same frames and actions at once: of four frames, and of the last episode's two.
        for i, begin in enumerate((0, 0 if t < 2 else 2)):
            told = torch.stack(done[begin:-1], 1)[i : i + 1] if t > begin else None
            state, _ = world.reset(video[begin : t + 1, i][None], context_actions=told)
            expected = world.features(state)
            torch.testing.assert_close(world.features(carry.state)[i : i + 1], expected, rtol=0, atol=1e-5)
            assert torch.equal(acted.action[i : i + 1], controller(expected, world.spec.actions))


def test_rejects_an_environment_that_does_not_fit_the_world():
    world = dream()
    controller = LinearController.from_parameters(torch.zeros(84), world.spec.actions)
    with pytest.raises(ValueError, match=r"sees frames \[8, 8, 3\], the environment shows \[4\]"):
        ControllerPolicy(world, controller, EnvSpaces(ObservationSpace.of_shape((4,)), world.spec.actions))
    with pytest.raises(ValueError, match="trained with 4 discrete actions"):
        ControllerPolicy(world, controller, EnvSpaces(ObservationSpace.of_shape((8, 8, 3)), LEVERS))
