"""Train an action-conditioned predictor on a frozen encoder (V-JEPA 2-AC) or jointly with its encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.components import load_pretrained_weights
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.data.clips import ClipBatch
from vwm.hub.bundle_names import find_folder
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor
from vwm.models.vjepa.collapse_monitor import measure_representations
from vwm.models.vjepa.collapse_regularizers import CollapseRegularizer
from vwm.models.vjepa.frame_encoder import (
    FrameEncoder,
    check_jepa_world_networks,
    encode_frame_latents,
    load_frame_encoder,
)
from vwm.models.vjepa.inverse_dynamics import InverseDynamicsModel
from vwm.models.vjepa.latent_decoder import LatentDecoder
from vwm.models.vjepa.latent_projector import LatentProjector
from vwm.models.vjepa.module import subtract_position_mean
from vwm.models.vjepa.visualization import pca_rgb_video
from vwm.nn.clip_draws import draw_for_all_clips, draw_uniform
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import masked_mean
from vwm.nn.training_module import TrainingModule, known_actions


@dataclass
class AntiCollapseConfig:
    """Additional losses for a jointly trained encoder, which would otherwise collapse to constant latents.

    Attributes:
        regularizer: regularizer of the distribution of latents (VICReg's terms, or SIGReg); None for none.
        smoothness_weight: weight of the squared difference of consecutive latents.
        inverse_dynamics_weight: weight of the loss of predicting the action between two latents.
        reconstruction_weight: weight of the decoder's loss, which then trains the latents, too, so that they show what
            is in the image although no action changes it soon; 0 for a decoder without influence on them.
    """

    regularizer: CollapseRegularizer | None = None
    smoothness_weight: float = 0.0
    inverse_dynamics_weight: float = 0.0
    reconstruction_weight: float = 0.0


class ActionConditioning(NamedTuple):
    """Conditions of clips of t frames, apart from their latents.

    Attributes:
        actions: [b, t-1] or [b, t-1, a], actions between the frames.
        proprioception: float [b, t-1, s]; None if unknown.
        labeled: bool [b, t-1], whether the action was recorded.
        known: bool [b, t-1], False where the action is unknown or hidden; None if the predictor does not allow unknown
            actions.
        proprioception_known: bool [b, t-1], False where proprioception is hidden; None if there is none.
    """

    actions: Tensor
    proprioception: Tensor | None
    labeled: Tensor
    known: Tensor | None
    proprioception_known: Tensor | None

    def select_frames(self, frames: slice) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return the arguments of ``ActionConditionedPredictor`` for some frames, apart from their latents."""
        proprioception, known, proprioception_known = (
            None if x is None else x[:, frames] for x in (self.proprioception, self.known, self.proprioception_known)
        )
        return self.actions[:, frames], proprioception, known, proprioception_known


class ActionConditionedJEPAModule(TrainingModule):
    """Learn to predict the latents of the next frame from a frame and an action.

    Args:
        encoder: a folder with a trained encoder (an exported V-JEPA), which stays frozen, or a network that is trained
            jointly (``VideoEncoder`` or ``ConvFrameEncoder``). It encodes each frame independently.
        projector: maps features of the encoder to latents.
        dynamics: the predictor.
        optimizer: learning rate and schedule.
        anti_collapse: additional losses for a jointly trained encoder; null for none.
        decoder: learns to decode latents in the same run, without influence on them unless ``anti_collapse`` gives
            ``reconstruction_weight``; null for no decoder, with sample videos in false colors.
        loss_type: ``l1`` (V-JEPA 2-AC) or ``l2`` distance between predicted and true latents.
        rollout_steps: number of steps of the rollout loss, in which predictions are fed back; 0 for only the
            teacher-forced loss.
        rollout_context_frames: number of true frames at the start of a rollout.
        stop_target_gradient: stop gradients through the target latents.
        action_dropout: share of the actions that are hidden from a predictor with ``allow_unknown_actions``, so that a
            context without actions is possible. The frame after a hidden action is not part of the loss.
        proprioception_dropout: share of the clips whose proprioception is hidden, for contexts of frames only.
        decoder_frames_per_clip: number of frames of each clip that train the decoder.
        context_frames: number of context frames of a sample video.
        pretrained: a folder with ``dynamics`` (an export, or imported weights) to start from.

    Raises:
        ValueError: a value is out of range, or the networks do not fit each other.
        ComponentError: the pretrained dynamics have other settings, apart from ``window`` and
            ``proprioception_update``.
    """

    whole_clips = "its rollouts feed back frame by frame"

    def __init__(
        self,
        encoder: str | FrameEncoder,
        projector: LatentProjector,
        dynamics: ActionConditionedPredictor,
        optimizer: OptimizerConfig,
        anti_collapse: AntiCollapseConfig | None = None,
        decoder: LatentDecoder | None = None,
        loss_type: Literal["l1", "l2"] = "l1",
        rollout_steps: int = 2,
        rollout_context_frames: int = 1,
        stop_target_gradient: bool = False,
        action_dropout: float = 0.0,
        proprioception_dropout: float = 0.0,
        decoder_frames_per_clip: int = 2,
        context_frames: int = 1,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        for name, share in (("action_dropout", action_dropout), ("proprioception_dropout", proprioception_dropout)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be between 0 and 1")
        if rollout_steps < 0 or rollout_context_frames < 1 or context_frames < 1 or decoder_frames_per_clip < 1:
            raise ValueError(
                f"rollout_steps={rollout_steps} must be 0 or more; rollout_context_frames={rollout_context_frames}, "
                f"decoder_frames_per_clip={decoder_frames_per_clip} and context_frames={context_frames} 1 or more"
            )
        if action_dropout and dynamics.no_action is None:
            raise ValueError(
                f"action_dropout={action_dropout} hides actions: set dynamics.allow_unknown_actions to true"
            )
        self.encoder = load_frame_encoder(encoder) if isinstance(encoder, str) else encoder
        self.encoder_frozen = isinstance(encoder, str)
        check_jepa_world_networks(self.encoder, projector, dynamics, decoder)
        if self.encoder_frozen and anti_collapse is not None and not list(projector.parameters()):
            raise ValueError("a frozen encoder cannot collapse: set anti_collapse to null")
        if anti_collapse is not None and anti_collapse.reconstruction_weight and decoder is None:
            raise ValueError("anti_collapse.reconstruction_weight needs a decoder: set model.decoder")
        if pretrained is not None:
            load_pretrained_weights(
                dynamics, find_folder(pretrained) / "dynamics", settings=("window", "proprioception_update")
            )
        self.projector = projector
        self.dynamics = dynamics
        self.decoder = decoder
        self.optimizer = optimizer
        self.anti_collapse = anti_collapse or AntiCollapseConfig()
        self.inverse_dynamics = (
            InverseDynamicsModel(dynamics.latent_width, dynamics.embed_action.space)
            if self.anti_collapse.inverse_dynamics_weight
            else None
        )
        self.loss_type = loss_type
        self.rollout_steps = rollout_steps
        self.rollout_context_frames = rollout_context_frames
        self.stop_target_gradient = stop_target_gradient
        self.action_dropout = action_dropout
        self.proprioception_dropout = proprioception_dropout
        self.decoder_frames_per_clip = decoder_frames_per_clip
        self.context_frames = context_frames

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and values to log."""
        latents = self.encode_latents(batch.frames)
        conditioning = self._conditioning(batch)
        targets = latents.detach() if self.stop_target_gradient else latents
        loss = self._prediction_loss(latents, targets, conditioning)
        logs = {"prediction_loss": loss.detach()}
        if self.rollout_steps:
            rollout_loss = self._rollout_loss(latents, targets, conditioning)
            loss = loss + rollout_loss
            logs["rollout_loss"] = rollout_loss.detach()
        anti_collapse_loss, anti_collapse_logs = self._anti_collapse_loss(latents, conditioning)
        loss = loss + anti_collapse_loss
        logs |= anti_collapse_logs
        if self.decoder is not None:
            weight = self.anti_collapse.reconstruction_weight
            decoder_loss = self._decoding_loss(latents if weight else latents.detach(), batch.frames)
            loss = loss + (weight or 1.0) * decoder_loss
            logs["decoder_loss"] = decoder_loss.detach()
        return loss, logs

    def _prediction_loss(self, latents: Tensor, targets: Tensor, conditioning: ActionConditioning) -> Tensor:
        """Teacher-forced loss of frames 1..t-1 (V-JEPA 2-AC, eq. 2)."""
        conditioning = self._drop_actions(conditioning)
        predictions = self.dynamics(latents[:, :-1], *conditioning.select_frames(slice(None)))
        mask = conditioning.labeled if conditioning.known is None else conditioning.known
        return masked_mean(self._error(predictions, targets[:, 1:]), mask)

    def _rollout_loss(self, latents: Tensor, targets: Tensor, conditioning: ActionConditioning) -> Tensor:
        """Loss of predictions that are fed back (V-JEPA 2-AC, eq. 3)."""
        start, steps = self.rollout_context_frames, self.rollout_steps
        predictions = self.rollout_latents(latents, conditioning, start, steps)
        return masked_mean(self._error(predictions, targets[:, start : start + steps]), conditioning.labeled[:, :steps])

    def encode_latents(self, frames: Tensor) -> Tensor:
        """Encode uint8 [b, t, H, W, 3] -> float [b, t, n, D], with gradients if the encoder or projector is trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_latents):
            return at_least_float32(encode_frame_latents(self.encoder, self.projector, frames_to_float(frames)))

    def rollout_latents(self, latents: Tensor, conditioning: ActionConditioning, start: int, steps: int) -> Tensor:
        """Predict ``steps`` frames after the first ``start`` true ones, feeding predictions back.

        Returns:
            [b, steps, n, D].

        Raises:
            ValueError: the clips are shorter than ``start + steps``.
        """
        if latents.shape[1] < start + steps:
            raise ValueError(
                f"{start} true frames and {steps} predicted ones need clips of {start + steps} frames, these have "
                f"{latents.shape[1]}: raise data.clip_length, or lower model.rollout_steps"
            )
        context = slice(0, start)
        state = self.dynamics.init_state(len(latents))
        state, outputs = self.dynamics.step(state, latents[:, context], *conditioning.select_frames(context))
        predictions = [outputs[:, -1:]]
        for i in range(start, start + steps - 1):
            state, output = self.dynamics.step(state, predictions[-1], *conditioning.select_frames(slice(i, i + 1)))
            predictions.append(output)
        return torch.cat(predictions, dim=1)

    @property
    def _trains_latents(self) -> bool:
        return not self.encoder_frozen or any(p.requires_grad for p in self.projector.parameters())

    def _error(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Distance per frame: [b, t, n, D] -> [b, t]."""
        difference = at_least_float32(predictions) - targets
        return (difference.abs() if self.loss_type == "l1" else difference.square()).mean(dim=(-1, -2))

    def _drop_actions(self, conditioning: ActionConditioning) -> ActionConditioning:
        if conditioning.known is None:
            return conditioning
        return conditioning._replace(known=self.drop_actions(conditioning.known))

    def _anti_collapse_loss(
        self, latents: Tensor, conditioning: ActionConditioning
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the weighted terms of ``AntiCollapseConfig``, and the unweighted terms to log."""
        config, loss = self.anti_collapse, latents.new_zeros(())
        logs: dict[str, Tensor] = {}
        if config.regularizer is not None:
            n = latents.shape[2]
            token_indices = torch.arange(n, device=latents.device).expand(latents.shape[:2].numel(), -1)
            samples = subtract_position_mean(latents.flatten(0, 1), token_indices, n) if n > 1 else latents
            loss, logs = config.regularizer(samples)
        if config.smoothness_weight:
            smoothness = (latents[:, 1:] - latents[:, :-1]).square().mean()
            loss = loss + config.smoothness_weight * smoothness
            logs = logs | {"smoothness_loss": smoothness.detach()}
        if self.inverse_dynamics is not None:
            inverse_dynamics = self.inverse_dynamics(latents, conditioning.actions, conditioning.labeled)
            loss = loss + config.inverse_dynamics_weight * inverse_dynamics
            logs = logs | {"inverse_dynamics_loss": inverse_dynamics.detach()}
        return loss, logs

    def _decoding_loss(self, latents: Tensor, frames: Tensor) -> Tensor:
        """Squared error of random frames of each clip."""
        assert self.decoder is not None
        drawn = draw_for_all_clips((self.decoder_frames_per_clip,), frames.device)
        indices = (drawn * frames.shape[1]).long()
        decoded = at_least_float32(self.decoder(latents[:, indices]))
        return (decoded - frames_to_float(frames[:, indices])).square().mean()

    def _conditioning(self, batch: ClipBatch) -> ActionConditioning:
        b, t = batch.frames.shape[:2]
        if t < 2:
            raise ValueError(f"clips of {t} frames: dynamics need at least 2 (data.clip_length)")
        if batch.actions is None:
            raise ValueError(
                "an action-conditioned predictor needs actions, and these clips have none: name them in data.fields, "
                "and record shards with actions"
            )
        if self.checks_values(batch.frames):
            self.dynamics.embed_action.check(batch.actions)
        labeled = known_actions(batch, t - 1)
        if labeled is None:
            labeled = torch.ones(b, t - 1, dtype=torch.bool, device=batch.frames.device)
        elif labeled.ndim == 3:  # its losses count actions of which every part is known
            labeled = labeled.all(dim=-1)
        return ActionConditioning(
            actions=batch.actions[:, :-1],
            proprioception=self._proprioception(batch),
            labeled=labeled,
            known=None if self.dynamics.no_action is None else labeled,
            proprioception_known=self._proprioception_known(labeled),
        )

    def _proprioception(self, batch: ClipBatch) -> Tensor | None:
        size = self.dynamics.proprioception_dims
        if not size:
            return None
        if batch.state is None or batch.state.shape[-1] != size:
            found = "none" if batch.state is None else f"{batch.state.shape[-1]} numbers"
            raise ValueError(
                f"dynamics.proprioception_dims={size}, but the state of a frame in these clips has {found}: name state "
                "in data.fields and record it (vwm record --state), or set proprioception_dims to its size, or to 0"
            )
        return batch.state[:, :-1].float()

    def _proprioception_known(self, labeled: Tensor) -> Tensor | None:
        """bool [b, t-1], False for clips whose proprioception is hidden in training."""
        if not self.dynamics.proprioception_dims:
            return None
        share = self.proprioception_dropout if self.training else 0.0
        return (draw_uniform((len(labeled), 1), labeled.device) >= share).expand_as(labeled)

    def validation_losses(self, batch: ClipBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TrainingModule``: the losses and ``_dynamics_diagnostics``."""
        with self.fixed_randomness(index):
            loss, logs = self(batch)
            logs |= self._dynamics_diagnostics(batch)
        return loss, logs

    def _dynamics_diagnostics(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Compute metrics of the dynamics that the loss does not show.

        ``open_loop``: squared error of the last frame, predicted from the first one and the actions, relative to that
        of predicting no change. ``shuffle_ratio``: the same error with the actions of other clips, relative to that
        with the true ones. ``spread``, ``least_spread`` and ``rank``: see ``RepresentationMetrics``.
        """
        latents = self.encode_latents(batch.frames)
        conditioning = self._conditioning(batch)
        steps = latents.shape[1] - 1

        def open_loop_error(conditioning: ActionConditioning) -> Tensor:
            predictions = self.rollout_latents(latents, conditioning, 1, steps)
            return (predictions[:, -1] - latents[:, -1]).square().mean()

        error = open_loop_error(conditioning)
        no_change_error = (latents[:, 0] - latents[:, -1]).square().mean()
        metrics = {"open_loop": error / no_change_error.clamp(min=1e-12)}
        if len(latents) > 1:
            shuffled = conditioning._replace(actions=conditioning.actions.roll(1, dims=0))
            metrics["shuffle_ratio"] = open_loop_error(shuffled) / error.clamp(min=1e-12)
            representations = measure_representations(latents[:, 0])
            for name in ("spread", "least_spread", "rank"):
                metrics[name] = error.new_tensor(getattr(representations, name))
        return metrics

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``: the encoder, if it was given as a folder."""
        return (self.encoder,) if self.encoder_frozen else ()

    @property
    def tokens_per_latent(self) -> int:
        """See ``TrainingModule``: places of the dynamics' grid."""
        return math.prod(self.dynamics.grid)

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule.networks``."""
        networks: dict[str, nn.Module] = {} if self.encoder_frozen else {"encoder": self.encoder}
        networks |= {"projector": self.projector, "dynamics": self.dynamics}
        return networks if self.decoder is None else networks | {"decoder": self.decoder}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """Continue the first frames of a batch with its actions: uint8 [b, t, H, W, 3].

        Latents are decoded or, without a decoder, their first principal components are shown as colors.
        """
        latents = self.encode_latents(batch.frames)
        t = latents.shape[1]
        start = min(self.context_frames, t - 1)
        predictions = self.rollout_latents(latents, self._conditioning(batch), start, t - start)
        clip = torch.cat((latents[:, :start], predictions), dim=1)
        if self.decoder is not None:
            return video_to_uint8(self.decoder(clip))
        return pca_rgb_video(clip.flatten(1, 2), (t, *self.dynamics.grid), tuple(batch.frames.shape[1:4]))
