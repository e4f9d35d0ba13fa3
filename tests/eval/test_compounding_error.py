"""The compounding error is zero for a perfect world and otherwise equals a direct computation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import jepa_world, randomize
from latent_worlds import rssm_world
from torch import Tensor

from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.eval.compounding_error import measure_compounding_error, normalized_rmse
from vwm.eval.eval_clips import EvalClips
from vwm.eval.world_report import evaluate_world
from vwm.models.tdmpc2.simulator import TDMPC2Simulator
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel
from vwm.worlds.bundle import save_simulator
from vwm.worlds.families import find_family

CONTEXT, HORIZON = 2, 4


class Walk(Simulator):
    """Two numbers that the action moves by 1 and 3 and that drift by ``error`` per step; the reward is the action."""

    def __init__(self, error: float = 0.0) -> None:
        self.spec, self.error = SimulatorSpec(ObservationSpace.vector(2), ActionSpace("continuous", 1)), error

    def reset(self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None):
        return context[:, -1], context[:, -1]

    def step(self, state: Tensor, action: Tensor, decode: bool = True):
        state = state + action * torch.tensor([1.0, 3.0]) + self.error
        return state, StepOutput(state, state, action[:, 0], torch.zeros(len(state), dtype=torch.bool))


def walk_clips(clips: int = 12) -> tuple[EvalClips, Tensor]:
    actions = torch.rand(clips, CONTEXT + HORIZON, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    displacement = (actions * torch.tensor([1.0, 3.0])).cumsum(dim=1)
    observations = torch.cat((torch.zeros(clips, 1, 2), displacement[:, :-1]), dim=1)
    return EvalClips(observations, actions, (), "", clips, clips), actions[..., 0]


def test_a_perfect_world_has_no_error_at_any_horizon() -> None:
    errors = measure_compounding_error(Walk(), *walk_clips(), context=CONTEXT, seed=0, batch_size=5)
    assert len(errors["error"]) == HORIZON and errors["error"].max() < 1e-6 and errors["reward_error"].max() < 1e-6
    assert errors["error_copy_last"].min() > 0.1 and errors["error_random_actions"].min() > 0.1
    assert errors["reward_error_mean"].square().mean().item() == pytest.approx(1.0)


def test_errors_accumulate_with_the_horizon() -> None:
    sample, rewards = walk_clips()
    errors = measure_compounding_error(Walk(error=0.5), sample, rewards, context=CONTEXT, seed=0, batch_size=5)
    after = sample.frames[:, CONTEXT:].double()
    for h in range(HORIZON):
        parts = [(0.5 * (h + 1) / float(after[..., k].std(correction=0))) ** 2 for k in range(2)]
        assert errors["error"][h].item() == pytest.approx((sum(parts) / 2) ** 0.5, rel=1e-5)


def test_the_normalized_rmse_of_the_mean_is_1_and_constants_are_ignored() -> None:
    truth = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    truth[..., 3] = 7.0
    mean = truth.flatten(0, 1).mean(dim=0).expand_as(truth)
    assert normalized_rmse(truth, mean).square().mean().item() == pytest.approx(1.0, rel=1e-6)
    images = torch.randint(0, 256, (6, 2, 4, 4, 3), dtype=torch.uint8)
    constant = torch.full_like(images, 100)
    expected = (images[:, 1].double() - 100).square().mean().sqrt() / images.double().std(correction=0)
    assert normalized_rmse(images, constant)[1].item() == pytest.approx(expected.item())


def test_predicted_latents_are_compared_with_encoded_observations() -> None:
    torch.manual_seed(0)
    model = randomize(
        TDMPC2WorldModel(
            1, vector_size=2, num_stacked_frames=2, latent_size=16, width=16, encoder_width=16, num_bins=21
        )
    )
    world = TDMPC2Simulator(model, ActionSpace("continuous", 1), context_frames=2)
    sample, rewards = walk_clips(7)
    errors = measure_compounding_error(world, sample, rewards, context=CONTEXT, seed=0, batch_size=3)
    assert errors["observed"] == "latents"
    with torch.no_grad():
        encoded = torch.stack([model.encode(sample.frames[:, h : h + 2]) for h in range(1, HORIZON + 1)], dim=1)
        latent, predicted = model.encode(sample.frames[:, :2]), []
        for h in range(HORIZON):
            latent = model.next_latent(latent, sample.actions[:, CONTEXT - 1 + h])
            predicted.append(latent)
    torch.testing.assert_close(
        errors["error"], normalized_rmse(encoded, torch.stack(predicted, dim=1)), rtol=1e-4, atol=1e-6
    )


def write_shard(path: Path, state: bool) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(path) as writer:
        for i in range(4):
            writer.write(
                f"{i}",
                Episode(
                    frames=rng.integers(0, 256, (9, 16, 16, 3)).astype(np.uint8),
                    actions=rng.integers(0, 4, 9),
                    rewards=rng.normal(size=9).astype(np.float32),
                    state=rng.normal(size=(9, 3)).astype(np.float32) if state else None,
                    meta={"fps": 10.0},
                ),
            )


@pytest.mark.parametrize("observation", [(3,), (16, 16, 3)])
def test_vwm_eval_measures_the_compounding_error_of_an_rssm(tmp_path: Path, observation: tuple[int, ...]) -> None:
    save_simulator(rssm_world(observation), tmp_path / "world")
    write_shard(tmp_path / "shard.tar", state=True)
    report = evaluate_world(tmp_path / "world", str(tmp_path), tmp_path / "report", horizon=3, clips=4, batch_size=3)
    errors = report["compounding"]
    assert errors["observed"] == ("vectors" if len(observation) == 1 else "images")
    assert all(len(errors[name]) == 3 for name in errors if name != "observed")
    assert json.loads((tmp_path / "report/report.json").read_text())["compounding"] == errors
    assert (tmp_path / "report/compounding_error.png").stat().st_size > 5000
    repeated = evaluate_world(tmp_path / "world", str(tmp_path), tmp_path / "again", horizon=3, clips=4, batch_size=4)
    assert np.allclose(repeated["compounding"]["error"], errors["error"], rtol=1e-4)


def test_a_jepa_is_measured_in_its_latents_even_if_it_shows_frames() -> None:
    world, generator = jepa_world(), torch.Generator().manual_seed(0)
    assert not world.spec.observation.is_latent and find_family(world).report == "latent_error"
    frames = torch.randint(0, 256, (5, CONTEXT + HORIZON, 8, 8, 3), dtype=torch.uint8, generator=generator)
    actions = torch.randint(0, 4, (5, CONTEXT + HORIZON), generator=generator)
    sample = EvalClips(frames, actions, (), "", 5, 5)
    errors = measure_compounding_error(world, sample, None, CONTEXT, seed=0, batch_size=3, in_latents=True)
    encoded = world.encode(frames).flatten(2)[:, CONTEXT:]
    state, _ = world.reset(frames[:, :CONTEXT], 0, actions[:, : CONTEXT - 1])
    predicted = []
    for action in actions[:, CONTEXT - 1 : -1].unbind(1):
        state, out = world.step(state, action)
        predicted.append(out.latent.flatten(1))
    assert errors["observed"] == "latents"
    expected = normalized_rmse(encoded, torch.stack(predicted, dim=1))
    torch.testing.assert_close(errors["error"], expected, rtol=1e-4, atol=1e-6)


def test_a_vector_world_requires_vector_data(tmp_path: Path) -> None:
    save_simulator(rssm_world((3,)), tmp_path / "world")
    write_shard(tmp_path / "shard.tar", state=False)
    with pytest.raises(ValueError, match=r"observes 3 numbers, and the data hold none .*--state"):
        evaluate_world(tmp_path / "world", str(tmp_path), tmp_path / "report", horizon=3)
    assert not (tmp_path / "report").exists()
