"""A pretrained Genie world learns true actions: it begins with what it counted, and ends as an ordinary world."""

from __future__ import annotations

import pytest
import torch
from factories import dynamics, genie, randomize

from vwm.core.components import save_component
from vwm.data.clips import ClipBatch
from vwm.models.genie.finetuning import GenieFinetuning
from vwm.nn.lora import LoRAConfig
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.worlds.bundle import save_simulator


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "latent"
    save_simulator(genie(), folder)
    return folder


def module(world, **changes) -> GenieFinetuning:
    torch.manual_seed(0)
    settings = {"num_actions": 3, "optimizer": OptimizerConfig(warmup=0, lr=1e-2), "context_frames": 2}
    return GenieFinetuning(str(world), **{**settings, **changes})


def batch(**changes) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 6, 16, 16, 3), dtype=torch.uint8, generator=generator)
    actions = torch.randint(0, 3, (3, 6), generator=generator)
    return ClipBatch(**{"frames": frames, "actions": actions, "rewards": torch.zeros(3, 6), **changes})


def test_the_action_map_starts_with_counts_of_inferred_actions(world):
    made, clips = module(world), batch()
    made.initialize_action_map([clips, clips])
    latents = genie().latent_action.infer(clips.frames.movedim(-1, 2) / 127.5 - 1).actions
    counts = torch.zeros(3, 4)
    for a, k in zip(clips.actions[:, :-1].flatten(), latents.flatten(), strict=True):  # actions[t] leads to t + 1
        counts[a, k] += 2
    overall = (counts.sum(0) + 0.25) / (counts.sum() + 1)
    expected = (counts + overall) / (counts.sum(1, keepdim=True) + 1)
    torch.testing.assert_close(made.dynamics.embed_action.mixture_weights(), expected)


@pytest.mark.parametrize("how", ["frozen", "lora", "trained"])
def test_training_lowers_the_loss_and_keeps_frozen_weights(world, how):
    made, clips = module(world, adapt=how), batch()
    made.initialize_action_map([clips])
    before = {name: value.clone() for name, value in made.dynamics.state_dict().items()}
    optimizer, _ = made.optimizer.build(made, 0)
    losses = []
    for _ in range(12):
        torch.manual_seed(1)  # one mask, so that losses can be compared
        loss, _ = made(clips)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    changed = {name for name, value in made.dynamics.state_dict().items() if not torch.equal(value, before[name])}
    assert "embed_action.logits" in changed
    if how != "trained":
        assert all(name == "embed_action.logits" or "lora_" in name for name in changed)
    assert any("lora_" in name for name in changed) == (how == "lora")
    assert ("embed.weight" in changed) == (how == "trained")


def test_merging_gives_an_equal_network_of_true_actions(world, tmp_path):
    made, clips = module(world, lora=LoRAConfig(rank=2)), batch()
    made.initialize_action_map([clips])
    randomize(made.dynamics)  # LoRA's B begins at zero
    made.dynamics.double().eval()
    tokens, actions = made._tokens(clips).flatten(2), clips.actions[:, :-1]
    mask = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    unmerged = made.dynamics(tokens, actions, mask)
    made.dynamics.float()
    made.merge()
    assert set(made.dynamics.state_dict()) == set(dynamics().state_dict()) and made.dynamics.config.num_actions == 3
    torch.testing.assert_close(made.dynamics(tokens, actions, mask), unmerged.float(), rtol=0, atol=1e-4)
    save_component(made.dynamics, tmp_path / "dynamics")


def test_new_actions_start_with_equal_embeddings(tmp_path):
    labeled = genie(labeled=True)
    save_simulator(labeled, tmp_path / "world")
    made = module(tmp_path / "world")
    mean = labeled.dynamics.embed_action.weight.mean(dim=0)
    torch.testing.assert_close(made.dynamics.embed_action(torch.tensor([0, 2])), mean.expand(2, -1))


def test_outcome_heads_train_together_with_the_actions(world):
    made = module(world, outcomes=randomize(RewardTerminationHeads(width=16, hidden=16)))
    loss, logs = made(batch())
    loss.backward()
    assert {"dynamics_loss", "reward_loss", "termination_loss"} <= set(logs)
    assert made.dynamics.embed_action.logits.grad.abs().sum() > 0
    assert set(made.networks()) == {"dynamics", "outcomes"}


def test_rejects_mismatched_data_and_bundles(world, tmp_path):
    made = module(world)
    for clips, message in (
        (batch(actions=None), "needs a labeled recording"),
        (batch(actions=torch.full((3, 6), 3)), "actions run from 3 to 3, but num_actions=3"),
        (batch(actions=torch.zeros(3, 6, 2)), r"integers \[b, t\], got torch\.float32 \[3, 6, 2\]"),
        (batch(labeled=torch.tensor([True, False, True])), r"set data\.labeled_fraction to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            made(clips)
    with pytest.raises(ValueError, match=r"add frames to data\.fields"):
        made.initialize_action_map([batch(frames=None)])
    with pytest.raises(ValueError, match="there is no bundle"):
        module(tmp_path)
    for name, continuous in (("composite", genie(labeled=True, composite=True)), ("latent", genie(dims=2))):
        save_simulator(continuous, tmp_path / name)
        with pytest.raises(ValueError, match="only discrete ones can be mapped to new actions"):
            module(tmp_path / name)
    other = genie()
    other.latent_action = genie(labeled=False).latent_action.__class__(
        (16, 16), 8, [2, 3], width=16, depth=1, heads=2, window=4
    )
    save_simulator(other, tmp_path / "mixed")
    with pytest.raises(ValueError, match="infers 6 actions, but dynamics takes 4"):
        module(tmp_path / "mixed").initialize_action_map([batch()])
