"""Predict the action between two frames from their latents, so that the encoder represents what actions change.

A term of the loss of PLDM (arXiv 2502.14819, section 3.2). Without it, features that are constant within an episode are
the easiest to predict.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InverseDynamicsModel(nn.Module):
    """MLP from two consecutive latents to the action between them.

    Args:
        latent_width: D of the latents [b, t, n, D], whose n tokens are averaged.
        choices: numbers of choices of the discrete components of actions; see ``vwm.nn.actions.ActionEmbedding``.
        dims: number of continuous dimensions.
        hidden: width of the two hidden layers.
    """

    def __init__(self, latent_width: int, choices: list[int], dims: int, hidden: int = 128) -> None:
        super().__init__()
        self.choices = list(choices)
        self.dims = dims
        self.layers = nn.Sequential(
            nn.Linear(2 * latent_width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, sum(choices) + dims),
        )  # fmt: skip

    def forward(self, latents: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """Return the mean loss of known actions: cross-entropy if discrete, squared error if continuous.

        Args:
            latents: [b, t, n, D].
            actions: [b, t - 1] or [b, t - 1, a], the actions between the frames.
            known: bool [b, t - 1], whether an action is known.
        """
        x = latents.mean(dim=2)
        outputs = self.layers(torch.cat((x[:, :-1], x[:, 1:]), dim=-1)).float()
        *logits, vector = outputs.split([*self.choices, self.dims], dim=-1)
        components = actions[..., None] if actions.ndim == 2 else actions
        losses = [
            F.cross_entropy(logit.flatten(0, 1), components[..., i].long().flatten(), reduction="none").view_as(known)
            for i, logit in enumerate(logits)
        ]
        if self.dims:
            losses.append((vector - components[..., len(self.choices) :]).square().mean(dim=-1))
        return masked_mean(torch.stack(losses).sum(dim=0), known)


def masked_mean(losses: Tensor, mask: Tensor) -> Tensor:
    """Mean of losses [b, t] where ``mask`` is True; 0 if it is nowhere."""
    return (losses * mask).sum() / mask.sum().clamp(min=1)
