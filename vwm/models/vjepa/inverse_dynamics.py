"""Which action led from one frame's latent to the next one's: a question that makes an encoder see what actions move.

PLDM (arXiv 2502.14819, section 3.2) has it among its terms; without it features that never change within an episode are
the easiest to predict.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InverseDynamicsModel(nn.Module):
    """A perceptron from two latents to the action between them.

    Args:
        latent_width: D of the latents [b, t, n, D], whose n tokens are averaged.
        choices: sizes of the discrete parts of actions; see ``vwm.nn.actions.ActionEmbedding``.
        dims: dimensions of their continuous part.
        hidden: width of the two hidden layers.
    """

    def __init__(self, latent_width: int, choices: list[int], dims: int, hidden: int = 128) -> None:
        super().__init__()
        self.choices, self.dims = list(choices), dims
        self.layers = nn.Sequential(
            nn.Linear(2 * latent_width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, sum(choices) + dims),
        )  # fmt: skip

    def forward(self, latents: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """The mean loss a known action: cross-entropy of discrete parts, squared error of continuous ones.

        Args:
            latents: [b, t, n, D].
            actions: [b, t - 1] or [b, t - 1, a], those between them.
            known: bool [b, t - 1].
        """
        flat = latents.mean(dim=2)
        said = self.layers(torch.cat((flat[:, :-1], flat[:, 1:]), dim=-1)).float()
        *logits, vector = said.split([*self.choices, self.dims], dim=-1)
        parts = actions[..., None] if actions.ndim == 2 else actions
        losses = [
            F.cross_entropy(logit.flatten(0, 1), parts[..., i].long().flatten(), reduction="none").view_as(known)
            for i, logit in enumerate(logits)
        ]
        if self.dims:
            losses.append((vector - parts[..., len(self.choices) :]).square().mean(dim=-1))
        return masked_mean(torch.stack(losses).sum(dim=0), known)


def masked_mean(losses: Tensor, known: Tensor) -> Tensor:
    """The mean of losses [b, t] where ``known``; 0 where nothing is."""
    return (losses * known).sum() / known.sum().clamp(min=1)
