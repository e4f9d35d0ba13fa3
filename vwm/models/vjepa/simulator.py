"""V-JEPA 2-AC as a simulator in representation space, for planning."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import NetworkSimulator, NoSampling
from vwm.core.seeds import world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor
from vwm.models.vjepa.frame_encoder import FrameEncoder, check_jepa_world_networks, encode_frame_latents
from vwm.models.vjepa.latent_decoder import LatentDecoder
from vwm.models.vjepa.latent_projector import LatentProjector
from vwm.nn.actions import check_action_space
from vwm.nn.space_time import TransformerState


class VJEPAACState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        dynamics: keys and values of the frames before the present one.
        latent: float [b, n, D], the present frame.
        seed: int64 [b]; unused, since the model is deterministic.
        proprioception: float [b, s], of the present frame.
        proprioception_known: bool [b], False where it is unknown, and then 0.
    """

    dynamics: TransformerState
    latent: Tensor
    seed: Tensor
    proprioception: Tensor
    proprioception_known: Tensor


class VJEPAACSimulator(NetworkSimulator):
    """An encoder and an action-conditioned predictor of its features: see ``Simulator``.

    ``latent`` of a step is the predicted representation, float [b, n, D]. The simulation is deterministic, and shows
    images only with a decoder. It starts from images: a predictor that also takes proprioception receives it as
    unknown unless ``with_proprioception`` gives that of the present frame. Where the actions of a context are not
    given, and the predictor has not learned unknown actions (``allow_unknown_actions``), only the context's last frame
    is used.

    Args:
        encoder: encodes each frame by itself.
        projector: projects the encoder's features to latents.
        dynamics: the predictor.
        decoder: decodes latents to images; None for a simulator of latents only.
        actions: the action space; it must be the predictor's.
        **rest: see ``NetworkSimulator``.

    Raises:
        ValueError: the networks do not fit each other.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("encoder", "projector", "dynamics", "decoder")
    OPTIONAL_NETWORKS: ClassVar[tuple[str, ...]] = ("decoder",)
    SAMPLING_CLASS = NoSampling

    def __init__(
        self,
        encoder: FrameEncoder,
        projector: LatentProjector,
        dynamics: ActionConditionedPredictor,
        decoder: LatentDecoder | None,
        actions: ActionSpace,
        **rest: Any,
    ) -> None:
        check_jepa_world_networks(encoder, projector, dynamics, decoder)
        check_action_space(dynamics.embed_action, actions)
        context = ObservationSpace.image(*encoder.image_size)
        latents = ObservationSpace.latent(dynamics.tokens, dynamics.latent_width)
        super().__init__(
            dynamics,
            observation=latents if decoder is None else context,
            actions=actions,
            context=context,
            stochastic=False,
            **rest,
        )
        self.encoder = encoder.eval()
        self.projector = projector.eval()
        self.decoder = None if decoder is None else decoder.eval()

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """See ``EncodesFrames.encode``: float [b, t, n, D]."""
        self.check_context(frames)
        return encode_frame_latents(self.encoder, self.projector, frames_to_float(frames.to(self.device)))

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[VJEPAACState, Tensor]:
        """See ``Simulator.reset``."""
        latents = self.encode(context)
        batch, frames = latents.shape[:2]
        actions = self.check_context_actions(context_actions, batch, frames)
        state = self.dynamics.init_state(batch)
        if frames > 1 and (actions is not None or self.dynamics.no_action is not None):
            state, _ = self.dynamics.step(state, latents[:, :-1], actions)
        size = self.dynamics.proprioception_dims
        shown = self._decode_frame(latents[:, -1]) if self.decoder is not None else context[:, -1].to(self.device)
        return VJEPAACState(
            dynamics=state,
            latent=latents[:, -1],
            seed=world_seeds(seed, batch, self.device),
            proprioception=torch.zeros(batch, size, device=self.device),
            proprioception_known=torch.zeros(batch, dtype=torch.bool, device=self.device),
        ), shown

    def with_proprioception(self, state: VJEPAACState, proprioception: Tensor) -> VJEPAACState:
        """See ``TakesProprioception.with_proprioception``: later frames have it by ``proprioception_update``."""
        size, batch = self.dynamics.proprioception_dims, len(state.seed)
        if not size:
            raise ValueError("these dynamics take no proprioception (proprioception_dims=0)")
        if list(proprioception.shape) != [batch, size]:
            raise ValueError(f"proprioception must be [{batch}, {size}], got {list(proprioception.shape)}")
        values = proprioception.to(self.device, state.proprioception.dtype)
        return state._replace(proprioception=values, proprioception_known=torch.ones_like(state.proprioception_known))

    def advance(self, state: VJEPAACState, action: Tensor, decode: bool) -> tuple[VJEPAACState, StepOutput]:
        """See ``NetworkSimulator.advance``."""
        batch = len(state.seed)
        pose, pose_known = state.proprioception, state.proprioception_known
        takes_pose = self.dynamics.proprioception_dims > 0
        dynamics, predicted = self.dynamics.step(
            state.dynamics,
            state.latent[:, None],
            action[:, None],
            pose[:, None] if takes_pose else None,
            proprioception_known=pose_known[:, None] if takes_pose else None,
        )
        pose, pose_known = self.dynamics.next_proprioception(pose, action, pose_known)
        latent = predicted[:, 0].to(state.latent.dtype)
        zeros = torch.zeros(batch, device=self.device)
        frame = self._decode_frame(latent) if decode and self.decoder is not None else None
        return VJEPAACState(dynamics, latent, state.seed, pose, pose_known), StepOutput(
            frame=frame, latent=latent, reward=zeros, terminated=zeros.bool()
        )

    def _decode_frame(self, latent: Tensor) -> Tensor:
        assert self.decoder is not None
        return video_to_uint8(self.decoder(latent[:, None]))[:, 0]
