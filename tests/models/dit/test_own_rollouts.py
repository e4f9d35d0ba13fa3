"""Training on the network's own rollouts: what is replaced, what is not, and that play is the same."""

from __future__ import annotations

import pytest
import torch
from factories import dit

from vwm.core.seeds import world_seeds
from vwm.data.clips import ClipBatch
from vwm.models.dit.module import DiTModule
from vwm.models.dit.objectives import DiffusionForcing
from vwm.models.dit.own_rollouts import OwnRollouts, continue_latents
from vwm.models.dit.sampling import DiffusionSampling
from vwm.nn.optimizer import OptimizerConfig
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer

SAMPLING = DiffusionSampling(steps=2, context_noise=0.2)


def module(rollouts: OwnRollouts | None, **settings) -> DiTModule:
    return DiTModule(
        PixelTokenizer((8, 8), patch_size=2),
        dit(grid=(4, 4), channels=12),
        DiffusionForcing(),
        OptimizerConfig(),
        rollouts=rollouts,
        **settings,
    )


def clips() -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 6, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return ClipBatch(frames=video, actions=torch.randint(0, 4, (2, 6), generator=generator))


def test_frames_after_the_recorded_context_are_generated_from_the_generated_ones() -> None:
    dynamics = dit(grid=(4, 4), channels=12).double()
    latents = torch.rand(2, 6, 4, 4, 12, dtype=torch.float64)
    actions = dynamics.embed_previous_actions(torch.randint(0, 4, (2, 5)), 2, 6)
    rollouts = OwnRollouts(share=1.0, context_frames=2, steps=2)
    past = rollouts.replace_past(dynamics, latents, actions, SAMPLING)
    assert torch.equal(past[:, :2], latents[:, :2])
    assert not torch.isclose(past[:, 2:], latents[:, 2:]).all(dim=-1).any()
    other = latents.clone()
    other[:, 2:] = 0  # recorded frames after the context have no influence
    torch.manual_seed(1)
    one = rollouts.replace_past(dynamics, latents, actions, SAMPLING)
    torch.manual_seed(1)
    assert torch.equal(one, rollouts.replace_past(dynamics, other, actions, SAMPLING))
    assert not one.requires_grad


def test_a_continued_clip_does_not_depend_on_how_far_it_is_continued() -> None:
    dynamics = dit(grid=(4, 4), channels=12).double()
    context = torch.rand(2, 2, 4, 4, 12, dtype=torch.float64)
    actions = dynamics.embed_previous_actions(torch.randint(0, 4, (2, 6)), 2, 7)
    seeds = world_seeds(0, 2, context.device)
    with torch.no_grad():
        whole, part = (continue_latents(dynamics, context, actions[:, :t], seeds, SAMPLING) for t in (7, 4))
    assert torch.equal(whole[:, :4], part)


def test_the_recorded_next_frame_is_learned_given_the_own_past() -> None:
    """A share of 0 is plain training; a share of 1 changes the past, and every weight still has a gradient."""
    losses = []
    for rollouts in (None, OwnRollouts(share=0.0), OwnRollouts(share=1.0, context_frames=2, steps=2)):
        learner = module(rollouts, context_noise=0.0).train()
        torch.manual_seed(3)
        if rollouts is None:
            torch.rand(())  # the draw that decides
        losses.append(learner(clips())[0])
        losses[-1].backward()
    assert losses[0] == losses[1] != losses[2]
    assert all(p.grad is not None for p in learner.dynamics.parameters())
    learner.eval()
    plain = module(None, context_noise=0.0).eval()
    plain.load_state_dict(learner.state_dict())
    torch.manual_seed(3)
    first = learner(clips())[0]
    torch.manual_seed(3)
    assert first == plain(clips())[0]  # validation uses recorded frames


def test_rejects_settings_without_meaning() -> None:
    with pytest.raises(ValueError, match="context=clean, or rollouts=null"):
        module(OwnRollouts(), context="noisy")
    for wrong in ({"share": 1.5}, {"context_frames": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match="share must be between 0 and 1"):
            OwnRollouts(**wrong)
