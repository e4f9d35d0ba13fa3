"""Simulators made of networks: what a bundle holds."""

from __future__ import annotations

import copy
import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from vwm.core.blocks import CompilerBackend, with_compiled_blocks
from vwm.core.captured_steps import CaptureBackend, CapturedSteps
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.limits import MAX_SAMPLING_STEPS, MAX_SAMPLING_VALUE
from vwm.core.network_base import ModelMixin
from vwm.core.simulator import Simulator, SimulatorSpec, State, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.core.states import state_batch_size
from vwm.core.tokenizer import VideoTokenizer


class NoSampling(NamedTuple):
    """The sampling settings of a simulator without any."""


class NetworkSimulator(Simulator):
    """A dynamics model and the networks around it.

    Args:
        dynamics: predicts the next latents from latents and actions.
        observation, actions, context, stochastic, fps, context_frames, title, frames_per_step: see ``SimulatorSpec``.
        sampling: how a frame is sampled, an instance of ``SAMPLING_CLASS``; by default with that class's defaults.
        starts: contexts to start from, uint8 [n, t, h, w, 3] or float32 [n, t, k], where there are some.

    Raises:
        ValueError: sampling settings that the networks do not support.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("dynamics",)
    """The attributes that hold networks: what a bundle saves."""
    OPTIONAL_NETWORKS: ClassVar[tuple[str, ...]] = ()
    """Those of them that may be None."""
    SAMPLING_CLASS: ClassVar[type[Any]]
    """The class of ``sampling``, a named tuple."""
    SAMPLING_BY_PART: ClassVar[tuple[str, ...]] = ()
    """Fields of ``sampling`` that may also be mappings, from the names of parts of composite actions to numbers."""

    def __init__(
        self,
        dynamics: ModelMixin,
        *,
        observation: ObservationSpace,
        actions: ActionSpace,
        context: ObservationSpace | None = None,
        stochastic: bool = True,
        fps: float = 15.0,
        context_frames: int = 4,
        title: str = "world",
        frames_per_step: int = 1,
        sampling: Any = None,
        starts: Tensor | None = None,
    ) -> None:
        self.dynamics = dynamics.eval()
        self.spec = SimulatorSpec(
            observation=observation,
            actions=actions,
            fps=fps,
            context_frames=context_frames,
            title=title,
            stochastic=stochastic,
            frames_per_step=frames_per_step,
            context=context or observation,
        )
        self.starts = starts
        self.captured_steps: CapturedSteps | None = None
        self.compiled: Self | None = None
        self.sampling = self.SAMPLING_CLASS() if sampling is None else sampling
        _check_sampling_numbers(self.sampling, self.SAMPLING_BY_PART)
        self.check_sampling(self.sampling)

    @property
    def device(self) -> torch.device:
        """See ``Simulator.device``: where the dynamics' weights are."""
        return next(self.dynamics.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the dynamics' weights."""
        return next(self.dynamics.parameters()).dtype

    def networks(self) -> dict[str, ModelMixin]:
        """Return the networks that the simulator has, by the names of its attributes."""
        parts = {name: getattr(self, name) for name in self.NETWORK_NAMES}
        return {name: part for name, part in parts.items() if part is not None}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the networks to a device, and cast the dynamics' weights to ``dtype`` where it is given; in place.

        Steps are no longer accelerated afterwards: see ``accelerate``.
        """
        # Not diffusers' own `to`: it warns of layers that it would keep in float32, and imports torch's compiler.
        if dtype is not None:
            torch.nn.Module.to(self.dynamics, dtype)
        for part in self.networks().values():
            torch.nn.Module.to(part, device)
        self.captured_steps = self.compiled = None
        return self

    @torch.inference_mode()
    def step(self, state: State, action: Tensor, decode: bool = True) -> tuple[State, StepOutput]:
        """See ``Simulator.step``."""
        self.check_action(action, state_batch_size(state))

        def advance(simulator: Self, before: State, given: Tensor) -> tuple[State, StepOutput]:
            return simulator.advance(before, given, decode)

        return self.run_step(f"step(decode={decode})", advance, state, action.to(self.device))

    @abstractmethod
    def advance(self, state: State, action: Tensor, decode: bool) -> tuple[State, StepOutput]:
        """Compute a step, as ``step`` describes it.

        It may be captured as a graph of kernels: it depends on nothing but its arguments and the weights, and never
        reads the value of a tensor in Python.

        Args:
            state: see ``step``.
            action: checked, on the simulator's device.
            decode: see ``step``.
        """

    def run_step(
        self, name: Any, step: Callable[[Self, State, Any], tuple[State, Any]], state: State, inputs: Any
    ) -> tuple[State, Any]:
        """Compute ``step(self, state, inputs)``, from a captured graph where the simulator is accelerated.

        Args:
            name: identifies the function, with the shapes of its tensors.
            step: the function; see ``advance`` for what it may do. The simulator that it gets has this one's weights.
            state: see ``Simulator.step``.
            inputs: nested tensors on the simulator's device.
        """
        if self.captured_steps is None:
            return step(self, state, inputs)
        compiled = None if self.compiled is None else functools.partial(step, self.compiled)
        return self.captured_steps(name, functools.partial(step, self), state, inputs, compiled)

    def accelerate(self, backend: CaptureBackend | None, compiler: CompilerBackend | None = None) -> Self:
        """Return a simulator that shares the networks and captures its steps; see ``vwm.core.captured_steps``.

        Args:
            backend: what captures them; None computes every step plainly.
            compiler: the backend of ``torch.compile`` for the blocks of the dynamics' transformer in captured steps,
                which rounds differently; None leaves them as they are.
        """
        other = copy.copy(self)
        other.captured_steps = None if backend is None else CapturedSteps(backend)
        other.compiled = None
        if backend is not None and compiler is not None:
            other.compiled = self.accelerate(None)
            other.compiled.dynamics = with_compiled_blocks(self.dynamics, compiler)
        return other

    def with_sampling(self, **changes: Any) -> Self:
        """Return a simulator that shares the networks and samples frames with other settings.

        Args:
            **changes: fields of ``sampling``.

        Raises:
            ValueError: the simulator has no such setting, or its networks do not support the value.
        """
        unknown = sorted(changes.keys() - set(self.sampling._fields))
        if unknown:
            settings = ", ".join(self.sampling._fields) or "none"
            raise ValueError(
                f"a {type(self).__name__} has no sampling setting {', '.join(unknown)}; it has: {settings}"
            )
        other = self.accelerate(None if self.captured_steps is None else self.captured_steps.backend)
        other.sampling = self.sampling._replace(**changes)
        if self.compiled is not None:
            other.compiled = self.compiled.with_sampling(**changes)
        _check_sampling_numbers(other.sampling, self.SAMPLING_BY_PART)
        other.check_sampling(other.sampling)
        return other

    def check_sampling(self, sampling: Any) -> None:
        """Raise ValueError where the networks do not support sampling settings; by default all are supported."""

    def check_context_actions(self, actions: Tensor | None, batch: int, frames: int) -> Tensor | None:
        """Return the actions between context frames on the simulator's device; None where they are unknown.

        They are checked against all ``frames`` of a context and returned for those that ``trim_context`` keeps.

        Raises:
            ValueError: their number, shape, type or range is wrong.
        """
        if actions is None or frames == 1:
            return None
        if actions.shape[:2] != (batch, frames - 1):
            raise ValueError(
                f"{frames} context frames have {frames - 1} actions between them: context_actions must be "
                f"[{batch}, {frames - 1}, ...], got {list(actions.shape)}"
            )
        for between in actions.unbind(1):
            self.check_action(between, batch)
        return actions[:, (frames - 1) % self.spec.frames_per_step :].to(self.device)


class VideoSimulator(NetworkSimulator):
    """A dynamics model over a tokenizer's latents; it encodes and reconstructs frames.

    Args:
        tokenizer: video to latents and back.
        dynamics, actions: see ``NetworkSimulator``.
        **rest: further arguments of ``NetworkSimulator``.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("tokenizer", "dynamics")

    def __init__(self, tokenizer: VideoTokenizer, dynamics: ModelMixin, actions: ActionSpace, **rest: Any) -> None:
        super().__init__(
            dynamics,
            observation=ObservationSpace.image(*tokenizer.image_size),
            actions=actions,
            frames_per_step=tokenizer.time_compression,
            **rest,
        )
        self.tokenizer = tokenizer.eval()

    def run_observation(
        self, absorb: Callable[[Self, State, Tensor, Tensor], State], state: State, action: Tensor, frame: Tensor
    ) -> State:
        """Compute ``ObservesFrames.observe`` for a family that can.

        Args:
            absorb: from a simulator, a state, the action and the frames uint8 [b, k, h, w, 3] of a step, checked and on
                the device, to the next state; see ``advance`` for what it may do.
            state, action, frame: see ``ObservesFrames.observe``.

        Raises:
            ValueError: ``action`` or ``frame`` does not fit a batch of simulations.
        """
        batch = state_batch_size(state)
        self.check_action(action, batch)
        frames = frame[:, None] if self.spec.frames_per_step == 1 else frame
        self.check_context(frames)
        if frames.shape[:2] != (batch, self.spec.frames_per_step):
            raise ValueError(
                f"{batch} simulations observe {batch * self.spec.frames_per_step} frames, got {list(frame.shape)}"
            )

        def observe(simulator: Self, before: State, given: tuple[Tensor, Tensor]) -> tuple[State, None]:
            return absorb(simulator, before, *given), None

        return self.run_step("observe", observe, state, (action.to(self.device), frames.to(self.device)))[0]

    def shown_frames(self, video: Tensor) -> Tensor:
        """Convert the decoded frames of a step, float [b, k, 3, h, w], to ``StepOutput.frame``."""
        frames = video_to_uint8(video)
        return frames[:, 0] if self.spec.frames_per_step == 1 else frames

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See ``EncodesFrames.encode``."""
        self.check_context(frames)
        return self.tokenizer.encode(frames_to_float(frames.to(self.device)))

    @property
    def codebook_size(self) -> int:
        """See ``DecodesLatents.codebook_size``."""
        return self.tokenizer.codebook_size

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See ``DecodesLatents.decode``."""
        return video_to_uint8(self.tokenizer.decode(latents.to(self.device)))

    @torch.no_grad()
    def reconstruct(self, frames: Tensor, state: State | None = None) -> tuple[State, Tensor]:
        """See ``ReconstructsFrames.reconstruct``."""
        encoder, decoder = state or (
            self.tokenizer.init_encoder(len(frames)),
            self.tokenizer.init_decoder(len(frames)),
        )
        encoder, latents = self.tokenizer.encode_step(encoder, frames_to_float(frames))
        decoder, shown = self.tokenizer.decode_step(decoder, latents)
        return (encoder, decoder), video_to_uint8(shown)


def _check_sampling_numbers(sampling: Any, by_part: Sequence[str]) -> None:
    """Raise ValueError for sampling settings that no family supports: not finite, negative, or too large."""
    steps = getattr(sampling, "steps", 1)
    if type(steps) is not int or not 1 <= steps <= MAX_SAMPLING_STEPS:
        raise ValueError(f"sampling.steps must lie in 1..{MAX_SAMPLING_STEPS}, got {steps!r}")
    for name, value in sampling._asdict().items():
        numbers = value.values() if name in by_part and isinstance(value, Mapping) else [value]
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= MAX_SAMPLING_VALUE:
                raise ValueError(
                    f"sampling.{name} must be a number of 0 or more and at most {MAX_SAMPLING_VALUE}, got {number!r}"
                )
