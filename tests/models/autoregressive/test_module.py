"""The training of autoregressive token worlds: losses, outcomes, unknown actions, and that it learns a game."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from autoregressive_worlds import token_dynamics, token_tokenizer
from factories import composite_parts, composite_space, randomize

from vwm.core.seeds import world_seeds
from vwm.data.clips import ClipBatch
from vwm.models.autoregressive.dynamics import AutoregressiveDynamics
from vwm.models.autoregressive.module import AutoregressiveModule
from vwm.models.autoregressive.outcomes import RewardSignHeads, sample_action_outcomes
from vwm.models.autoregressive.sampling import TokenSampling, sample_next_frame
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.loading import given_tokenizer

HEADS = {"sign": lambda: RewardSignHeads(16), "value": lambda: RewardTerminationHeads(16, 8)}


def module(outcomes: str = "sign", tokenizer: Any = None, **changes: Any) -> AutoregressiveModule:
    heads = randomize(HEADS[outcomes]()) if outcomes else None
    options = {name: changes.pop(name) for name in ("first_frame", "context_frames") if name in changes}
    with given_tokenizer(tokenizer or token_tokenizer()):
        return AutoregressiveModule("none", token_dynamics(**changes), OptimizerConfig(), heads, **options).eval()


def batch(**more: Any) -> ClipBatch:
    """An episode's last action terminates it with a reward; no frame follows."""
    generator = torch.Generator().manual_seed(0)
    rewards, terminated = torch.randn(3, 4, generator=generator), torch.zeros(3, 4, dtype=torch.bool)
    rewards[0, 3], rewards[1, 2], terminated[0, 3] = 10.0, 0.0, True
    fields = {
        "frames": torch.randint(0, 256, (3, 4, 16, 16, 3), dtype=torch.uint8, generator=generator),
        "actions": torch.randint(0, 4, (3, 4), generator=generator),
        "rewards": rewards,
        "terminated": terminated,
    }
    return ClipBatch(**{**fields, **more})


@pytest.mark.parametrize("outcomes", HEADS)
@torch.no_grad()
def test_losses_are_those_of_what_play_computes_action_by_action(outcomes: str) -> None:
    learner, clips = module(outcomes), batch()
    tokens = learner._tokens(clips).flatten(2)
    dynamics, heads = learner.dynamics, learner.outcomes
    state = dynamics.init_state(3)
    entropy, reward, end = [], [], []
    for t in range(4):
        if t:
            logits = dynamics.predict_logits(state, tokens[:, t], clips.actions[:, t - 1 : t])
            entropy.append(F.cross_entropy(logits.flatten(0, 1), tokens[:, t].flatten()))
        state = dynamics.observe(state, tokens[:, t : t + 1], clips.actions[:, max(t - 1, 0)][:, None])
        embedded = dynamics.embed_actions(clips.actions[:, t : t + 1])
        output = dynamics.begin_frame(state, embedded[:, 0])[1]
        if outcomes == "sign":
            signs, ends = heads(output)
            reward.append(F.cross_entropy(signs, clips.rewards[:, t].sign().long() + 1))
            end.append(F.cross_entropy(ends, clips.terminated[:, t].long()))
        else:
            x = heads.body(torch.cat((output, embedded[:, 0]), dim=-1))
            reward.append(heads.two_hot.loss(heads.reward(x), clips.rewards[:, t]).mean())
            end.append(F.binary_cross_entropy_with_logits(heads.end(x)[:, 0], clips.terminated[:, t].float()))
    loss, logs = learner(clips)
    expected = {"token_loss": entropy, "reward_loss": reward, "end_loss": end}
    for name, values in expected.items():
        torch.testing.assert_close(logs[name], torch.stack(values).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, logs["token_loss"] + logs["reward_loss"] + logs["end_loss"])


def test_every_weight_has_a_gradient_and_the_tokenizer_none() -> None:
    learner = module().train()
    learner(batch())[0].backward()
    weights = [p for n in learner.networks().values() for p in n.parameters() if p is not learner.dynamics.no_action]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)
    assert all(p.grad is None for p in learner.tokenizer.parameters()) and not learner.tokenizer.training
    learner = module().train()
    learner(batch(terminated=None))[0].backward()
    assert all(p.grad is not None for p in learner.outcomes.parameters())


def test_encoded_clips_give_the_same_loss_and_shuffled_actions_another_one() -> None:
    learner, clips = module(), batch()
    loss, logs = learner.validation_losses(clips, 0)
    encoded = replace(clips, latents=learner._tokens(clips), frames=None)
    assert torch.equal(learner(encoded)[0], loss)
    shuffled = learner(replace(clips, actions=clips.actions.roll(1, dims=0)))[1]["token_loss"]
    assert float(logs["shuffle_ratio"]) == pytest.approx(float(shuffled / logs["token_loss"]))
    assert logs["shuffle_ratio"] != 1


