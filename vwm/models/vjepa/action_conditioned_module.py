"""Training an action-conditioned predictor, over a frozen encoder (V-JEPA 2-AC) or together with its encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.data.clips import ClipBatch
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor
from vwm.models.vjepa.collapse_monitor import measure_representations
from vwm.models.vjepa.collapse_regularizers import CollapseRegularizer
from vwm.models.vjepa.frame_encoder import (
    FrameEncoder,
    check_jepa_world_networks,
    encode_frame_latents,
    load_frame_encoder,
)
from vwm.models.vjepa.inverse_dynamics import InverseDynamicsModel, masked_mean
from vwm.models.vjepa.latent_decoder import LatentDecoder
from vwm.models.vjepa.latent_projector import LatentProjector
from vwm.models.vjepa.module import subtract_position_mean
from vwm.models.vjepa.visualization import pca_rgb_video
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.training_module import TrainingModule


@dataclass
class AntiCollapseConfig:
    """What an encoder that is trained along is held up by: else all frames alike are the easiest to predict.

    Attributes:
        embedding: how latents are distributed: VICReg's terms, or SIGReg.
        smoothness: weight of the squared step from a latent to the next.
        inverse_dynamics: weight of the loss of saying the action between two latents.
    """

    embedding: CollapseRegularizer | None = None
    smoothness: float = 0.0
    inverse_dynamics: float = 0.0


class ActionConditioning(NamedTuple):
    """What is known beside the pictures of clips of t frames.

    Attributes:
        actions: [b, t-1] or [b, t-1, a], those between the frames.
        states: float [b, t-1, s]; None where they are not known.
        labelled: bool [b, t-1], whether an action was recorded.
        known: bool [b, t-1], False where the predictor is to do without the action; None where it cannot.
        felt: bool [b, t-1], False where the states are hidden; None where there are none.
    """

    actions: Tensor
    states: Tensor | None
    labelled: Tensor
    known: Tensor | None
    felt: Tensor | None

    def at(self, frames: slice) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What ``ActionConditionedPredictor`` takes of some frames, beside their latents."""
        states, known, felt = (None if x is None else x[:, frames] for x in (self.states, self.known, self.felt))
        return self.actions[:, frames], states, known, felt


