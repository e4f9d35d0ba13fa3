"""Abilities that only some simulators have, as small protocols.

A consumer asks for the protocol and never for a class: ``isinstance(simulator, InfersActions)``. A protocol whose
ability depends on the networks that a simulator was built from has an attribute that says so (``num_latent_actions``,
``policy``).

Legend: b batch, t time, h w pixels, d width.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from vwm.core.network_base import ModelMixin
from vwm.core.simulator import State
from vwm.core.states import NestedState


@runtime_checkable
class ObservesFrames(Protocol):
    """A simulator that can add a real frame to a state, instead of one that it generates."""

    def observe(self, state: State, action: Tensor, frame: Tensor) -> State:
        """Add a real frame to the state: the same state that ``reset`` gives for a context with one more frame.

        Args:
            state: as ``reset``, ``step`` or ``observe`` returned it; it is not changed.
            action: the action that led to the frame, as ``step`` takes it.
            frame: uint8 [b, h, w, 3]; the k frames of a step, uint8 [b, k, h, w, 3], where it shows several.

        Raises:
            ValueError: an action or a frame of another shape or type.
        """
        ...


@runtime_checkable
class EncodesFrames(Protocol):
    """A simulator that can encode given frames to latents."""

    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames uint8 [b, t, h, w, 3] to latents [b, t, ...], as ``StepOutput.latent`` has them.

        Where a step shows k frames, t = 1 + k i frames are 1 + i latents.

        Raises:
            ValueError: frames of another size or type, or no frame.
        """
        ...


@runtime_checkable
class DecodesLatents(Protocol):
    """A simulator that can decode latents to frames, as ``EncodesFrames.encode`` gives them."""

    @property
    def codebook_size(self) -> int:
        """The number of codes where latents are tokens; 0 where they are continuous."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [b, t, ...] of whole videos to frames uint8 [b, t, h, w, 3]."""
        ...


@runtime_checkable
class ReconstructsFrames(Protocol):
    """A simulator that can encode given frames and decode them again, as it decodes generated frames."""

    def reconstruct(self, frames: Tensor, state: State | None = None) -> tuple[State, Tensor]:
        """Encode and decode the next frames of videos, without any dynamics.

        Args:
            frames: uint8 [b, t, h, w, 3].
            state: state after the previous frames, as this method returned it; None at the start of the videos.

        Returns:
            The state after the frames, and the reconstructed frames, uint8 [b, t, h, w, 3].
        """
        ...


@runtime_checkable
class TakesProprioception(Protocol):
    """A simulator whose networks may take the proprioception of a frame: positions of joints, or a gripper's pose."""

    def with_proprioception(self, state: State, proprioception: Tensor) -> State:
        """Return a state in which the proprioception of the present frame is known.

        Args:
            state: as ``reset`` or ``step`` returned it; it is not changed.
            proprioception: float [b, s].

        Raises:
            ValueError: the simulator's networks take none, or one of another size.
        """
        ...


@runtime_checkable
class InfersActions(Protocol):
    """A simulator that can infer its latent actions from video, where ``num_latent_actions`` is above 0."""

    @property
    def num_latent_actions(self) -> int:
        """The number of latent actions, or of dimensions of continuous ones.

        It is 0 for a simulator whose actions were labeled, which cannot infer any.
        """
        ...

    def infer_actions(self, frames: Tensor) -> Tensor:
        """Infer the latent actions between frames uint8 [b, t, h, w, 3].

        Returns:
            int64 [b, t-1]; continuous ones are float32 [b, t-1, a] in [-1, 1].

        Raises:
            ValueError: there are no latent actions, or frames of another size or type.
        """
        ...


@runtime_checkable
class ProvidesFeatures(Protocol):
    """A simulator whose network has features of the current frame, which policies and controllers can read."""

    def features(self, state: State) -> Tensor:
        """Return the features of a state, float32 [b, d]."""
        ...


@runtime_checkable
class MeasuresTransitionLoss(Protocol):
    """A simulator that can measure how well it predicts given transitions.

    Attributes:
        transition_loss_name: display name of the loss ("cross-entropy").
    """

    transition_loss_name: str

    def transition_loss(self, latents: Tensor, actions: Tensor, other_actions: Tensor) -> Tensor:
        """Measure how well each next frame is predicted with the action that led to it, and with another action.

        Every frame is predicted from the true frames and actions before it, so that the two losses differ in one action
        only, and use the same random numbers. They are equal where a simulator ignores its actions.

        Args:
            latents: latents of clips, as the tokenizer encodes them: int64 [b, t, h, w] or float [b, t, h, w, c].
            actions: int64 [b, (t-1) k] or float32 [b, (t-1) k, a], k actions for each step; ``actions[:, i]`` leads
                from frame i to i+1.
            other_actions: actions to condition on instead, of the same shape.

        Returns:
            float64 [2] on the CPU, with the clips' own actions and with the others: sums over the elements of
            ``latents[:, 1:]``.
        """
        ...


@runtime_checkable
class HasClonedPolicy(Protocol):
    """A simulator that was trained together with a cloned policy, where ``policy`` is not None.

    Attributes:
        policy: heads that read ``ProvidesFeatures.features`` and imitate the recorded player.
    """

    policy: ModelMixin | None


@runtime_checkable
class HasTrainedPolicy(Protocol):
    """A simulator that comes with a policy over frames, trained in it or with it, where ``has_trained_policy``."""

    @property
    def has_trained_policy(self) -> bool:
        """Whether there is one."""
        ...

    def init_policy(self, batch: int) -> NestedState:
        """Return the policy's memory before the first frame of episodes: zeros, False for masks."""
        ...

    def run_policy(self, memory: NestedState, frames: Tensor) -> tuple[NestedState, Tensor]:
        """Return the memory after frames, and what the policy chooses there.

        Args:
            memory: before the frames; zeros where an episode begins.
            frames: uint8 [b, h, w, 3].

        Returns:
            The memory, and the logits of discrete actions, float [b, k], or the chosen continuous action, float
            [b, size].
        """
        ...


@runtime_checkable
class EstimatesUncertainty(Protocol):
    """A simulator that estimates the uncertainty of its predictions."""

    def uncertainty(self, state: State) -> Tensor:
        """Return the uncertainty of the step that led to a state, float [b]; 0 after a reset."""
        ...