def test_unknown_actions_and_parts_have_no_effect() -> None:
    keys, space = composite_space().slices["keys"], composite_space()
    rows = space.from_flat(torch.rand(3, 4, space.size, generator=torch.Generator().manual_seed(2)) * 2 - 1)
    parts = torch.tensor([[True, True, True], [True, False, True], [False] * 3])
    others = rows.clone()
    others[..., keys] = 1 - others[..., keys]
    labeled, numbers = torch.tensor([True, False, False]), batch().actions
    composite = {"num_actions": 0, "action_parts": composite_parts()}
    for clips, changed, settings in (
        (batch(actions=rows, known_parts=parts), others, composite),
        (batch(labeled=labeled), (numbers + 1) % 4, {}),
    ):
        learner, effects = module(**settings), []
        for i in range(3):
            mine = (torch.arange(3) == i).view(3, *[1] * (changed.ndim - 1))
            other = replace(clips, actions=torch.where(mine, changed, clips.actions))
            effects.append(not torch.equal(learner(clips)[0], learner(other)[0]))
        assert effects == [True, False, False]


def test_latents_of_several_frames_take_the_actions_of_all() -> None:
    """A clip of 5 frames is 3 latents of 2 frames; each has two actions after it."""
    torch.manual_seed(2)
    tokenizer = randomize(CausalVAE((16, 16), [4, 3, 3], 8, 2, patch_size=8, widths=[8], depths=[1]))
    learner = module("value", tokenizer, frames_per_latent=2)
    generator = torch.Generator().manual_seed(0)
    rewards, terminated = torch.ones(3, 6), torch.zeros(3, 6, dtype=torch.bool)
    rewards[0, 5], terminated[0, 4] = float("nan"), True
    clips = ClipBatch(
        frames=torch.randint(0, 256, (3, 5, 16, 16, 3), dtype=torch.uint8, generator=generator),
        actions=torch.randint(0, 4, (3, 6), generator=generator),
        rewards=rewards,
        terminated=terminated,
    )
    loss, _ = learner(clips)
    assert loss.isfinite() and learner.sample(clips).shape == (3, 5, 16, 16, 3)
    with pytest.raises(ValueError, match=r"set data\.frames_per_latent=2"):
        learner(replace(clips, actions=clips.actions[:, :5]))


def test_samples_continue_the_first_frames_as_the_exported_world_does_its_context() -> None:
    learner, clips = module(context_frames=2, positions="learned"), batch()
    video = learner.sample(clips)
    seen = learner.tokenizer.decode(learner._tokens(clips)[:, :2])
    torch.testing.assert_close(video[:, :2].float(), (seen.movedim(2, -1).clamp(-1, 1) + 1) * 127.5, rtol=0, atol=1)
    changed = learner.sample(replace(clips, actions=(clips.actions + 1) % 4))
    assert torch.equal(changed[:, :2], video[:, :2]) and not torch.equal(changed, video)


def test_missing_fields_and_networks_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match=r"name them in data\.fields"):
        module()(batch(rewards=None))
    with pytest.raises(ValueError, match=r"these shards hold none"):
        module()(batch(actions=None))
    with pytest.raises(ValueError, match=r"actions run from 0 to 9, but dynamics\.num_actions=4"):
        module()(batch(actions=torch.tensor([[0, 1, 9, 0]] * 3)))
    with pytest.raises(ValueError, match=r"outcomes\.width=16 but dynamics\.width: 32"):
        module(width=32)
    with pytest.raises(ValueError, match=r"dynamics\.tokens_per_frame=9 but the tokenizer's: 4"):
        module(tokens_per_frame=9)


@torch.no_grad()
def test_signs_of_rewards_and_ends_are_sampled_with_their_probability() -> None:
    heads, steps = randomize(RewardSignHeads(16)), 4000
    output = torch.randn(1, 16, generator=torch.Generator().manual_seed(5))
    for head in (heads.reward, heads.end):
        head[2].weight.mul_(3)
    signs, ends = (x.softmax(-1)[0] for x in heads(output))
    seeds, many = torch.full((steps,), 7), output.expand(steps, -1)
    reward, ended = sample_action_outcomes(heads, many, many, seeds, torch.arange(steps))
    counts = torch.stack([(reward == sign).float().mean() for sign in (-1, 0, 1)])
    assert counts.sum() == 1 and (counts - signs).abs().max() < 0.03 and signs.max() < 0.9
    assert abs(float(ended.float().mean() - ends[1])) < 0.03
    alone = sample_action_outcomes(heads, output, output, seeds[:1], torch.tensor([9]))
    assert (alone[0][0], alone[1][0]) == (reward[9], ended[9])


def test_it_learns_how_actions_move_tokens() -> None:
    """A game of a token of five codes on a ring, and one that shows the last action: exact greedy play of 12 steps."""
    torch.manual_seed(0)
    model = AutoregressiveDynamics(5, 2, num_actions=3, width=32, depth=2, heads=2, window=3)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def play(batch: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        actions = torch.randint(0, 3, (batch, frames), generator=generator)
        start = torch.randint(0, 5, (batch, 1), generator=generator)
        moved = torch.cat((start, actions[:, :-1] - 1), dim=1).cumsum(1) % 5
        shown = torch.cat((torch.full_like(start, 4), actions[:, :-1]), dim=1)
        return torch.stack((moved, shown), dim=2), actions

    for _ in range(200):
        tokens, actions = play(32, 4)
        optimizer.zero_grad()
        model.loss(tokens, actions).loss.backward()
        optimizer.step()
    model.eval()
    tokens, actions = play(8, 13)
    with torch.no_grad():
        state = model.observe(model.init_state(8), tokens[:, :1], None)
        for t in range(1, 13):
            led = actions[:, t - 1 : t]
            state, frame = sample_next_frame(model, state, led, world_seeds(0, 8), TokenSampling(temperature=0))
            assert torch.equal(frame, tokens[:, t])
