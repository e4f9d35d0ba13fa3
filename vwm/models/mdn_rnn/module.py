"""Training World Models' M over its frozen V."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.clips import ClipBatch
from vwm.models.mdn_rnn.network import MDNRNN, GaussianMixture, check_mdn_rnn_tokenizer
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.training_module import TrainingModule, shuffle_actions
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.loading import load_tokenizer


class MDNRNNModule(TrainingModule):
    """Learn how the next frame's latent is distributed, whether there is one, and what the action earned.

    The latents are drawn anew in every batch: from the frames' posteriors, or from those that ``vwm encode`` kept
    (``data.fields`` names latents and latents_std). So the network cannot lean on what V does not know.

    Args:
        tokenizer: a trained tokenizer of single frames with continuous latents: a bundle, or its folder.
        dynamics: the network.
        optimizer: learning rate and schedule.
        termination_weight: how much more an end counts than a step that leads on; ends are rare.
        action_dropout: share of the actions that are hidden, so that a past without actions counts; it needs
            ``dynamics.unknown_actions``.
        context_frames: whole frames that a sample video starts from.
    """

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
            tokenizer = load_tokenizer(tokenizer)
        self.tokenizer = check_mdn_rnn_tokenizer(tokenizer, dynamics).eval().requires_grad_(False)
        if not 0 <= action_dropout <= 1 or context_frames < 1 or termination_weight <= 0:
            raise ValueError(
                f"action_dropout={action_dropout} must be between 0 and 1, context_frames={context_frames} at least 1, "
                f"termination_weight={termination_weight} positive"
            )
        if bool(action_dropout) != (dynamics.no_action is not None):
            raise ValueError(
                f"action_dropout={action_dropout} and dynamics.unknown_actions={dynamics.no_action is not None}: "
                "hidden actions need a vector, and its vector needs hidden actions; set both or none"
            )
        self.dynamics, self.optimizer = dynamics, optimizer
        self.termination_weight, self.action_dropout, self.context_frames = (
            termination_weight,
            action_dropout,
            context_frames,
        )

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what to log: nats a number of the latent, cross-entropies of the outcomes."""
        latents, lead = self._latents(batch), self._lead(batch)
        said, _ = self.dynamics(self.dynamics.init_state(len(latents)), latents, lead)
        foretold = self.dynamics.predict(said)
        before = GaussianMixture(*(part[:, :-1] for part in foretold.latent))  # nothing follows the last frame
        loss = before.negative_log_likelihood(latents[:, 1:]).mean()
        logs = {"latent_loss": loss.detach()}
        if batch.terminated is not None:
            ends = batch.terminated.float()
            each = F.binary_cross_entropy_with_logits(foretold.end.float(), ends, reduction="none")
            logs["end_loss"] = ((1 + (self.termination_weight - 1) * ends) * each).mean()
        if foretold.reward is not None:
            if batch.rewards is None:
                raise ValueError("dynamics.reward wants rewards: name them in data.fields, or set it to false")
            logs["reward_loss"] = self.dynamics.two_hot.loss(foretold.reward, batch.rewards).mean()
        return sum((logs[name] for name in ("end_loss", "reward_loss") if name in logs), loss), logs

    @torch.no_grad()
    def _latents(self, batch: ClipBatch) -> Tensor:
        """float [b, t, z], drawn from what is known of the frames."""
        if batch.latents is not None:
            latents = batch.latents.float()
            if batch.latents_std is not None:
                latents = latents + batch.latents_std.float() * torch.randn_like(latents)
        elif isinstance(self.tokenizer, FrameVAE):
            latents = self.tokenizer.posterior(frames_to_float(batch.frames)).sample()
        else:
            latents = self.tokenizer.encode(frames_to_float(batch.frames)).float()
        if latents.shape[1] < 2:
            raise ValueError(f"clips of {latents.shape[1]} frames: dynamics need at least 2 (data.clip_length)")
        return latents.flatten(2)

    def _lead(self, batch: ClipBatch) -> Tensor:
        """Vectors of the actions taken at each frame; of unknown ones where a clip is not labelled, or by dropout."""
        if batch.actions is None:
            raise ValueError("these shards hold no actions (data.fields), and what comes of them is what is learned")
        if self.checks_values(batch.actions):
            self.dynamics.embed_action.check(batch.actions)
        known = None
        if batch.labeled is not None:
            known = batch.labeled[:, None].expand(batch.actions.shape[:2])
        if self.action_dropout and self.training:
            if known is None:
                known = torch.ones(batch.actions.shape[:2], dtype=torch.bool, device=self.device)
            known = self.drop_actions(known)
        return self.dynamics.lead(batch.actions, known)

    def validation_losses(self, batch: ClipBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TrainingModule``: the loss, and how many nats a number it costs when clips swap their actions."""
        assert batch.actions is not None
        with self.fixed_randomness(index):  # equal draws for both
            loss, logs = self(batch)
            if len(batch.actions) > 1:
                torch.manual_seed(index)
                logs["shuffle_gap"] = self(shuffle_actions(batch))[1]["latent_loss"] - logs["latent_loss"]
        return loss, logs

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``: the tokenizer."""
        return (self.tokenizer,)

    def networks(self) -> dict[str, nn.Module]:
        """What to keep an average of, to compile and to export."""
        return {"dynamics": self.dynamics}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """The batch's first frames, continued under its own actions: uint8 [b, t, H, W, 3]."""
        latents, lead = self._latents(batch), self._lead(batch)
        b, t = latents.shape[:2]
        start, seeds = min(self.context_frames, t - 1), world_seeds(0, b, latents.device)
        frames = list(latents[:, :start].unbind(1))
        said, memory = self.dynamics(self.dynamics.init_state(b), latents[:, :start], lead[:, :start])
        for i in range(start, t):
            frames.append(self.dynamics.predict(said[:, -1]).latent.draw(fold_in(seeds, i)))
            said, memory = self.dynamics(memory, frames[-1][:, None], lead[:, i : i + 1])
        drawn = torch.stack(frames, dim=1).unflatten(-1, (*self.tokenizer.grid, self.tokenizer.channels))
        return video_to_uint8(self.tokenizer.decode(drawn))
