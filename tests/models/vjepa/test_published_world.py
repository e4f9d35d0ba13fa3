"""The published V-JEPA 2-AC as a world: poses follow actions, and plans minimize the published energy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from vjepa_models import published_ac_checkpoint

from vwm.core.capabilities import TakesProprioception
from vwm.core.frames import frames_to_float
from vwm.core.states import select_worlds
from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor
from vwm.models.vjepa.end_effector import move_end_effector
from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance, encode_goal_frames
from vwm.planning.sampling_planner import sequence_costs
from vwm.train.import_world import import_world
from vwm.worlds.bundle import load_simulator

POSE = torch.tensor([[0.3, -0.1, 0.4, 2.9, -0.3, 0.7, 0.2]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ac")
    torch.save(published_ac_checkpoint(), folder / "vjepa2-ac-vitg.pt")
    return folder


@pytest.fixture(scope="module")
def world(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("out") / "world"
    import_world("vjepa", folder, out)
    assert "license: mit" in (out / "README.md").read_text()
    return load_simulator(out, "cpu")


def frames(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, count, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_bundle_predicts_as_the_published_predictor_from_frames_actions_and_poses(world):
    assert (world.spec.actions.names[-1], world.spec.fps, world.spec.observation.kind) == ("gripper", 4.0, "latent")
    assert isinstance(world, TakesProprioception)
    state, _ = world.reset(frames(1))
    state = world.with_proprioception(state, POSE)
    actions = torch.tensor([[0.05, -0.02, 0.01, 0.1, 0.0, -0.2, 0.5], [0.0, 0.03, -0.05, 0.0, 0.3, 0.0, 0.6]])
    with torch.no_grad():
        features = world.encoder(frames_to_float(frames(1)))
        latents, poses = [F.layer_norm(features, (192,))], [POSE]
        for step in range(2):
            given = (torch.stack(latents, 1), actions[None, : step + 1], torch.stack(poses, 1))
            latents.append(world.dynamics(*given)[:, -1])
            poses.append(move_end_effector(poses[-1], actions[step : step + 1]))
    for step in range(2):
        state, output = world.step(state, actions[step : step + 1])
        torch.testing.assert_close(output.latent, latents[step + 1], rtol=0, atol=1e-5)
        assert torch.equal(state.proprioception, poses[step + 1]) and state.proprioception_known.all()
    assert poses[-1][0, 6] == 1  # closed


def test_poses_matter_and_an_unknown_one_counts_as_zero(world):
    state, _ = world.reset(frames(1))
    action = torch.full((1, 7), 0.02)
    unknown = world.step(state, action)[1].latent
    zero = world.step(world.with_proprioception(state, torch.zeros(1, 7)), action)[1].latent
    known = world.step(world.with_proprioception(state, POSE), action)[1].latent
    torch.testing.assert_close(unknown, zero, rtol=0, atol=1e-6)
    assert (known - unknown).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"proprioception must be \[1, 7\], got \[1, 3\]"):
        world.with_proprioception(state, POSE[:, :3])


def test_cem_lowers_the_energy_of_a_goal_image(world):
    state = world.with_proprioception(world.reset(frames(1))[0], POSE)
    goal = encode_goal_frames(world, frames(2)[:, 1])
    objective = GoalDistance(goal, "l1", "end")
    still = sequence_costs(world, state, objective, torch.zeros(1, 1, 2, 7))
    output = world.step(world.step(select_worlds(state, torch.tensor([0])), torch.zeros(1, 7))[0], torch.zeros(1, 7))[1]
    torch.testing.assert_close(still[0, 0], (output.latent - goal).abs().mean())
    planner = CEM(horizon=2, samples=20, elites=4, iterations=3, momentum=0.15, action_bound=0.05, keep_elites=0)
    plan = planner.plan(world, state, objective, seed=3)
    assert plan.actions.shape == (1, 2, 7) and plan.actions.abs().max() <= 0.05 and plan.cost < still[0, 0]


def test_other_files_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="no variant 'droid'"):
        import_world("vjepa", folder, tmp_path / "out", variant="droid")
    with pytest.raises(PretrainedWeightsError, match=r"there is no vjepa2-ac-vitg\.pt"):
        import_world("vjepa", tmp_path, tmp_path / "out")
    checkpoint = published_ac_checkpoint()
    del checkpoint["predictor"]
    torch.save(checkpoint, tmp_path / "encoder.pt")
    with pytest.raises(PretrainedWeightsError, match="so it is no V-JEPA 2-AC"):
        import_world("vjepa", tmp_path / "encoder.pt", tmp_path / "out")
    with pytest.raises(ValueError, match="proprioception_update=end_effector needs poses and actions of 7 numbers"):
        ActionConditionedPredictor(action_dims=3, proprioception_dims=7, proprioception_update="end_effector")


def test_the_published_sizes_are_those_of_the_layout():
    """Names and shapes of the published predictor by its rule: 24 layers of 1024 over 1408 features."""
    with torch.device("meta"):
        dynamics = ActionConditionedPredictor(
            grid=(16, 16),
            latent_width=1408,
            action_dims=7,
            proprioception_dims=7,
            normalize_output=True,
            width=1024,
            depth=24,
            heads=16,
            window=32,
            mlp="gelu",
            layers="vit",
            tiled_rope=True,
            proprioception_update="end_effector",
        )
    block = {"norm1": 2048, "norm2": 2048, "attn.qkv": 3 * 1024 * 1025, "attn.proj": 1024 * 1025}
    block |= {"mlp.fc1": 4096 * 1025, "mlp.fc2": 4097 * 1024}
    parts = 1024 * 1409 + 2 * 1024 * 8 + 2048 + 1408 * 1025
    found = sum(p.numel() for name, p in dynamics.named_parameters() if name != "unknown_proprioception_embedding")
    assert found == 24 * sum(block.values()) + parts
