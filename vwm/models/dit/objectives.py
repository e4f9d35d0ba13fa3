"""Training objectives of the diffusion transformer: flow matching, v-prediction, shortcut forcing.

Each samples one signal level per frame (diffusion forcing, arXiv 2407.01392), adds noise accordingly, and compares the
prediction of the network with its target.

Legend: b batch, t time, h w c of the latents.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor

from vwm.core.process_group import rank_count
from vwm.models.dit.network import DiT
from vwm.models.dit.noise_schedule import add_noise, prediction_target
from vwm.nn.clip_draws import draw_integers, draw_normal, draw_normal_like, draw_share_of_clips, draw_uniform
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import mean_over_ranks

MODE_SCALE = 1.29
"""s of the density ``mode`` that SD3 trains best with."""


class DenoiserFn(Protocol):
    """The network applied to noisy frames of selected clips of a batch."""

    def __call__(self, x: Tensor, signal: Tensor, step_index: Tensor | None, clips: slice | Tensor) -> Tensor:
        """x [b, t, h, w, c], signal [b, t] and step_index int64 [b, t] of ``clips`` -> prediction, shaped like x.

        ``clips`` are all, or the indices of some, int64.
        """


class DiffusionObjective(ABC):
    """A loss for latent frames.

    Attributes:
        shift: shift of the signal levels, also used in sampling; see ``noise_schedule.sampling_signal_levels``.
    """

    shift: float = 1.0

    @abstractmethod
    def check(self, dynamics: DiT) -> None:
        """Raise ValueError if the objective does not fit the network."""

    @abstractmethod
    def loss(self, predict: DenoiserFn, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of clean frames [b, t, h, w, c], and values to log."""


