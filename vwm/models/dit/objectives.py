"""What a diffusion transformer learns from: flow matching, v-prediction, shortcut forcing.

Each draws a signal level a frame (diffusion forcing, arXiv 2407.01392), mixes the frames with noise accordingly, asks
the network, and compares.

Legend: b batch, t time, h w c of the latents.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from vwm.models.dit.network import DiT
from vwm.models.dit.noise_schedule import add_noise, prediction_target


class DenoiserFn(Protocol):
    """The network, asked about frames of some of the batch's clips."""

    def __call__(self, x: Tensor, signal: Tensor, step: Tensor | None, clips: slice) -> Tensor:
        """x [b, t, h, w, c] at signal [b, t] and step int64 [b, t] -> what the network says, like x."""


class DiffusionObjective(ABC):
    """A loss over frames.

    Attributes:
        shift: of the signal levels, also used in sampling; see ``noise_schedule.sampling_signal_levels``.
    """

    shift: float = 1.0

    @abstractmethod
    def check(self, dynamics: DiT) -> None:
        """Raise ValueError where a network cannot learn from this."""

    @abstractmethod
    def loss(self, predict: DenoiserFn, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of frames [b, t, h, w, c], and what to log."""


class DiffusionForcing(DiffusionObjective):
    """Flow matching or v-prediction: say the direction at a random place of the way.

    Args:
        prediction: ``velocity`` or ``clean`` (the straight way) or ``v`` (the variance-preserving one).
        density: how signal levels are drawn: ``uniform``, ``logit_normal`` or ``mode`` (SD3, arXiv 2403.03206,
            section 3.1; diffusers' functions).
        logit_mean, logit_std: of the logit-normal density.
        shift: over 1 draws more noise, which latents of many values need (SD3, eq. 23). Samples take the same.
    """

    def __init__(
        self,
        prediction: Literal["velocity", "clean", "v"] = "velocity",
        density: Literal["uniform", "logit_normal", "mode"] = "logit_normal",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        shift: float = 1.0,
    ) -> None:
        self.prediction, self.density, self.shift = prediction, density, shift
        self.logit_mean, self.logit_std = logit_mean, logit_std

    def check(self, dynamics: DiT) -> None:
        _check_prediction(self.prediction, dynamics)
        if dynamics.num_step_sizes:
            raise ValueError(f"dynamics.num_step_sizes={dynamics.num_step_sizes} is for ShortcutForcing: set 0")

    def loss(self, predict: DenoiserFn, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn_like(clean)
        signal = self.draw(clean.shape[0], clean.shape[1], clean.device)
        said = predict(add_noise(self.prediction, clean, noise, signal), signal, None, slice(None)).float()
        return (said - prediction_target(self.prediction, clean, noise, signal)).square().mean(), {}

    def draw(self, batch: int, frames: int, device: torch.device) -> Tensor:
        """Signal levels, float [b, t]."""
        noise = compute_density_for_timestep_sampling(
            self.density, batch * frames, self.logit_mean, self.logit_std, mode_scale=1.29, device=device
        )
        noise = self.shift * noise / (1 + (self.shift - 1) * noise)
        return (1 - noise.to(device)).view(batch, frames)


class ShortcutForcing(DiffusionObjective):
    """Learn steps of every size at once (Dreamer 4, arXiv 2509.24527, section 3.2; shortcut models, 2410.12557).

    The finest steps learn from data: say the clean frame. A larger step learns to do in one what the network itself
    does in two of half the size. Everything is compared as clean frames, where a bootstrapped velocity's error counts
    (1 - tau)^2, and weighted by 0.9 tau + 0.1.

    Args:
        finest: steps of the whole way at their finest, a power of two.
        bootstrap: share of the clips that learn larger steps (two more passes each).
    """

    prediction: Literal["clean"] = "clean"

    def __init__(self, finest: int = 64, bootstrap: float = 0.25) -> None:
        if finest < 2 or finest & (finest - 1):
            raise ValueError(f"finest={finest} must be a power of two")
        if not 0 <= bootstrap <= 1:
            raise ValueError(f"bootstrap={bootstrap} must be between 0 and 1")
        self.halvings, self.bootstrap = int(math.log2(finest)), bootstrap

    def check(self, dynamics: DiT) -> None:
        _check_prediction(self.prediction, dynamics)
        if dynamics.num_step_sizes != self.halvings + 1:
            raise ValueError(
                f"finest={2**self.halvings} needs dynamics.num_step_sizes={self.halvings + 1}, "
                f"got {dynamics.num_step_sizes}"
            )

    def loss(self, predict: DenoiserFn, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        b, t = clean.shape[:2]
        larger = int(self.bootstrap * b + float(torch.rand(())))  # in small batches now and then
        halvings = torch.full((b, t), self.halvings, device=clean.device)
        halvings[:larger] = torch.randint(self.halvings, (larger, t), device=clean.device)
        # A step starts at a multiple of its size.
        signal = (torch.rand(b, t, device=clean.device) * 2.0**halvings).floor() / 2.0**halvings
        x = add_noise("clean", clean, torch.randn_like(clean), signal)
        aim = clean
        if larger:
            of = slice(0, larger)
            aim = torch.cat((self._bootstrap_target(predict, x[of], signal[of], halvings[of], of), clean[larger:]))
        said = predict(x, signal, halvings, slice(None)).float()
        error = (said - aim).square().mean(dim=(2, 3, 4))
        weighted = (0.9 * signal + 0.1) * error
        logs = {"flow_loss": error[larger:].mean().detach()} if larger < b else {}
        return weighted.mean(), logs | ({"bootstrap_loss": error[:larger].mean().detach()} if larger else {})

    @torch.no_grad()
    def _bootstrap_target(
        self, predict: DenoiserFn, x: Tensor, signal: Tensor, halvings: Tensor, clips: slice
    ) -> Tensor:
        """Where the mean velocity of two half steps would end: clean frames."""

        def wide(level: Tensor) -> Tensor:
            return level[..., None, None, None]

        half = 0.5 ** (halvings + 1)
        first = (predict(x, signal, halvings + 1, clips).float() - x) / wide(1 - signal)
        halfway, between = x + first * wide(half), signal + half
        second = (predict(halfway, between, halvings + 1, clips).float() - halfway) / wide(1 - between)
        return x + (first + second) / 2 * wide(1 - signal)


def _check_prediction(prediction: str, dynamics: DiT) -> None:
    if dynamics.prediction != prediction:
        raise ValueError(f"dynamics.prediction={dynamics.prediction!r}, but the objective needs {prediction!r}")
