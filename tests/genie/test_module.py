"""Genie's second stage: what learns from what, labelled actions, encoded data, and parts that do not fit."""

from __future__ import annotations

import pytest
import torch
from models import dynamics, latent_action, tokenizer

from vwm.data.clips import Clips
from vwm.genie.module import GenieModule
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.parts import save_part


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_part(tokenizer(), folder / "tokenizer")
    return folder


def module(folder, labelled: bool = False, **changes) -> GenieModule:
    torch.manual_seed(0)
    return GenieModule(
        folder, dynamics(**changes), OptimizerConfig(), None if labelled else latent_action(), context_frames=2
    ).train()


def batch(**more) -> Clips:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 6, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return Clips(frames=frames, actions=torch.randint(0, 4, (3, 6), generator=generator), **more)


def test_no_gradient_flows_from_the_dynamics_into_the_latent_actions(folder):
    genie = module(folder)
    actions, action_loss, _ = genie._actions(batch())
    loss, _ = genie.dynamics.loss(genie._tokens(batch()).flatten(2), actions)
    loss.backward()
    assert all(p.grad is None for p in genie.latent_action.parameters())
    action_loss.backward()
    assert any(p.grad is not None for p in genie.latent_action.parameters())
    assert all(p.grad is None for p in genie.tokenizer.parameters())


def test_labelled_actions_are_the_recordings_and_lead_to_the_next_frame(folder):
    genie = module(folder, labelled=True)
    actions, loss, _ = genie._actions(batch())
    assert torch.equal(actions, batch().actions[:, :-1]) and loss == 0
    with pytest.raises(ValueError, match="these shards hold none"):
        genie(Clips(frames=batch().frames))


def test_encoded_clips_give_the_loss_of_raw_ones(folder):
    genie = module(folder)
    tokens = genie._tokens(batch())
    torch.manual_seed(1)
    raw, _ = genie(batch())
    torch.manual_seed(1)
    encoded, _ = genie(batch(latents=tokens))
    assert torch.equal(raw, encoded)


def test_a_sample_keeps_its_context_and_draws_the_rest(folder):
    genie = module(folder).eval()
    drawn, shown = genie.sample(batch()), genie.tokenizer(batch().frames.movedim(-1, 2) / 127.5 - 1).video
    assert drawn.shape == (3, 6, 16, 16, 3)
    whole = ((shown + 1) * 127.5).round().clamp(0, 255).byte().movedim(2, -1)
    assert (drawn[:, :2].int() - whole[:, :2].int()).abs().max() <= 1
    assert torch.equal(drawn, genie.sample(batch()))


def test_the_frozen_tokenizer_stays_in_evaluation(folder):
    genie = module(folder).train()
    assert genie.dynamics.training and not genie.tokenizer.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 99}, "dynamics.codebook_size=99 but the tokenizer's codes: 36"),
        ({"tokens_per_frame": 9}, "dynamics.tokens_per_frame=9"),
        ({"num_actions": 7}, "Set dynamics.num_actions=4"),
    ],
)
def test_parts_that_do_not_fit_are_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        module(folder, **changes)