class DiffusionForcing(DiffusionObjective):
    """Flow matching or v-prediction at random signal levels.

    Args:
        prediction: ``velocity`` or ``clean`` (linear interpolation) or ``v`` (variance-preserving).
        density: distribution of the signal levels: ``uniform``, ``logit_normal`` or ``mode`` (SD3, arXiv 2403.03206,
            section 3.1, eqs. 19 and 20).
        logit_mean, logit_std: parameters of the logit-normal density.
        shift: above 1, noise levels are higher, as high-dimensional latents require (SD3, eq. 23). Sampling uses the
            same shift.
    """

    def __init__(
        self,
        prediction: Literal["velocity", "clean", "v"] = "velocity",
        density: Literal["uniform", "logit_normal", "mode"] = "logit_normal",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        shift: float = 1.0,
    ) -> None:
        self.prediction = prediction
        self.density = density
        self.logit_mean = logit_mean
        self.logit_std = logit_std
        self.shift = shift

    def check(self, dynamics: DiT) -> None:
        _check_prediction(self.prediction, dynamics)
        if dynamics.num_step_sizes:
            raise ValueError(f"dynamics.num_step_sizes={dynamics.num_step_sizes} is for ShortcutForcing: set 0")

    def loss(self, predict: DenoiserFn, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        noise = draw_normal_like(clean)
        signal = self.sample_signal(clean.shape[0], clean.shape[1], clean.device)
        x = add_noise(self.prediction, clean, noise, signal)
        prediction = at_least_float32(predict(x, signal, None, slice(None)))
        return (prediction - prediction_target(self.prediction, clean, noise, signal)).square().mean(), {}

    def sample_signal(self, batch: int, frames: int, device: torch.device) -> Tensor:
        """Sample signal levels, float [b, t]."""
        if self.density == "logit_normal":
            noise = (self.logit_mean + self.logit_std * draw_normal((batch, frames), device)).sigmoid()
        else:
            noise = draw_uniform((batch, frames), device)
            if self.density == "mode":
                noise = 1 - noise - MODE_SCALE * ((noise * math.pi / 2).cos().square() - 1 + noise)
        return 1 - self.shift * noise / (1 + (self.shift - 1) * noise)


class ShortcutForcing(DiffusionObjective):
    """Learn sampling steps of all sizes (Dreamer 4, arXiv 2509.24527, section 3.2; shortcut models, 2410.12557).

    The smallest steps learn from data to predict the clean frame. A larger step learns to match two steps of half the
    size by the network itself. Errors are measured on clean frames, which multiplies the squared velocity error of
    bootstrapped steps by (1 - tau)^2, and weighted by 0.9 tau + 0.1.

    Args:
        finest: number of the smallest steps from noise to data, a power of two.
        bootstrap: share of the clips that learn larger steps (two more passes each).

    Raises:
        ValueError: ``finest`` is not a power of two above 1, or ``bootstrap`` is not between 0 and 1.
    """

    prediction: Literal["clean"] = "clean"

    def __init__(self, finest: int = 64, bootstrap: float = 0.25) -> None:
        if finest < 2 or finest & (finest - 1):
            raise ValueError(f"finest={finest} must be a power of two")
        if not 0 <= bootstrap <= 1:
            raise ValueError(f"bootstrap={bootstrap} must be between 0 and 1")
        self.max_halvings = int(math.log2(finest))
        self.bootstrap = bootstrap

    def check(self, dynamics: DiT) -> None:
        _check_prediction(self.prediction, dynamics)
        if dynamics.num_step_sizes != self.max_halvings + 1:
            raise ValueError(
                f"finest={2**self.max_halvings} needs dynamics.num_step_sizes={self.max_halvings + 1}, "
                f"got {dynamics.num_step_sizes}"
            )

    def loss(self, predict: DenoiserFn, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        b, t = clean.shape[:2]
        chosen = torch.tensor(draw_share_of_clips(self.bootstrap, b), dtype=torch.int64, device=clean.device)
        is_bootstrapped = torch.zeros(b, dtype=torch.bool, device=clean.device).index_fill(0, chosen, True)
        drawn = draw_integers(self.max_halvings, (b, t), clean.device)
        halvings = torch.where(is_bootstrapped[:, None], drawn, self.max_halvings)
        # A step of size 2**-i starts at a multiple of its size.
        signal = (draw_uniform((b, t), clean.device) * 2.0**halvings).floor() / 2.0**halvings
        x = add_noise("clean", clean, draw_normal_like(clean), signal)
        target = clean
        if len(chosen):
            bootstrapped = self._bootstrap_target(predict, x[chosen], signal[chosen], halvings[chosen], chosen)
            target = clean.index_copy(0, chosen, bootstrapped.to(clean.dtype))
        elif self.bootstrap and rank_count() > 1:
            # Processes whose weights are sharded call the network equally often.
            first = chosen.new_zeros(1)
            self._bootstrap_target(predict, x[first], signal[first], (halvings - 1)[first], first)
        prediction = at_least_float32(predict(x, signal, halvings, slice(None)))
        error = (prediction - target).square().mean(dim=(2, 3, 4))
        loss = ((0.9 * signal + 0.1) * error).mean()
        logs = {}
        if self.bootstrap < 1:
            logs["flow_loss"] = _mean_of_clips(error.detach(), ~is_bootstrapped)
        if self.bootstrap:
            logs["bootstrap_loss"] = _mean_of_clips(error.detach(), is_bootstrapped)
        return loss, logs

    @torch.no_grad()
    def _bootstrap_target(
        self, predict: DenoiserFn, x: Tensor, signal: Tensor, halvings: Tensor, clips: Tensor
    ) -> Tensor:
        """Return the clean frames to which the mean velocity of two half steps leads, [b, t, h, w, c]."""

        def expand(level: Tensor) -> Tensor:
            return level[..., None, None, None]

        half_step = 0.5 ** (halvings + 1)
        velocity1 = (at_least_float32(predict(x, signal, halvings + 1, clips)) - x) / expand(1 - signal)
        middle = x + velocity1 * expand(half_step)
        middle_signal = signal + half_step
        velocity2 = (at_least_float32(predict(middle, middle_signal, halvings + 1, clips)) - middle) / expand(
            1 - middle_signal
        )
        return x + (velocity1 + velocity2) / 2 * expand(1 - signal)


def _mean_of_clips(error: Tensor, clips: Tensor) -> Tensor:
    """Mean of errors [b, t] over the clips of all processes where bool [b] is True; not a number if it is nowhere."""
    selected = clips[:, None].to(error.dtype)
    return mean_over_ranks((error * selected).sum()) / mean_over_ranks(selected.sum() * error.shape[1])


def _check_prediction(prediction: str, dynamics: DiT) -> None:
    if dynamics.prediction != prediction:
        raise ValueError(f"dynamics.prediction={dynamics.prediction!r}, but the objective needs {prediction!r}")
