"""The simulator interface: everything that uses a world uses only this.

What only some simulators can do is a protocol in ``vwm.core.capabilities``.

Legend: b batch, t time, h w pixels, n numbers of a vector, k frames per step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vwm.core.checks import check_positive
from vwm.core.limits import MAX_CONTEXT_FRAMES, MAX_FPS
from vwm.core.spaces import ActionSpace, ObservationSpace

State = Any
"""A nested tuple or dict of tensors, each with the batch first: copy it, index it, branch it, drop it."""


@dataclass(frozen=True)
class SimulatorSpec:
    """The facts about a simulator that its consumers may rely on.

    Attributes:
        observation: what a step shows. A simulator that predicts latents only has ``kind="latent"``: its steps give no
            frame even with ``decode=True``, and ``reset`` gives back the context's last one.
        actions: what a step takes.
        fps: frames per second of the recording that the simulator was trained on; the player shows frames at this rate.
        context_frames: recommended number of context frames for a reset. It accepts 1 or more; a simulator that shows
            k frames per step uses the last 1 + k i of them, as many as there are.
        title: display name.
        stochastic: whether the seed has any influence.
        frames_per_step: k, the frames that one step shows: more than 1 where a latent of the tokenizer holds several. A
            step then takes k actions, or one that is held.
        context: what a reset takes, images or vectors; by default the same as ``observation``, which must then not be
            of kind ``"latent"``.

    Raises:
        ValueError: a simulator of latents without a context space, or a number that is out of range.
    """

    observation: ObservationSpace
    actions: ActionSpace
    fps: float = 15.0
    context_frames: int = 4
    title: str = "world"
    stochastic: bool = True
    frames_per_step: int = 1
    context: ObservationSpace = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.context is None:
            object.__setattr__(self, "context", self.observation)
        if self.context.is_latent:
            raise ValueError("a simulator of latents is started from images or vectors: give spec.context")
        if not 0 < self.fps <= MAX_FPS:  # NaN fails this, too
            raise ValueError(f"fps must be above 0 and at most {MAX_FPS}, got {self.fps}")
        check_positive(context_frames=self.context_frames, frames_per_step=self.frames_per_step)
        if self.context_frames > MAX_CONTEXT_FRAMES:
            raise ValueError(f"context_frames must be at most {MAX_CONTEXT_FRAMES}, got {self.context_frames}")


class StepOutput(NamedTuple):
    """What one step shows.

    Attributes:
        frame: an observation, uint8 [b, h, w, 3] or float32 [b, n]; where ``spec.frames_per_step`` is k > 1, the k
            frames of the step, uint8 [b, k, h, w, 3]. None with ``decode=False``, and from a simulator that predicts
            latents only. ``frames`` and ``last_frame`` have one shape for all k.
        latent: what the dynamics model predicted, [b, ...] (tokens int64, or features).
        reward: float32 [b], summed over the frames of the step; zeros where the model has no reward head.
        terminated: bool [b], whether the episode ends in this step; False where the model has no termination head.
    """

    frame: Tensor | None
    latent: Tensor
    reward: Tensor
    terminated: Tensor

    @property
    def frames(self) -> Tensor:
        """The frames of a step with ``decode=True``, uint8 [b, k, h, w, 3] or float32 [b, 1, n]."""
        assert self.frame is not None, "a step with decode=True shows frames"
        return self.frame if self.frame.ndim == 5 else self.frame[:, None]

    @property
    def last_frame(self) -> Tensor | None:
        """The last frame of the step, uint8 [b, h, w, 3] or float32 [b, n]; None where it shows none."""
        return None if self.frame is None else self.frames[:, -1]


class Simulator(ABC):
    """A batched, seedable, branchable world.

    Equal state and actions give equal frames: the random numbers are a function of the state. A batch of worlds
    steps exactly as each would alone. States are values; see ``vwm.core.states`` to select, merge and repeat them.

    Attributes:
        spec: what the simulator shows and takes.
        starts: contexts to start from, uint8 [m, t, h, w, 3] or float32 [m, t, n]; None where there are none.
    """

    spec: SimulatorSpec
    starts: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """The device of the states and of everything that a step returns."""
        return torch.device("cpu")

    @abstractmethod
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """Start worlds that continue the given frames.

        Args:
            context: of the space ``spec.context``: uint8 [b, t, h, w, 3] or float32 [b, t, n], t >= 1; see
                ``spec.context_frames``.
            seed: one seed, from which each world of the batch gets its own, or int64 [b], one per world.
            context_actions: the t - 1 actions between the context frames ([b, t-1] or [b, t-1, size]); where None,
                a world with latent actions infers them and one with labeled actions treats them as unknown.

        Returns:
            The state, and the last context frame as the model sees it, uint8 [b, h, w, 3] or float32 [b, n].

        Raises:
            ValueError: frames of another size or type, or no frame.
        """

    @abstractmethod
    def step(self, state: State, action: Tensor, decode: bool = True) -> tuple[State, StepOutput]:
        """Advance every world by ``spec.frames_per_step`` frames, which is mostly one.

        Args:
            state: as ``reset`` or ``step`` returned it; it is not changed.
            action: int64 [b] or float32 [b, size]; where a step shows k > 1 frames, it is held for all of them, or
                int64 [b, k] or float32 [b, k, size] gives one action per frame.
            decode: False skips the pixels (``frame`` is None); the frames of a later step are the same either way.

        Raises:
            ValueError: the action's shape, type or range is wrong.
        """

    def latent(self, state: State) -> Tensor:
        """Return the latents of a state, [b, ...]: ``StepOutput.latent`` of the step that led there, also at a reset.

        By default they are the state's field ``latent``.
        """
        latent: Tensor = state.latent
        return latent

    def flatten_latents(self, latent: Tensor) -> Tensor:
        """Flatten latents [b, ...] to float32 [b, n], for policies that observe latents; tokens become their codes."""
        return latent.flatten(1).float()

    def check_context(self, context: Tensor) -> None:
        """Raise ValueError unless ``context`` is [b >= 1, t >= 1, ...] of the space ``spec.context``."""
        space = self.spec.context
        fits = context.is_floating_point() if space.is_vector else context.dtype == space.dtype
        if not fits or tuple(context.shape[2:]) != space.shape:
            wanted = ", ".join(map(str, ("b", "t", *space.shape)))
            raise ValueError(
                f"context must be {str(space.dtype).removeprefix('torch.')} [{wanted}], got {context.dtype} "
                f"{list(context.shape)}"
            )
        if context.shape[0] < 1 or context.shape[1] < 1:
            raise ValueError(f"context must hold at least one frame, got shape {list(context.shape)}")

    def trim_context(self, context: Tensor) -> Tensor:
        """Return the last 1 + k i frames of a context [b, t, ...], as many as there are, where a step shows k."""
        return context[:, (context.shape[1] - 1) % self.spec.frames_per_step :]

    def action_steps(self, actions: Tensor) -> Tensor:
        """Split actions per frame [b, k i, ...] into those of i steps, [b, i, k, ...]; [b, i, ...] where k is 1.

        Raises:
            ValueError: they do not fill the last step.
        """
        frames = self.spec.frames_per_step
        if actions.shape[1] % frames:
            raise ValueError(f"{actions.shape[1]} actions do not fill steps of {frames} frames")
        return actions if frames == 1 else actions.unflatten(1, (-1, frames))

    def actions_per_frame(self, action: Tensor) -> Tensor:
        """Return the k actions of a step, [b, k, ...]; an action [b, ...] is held for all frames of the step."""
        if action.ndim > 1 + len(self.spec.actions.shape):
            return action
        return action[:, None].expand(-1, self.spec.frames_per_step, *action.shape[1:])

    def check_action(self, action: Tensor, batch: int) -> None:
        """Raise ValueError unless ``action`` is a batch of actions of ``spec.actions``, held or one per frame.

        Values are checked on the CPU only: reading those of an accelerator would wait for it, and they come from a
        policy.
        """
        space, frames = self.spec.actions, self.spec.frames_per_step
        shapes = [(batch, *space.shape), (batch, frames, *space.shape)][: min(frames, 2)]
        if tuple(action.shape) not in shapes or action.is_floating_point() == space.is_discrete:
            kind, shape = "integers" if space.is_discrete else "floats", " or ".join(str(list(s)) for s in shapes)
            raise ValueError(f"action must be {kind} {shape}, got {action.dtype} {list(action.shape)}")
        if action.device.type != "cpu":
            return
        if space.is_discrete:
            low, high = int(action.min()), int(action.max())
            if low < 0 or high >= space.size:
                raise ValueError(f"actions must lie in 0..{space.size - 1}, got {low}..{high}")
        elif space.is_composite:
            space.check_rows(action)
        elif not bool((action.abs() <= 1).all()):  # NaN fails this, too
            raise ValueError(f"actions must lie in -1..1, got {action.min():g}..{action.max():g}")
