"""Predict the action between two frames from their latents, so that the encoder represents what actions change.

A term of the loss of PLDM (arXiv 2502.14819, section 3.2). Without it, features that are constant within an episode are
the easiest to predict.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.action_parts import ActionPart
from vwm.core.spaces import ActionSpace
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import masked_mean


class InverseDynamicsModel(nn.Module):
    """MLP from two consecutive latents to the action between them.

    Args:
        latent_width: D of the latents [b, t, n, D], whose n tokens are averaged.
        space: the actions.
        hidden: width of the two hidden layers.
    """

    def __init__(self, latent_width: int, space: ActionSpace, hidden: int = 128) -> None:
        super().__init__()
        kind = "choice" if space.is_discrete else "axes"
        self.parts = space.parts or (ActionPart(kind, space.size),)
        self.layers = nn.Sequential(
            nn.Linear(2 * latent_width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, sum(part.size for part in self.parts)),
        )  # fmt: skip

    def forward(self, latents: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """Return the mean loss of known actions: the sum of the losses of their parts.

        It is cross-entropy for choices and keys, and the squared error for axes and pointers.

        Args:
            latents: [b, t, n, D].
            actions: [b, t - 1] or [b, t - 1, a], the actions between the frames.
            known: bool [b, t - 1], whether an action is known.
        """
        x = latents.mean(dim=2)
        outputs = at_least_float32(self.layers(torch.cat((x[:, :-1], x[:, 1:]), dim=-1)))
        columns = (actions[..., None] if actions.ndim == 2 else actions).split(
            [part.columns for part in self.parts], dim=-1
        )
        losses = [
            _part_loss(part, output, column)
            for part, output, column in zip(
                self.parts, outputs.split([part.size for part in self.parts], dim=-1), columns, strict=True
            )
        ]
        return masked_mean(torch.stack(losses).sum(dim=0), known)


def _part_loss(part: ActionPart, output: Tensor, column: Tensor) -> Tensor:
    """Loss [b, t] of the outputs [b, t, size] for the columns of a part."""
    if part.kind == "choice":
        return F.cross_entropy(output.flatten(0, 1), column.long().flatten(), reduction="none").view(output.shape[:2])
    if part.kind == "keys":
        return F.binary_cross_entropy_with_logits(output, column.to(output.dtype), reduction="none").mean(dim=-1)
    return (output - column).square().mean(dim=-1)
