"""Branched rollouts (MBPO, Janner et al., arXiv 1906.08253): short ones in a model that begin in states from replay.

Legend: b batch, n steps, m members of an ensemble, e elite ones, k size of an observation, a dimensions of an action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vwm.core.checks import check_not_negative, check_positive
from vwm.models.pets.network import ProbabilisticEnsemble
from vwm.rl.transitions import Transitions


@dataclass(frozen=True)
class RolloutLengthSchedule:
    """The number of steps of a rollout, which grows linearly with the number of updates.

    Attributes:
        first, last: the number before update ``begin`` and after update ``end``.
        begin, end: updates between which it grows.

    Raises:
        ValueError: a value is out of range, or the number would shrink.
    """

    first: int = 1
    last: int = 1
    begin: int = 0
    end: int = 0

    def __post_init__(self) -> None:
        check_positive(first=self.first)
        check_not_negative(begin=self.begin)
        if self.last < self.first or self.end < self.begin:
            raise ValueError(
                f"rollouts grow from first={self.first} at begin={self.begin} to last={self.last} at end={self.end}: "
                "neither may shrink"
            )

    def length(self, updates: int) -> int:
        """Return the number of steps after a number of updates, rounded down."""
        if updates >= self.end:
            return self.last
        share = max(0, updates - self.begin) / (self.end - self.begin)
        return int(self.first + share * (self.last - self.first))


def branch_rollouts(
    start: Tensor,
    steps: int,
    act: Callable[[Tensor], Tensor],
    predict: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
) -> tuple[Transitions, Tensor]:
    """Follow a policy in a model.

    Args:
        start: float [b, k], observations from replay.
        steps: n.
        act: draws actions [b, a] at observations [b, k].
        predict: draws next observations [b, k], rewards [b] and terminations bool [b] for observations and actions.

    Returns:
        The transitions, [n b], those of the first step first; and bool [n b], False for those after a termination,
        which count for nothing.
    """
    rows: list[Transitions] = []
    counts: list[Tensor] = []
    observation = start
    running = torch.ones(len(start), dtype=torch.bool, device=start.device)
    for _ in range(steps):
        action = act(observation)
        following, reward, terminal = predict(observation, action)
        rows.append(Transitions(observation, action, reward, following, terminal))
        counts.append(running)
        running = running & ~terminal
        observation = following
    return Transitions(*(torch.cat(parts) for parts in zip(*rows, strict=True))), torch.cat(counts)


def predict_by_members(
    ensemble: ProbabilisticEnsemble, elites: Tensor, observation: Tensor, action: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw what follows from one of the elite members, another one for each row.

    Args:
        ensemble: predicts.
        elites: int64 [e], numbers of members.
        observation: float [b, k].
        action: float [b, a].

    Returns:
        The next observations [b, k], the rewards [b], and whether the episode terminates, bool [b]: where the member
        holds that for likelier than not.
    """
    rows = torch.arange(len(observation), device=observation.device)
    member = elites[torch.randint(len(elites), (len(observation),), device=observation.device)]
    inputs = ensemble.inputs(observation, action).expand(ensemble.members, -1, -1)
    mean, log_variance, logit = (part[member, rows] for part in ensemble(inputs))
    drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    return observation + drawn[:, :-1], drawn[:, -1], logit > 0
