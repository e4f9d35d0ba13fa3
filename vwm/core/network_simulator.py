"""What every world made of networks has, and what one over a tokenizer has beside it, whatever the dynamics is."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Self

import torch
from diffusers import ModelMixin
from torch import Tensor

from vwm.core.simulator import ActionSpace, Simulator
from vwm.core.tokenizer import VideoTokenizer


class NoSampling(NamedTuple):
    """Nothing is set about how a frame is drawn."""


class NetworkSimulator(Simulator):
    """A dynamics model and the networks around it: what a bundle holds.

    Args:
        dynamics: latents and actions to the next frame's latents.
        image_size: (height, width) of a frame in pixels.
        actions: the action space.
        fps: frames a second of the recording.
        sampling: how a frame is drawn, a named tuple of the family.
        context_frames: how many frames a reset likes to be given.
        title: for people.
        starts: uint8 [n, t, h, w, 3], contexts to begin from, where some are at hand.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("dynamics",)
    """The attributes that hold networks: what a bundle saves."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Those of them that may be None."""
    SAMPLING: ClassVar[type[Any]]
    """The class of ``sampling``."""

    latent_action: Any = None
    """Infers the actions of a context, where the world learned its actions from unlabelled video."""

    def __init__(
        self,
        dynamics: ModelMixin,
        image_size: tuple[int, int],
        actions: ActionSpace,
        fps: float = 15.0,
        sampling: Any = None,
        context_frames: int = 4,
        title: str = "world",
        starts: Tensor | None = None,
    ) -> None:
        self.dynamics = dynamics.eval()
        self.image_size, self.actions, self.fps = image_size, actions, fps
        self.sampling = self.SAMPLING() if sampling is None else sampling
        self.context_frames, self.title, self.starts = context_frames, title, starts

    @property
    def device(self) -> torch.device:
        """Where the world's tensors live."""
        return next(self.dynamics.parameters()).device

    def networks(self) -> dict[str, ModelMixin]:
        """The parts that are there, by name."""
        parts = {name: getattr(self, name) for name in self.PARTS}
        return {name: part for name, part in parts.items() if part is not None}

    def to(self, device: torch.device | str) -> Self:
        """Move the networks."""
        for part in self.networks().values():
            part.to(device)
        return self

    def check_context_actions(self, actions: Tensor | None, batch: int, frames: int) -> Tensor | None:
        """The actions between context frames, on the world's device. Raises ValueError where they are wrong."""
        if actions is None or frames == 1:
            return None
        if actions.shape[:2] != (batch, frames - 1):
            raise ValueError(
                f"{frames} context frames have {frames - 1} actions between them: context_actions must be "
                f"[{batch}, {frames - 1}, ...], got {list(actions.shape)}"
            )
        for between in actions.unbind(1):
            self.check_action(between, batch)
        return actions.to(self.device)


class VideoSimulator(NetworkSimulator):
    """A dynamics model over a tokenizer's latents.

    Args:
        tokenizer: video to latents and back.
        dynamics, actions: see ``NetworkSimulator``.
        **rest: likewise.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("tokenizer", "dynamics")
    LOSS: ClassVar[str] = "loss"
    """What ``transition_loss`` adds up, for people."""

    def __init__(self, tokenizer: VideoTokenizer, dynamics: ModelMixin, actions: ActionSpace, **rest: Any) -> None:
        super().__init__(dynamics, tokenizer.image_size, actions, **rest)
        self.tokenizer = tokenizer.eval()

    def check_observation(self, action: Tensor, frame: Tensor, batch: int) -> None:
        """Raise ValueError unless ``action`` and ``frame`` (uint8 [b, h, w, 3]) are some that worlds can observe."""
        self.check_action(action, batch)
        self.check_context(frame[:, None])
        if len(frame) != batch:
            raise ValueError(f"{batch} worlds observe {batch} frames, got {list(frame.shape)}")

    def transition_loss(self, latents: Tensor, actions: Tensor, others: Tensor) -> Tensor | None:
        """How well the model foretells each next frame, told the action that led there, and told another one.

        Every frame is foretold from the true frames and actions before it, so that the two differ in one action only.
        Whatever is random is the same for both. A loss that is right for the family (``LOSS`` names it): a world that
        does not heed its actions has twice the same.

        Args:
            latents: of clips, as the tokenizer encodes them: int64 [b, t, h, w] or float [b, t, h, w, c].
            actions: the clips' own, int64 [b, t-1] or float32 [b, t-1, a]; ``actions[:, i]`` leads from frame i to i+1.
            others: what to be told instead, likewise.

        Returns:
            float64 [2] on the CPU, with the clips' own actions and with the others: sums over the elements of
            ``latents[:, 1:]``. None where the family has no such loss.
        """
        return None
