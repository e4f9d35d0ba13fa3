"""Map the true actions of an environment to the latent actions of a pretrained model.

A latent action model labels the transitions of a few episodes with known actions. The map is initialized by how often
each latent action was inferred where a true one was taken, and then trained by the loss of the dynamics. (Genie, arXiv
2402.15391, section 3.3, maps each action to its most frequent latent action.)

Legend: a true actions, k latent actions, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LatentActionMap(nn.Module):
    """Embed a true action as a mixture of the embeddings of latent actions. Replaces the embedding of the dynamics.

    Args:
        num_actions: a.
        latents: the pretrained embedding, [k, d]; its ``requires_grad`` is not changed.

    Attributes:
        begun: bool [], whether the map was initialized with counts; until then all mixtures are uniform.

    Raises:
        ValueError: ``num_actions`` is below 1.
    """

    begun: Tensor

    def __init__(self, num_actions: int, latents: nn.Embedding) -> None:
        super().__init__()
        if num_actions < 1:
            raise ValueError(f"num_actions must be 1 or more, got {num_actions}")
        self.latents = latents
        self.logits = nn.Parameter(torch.zeros(num_actions, latents.num_embeddings))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def mixture_weights(self) -> Tensor:
        """Weight of each latent action in each true action: float [a, k]; each row sums to 1."""
        return self.logits.softmax(dim=-1)

    def forward(self, actions: Tensor) -> Tensor:
        """int64 [...] -> [..., d]."""
        return nn.functional.embedding(actions, self.mixture_weights() @ self.latents.weight)

    @torch.no_grad()
    def initialize(self, counts: Tensor) -> None:
        """Initialize by counts [a, k]: how often each latent action was inferred where a true action was taken.

        The counts of an action are smoothed by one additional count, which is distributed as the latent actions in all
        of the data. An action that was never seen therefore has the overall distribution.

        Raises:
            ValueError: ``counts`` has another shape.
        """
        if counts.shape != self.logits.shape:
            raise ValueError(
                f"counts must be {list(self.logits.shape)} (true actions x latent actions), got {list(counts.shape)}"
            )
        totals = counts.double().sum(dim=0) + 1 / counts.shape[1]
        self.logits.copy_((counts + totals / totals.sum()).log())
        self.begun.fill_(True)

    @torch.no_grad()
    def to_embedding(self) -> nn.Embedding:
        """Return an equivalent ``nn.Embedding`` of the true actions."""
        return nn.Embedding.from_pretrained(self.mixture_weights() @ self.latents.weight)


def count_action_pairs(actions: Tensor, latents: Tensor, shape: tuple[int, int]) -> Tensor:
    """Count pairs of true and latent actions, int64 of equal shape -> int64 [a, k]."""
    rows, columns = shape
    return torch.bincount((actions * columns + latents).flatten(), minlength=rows * columns).reshape(shape)
