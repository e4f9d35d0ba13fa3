"""Targets of MuZero's model on a sequence from replay, which may extend past the end of an episode.

After a terminal state every action leads, with reward 0, to a state of value 0 (an absorbing state). After a truncated
episode there are no targets. ``reward[t]`` arrived together with ``observation[t]``.

Legend: b batch, t time, u unrolled steps, a actions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MuZeroTargets(NamedTuple):
    """Targets at the root and after each of u steps; masks are float, 1 where the target counts.

    Attributes:
        value, value_mask: [b, u + 1].
        policy, policy_mask: [b, u + 1, a] and [b, u + 1].
        reward, reward_mask: [b, u], of the steps.
        observed: [b, u], 1 where the step's observation belongs to the same episode.
        acted: bool [b, u], whether the step's action was taken; the actions after the end of an episode are
            meaningless.
    """

    value: Tensor
    value_mask: Tensor
    policy: Tensor
    policy_mask: Tensor
    reward: Tensor
    reward_mask: Tensor
    observed: Tensor
    acted: Tensor


def make_muzero_targets(
    reward: Tensor,
    is_first: Tensor,
    is_last: Tensor,
    is_terminal: Tensor,
    policy: Tensor,
    value: Tensor,
    unroll: int,
    td: int,
    discount: float,
) -> MuZeroTargets:
    """Make targets of sequences that start at the time step of the root.

    Args:
        reward, is_first, is_last, is_terminal: [b, unroll + td + 1], see ``TimeStep``.
        policy: [b, unroll + td + 1, a], the search policies; likewise ``value``, the values of their roots.
        unroll: u.
        td: rewards added up before bootstrapping from a root's value (n-step).
        discount: per step.

    Returns:
        z[t] = sum of discount**(i - 1) reward[t + i] for i = 1..n + discount**n value[t + n], where n is ``td`` or, if
        the episode ends sooner, the number of steps to its last time step; the value of a terminal time step is 0.
    """
    length = reward.shape[1]
    assert length == unroll + td + 1, (length, unroll, td)
    last = is_last.clone()
    last[:, :-1] |= is_first[:, 1:]
    after = last.cumsum(1) - last.long() > 0
    terminal = is_terminal & ~after
    absorbed = terminal.cumsum(1) > 0  # from the end of the world on
    place = torch.arange(length, device=reward.device)
    end = torch.where(last & ~after, place, length - 1).amin(1, keepdim=True)
    steps = place[: unroll + 1]
    bootstrap = torch.minimum(steps + td, end)
    n = (bootstrap - steps).clamp(min=0)
    earned = torch.where(after, 0, reward)
    returns = value.new_tensor(discount) ** n * torch.where(absorbed, 0, value).gather(1, bootstrap)
    for i in range(1, td + 1):
        returns = returns + discount ** (i - 1) * earned[:, i : i + unroll + 1]
    going, over = (~(after | last))[:, : unroll + 1], absorbed[:, : unroll + 1]
    return MuZeroTargets(
        value=torch.where(going, returns, 0),
        value_mask=(going | over).to(value.dtype),
        policy=policy[:, : unroll + 1],
        policy_mask=going.to(value.dtype),
        reward=earned[:, 1 : unroll + 1],
        reward_mask=(~after | absorbed)[:, 1 : unroll + 1].to(value.dtype),
        observed=(~after)[:, 1 : unroll + 1].to(value.dtype),
        acted=going[:, :unroll],
    )


def value_prefix_targets(reward: Tensor, every: int) -> Tensor:
    """Return sums of rewards [b, u] that restart after every ``every`` steps: EfficientZero's value prefix."""
    return torch.cat([part.cumsum(1) for part in reward.split(every, dim=1)], dim=1)
