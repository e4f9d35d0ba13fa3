"""Clips that run past the end of their episode: no family learns an outcome from what follows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from autoregressive_worlds import token_dynamics, token_tokenizer
from diamond_worlds import diamond_world
from factories import dit, dream, dynamics, randomize, tokenizer

from vwm.data.clips import ClipBatch
from vwm.models.autoregressive.module import AutoregressiveModule
from vwm.models.autoregressive.outcomes import RewardSignHeads
from vwm.models.diamond.module import DiamondModule
from vwm.models.dit.module import DiTModule
from vwm.models.dit.objectives import DiffusionForcing
from vwm.models.genie.module import GenieModule
from vwm.models.mdn_rnn.module import MDNRNNModule
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.nn.training_module import TrainingModule
from vwm.tokenizers.loading import given_tokenizer
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer

END = 2
"""The action of the first clip after which its episode ends."""


def diffusion() -> TrainingModule:
    heads = randomize(RewardTerminationHeads(width=32, hidden=16))
    network = dit(grid=(4, 4), channels=48)
    return DiTModule(PixelTokenizer((16, 16), 4), network, DiffusionForcing(), OptimizerConfig(), outcomes=heads)


def genie() -> TrainingModule:
    heads = randomize(RewardTerminationHeads(width=16, hidden=16))
    with given_tokenizer(tokenizer()):
        return GenieModule("none", dynamics(), OptimizerConfig(), outcomes=heads)


def tokens() -> TrainingModule:
    with given_tokenizer(token_tokenizer()):
        return AutoregressiveModule("none", token_dynamics(), OptimizerConfig(), randomize(RewardSignHeads(16)))


def diamond() -> TrainingModule:
    world = diamond_world()
    return DiamondModule(world.dynamics, OptimizerConfig(), (16, 16), outcomes=world.outcomes)


def recurrent() -> TrainingModule:
    world = dream(size=16, predict_reward=True)
    return MDNRNNModule(world.tokenizer, world.dynamics, OptimizerConfig())


def clips(past_end: bool, fill: float = math.nan) -> ClipBatch:
    """Three clips; the first one's episode ends in its middle, and is followed by repeated frames if ``past_end``."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 6, 16, 16, 3), dtype=torch.uint8, generator=generator)
    rewards = torch.randint(-1, 2, (3, 6), generator=generator).float()
    terminated = torch.zeros(3, 6, dtype=torch.bool)
    actions = torch.randint(1, 4, (3, 6), generator=generator)
    if past_end:
        frames[0, END + 1 :], actions[0, END + 1 :], rewards[0, END + 1 :] = frames[0, END], 0, fill
        terminated[0, END] = True
    return ClipBatch(frames=frames, actions=actions, rewards=rewards, terminated=terminated)


@pytest.mark.parametrize("make", [diffusion, genie, tokens, diamond, recurrent])
@torch.no_grad()
def test_outcomes_after_an_end_do_not_count(make: Callable[[], TrainingModule]) -> None:
    learner = make().eval()

    def outcome_losses(batch: ClipBatch) -> list[float]:
        torch.manual_seed(0)
        logs = learner(batch)[1]
        return [float(v) for k, v in logs.items() if k.startswith(("reward", "end", "termination"))]

    ended = clips(past_end=True)
    losses = outcome_losses(ended)
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    other = replace(ended, actions=ended.actions.clone())
    other.actions[0, END + 1 :] = 3
    assert outcome_losses(other) == losses
    counted = outcome_losses(clips(past_end=True, fill=0.0))
    assert counted[0] != losses[0] and counted[1] != losses[1]


@torch.no_grad()
def test_an_outcome_loss_is_the_mean_over_the_steps_up_to_the_end() -> None:
    learner, ended = tokens().eval(), clips(past_end=True)
    fields = {name: value for name, value in vars(ended).items() if value is not None}
    logs = learner(ended)[1]
    first = learner(ClipBatch(**{name: value[:1, : END + 1] for name, value in fields.items()}))[1]
    others = learner(ClipBatch(**{name: value[1:] for name, value in fields.items()}))[1]
    for name in ("reward_loss", "end_loss"):
        torch.testing.assert_close(logs[name], ((END + 1) * first[name] + 12 * others[name]) / (END + 1 + 12))
