"""Drawing frames: one at a time from cached keys and values, or a whole clip at once.

Legend: b batch, t time, h w c of the latents, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_normal
from vwm.models.dit.network import DiT, NoisyFrames
from vwm.models.dit.noise_schedule import add_noise, sampler_step, sampling_signal_levels
from vwm.nn.space_time import TransformerState

CONTEXT_SEED_STREAM, FRAME_SEED_STREAM = -2, -3
"""What a world's seed is folded with for the noise of its past, and for its draws: the two must not be the same."""


class DiffusionSampling(NamedTuple):
    """How a frame is drawn.

    Attributes:
        steps: of the way from noise to data; of a shortcut model a power of two.
        context_noise: share of noise in the past that the network looks at (Dreamer 4: 0.1; the stabilisation level
            of diffusion forcing). It keeps small slips of one frame from growing over the next.
        guidance: how far to go beyond what the action alone asks for (classifier-free guidance, arXiv 2207.12598,
            eq. 6); 1 does not, and other values cost a second pass a step.
        shift: see ``vwm.models.dit.noise_schedule.sampling_signal_levels``.
    """

    steps: int = 4
    context_noise: float = 0.1
    guidance: float = 1.0
    shift: float = 1.0


def check_diffusion_sampling(dynamics: DiT, sampling: DiffusionSampling) -> None:
    """Raise ValueError where a network cannot be sampled like this."""
    if sampling.steps < 1 or not 0 <= sampling.context_noise < 1:
        raise ValueError(f"steps must be 1 or more and context_noise in [0, 1), got {sampling}")
    if dynamics.num_step_sizes:
        allowed = [2**i for i in range(dynamics.num_step_sizes)]
        if sampling.steps not in allowed:
            raise ValueError(f"steps={sampling.steps} must be one of {allowed}, which this network learned")
        if sampling.shift != 1:
            raise ValueError(f"shift={sampling.shift} must be 1: a shortcut model takes equal steps")


def observe_latents(
    dynamics: DiT, state: TransformerState, latents: Tensor, lead: Tensor, seed: Tensor, context_noise: float
) -> tuple[TransformerState, Tensor]:
    """Take whole frames into the state, with the context's noise.

    Args:
        dynamics: the network.
        state: of the frames before.
        latents: [b, t, h, w, c].
        lead: [b, t, d], the actions that led to them.
        seed: int64 [b], of the noise of each world; a frame's noise also depends on its number in the world.
        context_noise: see ``DiffusionSampling``.

    Returns:
        The state, and the last frame's features [b, d].
    """
    frames = latents.shape[1]
    numbers = state.position[:, None] + torch.arange(frames, device=latents.device)
    each = fold_in(seed[:, None], numbers).flatten()
    noise = seeded_normal(each, *latents.shape[2:]).to(latents.dtype).unflatten(0, (-1, frames))
    state, out = dynamics.step(state, make_noisy_context(dynamics, latents, noise, lead, context_noise))
    return state, out.features[:, -1]


def make_noisy_context(
    dynamics: DiT, latents: Tensor, noise: Tensor, lead: Tensor, context_noise: float
) -> NoisyFrames:
    """Whole frames [b, t, h, w, c] as they are looked back at in play: mixed with some of the noise, and said to be."""
    signal = latents.new_full(latents.shape[:2], 1 - context_noise)
    return NoisyFrames(
        add_noise(dynamics.prediction, latents, noise, signal), signal, finest_step_index(dynamics, signal), lead
    )


def finest_step_index(dynamics: DiT, signal: Tensor) -> Tensor | None:
    """The finest step size for every frame, which is what a past frame is given."""
    if not dynamics.num_step_sizes:
        return None
    return torch.full(signal.shape, dynamics.num_step_sizes - 1, dtype=torch.int64, device=signal.device)


def sample_latent_frame(
    dynamics: DiT, state: TransformerState, lead: Tensor, seed: Tensor, sampling: DiffusionSampling
) -> Tensor:
    """The next frame of each world; the state stays as it was.

    Args:
        dynamics: the network.
        state: of the frames so far.
        lead: [b, 1, d], the action that leads to the new frame.
        seed: int64 [b], what the draw is a function of, besides state and action.
        sampling: see ``DiffusionSampling``.

    Returns:
        Latents [b, 1, h, w, c].
    """

    def say(x: Tensor, signal: Tensor, step: Tensor | None) -> Tensor:
        said = dynamics.look(state, NoisyFrames(x, signal, step, lead))
        if sampling.guidance == 1:
            return said
        nobody = dynamics.lead(None, len(x), 1).to(lead.dtype)
        free = dynamics.look(state, NoisyFrames(x, signal, step, nobody)).to(x.dtype)
        return free + sampling.guidance * (said.to(x.dtype) - free)

    # A network in bfloat16 says where to go; the way itself is added up in float32.
    noise = seeded_normal(seed, 1, *dynamics.grid, dynamics.channels).to(torch.promote_types(lead.dtype, torch.float32))
    return _denoise(dynamics, noise, say, sampling)


def sample_latent_clip(
    dynamics: DiT, context: Tensor, lead: Tensor, seed: Tensor, sampling: DiffusionSampling
) -> Tensor:
    """All frames of clips together, after given ones: for networks that look both ways, which cannot stream.

    Args:
        dynamics: the network.
        context: [b, s, h, w, c], the first frames.
        lead: [b, t, d], the actions that led to each frame.
        seed: int64 [b].
        sampling: see ``DiffusionSampling``; no guidance.

    Returns:
        Latents [b, t, h, w, c], the context first.
    """
    shown, frames = context.shape[1], lead.shape[1]
    noise = seeded_normal(seed, frames, *context.shape[2:]).to(context.dtype)
    signal = context.new_full((len(context), shown), 1 - sampling.context_noise)
    past = add_noise(dynamics.prediction, context, noise[:, :shown], signal)

    def say(x: Tensor, level: Tensor, step: Tensor | None) -> Tensor:
        levels = torch.cat((signal, level), dim=1)
        of_past = finest_step_index(dynamics, signal)
        steps = None if step is None or of_past is None else torch.cat((of_past, step), dim=1)
        return dynamics(NoisyFrames(torch.cat((past, x), dim=1), levels, steps, lead)).prediction[:, shown:]

    return torch.cat((context, _denoise(dynamics, noise[:, shown:], say, sampling)), dim=1)


DenoiseStepFn = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _denoise(dynamics: DiT, x: Tensor, say: DenoiseStepFn, sampling: DiffusionSampling) -> Tensor:
    """From noise to data; ``say(x, signal, step)`` is the network."""
    grid = sampling_signal_levels(sampling.steps, sampling.shift)
    halvings = (sampling.steps - 1).bit_length()
    step = None
    if dynamics.num_step_sizes:
        step = torch.full(x.shape[:2], halvings, dtype=torch.int64, device=x.device)
    for here, onward in pairwise(grid):
        signal = x.new_full(x.shape[:2], here)
        x = sampler_step(dynamics.prediction, x, say(x, signal, step), signal, x.new_full(x.shape[:2], onward))
    return x
