"""Sample latent frames: one at a time from cached keys and values, or a whole clip at once.

Legend: b batch, t time, h w c of the latents, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_normal
from vwm.models.dit.guidance import Guidance, GuidanceLevel, guidance_levels, guide
from vwm.models.dit.network import DiT, NoisyFrames
from vwm.models.dit.noise_schedule import add_noise, sampler_step, sampling_signal_levels
from vwm.nn.space_time import TransformerState

CONTEXT_SEED_STREAM = -2
"""Folded into a seed for the noise of the context."""
FRAME_SEED_STREAM = -3
"""Folded into a seed for the samples of new frames."""


class DiffusionSampling(NamedTuple):
    """Settings for sampling frames.

    Attributes:
        steps: number of sampling steps; for a shortcut model a power of two.
        context_noise: share of noise in the past frames to which the network attends (Dreamer 4: 0.1; the stabilization
            level of diffusion forcing). It keeps small errors of one frame from growing over the following ones.
        guidance: weight of classifier-free guidance by the action, or weights by part of composite actions; 1 disables
            it, and other values cost more passes per step. See ``vwm.models.dit.guidance``.
        shift: see ``vwm.models.dit.noise_schedule.sampling_signal_levels``.
        task: which the agent tokens get, where the network has tasks; the frames do not depend on it.
    """

    steps: int = 4
    context_noise: float = 0.1
    guidance: Guidance = 1.0
    shift: float = 1.0
    task: int = 0


def check_diffusion_sampling(dynamics: DiT, sampling: DiffusionSampling) -> None:
    """Raise ValueError if the settings do not fit the network."""
    if sampling.steps < 1 or not 0 <= sampling.context_noise < 1:
        raise ValueError(f"steps must be 1 or more and context_noise in [0, 1), got {sampling}")
    check_task(dynamics, sampling.task)
    if dynamics.num_step_sizes:
        allowed = [2**i for i in range(dynamics.num_step_sizes)]
        if sampling.steps not in allowed:
            raise ValueError(f"steps={sampling.steps} must be one of {allowed}, the step sizes of this network")
        if sampling.shift != 1:
            raise ValueError(f"shift={sampling.shift} must be 1, because a shortcut model takes equal steps")


def check_task(dynamics: DiT, task: int) -> None:
    """Raise ValueError for a task that a network does not have; one without tasks has task 0 only."""
    tasks = dynamics.config.num_tasks
    if task not in range(max(tasks, 1)):
        raise ValueError(f"task={task} must be one of the {tasks} that the network has (dynamics.num_tasks), from 0 on")


def observe_latents(
    dynamics: DiT,
    state: TransformerState,
    latents: Tensor,
    action_embedding: Tensor,
    seed: Tensor,
    context_noise: float,
    task: int = 0,
) -> tuple[TransformerState, Tensor]:
    """Add clean frames, with context noise, to the state.

    Args:
        dynamics: the network.
        state: the state before these frames.
        latents: [b, t, h, w, c].
        action_embedding: [b, t, d], of the actions that led to the frames.
        seed: int64 [b], seeds of the noise, which also depends on the position of the frame.
        context_noise, task: see ``DiffusionSampling``.

    Returns:
        The state after the frames, and the features of the last one [b, d].
    """
    frames = latents.shape[1]
    positions = state.position[:, None] + torch.arange(frames, device=latents.device)
    frame_seeds = fold_in(seed[:, None], positions).flatten()
    noise = seeded_normal(frame_seeds, *latents.shape[2:]).to(latents.dtype).unflatten(0, (-1, frames))
    context = make_noisy_context(dynamics, latents, noise, action_embedding, context_noise)
    state, out = dynamics.step(state, context._replace(task=torch.full_like(positions, task)))
    return state, out.features[:, -1]


def make_noisy_context(
    dynamics: DiT, latents: Tensor, noise: Tensor, action_embedding: Tensor, context_noise: float
) -> NoisyFrames:
    """Return frames [b, t, h, w, c] as context: with noise, and conditioned on the matching signal level."""
    signal = latents.new_full(latents.shape[:2], 1 - context_noise)
    return NoisyFrames(
        latents=add_noise(dynamics.prediction, latents, noise, signal),
        signal=signal,
        step_index=finest_step_index(dynamics, signal),
        action_embedding=action_embedding,
    )


def finest_step_index(dynamics: DiT, signal: Tensor) -> Tensor | None:
    """Index of the smallest step size for each frame, as used for context frames; None without step sizes."""
    if not dynamics.num_step_sizes:
        return None
    return torch.full(signal.shape, dynamics.num_step_sizes - 1, dtype=torch.int64, device=signal.device)


def sample_latent_frame(
    dynamics: DiT,
    state: TransformerState,
    action_embedding: Tensor,
    seed: Tensor,
    sampling: DiffusionSampling,
    levels: Sequence[GuidanceLevel] | None = None,
) -> Tensor:
    """Sample the next frame, without advancing the state.

    Args:
        dynamics: the network.
        state: the state after the frames so far.
        action_embedding: [b, 1, d], of the action that leads to the new frame.
        seed: int64 [b], seeds of the noise.
        sampling: see ``DiffusionSampling``.
        levels: the chain of guidance by part; None for guidance with one weight.

    Returns:
        Latents [b, 1, h, w, c].
    """
    if levels is None:
        assert isinstance(sampling.guidance, float | int), "guidance by part needs its levels"
        levels = guidance_levels(dynamics, action_embedding, sampling.guidance)

    def predict(x: Tensor, signal: Tensor, step_index: Tensor | None) -> Tensor:
        predictions = [
            dynamics.denoise(
                state, NoisyFrames(latents=x, signal=signal, step_index=step_index, action_embedding=embedding)
            )
            for _, embedding in levels
        ]
        if len(levels) == 1:
            return predictions[0]
        return guide([prediction.to(x.dtype) for prediction in predictions], levels)

    # Sampling steps are accumulated in float32, even if the network is bfloat16.
    dtype = torch.promote_types(action_embedding.dtype, torch.float32)
    noise = seeded_normal(seed, 1, *dynamics.grid, dynamics.channels).to(dtype)
    return _sample(dynamics, noise, predict, sampling)


def sample_latent_clip(
    dynamics: DiT, context: Tensor, action_embedding: Tensor, seed: Tensor, sampling: DiffusionSampling
) -> Tensor:
    """Sample all frames after the context jointly, for non-causal networks, which cannot stream.

    Args:
        dynamics: the network.
        context: [b, s, h, w, c], the first frames.
        action_embedding: [b, t, d], of the actions that led to each frame.
        seed: int64 [b], seeds of the noise.
        sampling: see ``DiffusionSampling``; guidance is not applied.

    Returns:
        Latents [b, t, h, w, c], the context first.
    """
    num_context, frames = context.shape[1], action_embedding.shape[1]
    noise = seeded_normal(seed, frames, *context.shape[2:]).to(context.dtype)
    past = make_noisy_context(
        dynamics, context, noise[:, :num_context], action_embedding[:, :num_context], sampling.context_noise
    )

    def predict(x: Tensor, signal: Tensor, step_index: Tensor | None) -> Tensor:
        clip = NoisyFrames(
            latents=torch.cat((past.latents, x), dim=1),
            signal=torch.cat((past.signal, signal), dim=1),
            step_index=None
            if step_index is None or past.step_index is None
            else torch.cat((past.step_index, step_index), dim=1),
            action_embedding=action_embedding,
        )
        return dynamics(clip).prediction[:, num_context:]

    return torch.cat((context, _sample(dynamics, noise[:, num_context:], predict, sampling)), dim=1)


PredictFn = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _sample(dynamics: DiT, x: Tensor, predict: PredictFn, sampling: DiffusionSampling) -> Tensor:
    """Denoise x from noise to data; ``predict(x, signal, step_index)`` is the network."""
    step_index = None
    if dynamics.num_step_sizes:
        halvings = (sampling.steps - 1).bit_length()
        step_index = torch.full(x.shape[:2], halvings, dtype=torch.int64, device=x.device)
    for level, next_level in pairwise(sampling_signal_levels(sampling.steps, sampling.shift)):
        signal, next_signal = (x.new_full(x.shape[:2], value) for value in (level, next_level))
        x = sampler_step(dynamics.prediction, x, predict(x, signal, step_index), signal, next_signal)
    return x
