"""An environment's true actions in the words of the latent ones that a world has learned.

A latent action model names every transition of a few labelled episodes; how often a latent action was inferred where a
true one was taken says what the true one is, up to what the state adds. From there the map learns with the dynamics'
loss. (Genie, arXiv 2402.15391, section 3.3, maps by such counts to the likeliest action alone.)

Legend: a true actions, k latent actions, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LatentActionMap(nn.Module):
    """Embeds a true action as a mixture of latent actions' embeddings; it stands where the embedding of those stood.

    Args:
        num_actions: a.
        latents: the pretrained embedding, [k, d]; it keeps whatever gradient it has.

    Attributes:
        begun: bool [], whether it has begun with counts; before, every true action is all latent ones alike.
    """

    begun: Tensor

    def __init__(self, num_actions: int, latents: nn.Embedding) -> None:
        super().__init__()
        if num_actions < 1:
            raise ValueError(f"num_actions must be 1 or more, got {num_actions}")
        self.latents = latents
        self.logits = nn.Parameter(torch.zeros(num_actions, latents.num_embeddings))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def mixture(self) -> Tensor:
        """The share of each latent action in each true one: float [a, k], rows of sum 1."""
        return self.logits.softmax(dim=-1)

    def forward(self, actions: Tensor) -> Tensor:
        """int64 [...] -> [..., d]."""
        return nn.functional.embedding(actions, self.mixture() @ self.latents.weight)

    @torch.no_grad()
    def begin(self, counts: Tensor) -> None:
        """Begin with what was counted: [a, k], how often each latent action was inferred where the true one was taken.

        An action that was seen once counts half its own latent action and half all actions', and one never seen is like
        them all: the counts are added to one count that is spread as the latent actions are over all of the data.
        """
        if counts.shape != self.logits.shape:
            raise ValueError(
                f"counts must be {list(self.logits.shape)} (true actions x latent actions), got {list(counts.shape)}"
            )
        together = counts.double().sum(dim=0) + 1 / counts.shape[1]
        self.logits.copy_((counts + together / together.sum()).log())
        self.begun.fill_(True)

    @torch.no_grad()
    def merged(self) -> nn.Embedding:
        """A plain embedding of the true actions that says the same."""
        return nn.Embedding.from_pretrained(self.mixture() @ self.latents.weight)


def count_action_pairs(actions: Tensor, latents: Tensor, shape: tuple[int, int]) -> Tensor:
    """How often true and latent actions come together: int64 of equal shape twice -> int64 [a, k]."""
    rows, columns = shape
    return torch.bincount((actions * columns + latents).flatten(), minlength=rows * columns).reshape(shape)
