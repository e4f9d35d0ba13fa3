"""Sample the tokens of a frame one after the other.

Legend: b batch, n tokens per frame, k codebook size, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_uniform
from vwm.models.autoregressive.dynamics import AutoregressiveDynamics, AutoregressiveState, FrameInProgress
from vwm.nn.categorical_sampling import inverse_transform


class TokenSampling(NamedTuple):
    """Settings for sampling tokens.

    Attributes:
        temperature: of the distribution of a token (IRIS: 1); 0 takes the most likely token.
        top_k: draw among so many most likely tokens; 0 among all (GAIA-1: 50).
        top_p: draw among the most likely tokens that together reach this probability, without the tail (nucleus
            sampling, arXiv 1904.09751); 1 among all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def check_token_sampling(sampling: TokenSampling) -> None:
    """Raise ValueError for settings out of range."""
    if type(sampling.top_k) is not int:
        raise ValueError(f"sampling.top_k must be a whole number, got {sampling.top_k!r}")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"sampling.top_p must be above 0 and at most 1, got {sampling.top_p!r}")


def sample_next_frame_tokens(
    dynamics: AutoregressiveDynamics, frame: FrameInProgress, output: Tensor, seed: Tensor, sampling: TokenSampling
) -> tuple[AutoregressiveState, Tensor, Tensor]:
    """Sample the tokens of a frame that was begun with its action.

    Args:
        dynamics: the network.
        frame, output: see ``AutoregressiveDynamics.begin_frame``.
        seed: int64 [b], random seeds.
        sampling: see ``TokenSampling``.

    Returns:
        The state after the frame, its tokens int64 [b, n], and its features float [b, d].
    """
    noise = seeded_uniform(seed, dynamics.tokens_per_frame)
    for place in range(dynamics.tokens_per_frame):
        logits = dynamics.token_logits(frame, output).float()
        frame, output = dynamics.add_token(frame, sample_token(logits, noise[:, place], sampling))
    state, features = dynamics.end_frame(frame)
    return state, state.tokens, features


def sample_next_frame(
    dynamics: AutoregressiveDynamics, state: AutoregressiveState, actions: Tensor, seed: Tensor, sampling: TokenSampling
) -> tuple[AutoregressiveState, Tensor]:
    """Sample the frame to which r actions [b, r, ...] lead: the state after it, and its tokens int64 [b, n]."""
    frame, output = dynamics.begin_frame(state, dynamics.embed_actions(actions)[:, 0])
    state, tokens, _ = sample_next_frame_tokens(dynamics, frame, output, fold_in(seed, 0), sampling)
    return state, tokens


def sample_token(logits: Tensor, noise: Tensor, sampling: TokenSampling) -> Tensor:
    """Draw a token: logits [b, k] and uniform noise [b] -> int64 [b]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return inverse_transform(token_probabilities(logits, sampling), noise)


def token_probabilities(logits: Tensor, sampling: TokenSampling) -> Tensor:
    """Return the probabilities from which a token is drawn: [b, k] -> [b, k], which sum to at most 1.

    The unlikely tokens that ``sampling`` excludes have 0; of equal ones at the limit, all are kept.
    """
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        lowest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    probabilities = logits.softmax(-1)
    if sampling.top_p == 1:
        return probabilities
    ordered = probabilities.sort(dim=-1, descending=True).values
    inside = ordered.cumsum(-1) - ordered < sampling.top_p
    lowest = torch.where(inside, ordered, 2.0).amin(-1, keepdim=True)
    return torch.where(probabilities >= lowest, probabilities, 0.0)