class ActionConditionedJEPAModule(TrainingModule):
    """Learn what follows a frame and an action, in an encoder's terms.

    Args:
        encoder: a folder with a trained encoder (an exported V-JEPA), which stays frozen; or a network, which is
            trained along: ``VideoEncoder`` or ``ConvEncoder``. It sees each frame by itself.
        projector: from the encoder's features to the latents.
        dynamics: the predictor.
        optimizer: learning rate and schedule.
        anti_collapse: terms for an encoder that is trained along; null has none.
        decoder: learns to show latents, in the same run and without a say in them; null shows false colours.
        loss: ``l1`` (V-JEPA 2-AC) or ``l2`` between predicted and true latents.
        rollout: predictions in a row, each from those before, beside the teacher-forced ones; 0 for none.
        rollout_context_frames: true frames that a rollout begins with.
        stop_target_gradient: whether the encoder learns nothing as the side that is predicted.
        action_dropout: share of the actions that are hidden from a predictor with ``unknown_actions``, so that the past
            of a world may be seen without them. What a hidden action leads to is not asked for.
        proprioception_dropout: share of the clips whose states are hidden, for worlds that begin from pictures alone.
        decoder_frames_per_clip: frames of every clip that the decoder learns from.
        context_frames: frames that a sample video starts from.
    """

    def __init__(
        self,
        encoder: str | FrameEncoder,
        projector: LatentProjector,
        dynamics: ActionConditionedPredictor,
        optimizer: OptimizerConfig,
        anti_collapse: AntiCollapseConfig | None = None,
        decoder: LatentDecoder | None = None,
        loss: Literal["l1", "l2"] = "l1",
        rollout: int = 2,
        rollout_context_frames: int = 1,
        stop_target_gradient: bool = False,
        action_dropout: float = 0.0,
        proprioception_dropout: float = 0.0,
        decoder_frames_per_clip: int = 2,
        context_frames: int = 1,
    ) -> None:
        super().__init__()
        for name, share in (("action_dropout", action_dropout), ("proprioception_dropout", proprioception_dropout)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be between 0 and 1")
        if rollout < 0 or rollout_context_frames < 1 or context_frames < 1 or decoder_frames_per_clip < 1:
            raise ValueError(
                f"rollout={rollout} must be 0 or more; rollout_context_frames={rollout_context_frames}, "
                f"decoder_frames_per_clip={decoder_frames_per_clip} and context_frames={context_frames} 1 or more"
            )
        if action_dropout and dynamics.no_action is None:
            raise ValueError(f"action_dropout={action_dropout} hides actions: set dynamics.unknown_actions to true")
        self.encoder = load_frame_encoder(encoder) if isinstance(encoder, str) else encoder
        self.frozen = isinstance(encoder, str)
        check_jepa_world_networks(self.encoder, projector, dynamics, decoder)
        if self.frozen and anti_collapse is not None and not list(projector.parameters()):
            raise ValueError("a frozen encoder cannot collapse: set anti_collapse to null")
        self.projector, self.dynamics, self.decoder, self.optimizer = projector, dynamics, decoder, optimizer
        self.anti_collapse = anti_collapse or AntiCollapseConfig()
        actions = dynamics.embed_action
        self.inverse_dynamics = (
            InverseDynamicsModel(dynamics.latent_width, actions.choices, actions.dims)
            if self.anti_collapse.inverse_dynamics
            else None
        )
        self.loss, self.rollout, self.rollout_context_frames, self.stop_target_gradient = (
            loss,
            rollout,
            rollout_context_frames,
            stop_target_gradient,
        )
        self.action_dropout, self.proprioception_dropout = action_dropout, proprioception_dropout
        self.decoder_frames_per_clip, self.context_frames = decoder_frames_per_clip, context_frames

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what to log."""
        latents, told = self.latents(batch.frames), self._told(batch)
        targets = latents.detach() if self.stop_target_gradient else latents
        asked = self._drop_actions(told)
        said = self.dynamics(latents[:, :-1], *asked.at(slice(None)))
        loss = masked_mean(self._error(said, targets[:, 1:]), asked.labelled if asked.known is None else asked.known)
        logs = {"prediction_loss": loss.detach()}
        if self.rollout:
            unrolled = self.unroll(latents, told, self.rollout_context_frames, self.rollout)
            span = slice(self.rollout_context_frames, self.rollout_context_frames + self.rollout)
            rolled = masked_mean(self._error(unrolled, targets[:, span]), told.labelled[:, : self.rollout])
            loss, logs = loss + rolled, logs | {"rollout_loss": rolled.detach()}
        penalty, more = self._anti_collapse_loss(latents, told)
        loss, logs = loss + penalty, logs | more
        if self.decoder is not None:
            shown = self._decoding_loss(latents.detach(), batch.frames)
            loss, logs = loss + shown, logs | {"decoder_loss": shown.detach()}
        return loss, logs

    def latents(self, frames: Tensor) -> Tensor:
        """uint8 [b, t, H, W, 3] -> float [b, t, n, D]; gradients reach what is trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_latents):
            return encode_frame_latents(self.encoder, self.projector, frames_to_float(frames)).float()

    def unroll(self, latents: Tensor, told: ActionConditioning, start: int, steps: int) -> Tensor:
        """Frames start, start + 1, ... of clips, fed by its own predictions after the first ``start`` true ones.

        Returns:
            [b, steps, n, D].

        Raises:
            ValueError: the clips are shorter.
        """
        if latents.shape[1] < start + steps:
            raise ValueError(
                f"{start} true frames and {steps} predicted ones need clips of {start + steps} frames, these have "
                f"{latents.shape[1]}: raise data.clip_length, or lower model.rollout"
            )
        first = slice(0, start)
        state, said = self.dynamics.step(self.dynamics.init_state(len(latents)), latents[:, first], *told.at(first))
        found = [said[:, -1:]]
        for i in range(start, start + steps - 1):
            state, said = self.dynamics.step(state, found[-1], *told.at(slice(i, i + 1)))
            found.append(said)
        return torch.cat(found, dim=1)

    @property
    def _trains_latents(self) -> bool:
        return not self.frozen or any(p.requires_grad for p in self.projector.parameters())

    def _error(self, said: Tensor, true: Tensor) -> Tensor:
        """A number a frame: [b, t, n, D] -> [b, t]."""
        difference = said.float() - true
        return (difference.abs() if self.loss == "l1" else difference.square()).mean(dim=(-1, -2))

    def _drop_actions(self, told: ActionConditioning) -> ActionConditioning:
        return told if told.known is None else told._replace(known=self.drop_actions(told.known))

    def _anti_collapse_loss(self, latents: Tensor, told: ActionConditioning) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms beside prediction, weighted, and each by itself."""
        terms, total = self.anti_collapse, latents.new_zeros(())
        logs: dict[str, Tensor] = {}
        if terms.embedding is not None:
            n = latents.shape[2]
            places = torch.arange(n, device=latents.device).expand(latents.shape[:2].numel(), -1)
            samples = subtract_position_mean(latents.flatten(0, 1), places, n) if n > 1 else latents
            total, logs = terms.embedding(samples)
        if terms.smoothness:
            steps = (latents[:, 1:] - latents[:, :-1]).square().mean()
            total, logs = total + terms.smoothness * steps, logs | {"smoothness_loss": steps.detach()}
        if self.inverse_dynamics is not None:
            between = self.inverse_dynamics(latents, told.actions, told.labelled)
            total = total + terms.inverse_dynamics * between
            logs = logs | {"inverse_dynamics_loss": between.detach()}
        return total, logs

    def _decoding_loss(self, latents: Tensor, frames: Tensor) -> Tensor:
        """Squared error of some frames of every clip, other ones in every batch."""
        assert self.decoder is not None
        chosen = torch.randint(frames.shape[1], (self.decoder_frames_per_clip,), device=frames.device)
        return (self.decoder(latents[:, chosen]).float() - frames_to_float(frames[:, chosen])).square().mean()

    def _told(self, batch: ClipBatch) -> ActionConditioning:
        b, t = batch.frames.shape[:2]
        if t < 2:
            raise ValueError(f"clips of {t} frames: dynamics need at least 2 (data.clip_length)")
        if batch.actions is None:
            raise ValueError(
                "an action-conditioned predictor needs actions, and these clips have none: name them in data.fields, "
                "and record shards that hold them"
            )
        if self.checks_values(batch.frames):
            self.dynamics.embed_action.check(batch.actions)
        labelled = torch.ones(b, t - 1, dtype=torch.bool, device=batch.frames.device)
        if batch.labeled is not None:
            labelled &= batch.labeled[:, None]
        known = None if self.dynamics.no_action is None else labelled
        return ActionConditioning(
            batch.actions[:, :-1], self._proprioception(batch), labelled, known, self._proprioception_mask(labelled)
        )

    def _proprioception(self, batch: ClipBatch) -> Tensor | None:
        size = self.dynamics.proprioception_dims
        if not size:
            return None
        if batch.state is None or batch.state.shape[-1] != size:
            found = "none" if batch.state is None else f"{batch.state.shape[-1]} numbers"
            raise ValueError(
                f"dynamics.proprioception_dims={size}, but a frame's state in these clips has {found}: name state in "
                "data.fields and record it (vwm record --state), or set proprioception_dims to its size, or to 0"
            )
        return batch.state[:, :-1].float()

    def _proprioception_mask(self, labelled: Tensor) -> Tensor | None:
        """bool [b, t-1]: in training, whole clips without their states."""
        if not self.dynamics.proprioception_dims:
            return None
        share = self.proprioception_dropout if self.training else 0.0
        return (torch.rand(len(labelled), 1, device=labelled.device) >= share).expand_as(labelled)

    def validation_losses(self, batch: ClipBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TrainingModule``: the losses, what swapped actions cost, and how alive the latents are."""
        with self.fixed_randomness(index):
            loss, logs = self(batch)
            logs |= self._dynamics_diagnostics(batch)
        return loss, logs

    def _dynamics_diagnostics(self, batch: ClipBatch) -> dict[str, Tensor]:
        """What a falling loss does not tell.

        ``open_loop``: the squared error of the clip's last frame, predicted from its first and the actions, over that
        of saying that nothing changes. ``shuffle_ratio``: the same error with other clips' actions, over that with the
        right ones. ``spread`` and ``rank``: see ``vwm.models.vjepa.collapse_monitor``.
        """
        latents, told = self.latents(batch.frames), self._told(batch)
        steps = latents.shape[1] - 1

        def error(told: ActionConditioning) -> Tensor:
            return (self.unroll(latents, told, 1, steps)[:, -1] - latents[:, -1]).square().mean()

        right, still = error(told), (latents[:, 0] - latents[:, -1]).square().mean()
        found = {"open_loop": right / still.clamp(min=1e-12)}
        if len(latents) > 1:
            wrong = error(told._replace(actions=told.actions.roll(1, dims=0)))
            health = measure_representations(latents[:, 0])
            found["shuffle_ratio"] = wrong / right.clamp(min=1e-12)
            found |= {name: right.new_tensor(getattr(health, name)) for name in ("spread", "least_spread", "rank")}
        return found

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``: an encoder that was given as a folder."""
        return (self.encoder,) if self.frozen else ()

    def networks(self) -> dict[str, nn.Module]:
        """What to keep an average of, to compile and to export."""
        parts: dict[str, nn.Module] = {} if self.frozen else {"encoder": self.encoder}
        parts |= {"projector": self.projector, "dynamics": self.dynamics}
        return parts if self.decoder is None else parts | {"decoder": self.decoder}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """The batch's first frames, continued under its own actions: uint8 [b, t, H, W, 3].

        As the decoder shows them; without one, the latents' first principal components as colours.
        """
        latents, told = self.latents(batch.frames), self._told(batch)
        t = latents.shape[1]
        start = min(self.context_frames, t - 1)
        shown = torch.cat((latents[:, :start], self.unroll(latents, told, start, t - start)), dim=1)
        if self.decoder is not None:
            return video_to_uint8(self.decoder(shown))
        return pca_rgb_video(shown.flatten(1, 2), (t, *self.dynamics.grid), tuple(batch.frames.shape[1:4]))
