"""Training World Models' MDN-RNN (M) over its frozen frame VAE (V)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.clips import ClipBatch
from vwm.models.mdn_rnn.network import MDNRNN, GaussianMixture, check_mdn_rnn_tokenizer
from vwm.nn.clip_draws import draw_normal_like
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.ranks import masked_mean
from vwm.nn.training_module import TrainingModule, known_actions, shuffle_actions
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.loading import load_tokenizer


class MDNRNNModule(TrainingModule):
    """Learn the distribution of the next frame's latent, terminations and rewards.

    The latents are sampled in every batch: from the frames' posteriors, or from those that ``vwm encode`` stored
    (``data.fields`` names latents and latents_std). So the network cannot rely on details that V is uncertain of.

    Args:
        tokenizer: a trained tokenizer of single frames with continuous latents: a bundle, or its folder.
        dynamics: the network.
        optimizer: learning rate and schedule.
        termination_weight: weight of terminations compared with other steps, since they are rare.
        action_dropout: share of the actions that are hidden, so that a past without actions can be used; it requires
            ``dynamics.allow_unknown_actions``.
        context_frames: true frames at the start of a sample video.
    """

    reads_frames = False
    whole_clips = "a recurrent network reads frames one after another"

    def __init__(
        self,
        tokenizer: str | VideoTokenizer,
        dynamics: MDNRNN,
        optimizer: OptimizerConfig,
        termination_weight: float = 10.0,
        action_dropout: float = 0.0,
        context_frames: int = 4,
    ) -> None:
        super().__init__()
        if isinstance(tokenizer, str):
            self.tokenizer_folder = tokenizer
            tokenizer = load_tokenizer(tokenizer)
        self.tokenizer = check_mdn_rnn_tokenizer(tokenizer, dynamics).eval().requires_grad_(False)
        if not 0 <= action_dropout <= 1 or context_frames < 1 or termination_weight <= 0:
            raise ValueError(
                f"action_dropout={action_dropout} must be between 0 and 1, context_frames={context_frames} at least 1, "
                f"termination_weight={termination_weight} positive"
            )
        if bool(action_dropout) != (dynamics.no_action is not None):
            raise ValueError(
                f"action_dropout={action_dropout} and dynamics.allow_unknown_actions={dynamics.no_action is not None}: "
                "set both or neither"
            )
        self.dynamics = dynamics
        self.optimizer = optimizer
        self.termination_weight = termination_weight
        self.action_dropout = action_dropout
        self.context_frames = context_frames

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and what to log: nats per number of the latent, cross-entropies of the heads."""
        latents, actions = self._sample_latents(batch), self._embed_actions(batch)
        output, _ = self.dynamics(self.dynamics.init_state(len(latents)), latents, actions)
        prediction = self.dynamics.predict(output)
        mixture = GaussianMixture(*(part[:, :-1] for part in prediction.next_latent))  # nothing follows the last frame
        # What follows the end of an episode, where rewards are NaN, does not count: frames that stand still would take
        # the mixture's variance to its least.
        known = torch.ones_like(latents[..., 0], dtype=torch.bool) if batch.rewards is None else ~batch.rewards.isnan()
        loss = masked_mean(mixture.negative_log_likelihood(latents[:, 1:]).mean(-1), known[:, 1:])
        logs = {"latent_loss": loss.detach()}
        if batch.terminated is not None:
            ends = batch.terminated.float()
            each = F.binary_cross_entropy_with_logits(prediction.termination_logits.float(), ends, reduction="none")
            logs["termination_loss"] = masked_mean((1 + (self.termination_weight - 1) * ends) * each, known)
        if prediction.reward_logits is not None:
            if batch.rewards is None:
                raise ValueError(
                    "dynamics.predict_reward requires rewards: name them in data.fields, or set it to false"
                )
            each = self.dynamics.two_hot.loss(prediction.reward_logits, batch.rewards.nan_to_num())
            logs["reward_loss"] = masked_mean(each, known)
        return sum((logs[name] for name in ("termination_loss", "reward_loss") if name in logs), loss), logs

    @torch.no_grad()
    def _sample_latents(self, batch: ClipBatch) -> Tensor:
        """Sample latents, float [b, t, z], from the frames' posteriors."""
        if batch.latents is not None:
            latents = batch.latents.float()
            if batch.latents_std is not None:
                latents = latents + batch.latents_std.float() * draw_normal_like(latents)
        elif isinstance(self.tokenizer, FrameVAE):
            latents = self.tokenizer.posterior(frames_to_float(batch.frames)).sample()
        else:
            latents = self.tokenizer.encode(frames_to_float(batch.frames)).float()
        if latents.shape[1] < 2:
            raise ValueError(f"clips of {latents.shape[1]} frames: dynamics need at least 2 (data.clip_length)")
        return latents.flatten(2)

    def _embed_actions(self, batch: ClipBatch) -> Tensor:
        """Embed the actions taken at each frame; as unknown where a clip is not labeled, or by dropout."""
        if batch.actions is None:
            raise ValueError("an MDN-RNN learns from actions, and these shards hold no actions (data.fields)")
        if self.checks_values(batch.actions):
            self.dynamics.embed_action.check(batch.actions)
        known = known_actions(batch, batch.actions.shape[1])
        if self.action_dropout and self.training:
            if known is None:
                known = torch.ones(batch.actions.shape[:2], dtype=torch.bool, device=self.device)
            known = self.drop_actions(known)
        return self.dynamics.embed_actions(batch.actions, known)

    def validation_losses(self, batch: ClipBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TrainingModule``: the loss, and how many nats per number shuffled actions cost."""
        assert batch.actions is not None
        with self.fixed_randomness(index):  # equal samples for both
            loss, logs = self(batch)
        if len(batch.actions) > 1:
            with self.fixed_randomness(index):
                logs["shuffle_gap"] = self(shuffle_actions(batch))[1]["latent_loss"] - logs["latent_loss"]
        return loss, logs

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``: the tokenizer."""
        return (self.tokenizer,)

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule``."""
        return {"dynamics": self.dynamics}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """See ``TrainingModule``: the batch's first frames, continued under its own actions."""
        latents, actions = self._sample_latents(batch), self._embed_actions(batch)
        b, t = latents.shape[:2]
        start, seeds = min(self.context_frames, t - 1), world_seeds(0, b, latents.device)
        frames = list(latents[:, :start].unbind(1))
        output, memory = self.dynamics(self.dynamics.init_state(b), latents[:, :start], actions[:, :start])
        for i in range(start, t):
            frames.append(self.dynamics.predict(output[:, -1]).next_latent.sample(fold_in(seeds, i)))
            output, memory = self.dynamics(memory, frames[-1][:, None], actions[:, i : i + 1])
        latents = torch.stack(frames, dim=1).unflatten(-1, (*self.tokenizer.grid, self.tokenizer.channels))
        return video_to_uint8(self.tokenizer.decode(latents))
