"""The one simulator interface: everything that consumes a world uses this and nothing else.

Legend: b batch, t time, h w pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

State = Any
"""A nested tuple or dict of tensors, each with the batch first: copy it, index it, branch it, drop it."""


@dataclass(frozen=True)
class ActionSpace:
    """What ``step`` takes.

    Attributes:
        kind: ``"discrete"`` (int64 [b] in [0, size)) or ``"continuous"`` (float32 [b, size] in [-1, 1]).
        size: number of discrete actions, or of dimensions.
        names: one a discrete action or dimension, for people; latent actions are named by their observed effect.
        latent: the actions were learned from unlabelled video.
        rest: one a dimension, where it stands when nobody touches it (a brake rests at -1); empty where all rest at 0.
    """

    kind: str
    size: int
    names: tuple[str, ...] = ()
    latent: bool = False
    rest: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.rest and (self.kind == "discrete" or len(self.rest) != self.size or max(map(abs, self.rest)) > 1):
            raise ValueError(f"rest must be one number in [-1, 1] a dimension ({self.size}), got {self.rest}")


class StepOutput(NamedTuple):
    """What one step shows.

    Attributes:
        frame: uint8 [b, h, w, 3]; None with ``decode=False``, and in a world without pictures. A world of vectors
            shows what it expects to be observed, float32 [b, k].
        latent: what the dynamics model predicted, [b, ...] (tokens int64, or features).
        reward: float32 [b]; zeros where the model has no reward head.
        terminated: bool [b]; False where the model has no termination head.
    """

    frame: Tensor | None
    latent: Tensor
    reward: Tensor
    terminated: Tensor


class Simulator(ABC):
    """A batched, seedable, branchable world.

    Equal state and actions give equal frames: the random numbers are a function of the state. A batch of worlds
    steps exactly as each would alone. States are values; see ``vwm.core.states`` to select, merge and repeat them.

    Attributes:
        actions: the action space.
        image_size: (height, width) of a frame in pixels.
        fps: frames a second at which the world was recorded; what "real time" means for the player.
        context_frames: how many frames a reset likes to be given (it accepts 1 or more).
        stochastic: whether the seed plays a part.
        decodes: whether the world has pictures. One that has none is of latents alone: ``step`` gives no frame even
            with ``decode=True``, and ``reset`` gives back the context's last one.
        vector_size: k, where the world observes float32 [b, t, k] (joints, a cart's place) rather than pictures; else
            None.
    """

    stochastic: bool = True
    decodes: bool = True
    vector_size: int | None = None
    actions: ActionSpace
    image_size: tuple[int, int]
    fps: float
    context_frames: int

    @abstractmethod
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """Start worlds that continue the given frames.

        Args:
            context: uint8 [b, t, h, w, 3], t >= 1; float32 [b, t, k] in a world of vectors.
            seed: one seed, from which each world of the batch gets its own, or int64 [b], one a world.
            context_actions: the t - 1 actions between the context frames ([b, t-1] or [b, t-1, size]); where None,
                a world with latent actions infers them and one with labelled actions treats them as unknown.

        Returns:
            The state, and the last context frame as the model sees it, uint8 [b, h, w, 3] or float32 [b, k].

        Raises:
            ValueError: frames of another size or type, or no frame.
        """

    @abstractmethod
    def step(self, state: State, action: Tensor, decode: bool = True) -> tuple[State, StepOutput]:
        """Advance every world by one frame.

        Args:
            state: as ``reset`` or ``step`` returned it; it is not changed.
            action: int64 [b] or float32 [b, size].
            decode: False skips the pixels (``frame`` is None); the frames of a later step are the same either way.

        Raises:
            ValueError: the action's shape, type or range is wrong.
        """

    def latent(self, state: State) -> Tensor:
        """Where every world stands, [b, ...]: the ``StepOutput.latent`` of the step that led there, also at a reset.

        By default it is a field of the state.

        Raises:
            ValueError: the state does not keep it.
        """
        latent: Tensor | None = getattr(state, "latent", None)
        if latent is None:
            raise ValueError(f"{type(self).__name__} does not keep its latents: observe its frames")
        return latent

    def features(self, state: State) -> Tensor:
        """What the network makes of the present, for a policy to read: float32 [b, d].

        By default it is a field of the state.

        Raises:
            ValueError: the state does not keep it.
        """
        features: Tensor | None = getattr(state, "features", None)
        if features is None:
            raise ValueError(f"{type(self).__name__} keeps no features: observe its frames or latents")
        return features.float()

    def observe(self, state: State, action: Tensor, frame: Tensor) -> State:
        """Take in what really happened, in place of a frame that the world draws.

        Observing a frame is what ``reset`` would have done had its context been one frame longer.

        Args:
            state: as ``reset``, ``step`` or ``observe`` returned it; it is not changed.
            action: int64 [b] or float32 [b, size], what led to the frame.
            frame: uint8 [b, h, w, 3].

        Raises:
            ValueError: action or frame of another shape or type, or a world that cannot.
        """
        raise ValueError(f"{type(self).__name__} cannot take in frames that it did not draw: reset it with them")

    def vectors(self, latent: Tensor) -> Tensor:
        """Latents [b, ...] as float32 [b, k], for who sees them and not the pictures; tokens by their codes."""
        return latent.flatten(1).float()

    def check_context(self, context: Tensor) -> None:
        """Raise ValueError unless ``context`` is uint8 [b, t >= 1, h, w, 3] of this world's size, or its vectors."""
        height, width = self.image_size
        if self.vector_size is not None:
            if not context.is_floating_point() or context.ndim != 3 or context.shape[-1] != self.vector_size:
                raise ValueError(
                    f"context must be float32 [b, t, {self.vector_size}], got {context.dtype} {list(context.shape)}"
                )
        elif context.dtype != torch.uint8 or context.ndim != 5 or tuple(context.shape[2:]) != (height, width, 3):
            raise ValueError(
                f"context must be uint8 [b, t, {height}, {width}, 3], got {context.dtype} {list(context.shape)}"
            )
        if context.shape[0] < 1 or context.shape[1] < 1:
            raise ValueError(f"context must hold at least one frame, got shape {list(context.shape)}")

    def check_action(self, action: Tensor, batch: int) -> None:
        """Raise ValueError unless ``action`` fits this world's action space and batch."""
        space = self.actions
        if space.kind == "discrete":
            if tuple(action.shape) != (batch,) or action.is_floating_point():
                raise ValueError(f"action must be integers [{batch}], got {action.dtype} {list(action.shape)}")
            low, high = int(action.min()), int(action.max())
            if low < 0 or high >= space.size:
                raise ValueError(f"actions must lie in 0..{space.size - 1}, got {low}..{high}")
        elif tuple(action.shape) != (batch, space.size) or not action.is_floating_point():
            raise ValueError(f"action must be floats [{batch}, {space.size}], got {action.dtype} {list(action.shape)}")
        elif not bool((action.abs() <= 1).all()):  # not a number is not, either
            raise ValueError(f"actions must lie in -1..1, got {action.min():g}..{action.max():g}")
