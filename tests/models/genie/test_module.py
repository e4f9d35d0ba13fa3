"""Genie's second stage: gradient flow, labeled actions, encoded data, and mismatched parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import composite_parts, composite_space, dynamics, latent_action, randomize, tokenizer

from vwm.core.components import save_component
from vwm.data.clips import ClipBatch
from vwm.models.genie.module import GenieModule
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_component(tokenizer(), folder / "tokenizer")
    return folder


def module(folder, labeled: bool = False, dims: int = 0, **changes) -> GenieModule:
    torch.manual_seed(0)
    changes |= {"num_actions": dims, "continuous": True} if dims else {}
    actions = None if labeled else latent_action(action_dims=dims)
    return GenieModule(folder, dynamics(**changes), OptimizerConfig(), actions, context_frames=2).train()


def batch(**more) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 6, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return ClipBatch(frames=frames, actions=torch.randint(0, 4, (3, 6), generator=generator), **more)


@pytest.mark.parametrize("dims", [0, 3], ids=["codes", "continuous"])
def test_the_dynamics_loss_has_no_gradient_in_the_latent_actions(folder, dims):
    genie = module(folder, dims=dims)
    actions, action_loss, _ = genie._actions(batch())
    loss, _ = genie.dynamics.loss(genie._tokens(batch()).flatten(2), actions)
    loss.backward()
    assert all(p.grad is None for p in genie.latent_action.parameters())
    action_loss.backward()
    encoder = genie.latent_action.encoder.parameters()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder if p.numel() > 16)
    assert all(p.grad is None for p in genie.tokenizer.parameters())


def test_labeled_actions_are_the_recorded_ones_before_the_last_frame(folder):
    genie = module(folder, labeled=True)
    actions, loss, _ = genie._actions(batch())
    assert torch.equal(actions, batch().actions[:, :-1]) and loss == 0
    with pytest.raises(ValueError, match="these shards hold none"):
        genie(ClipBatch(frames=batch().frames))


def with_outcomes(folder, width: int = 16, labeled: bool = True) -> GenieModule:
    torch.manual_seed(0)
    parts = (folder, dynamics(), OptimizerConfig(), None if labeled else latent_action())
    return GenieModule(*parts, outcomes=randomize(RewardTerminationHeads(width=width, hidden=16))).train()


def outcomes_batch() -> ClipBatch:
    """An episode's last action terminates it with a reward; no frame follows."""
    rewards, terminated = torch.zeros(3, 6), torch.zeros(3, 6, dtype=torch.bool)
    rewards[0, 5], terminated[0, 5] = 10.0, True
    return batch(rewards=rewards, terminated=terminated)


@torch.no_grad()
def test_outcome_losses_use_the_features_and_action_of_each_frame(folder):
    """The losses are those of the heads on what play computes, written out frame by frame."""
    genie = with_outcomes(folder).eval()
    genie.dynamics.double()
    genie.outcomes.double()
    clips = outcomes_batch()
    tokens, actions = genie._tokens(clips).flatten(2), clips.actions
    _, logs = genie(clips)
    state, total, ends = genie.dynamics.init_state(3), torch.zeros((), dtype=torch.float64), []
    for t in range(6):
        lead = None if t == 0 else actions[:, t - 1 : t]
        state, features = genie.dynamics.observe_with_features(state, tokens[:, t : t + 1], lead)
        x = genie.outcomes.body(torch.cat((features[:, 0], genie.dynamics.embed_action.weight[actions[:, t]]), dim=-1))
        total += genie.outcomes.two_hot.loss(genie.outcomes.reward(x), clips.rewards[:, t]).sum() / 18
        chance = genie.outcomes.end(x)[:, 0].sigmoid()
        ends.append(-torch.where(clips.terminated[:, t], chance, 1 - chance).log())
    assert float(logs["reward_loss"]) == pytest.approx(float(total), abs=1e-6)
    assert float(logs["termination_loss"]) == pytest.approx(float(torch.stack(ends).mean()), abs=1e-6)


def test_outcome_losses_have_gradients_in_the_heads_and_the_dynamics(folder):
    genie = with_outcomes(folder)
    genie(outcomes_batch())[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in genie.outcomes.parameters())
    assert genie.dynamics.embed_action.weight.grad.abs().sum() > 0 and set(genie.networks()) == {"dynamics", "outcomes"}


def test_rejects_outcome_heads_without_rewards_or_labels(folder):
    with pytest.raises(ValueError, match=r"name them in data\.fields"):
        with_outcomes(folder)(batch())
    with pytest.raises(ValueError, match=r"outcomes\.width=8 but dynamics\.width: 16"):
        with_outcomes(folder, width=8)
    with pytest.raises(ValueError, match="set latent_action or outcomes to null"):
        with_outcomes(folder, labeled=False)


def test_unknown_actions_and_parts_have_no_effect(folder):
    """Other actions of one clip change the loss unless the clip, or the part, is unknown."""
    keys, space = composite_space().slices["keys"], composite_space()
    rows = space.from_flat(torch.rand(3, 6, space.size, generator=torch.Generator().manual_seed(2)) * 2 - 1)
    parts = torch.tensor([[True, True, True], [True, False, True], [False] * 3])
    others = rows.clone()
    others[..., keys] = 1 - others[..., keys]
    labeled = torch.tensor([True, False, False])
    numbers = batch().actions
    for clips, changed, settings in (
        (replace(batch(), actions=rows, known_parts=parts), others, {"action_parts": composite_parts()}),
        (batch(labeled=labeled), (numbers + 1) % 4, {}),
    ):
        genie, effects = module(folder, labeled=True, **settings), []
        for clip in range(3):
            actions = torch.where((torch.arange(3) == clip).view(3, *[1] * (changed.ndim - 1)), changed, clips.actions)
            losses = []
            for given in (clips, replace(clips, actions=actions)):
                torch.manual_seed(1)
                losses.append(genie(given)[0])
            effects.append(not torch.equal(*losses))
        assert effects == [True, False, False]


def test_encoded_clips_give_the_same_loss_as_raw_clips(folder):
    genie = module(folder)
    tokens = genie._tokens(batch())
    torch.manual_seed(1)
    raw, _ = genie(batch())
    torch.manual_seed(1)
    encoded, _ = genie(batch(latents=tokens))
    assert torch.equal(raw, encoded)


def test_a_sample_keeps_its_context_and_generates_the_rest(folder):
    genie = module(folder).eval()
    drawn, shown = genie.sample(batch()), genie.tokenizer(batch().frames.movedim(-1, 2) / 127.5 - 1).video
    assert drawn.shape == (3, 6, 16, 16, 3)
    whole = ((shown + 1) * 127.5).round().clamp(0, 255).byte().movedim(2, -1)
    assert (drawn[:, :2].int() - whole[:, :2].int()).abs().max() <= 1
    assert torch.equal(drawn, genie.sample(batch()))


def test_the_frozen_tokenizer_stays_in_evaluation_mode(folder):
    genie = module(folder).train()
    assert genie.dynamics.training and not genie.tokenizer.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 99}, "dynamics.codebook_size=99 but the tokenizer's codes: 36"),
        ({"codebook_levels": [3, 4, 3]}, r"the tokenizer's FSQ levels: \[4, 3, 3\]. Set dynamics.codebook_levels=\[4"),
        ({"tokens_per_frame": 9}, "dynamics.tokens_per_frame=9"),
        ({"num_actions": 7}, "Set dynamics.num_actions=4"),
        ({"continuous": True}, "dynamics.continuous=True but latent_action's actions: False"),
    ],
)
def test_rejects_mismatched_parts(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        module(folder, **changes)
