"""Sample the tokens of a frame by iterative decoding (MaskGIT, arXiv 2202.04200, section 3.2).

Legend: b batch, n tokens per frame, k codebook size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_uniform
from vwm.models.genie.dynamics import MaskGITDynamics, MaskGITState
from vwm.nn.categorical_sampling import inverse_transform


class MaskGITSampling(NamedTuple):
    """Settings for sampling the tokens of a frame.

    The defaults are less random than in the papers, because for small models the tail of the distribution is mostly
    error.

    Attributes:
        steps: number of MaskGIT steps per frame (Genie: 25).
        temperature: temperature of the token distribution (Genie: 1); 0 takes the most likely token.
        choice_temperature: scale of the Gumbel noise on the order in which tokens are fixed, annealed to 0 over the
            steps; 0 orders them by confidence (MaskGIT: 4.5).
    """

    steps: int = 8
    temperature: float = 0.5
    choice_temperature: float = 1.0


def sample_token_frame(
    dynamics: MaskGITDynamics, state: MaskGITState, actions: Tensor | None, seed: Tensor, sampling: MaskGITSampling
) -> tuple[MaskGITState, Tensor]:
    """Sample the next frame and add it to the state.

    Args:
        dynamics: the network.
        state: the state after the frames so far.
        actions: the r actions that lead to the new frame, [b, r] or [b, r, num_actions], where a latent holds r video
            frames; None if unknown.
        seed: int64 [b], random seeds.
        sampling: see ``MaskGITSampling``.

    Returns:
        The state after the new frame, and its tokens int64 [b, n].
    """
    tokens = sample_tokens(dynamics, state, actions, seed, sampling)
    return dynamics.observe(state, tokens[:, None], actions), tokens


def sample_tokens(
    dynamics: MaskGITDynamics, state: MaskGITState, actions: Tensor | None, seed: Tensor, sampling: MaskGITSampling
) -> Tensor:
    """Sample the tokens of the next frame, int64 [b, n], without advancing the state; see ``sample_token_frame``."""
    b, n, steps = len(seed), dynamics.tokens_per_frame, sampling.steps
    tokens = torch.full((b, 1, n), dynamics.mask_token, dtype=torch.int64, device=seed.device)
    for step in range(steps):
        logits = dynamics.predict_logits(state, tokens, actions)[:, 0].float()
        noise = seeded_uniform(fold_in(seed, step), 2, n)
        sampled, confidence = _sample_categorical(logits, noise[:, 0], sampling.temperature)
        masked = tokens[:, 0] == dynamics.mask_token
        sampled = torch.where(masked, sampled, tokens[:, 0])
        # Tokens fixed in earlier steps stay. Of the others, the least confident are masked again.
        gumbel = -torch.log(-torch.log(noise[:, 1]))
        confidence = confidence + sampling.choice_temperature * (1 - (step + 1) / steps) * gumbel
        confidence = confidence.masked_fill(~masked, float("inf"))
        again = smallest(confidence, masked_token_count(n, step + 1, steps))
        tokens = sampled.masked_fill(again, dynamics.mask_token)[:, None]
    return tokens[:, 0]


def smallest(values: Tensor, count: int) -> Tensor:
    """Return which are the ``count`` smallest of values [b, n], of equal ones the first: bool [b, n].

    By a threshold and not by sorting, which takes a GPU many more passes.
    """
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.kthvalue(count, dim=-1, keepdim=True).values
    below, equal = values < threshold, values == threshold
    missing = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1) <= missing))


def masked_token_count(tokens: int, step: int, steps: int) -> int:
    """Number of ``tokens`` still masked after ``step`` of ``steps``, by MaskGIT's cosine schedule; 0 at the end."""
    return int(tokens * math.cos(math.pi / 2 * step / steps))


def _sample_categorical(logits: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample codes: logits [b, n, k], noise [b, n] -> tokens and log-probabilities, each [b, n]."""
    log_p = (logits / temperature).log_softmax(-1) if temperature > 0 else logits.log_softmax(-1)
    sampled = inverse_transform(log_p.exp(), noise) if temperature > 0 else log_p.argmax(-1)
    return sampled, log_p.gather(-1, sampled[..., None]).squeeze(-1)
