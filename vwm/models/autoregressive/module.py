"""Training an autoregressive token world over a frozen tokenizer.

Legend: b batch, t time, n tokens per frame.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.seeds import fold_in, world_seeds
from vwm.data.clips import ClipBatch
from vwm.models.autoregressive.dynamics import AutoregressiveDynamics
from vwm.models.autoregressive.outcomes import RewardSignHeads
from vwm.models.autoregressive.sampling import TokenSampling, check_token_sampling, sample_next_frame
from vwm.models.autoregressive.simulator import check_token_parts
from vwm.nn.action_pooling import check_actions_after_latents, sum_outcomes
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.nn.training_module import TrainingModule, known_actions
from vwm.tokenizers.loading import load_tokenizer


class AutoregressiveModule(TrainingModule):
    """Learn to predict the next token, and the reward and termination of every action (IRIS, GAIA-1).

    The loss is the mean cross-entropy of tokens, plus those of rewards and terminations, with equal weights (IRIS).

    Args:
        tokenizer: a trained tokenizer with a codebook: a bundle, or its ``tokenizer`` folder.
        dynamics: the transformer.
        optimizer: learning rate and schedule.
        outcomes: heads for reward and termination; null learns none. They require rewards (and terminated) in
            data.fields.
        first_frame: whether the tokens of a clip's first frame are predicted, too, as in IRIS; a simulation never asks
            for them.
        context_frames: true frames at the start of a sample video; latents, where a latent holds several frames.
        temperature, top_k, top_p: of sample videos and of the exported world; see ``TokenSampling``.

    Raises:
        ValueError: the networks do not fit each other, or a value is out of range.
    """

    progress_bar: ClassVar[Mapping[str, str]] = MappingProxyType({"loss": "token_loss", "acc": "accuracy"})

    def __init__(
        self,
        tokenizer: str | os.PathLike[str],
        dynamics: AutoregressiveDynamics,
        optimizer: OptimizerConfig,
        outcomes: RewardSignHeads | RewardTerminationHeads | None = None,
        first_frame: bool = False,
        context_frames: int = 4,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(tokenizer)
        self.tokenizer_folder = str(tokenizer)
        self.reads_frames = False
        self.sampling = TokenSampling(temperature, top_k, top_p)
        check_token_sampling(self.sampling)
        check_token_parts(self.tokenizer, dynamics, outcomes)
        self.dynamics = dynamics
        self.outcomes = outcomes
        self.optimizer = optimizer
        self.first_frame = first_frame
        self.context_frames = context_frames

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and what to log."""
        tokens = self._tokens(batch).flatten(2)
        actions, known = self._actions(batch, tokens.shape[1])
        predicted = self.dynamics.loss(tokens, actions, known, self.first_frame)
        loss, logs = predicted.loss, {"token_loss": predicted.loss.detach(), "accuracy": predicted.accuracy}
        if self.outcomes is not None:
            reward, end = self._outcome_losses(batch, predicted.action_features, actions, known)
            loss, logs = loss + reward + end, logs | {"reward_loss": reward.detach(), "end_loss": end.detach()}
        return loss, logs

    def _outcome_losses(
        self, batch: ClipBatch, features: Tensor, actions: Tensor, known: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies of rewards and terminations, at the actions after all frames [b, t, d]."""
        assert self.outcomes is not None
        if batch.rewards is None:
            raise ValueError("outcomes need rewards: name them in data.fields, or set outcomes to null")
        rewards = sum_outcomes(batch.rewards, batch.terminated, self.dynamics.frames_per_latent)
        return self.outcomes.losses(features, self.dynamics.embed_actions(actions, known), *rewards)

    def _actions(self, batch: ClipBatch, frames: int) -> tuple[Tensor, Tensor | None]:
        """Return the actions after all frames of clips, or after all but the last, and which of them are known."""
        if batch.actions is None:
            raise ValueError("an autoregressive world learns from actions, and these shards hold none (data.fields)")
        per_latent = self.dynamics.frames_per_latent
        if self.outcomes is not None:
            check_actions_after_latents(batch.actions, frames, per_latent)
        count = per_latent * (frames - (self.outcomes is None))
        actions = batch.actions[:, :count]
        if self.checks_values(actions):
            self.dynamics.embed_action.check(actions)
        return actions, known_actions(batch, count)

    @torch.no_grad()
    def _tokens(self, batch: ClipBatch) -> Tensor:
        """Return the tokens, int64 [b, t, h, w], as encoded shards hold them, or encode the frames."""
        if batch.latents is not None:
            return batch.latents
        return self.tokenizer.encode(frames_to_float(batch.frames))

    def validation_losses(self, batch: ClipBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TrainingModule``: the loss, and how much higher it is with shuffled actions."""
        return self.losses_and_shuffle_ratio(batch, index, "token_loss")

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``: the tokenizer."""
        return (self.tokenizer,)

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule``."""
        trained: dict[str, nn.Module] = {"dynamics": self.dynamics}
        return trained if self.outcomes is None else trained | {"outcomes": self.outcomes}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """See ``TrainingModule``: the batch's first frames, continued under its own actions."""
        tokens = self._tokens(batch)
        b, t = tokens.shape[:2]
        actions, _ = self._actions(batch, t)
        start, per_latent = min(self.context_frames, t - 1), self.dynamics.frames_per_latent
        state = self.dynamics.observe(self.dynamics.init_state(b), tokens[:, :1].flatten(2), None)
        if start > 1:
            state = self.dynamics.observe(state, tokens[:, 1:start].flatten(2), actions[:, : (start - 1) * per_latent])
        frames, seeds = [tokens[:, :start]], world_seeds(0, b, tokens.device)
        for i in range(start - 1, t - 1):
            taken = actions[:, i * per_latent : (i + 1) * per_latent]
            state, frame = sample_next_frame(self.dynamics, state, taken, fold_in(seeds, i), self.sampling)
            frames.append(frame.unflatten(-1, self.tokenizer.grid)[:, None])
        return video_to_uint8(self.tokenizer.decode(torch.cat(frames, dim=1)))
