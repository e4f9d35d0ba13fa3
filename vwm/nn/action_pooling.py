"""Pool the actions of the frames of one latent.

Legend: b batch, t latents in time, k frames per latent, d width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ActionPoolingKind = Literal["learned", "mean", "concatenate"]


class ActionPooling(nn.Module):
    """Map the embeddings of k consecutive actions to one vector, linearly: [b, t, k, d] -> [b, t, d].

    Args:
        frames: k.
        width: d.
        kind: ``learned``, a sum weighted per frame and channel (a depthwise temporal convolution), which starts as the
            mean; ``mean``, in which the order of the actions is lost; ``concatenate``, a linear map of all k vectors
            (a full temporal convolution), with k d^2 weights.

    Raises:
        ValueError: an unknown ``kind``.
    """

    def __init__(self, frames: int, width: int, kind: ActionPoolingKind = "learned") -> None:
        super().__init__()
        if kind not in ("learned", "mean", "concatenate"):
            raise ValueError(f"action_pooling={kind!r} must be 'learned', 'mean' or 'concatenate'")
        self.frames = frames
        self.width = width
        self.weight = nn.Parameter(torch.full((frames, width), 1 / frames)) if kind == "learned" else None
        # Without a bias, so that k vectors of zeros give zeros.
        self.linear = nn.Linear(frames * width, width, bias=False) if kind == "concatenate" else None

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, k, d] -> [b, t, d]."""
        if self.linear is not None:
            return self.linear(x.flatten(2))
        return x.mean(dim=2) if self.weight is None else (x * self.weight).sum(dim=2)

    @torch.no_grad()
    def as_concatenation(self) -> ActionPooling:
        """Return the pooling of kind ``concatenate`` that gives the same vectors, from which it can learn more."""
        if self.linear is not None:
            return self
        mean = torch.full((self.frames, self.width), 1 / self.frames)
        weight: Tensor = mean if self.weight is None else self.weight
        wide = ActionPooling(self.frames, self.width, "concatenate")
        assert wide.linear is not None
        wide.linear.weight.copy_(torch.cat([torch.diag(row) for row in weight], dim=1))
        return wide.to(weight)


def pool_action_embeddings(pooling: ActionPooling | None, embedding: Tensor, unknown: Tensor) -> Tensor:
    """Pool the embeddings [b, t k, d] of the actions of t latents; without a pooling (k = 1), they are unchanged.

    Differences from the embedding of an unknown action (``unknown`` [d]) are pooled, so that k unknown actions give
    exactly that embedding, as for the first latent of a clip, whatever the pooling has learned.
    """
    if pooling is None:
        return embedding
    return unknown + pooling((embedding - unknown).unflatten(1, (-1, pooling.frames)))


def sum_outcomes(rewards: Tensor, terminated: Tensor | None, frames: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Sum the rewards per frame [b, t k] over the k frames after each latent, and say where the episode terminated.

    Rewards are NaN after the end of an episode (see ``ClipBatch``). Where it terminated, the sum is complete without
    them; where it was truncated, it is unknown, as is what follows an end.

    Returns:
        The rewards, float [b, t], 0 where they are unknown; bool [b, t], or None where ``terminated`` is None; and
        which outcomes are known, bool [b, t].
    """
    rewards = rewards.unflatten(1, (-1, frames))
    known = ~rewards.isnan().any(dim=2)
    if terminated is not None:
        terminated = terminated.unflatten(1, (-1, frames)).any(dim=2)
        known = known | terminated
    return rewards.nansum(dim=2), terminated, known


def check_actions_after_latents(actions: Tensor, latents: int, frames: int) -> None:
    """Raise ValueError unless each of the latents of a clip is followed by k actions; see ``ClipBatch``."""
    if actions.shape[1] != latents * frames:
        raise ValueError(
            f"outcomes and policies of {latents} latents of {frames} frames need {frames} actions after each, got "
            f"{actions.shape[1]}: set data.frames_per_latent={frames}"
        )
