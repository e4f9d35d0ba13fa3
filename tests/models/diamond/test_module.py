"""The training of DIAMOND's denoiser and of its model of rewards and terminations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diamond_worlds import csgo_world, diamond_world
from torch import Tensor

from vwm.data.clips import ClipBatch
from vwm.models.diamond.module import DiamondModule, NoiseLevelDistribution
from vwm.nn.clip_draws import clip_draws
from vwm.nn.optimizer import OptimizerConfig


def module(outcomes: bool = True, **settings: Any) -> DiamondModule:
    world = diamond_world(outcomes=outcomes)
    return DiamondModule(world.dynamics, OptimizerConfig(), (16, 16), outcomes=world.outcomes, **settings)


def batch(frames: int = 6, **changes: Any) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    fields = {
        "frames": torch.randint(0, 256, (3, frames, 16, 16, 3), dtype=torch.uint8, generator=generator),
        "actions": torch.randint(0, 4, (3, frames), generator=generator),
        "rewards": 3 * torch.randn(3, frames, generator=generator),
        "terminated": torch.tensor([[False] * (frames - 1) + [end] for end in (True, False, True)]),
    }
    return ClipBatch(**{**fields, **changes})


class Draws:
    """Records what a loss draws, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: list[Tensor] = []
        import vwm.models.diamond.module as place

        for name in ("draw_normal", "draw_normal_like"):
            monkeypatch.setattr(place, name, self.recorder(getattr(place, name)))

    def recorder(self, draw: Any) -> Any:
        def record(*arguments: Any) -> Tensor:
            self.drawn.append(draw(*arguments))
            return self.drawn[-1]

        return record


@torch.no_grad()
def test_the_loss_is_that_of_the_definition_and_later_frames_follow_denoised_ones(monkeypatch) -> None:
    """EDM's weighted squared error, written with the clean frame that the denoiser returns."""
    learner, clips, draws = module(outcomes=False).eval(), batch(), Draws(monkeypatch)
    loss, logs = learner(clips)
    frames = clips.frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    expected, past = [], frames[:, :4]
    for i in range(2):
        level, shared, noise = draws.drawn[3 * i : 3 * i + 3]
        sigma = (level * 1.2 - 0.4).exp().clamp(2e-3, 20)
        noisy = frames[:, 4 + i] + noise * sigma[:, None, None, None] + 0.3 * shared
        scales = learner.dynamics.precondition(sigma)
        predicted = learner.dynamics(noisy, scales, past, clips.actions[:, i : i + 4])
        denoised = scales.skip * noisy + scales.out * predicted
        expected.append(((denoised - frames[:, 4 + i]) / scales.out).square().mean())
        own = (((denoised.clamp(-1, 1) + 1) * 127.5).floor() / 127.5 - 1)[:, None]  # and not the recorded frame
        past = torch.cat((past, own), dim=1)[:, 1:]
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    assert logs["denoising_loss"] == loss and draws.drawn[1].shape == (3, 3, 1, 1)


@torch.no_grad()
def test_rewards_are_classified_by_sign_and_terminations_after_a_frame_of_the_denoiser() -> None:
    learner, clips = module().eval(), batch()
    with clip_draws(torch.arange(3)):
        _, logs = learner(clips)
    world = diamond_world()
    frames = clips.frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    _, logits = world.outcomes(world.outcomes.init_memory(3), frames[:, :-1], clips.actions[:, :-1], frames[:, 1:])
    signs = clips.rewards.sign().long() + 1
    within = F.cross_entropy(logits.reward.flatten(0, 1), signs[:, :-1].flatten(), reduction="sum")
    last = logs["reward_loss"] * 18 - within  # of the three transitions to frames that are not recorded
    assert 0 < last < 18
    for changed in ({"rewards": clips.rewards * 7}, {"terminated": ~clips.terminated}):
        with clip_draws(torch.arange(3)):
            other = learner(batch(**changed))[1]
        assert torch.equal(other["reward_loss"], logs["reward_loss"])
        assert torch.equal(other["end_loss"], logs["end_loss"]) == ("rewards" in changed)


def test_every_weight_learns_and_the_loss_falls() -> None:
    torch.manual_seed(0)
    learner = module(noise_levels=NoiseLevelDistribution(std=0.4)).train()
    clips = batch()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    losses = []
    for _ in range(5):
        with clip_draws(torch.arange(3)):
            loss = learner(clips)[0]
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@torch.no_grad()
def test_some_clips_begin_as_episodes_do() -> None:
    learner = module(short_context=0.5).train()
    frames, actions = torch.ones(200, 6, 3, 2, 2), torch.full((200, 6), 3)
    shown, taken = learner._hide_first(frames, actions)
    hidden = (shown[:, :, 0, 0, 0] == 0).sum(1)
    assert torch.equal(hidden, (taken == 0).sum(1)) and set(hidden.tolist()) == {0, 1, 2, 3}
    assert 60 < (hidden > 0).sum() < 140 and (shown[:, 3:] == 1).all()


@torch.no_grad()
def test_a_sample_continues_the_first_frames() -> None:
    learner, clips = module(context_frames=2).eval(), batch()
    video = learner.sample(clips)
    assert video.shape == clips.frames.shape and torch.equal(video[:, :2], clips.frames[:, :2])
    assert not torch.equal(video[:, 2:], clips.frames[:, 2:])


@torch.no_grad()
def test_the_parts_and_the_data_must_fit() -> None:
    learner = module().eval()
    for changes, message in (
        ({"actions": None}, "these shards hold none"),
        ({"rewards": None}, "outcomes need rewards"),
        ({"actions": torch.full((3, 6), 4)}, "the data holds action 4"),
        ({"actions": torch.zeros(3, 6, 2)}, r"the data's actions are \[2\]"),
        ({"frames": torch.zeros(3, 4, 16, 16, 3, dtype=torch.uint8)}, "clips of 4 frames hold none to predict"),
        ({"frames": torch.zeros(3, 6, 8, 8, 3, dtype=torch.uint8)}, "video must be"),
    ):
        with pytest.raises(ValueError, match=message):
            learner(replace(batch(), **changes))
    with pytest.raises(ValueError, match="outcomes takes frames of"):
        DiamondModule(learner.dynamics, OptimizerConfig(), (8, 8), outcomes=learner.outcomes)
    with pytest.raises(ValueError, match="low < high"):
        NoiseLevelDistribution(low=2.0, high=1.0)


@torch.no_grad()
def test_a_world_of_keys_and_a_mouse_learns_from_noisy_past_frames() -> None:
    learner = DiamondModule(csgo_world().dynamics, OptimizerConfig(), (4, 8)).eval()
    frames = torch.randint(0, 256, (2, 5, 4, 8, 3), dtype=torch.uint8)
    rows = torch.zeros(2, 5, 15)
    rows[..., 0] = 1
    with clip_draws(torch.arange(2)):
        loss = learner(ClipBatch(frames=frames, actions=rows))[0]
    rows[..., 13] = 0.5
    with clip_draws(torch.arange(2)):
        assert loss.isfinite() and learner(ClipBatch(frames=frames, actions=rows))[0] != loss
    rows[..., 0] = 0.5
    with pytest.raises(ValueError, match=r"keys\.forward' must be a whole number"):
        learner(ClipBatch(frames=frames, actions=rows))
