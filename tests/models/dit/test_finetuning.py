"""Learning actions in a diffusion world pretrained without labels: unchanged at first, ordinary after merging."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import diffusion_world, randomize
from jsonargparse import ArgumentParser

from vwm.core.spaces import ActionSpace
from vwm.data.clips import ClipBatch
from vwm.models.dit.finetuning import DiTFinetuning
from vwm.models.dit.network import DiT
from vwm.models.dit.objectives import DiffusionForcing
from vwm.models.dit.simulator import DiTSimulator
from vwm.nn.lora import LoRAConfig
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.worlds.bundle import load_simulator, save_simulator


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "unlabeled"
    made = diffusion_world(num_actions=0)
    made.spec = replace(made.spec, actions=ActionSpace("discrete", 1, ("noop",)))
    save_simulator(made, folder)
    return folder


def module(world, **changes) -> DiTFinetuning:
    torch.manual_seed(0)
    settings = {"objective": DiffusionForcing(), "optimizer": OptimizerConfig(warmup=0, lr=1e-2), "num_actions": 3}
    return DiTFinetuning(str(world), **{**settings, **changes})


def batch(dims: int = 0, **changes) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 5, 8, 8, 3), dtype=torch.uint8, generator=generator)
    actions = torch.randint(0, 3, (2, 5), generator=generator)
    if dims:
        actions = torch.rand(2, 5, dims, generator=generator) * 2 - 1
    return ClipBatch(**{"frames": frames, "actions": actions, "rewards": torch.ones(2, 5), **changes})


def draw(made: DiTSimulator, act) -> torch.Tensor:
    state, _ = made.reset(made.starts, seed=3)
    drawn = []
    for i in range(3):
        state, out = made.step(state, act(i))
        drawn.append(out.latent)
    return torch.stack(drawn)


@pytest.mark.parametrize("kind", ["discrete", "continuous", "other actions"])
def test_starts_as_the_pretrained_world_for_every_action(world, tmp_path, kind):
    """With another game's actions: as that world is under unknown actions."""
    dims = 2 if kind == "continuous" else 0
    if kind == "other actions":
        world = tmp_path / "other"
        save_simulator(diffusion_world(), world)
    made = module(world, num_actions=0 if dims else 3, action_dims=dims)
    before = load_simulator(world, "cpu")
    before.dynamics.embed_action = None
    act = (lambda i: torch.full((3, dims), i / 3)) if dims else (lambda i: torch.full((3,), i))
    space = ActionSpace("continuous" if dims else "discrete", dims or 3, tuple("abc"[: dims or 3]))
    rest = {"sampling": before.sampling, "context_frames": 2, "starts": before.starts}
    after = DiTSimulator(made.tokenizer, made.dynamics, None, space, **rest)
    assert torch.equal(draw(after, act), draw(before, lambda i: torch.zeros(3, dtype=torch.int64)))


@pytest.mark.parametrize("how", ["frozen", "lora", "trained"])
def test_training_lowers_the_loss_and_keeps_frozen_weights(world, how):
    made, clips = module(world, adapt=how, outcomes=randomize(RewardTerminationHeads(32, 16))), batch()
    before = {name: value.clone() for name, value in made.dynamics.state_dict().items()}
    optimizer, _ = made.optimizer.build(made, 0)
    losses = []
    for _ in range(12):
        torch.manual_seed(1)  # one draw of noise, so that losses can be compared
        loss, logs = made(clips)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(sum(float(logs[f"{name}_loss"]) for name in ("dynamics", "reward", "end")))
    assert losses[-1] < losses[0]
    changed = {name for name, value in made.dynamics.state_dict().items() if not torch.equal(value, before[name])}
    assert "embed_action.table.weight" in changed
    if how != "trained":
        assert all(name.startswith("embed_action.") or "lora_" in name for name in changed)
    assert any("lora_" in name for name in changed) == (how == "lora")
    assert ("embed.weight" in changed) == (how == "trained")


def test_merging_gives_an_equal_network_of_true_actions(world):
    made = module(world, lora=LoRAConfig(rank=2, targets=("qkv", "out", "up", "down")))
    randomize(made.dynamics)  # LoRA's B begins at zero
    made.eval()
    torch.manual_seed(1)
    unmerged = made(batch())[0]
    made.merge()
    torch.manual_seed(1)
    torch.testing.assert_close(made(batch())[0], unmerged, rtol=1e-5, atol=1e-6)
    plain = DiT(**{name: value for name, value in made.dynamics.config.items() if not name.startswith("_")})
    plain.load_state_dict(made.dynamics.state_dict())
    assert plain.embed_action.space.size == 3


def test_rejects_missing_bundles_settings_and_data(world, tmp_path):
    with pytest.raises(ValueError, match="there is no bundle"):
        module(tmp_path)
    with pytest.raises(ValueError, match="set one of num_actions, action_dims, action_parts"):
        module(world, num_actions=0)
    with pytest.raises(ValueError, match="these shards hold no actions"):
        module(world)(batch(actions=None))
    with pytest.raises(ValueError, match="actions run from"):
        module(world, num_actions=2)(batch())
    with pytest.raises(ValueError, match=r"name them in data\.fields"):
        module(world, outcomes=RewardTerminationHeads(32, 16))(batch(rewards=None))


def test_the_world_replaces_pretrained_among_its_arguments(world):
    parser = ArgumentParser()
    parser.add_class_arguments(DiTFinetuning, "model")
    offered = parser.format_help()
    assert "--model.world" in offered and "--model.context_noise" in offered and "--model.pretrained" not in offered
    with pytest.raises(TypeError, match="pretrained"):
        module(world, pretrained=str(world))
