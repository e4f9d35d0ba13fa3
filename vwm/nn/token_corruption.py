"""Replace some past tokens by random ones in training, so that a model becomes robust to its own errors."""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.nn.clip_draws import draw_integers, draw_uniform


def corrupt_tokens(tokens: Tensor, largest_share: float, codebook_size: int) -> Tensor:
    """Replace tokens int64 [b, t, n] by random codes.

    The share of a clip is uniform between 0 and ``largest_share``, so that the model also sees a nearly clean past.
    """
    if not largest_share:
        return tokens
    share = largest_share * draw_uniform((len(tokens), 1, 1), tokens.device)
    noise = draw_integers(codebook_size, tokens.shape, tokens.device)
    return torch.where(draw_uniform(tokens.shape, tokens.device) < share, noise, tokens)
