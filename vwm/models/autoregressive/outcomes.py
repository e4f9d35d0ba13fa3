"""Predict reward and termination at the token of an action.

The transformer's output at an action has seen all frames up to the one at which it is taken, and the action. Two kinds
of heads: IRIS's, of the sign of the reward, and ``RewardTerminationHeads`` of its value.

Legend: b batch, t time, d width.
"""

from __future__ import annotations

from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.core.seeds import fold_in, seeded_uniform
from vwm.nn.outcome_heads import (
    TERMINATION_STREAM,
    RewardTerminationHeads,
    sample_outcomes,
    sign_termination_losses,
)

REWARD_STREAM = -5
"""Folded into a simulator's seed to sample its reward."""


class RewardSignHeads(ModelMixin, ConfigMixin):
    """Heads for the sign of the reward (3 classes) and for termination (2 classes), as in IRIS (arXiv 2209.00588).

    Args:
        width: d, width of the dynamics.
    """

    @register_to_config
    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.reward = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
        self.end = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the signs -1, 0 and 1, and of going on and ending: [b, t, d] -> [b, t, 3], [b, t, 2]."""
        return self.reward(features), self.end(features)

    def losses(
        self,
        features: Tensor,
        action_embedding: Tensor,
        reward: Tensor,
        terminated: Tensor | None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropies; see ``RewardTerminationHeads.losses``. The action is in the features already."""
        signs, ends = self(features)
        return sign_termination_losses(signs, ends, reward, terminated, known)


OutcomeHeads = RewardSignHeads | RewardTerminationHeads


def sample_action_outcomes(
    outcomes: OutcomeHeads | None, output: Tensor, action_embedding: Tensor, seed: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the reward, float32 [b], and sample the termination, bool [b]; zeros if there are no heads.

    ``RewardTerminationHeads`` give the expected reward; of ``RewardSignHeads``, it is sampled.

    Args:
        outcomes: the heads.
        output: float [b, d], the transformer's at the action.
        action_embedding: float [b, d].
        seed: int64 [b], seeds of the simulations.
        position: int64 [b], number of steps so far.
    """
    if not isinstance(outcomes, RewardSignHeads):
        return sample_outcomes(outcomes, output, action_embedding, seed, position)
    drawn = []
    for stream, logits in zip((REWARD_STREAM, TERMINATION_STREAM), outcomes(output.float()), strict=True):
        chance = seeded_uniform(fold_in(fold_in(seed, stream), position))
        drawn.append((chance[:, None] > logits.float().softmax(-1).cumsum(-1)[:, :-1]).sum(-1))
    return drawn[0].float() - 1, drawn[1] > 0
