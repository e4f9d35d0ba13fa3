"""Guidance by part: the chain of conditions against written-out equations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import composite_parts, diffusion_world, dit, randomize
from torch import Tensor

from vwm.models.dit.guidance import part_guidance_levels
from vwm.models.dit.sampling import DiffusionSampling, sample_latent_frame
from vwm.models.dit.simulator import DiTSimulator
from vwm.worlds.bundle import load_simulator, save_simulator

ACTION = torch.tensor([[2.0, 1.0, 0.0, 0.0, 1.0, 0.3, -0.7], [0.0, 0.0, 1.0, 0.0, 0.0, -0.2, 0.5]])


def world(**guidance: float) -> DiTSimulator:
    simulator = diffusion_world(action_parts=composite_parts(), sampling=DiffusionSampling(steps=2, guidance=guidance))
    randomize(simulator.dynamics, seed=5)
    return simulator


@pytest.mark.parametrize("frames", [1, 2])
def test_each_part_is_guided_given_those_before_it(frames: int) -> None:
    network = dit(num_actions=0, action_parts=composite_parts(), frames_per_latent=frames).double().eval()
    space, seed, state = network.embed_action.space, torch.tensor([1, 2]), network.init_state(2)
    actions = ACTION.double()[:, None].repeat(1, frames, 1)

    def frame(shown: tuple[bool, ...]) -> Tensor:
        embedding = network.embed_actions(actions, torch.tensor(shown).expand(2, frames, 3))
        return sample_latent_frame(network, state, embedding, seed, DiffusionSampling(steps=1))

    def guided(weights: dict[str, float], passes: int) -> Tensor:
        levels = part_guidance_levels(network, actions, space, weights)
        assert len(levels) == passes
        return sample_latent_frame(network, state, levels[-1].action_embedding, seed, DiffusionSampling(1), levels)

    hidden, color, color_mouse, shown = map(
        frame, [(False,) * 3, (True, False, False), (True, False, True), (True,) * 3]
    )
    mouse = frame((False, False, True))
    for weights, passes, expected in (
        ({"mouse": 2.0, "keys": 0.5}, 3, color + 2 * (color_mouse - color) + 0.5 * (shown - color_mouse)),
        ({"keys": 3.0}, 2, color_mouse + 3 * (shown - color_mouse)),
        ({"color": 2.0, "keys": 2.0, "mouse": 2.0}, 2, hidden + 2 * (shown - hidden)),
        ({"color": 1.5, "keys": 0.0, "mouse": 0.0}, 2, hidden + 1.5 * (color - hidden)),
    ):
        torch.testing.assert_close(guided(weights, passes), expected, rtol=0, atol=1e-10)
    exact = {"mouse": {"mouse": 1.0, "color": 0.0, "keys": 0.0}, "shown": {"keys": 1.0}, "all": {}}
    exact["hidden"] = dict.fromkeys(("color", "keys", "mouse"), 0.0)
    for name, expected in (("mouse", mouse), ("shown", shown), ("all", shown), ("hidden", hidden)):
        assert torch.equal(guided(exact[name], 1), expected)


def test_a_world_is_guided_by_the_names_of_its_actions_and_saved_with_them(tmp_path: Path) -> None:
    def played(simulator: DiTSimulator) -> Tensor:
        state, _ = simulator.reset(simulator.starts[:2])
        return simulator.step(state, ACTION)[1].latent

    plain, one, by_part = (diffusion_world(action_parts=composite_parts()), world(keys=1.0), world(mouse=3.0))
    randomize(plain.dynamics, seed=5)
    assert torch.equal(played(plain), played(one))
    equal = plain.with_sampling(guidance={"color": 2.0, "keys": 2.0, "mouse": 2.0})
    torch.testing.assert_close(played(equal), played(plain.with_sampling(guidance=2.0)))
    assert not torch.allclose(played(by_part), played(plain), atol=1e-3)
    save_simulator(by_part, tmp_path / "world")
    loaded = load_simulator(tmp_path / "world", "cpu")
    assert loaded.sampling.guidance == {"mouse": 3.0} and torch.equal(played(loaded), played(by_part))


def test_rejects_weights_that_fit_no_part() -> None:
    with pytest.raises(ValueError, match="must name parts of the actions: color, keys, mouse"):
        world(pointer=2.0)
    with pytest.raises(ValueError, match=r"sampling\.guidance must be a number of 0 or more and at most 1000, got -1"):
        world(keys=-1)
    with pytest.raises(ValueError, match="requires composite actions, and these are 4 discrete actions"):
        diffusion_world().with_sampling(guidance={"keys": 2.0})
    with pytest.raises(ValueError, match=r"sampling\.steps must lie in 1\.\.1000"):
        diffusion_world().with_sampling(steps={"keys": 2})
