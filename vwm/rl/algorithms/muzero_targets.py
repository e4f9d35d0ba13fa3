"""Targets of MuZero's model on a sequence from replay, which may extend past the end of an episode.

After a terminal state every action leads, with reward 0, to a state of value 0 (an absorbing state). After a truncated
episode there are no targets. ``reward[t]`` arrived together with ``observation[t]``.

Legend: b batch, t time, u unrolled steps, n steps of a return, a actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.checks import check_not_negative, check_positive


@dataclass(frozen=True)
class MuZeroTargetConfig:
    """How targets are made.

    Attributes:
        unroll_steps: u, steps of the model that are trained together.
        td_steps: n, rewards that are added up before bootstrapping from a root's value.
        discount: per step, also in the search.
        bootstrap_from_network: bootstrap from the current network's values instead of the roots' values at the time of
            acting, which come from older networks.
        reanalyze_fraction: fraction of the sequences whose policies and values are searched again with the current
            network.
        target_interval: updates after which the network that values and searches for targets come from is a new copy
            of the trained one; 0 takes the trained network itself.
        staleness_fraction: EfficientZero's off-policy correction: n of a time step is shorter by 1 for every such
            fraction of all updates that were made since it was acted in, and 1 at least (the paper's tau is 0.3);
            0 keeps n.
        sign_rewards: learn the signs of rewards, as on Atari.

    Raises:
        ValueError: a value is out of range.
    """

    unroll_steps: int = 5
    td_steps: int = 5
    discount: float = 0.997
    bootstrap_from_network: bool = False
    reanalyze_fraction: float = 0.0
    target_interval: int = 0
    staleness_fraction: float = 0.0
    sign_rewards: bool = False

    def __post_init__(self) -> None:
        check_positive(unroll_steps=self.unroll_steps, td_steps=self.td_steps)
        check_not_negative(target_interval=self.target_interval)
        for name in ("discount", "reanalyze_fraction", "staleness_fraction"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {value}")


class MuZeroTargets(NamedTuple):
    """Targets at the root and after each of u steps; masks are float, 1 where the target counts.

    Attributes:
        value, value_mask: [b, u + 1].
        policy, policy_mask: [b, u + 1, a] and [b, u + 1].
        reward, reward_mask: [b, u], of the steps.
        observation_mask: [b, u], 1 where the step's observation belongs to the same episode.
        action_valid: bool [b, u], whether the step's action was taken; the actions after the end of an episode are
            meaningless.
    """

    value: Tensor
    value_mask: Tensor
    policy: Tensor
    policy_mask: Tensor
    reward: Tensor
    reward_mask: Tensor
    observation_mask: Tensor
    action_valid: Tensor


def make_muzero_targets(
    reward: Tensor,
    is_first: Tensor,
    is_last: Tensor,
    is_terminal: Tensor,
    policy: Tensor,
    value: Tensor,
    config: MuZeroTargetConfig,
    td_steps: Tensor | None = None,
) -> MuZeroTargets:
    """Make targets of sequences that start at the time step of the root.

    Args:
        reward, is_first, is_last, is_terminal: [b, u + n + 1], see ``TimeStep``.
        policy: [b, u + n + 1, a], the search policies.
        value: [b, u + n + 1], the values of the search roots.
        config: see its class.
        td_steps: int64 [b, u + 1], shorter numbers of rewards, 1..n; None takes n.

    Returns:
        z[t] = sum of discount**(i - 1) reward[t + i] for i = 1..k + discount**k value[t + k], where k is n (or that of
        ``td_steps``) or, if the episode ends sooner, the number of steps to its last time step; the value of a terminal
        time step is 0.
    """
    u, n = config.unroll_steps, config.td_steps
    length = reward.shape[1]
    assert length == u + n + 1, (length, u, n)
    is_end = is_last.clone()
    is_end[:, :-1] |= is_first[:, 1:]
    after_end = is_end.cumsum(1) - is_end.long() > 0
    absorbing = (is_terminal & ~after_end).cumsum(1) > 0  # the terminal state and all time steps after it
    time = torch.arange(length, device=reward.device)
    end = torch.where(is_end & ~after_end, time, length - 1).amin(1, keepdim=True)
    steps = time[: u + 1]
    bootstrap = torch.minimum(steps + (n if td_steps is None else td_steps), end)
    num_rewards = (bootstrap - steps).clamp(min=0)
    reward = torch.where(after_end, 0, reward)
    value = torch.where(absorbing, 0, value)
    returns = config.discount ** num_rewards.to(value.dtype) * value.gather(1, bootstrap)
    for i in range(1, n + 1):
        term = config.discount ** (i - 1) * reward[:, i : i + u + 1]
        returns = returns + (term if td_steps is None else torch.where(td_steps >= i, term, 0))
    before_end = ~(after_end | is_end)[:, : u + 1]
    return MuZeroTargets(
        value=torch.where(before_end, returns, 0),
        value_mask=(before_end | absorbing[:, : u + 1]).to(value.dtype),
        policy=policy[:, : u + 1],
        policy_mask=before_end.to(value.dtype),
        reward=reward[:, 1 : u + 1],
        reward_mask=(~after_end | absorbing)[:, 1 : u + 1].to(value.dtype),
        observation_mask=(~after_end)[:, 1 : u + 1].to(value.dtype),
        action_valid=before_end[:, :u],
    )


def value_prefix_targets(reward: Tensor, horizon: int) -> Tensor:
    """Return sums of rewards [b, u] that restart after every ``horizon`` steps: EfficientZero's value prefix."""
    return torch.cat([part.cumsum(1) for part in reward.split(horizon, dim=1)], dim=1)


def corrected_td_steps(collected: Tensor, updates: Tensor, config: MuZeroTargetConfig) -> Tensor:
    """Return EfficientZero's n - floor(age / (tau total)), 1 at least, for time steps: int64 [b, t].

    Args:
        collected: int64 [b, t], updates that had been made when each time step was acted in.
        updates: int64 [2], updates that have been made, and the total of the run; with a total of 0 (unknown), n stays.
        config: n, and tau as ``staleness_fraction``.
    """
    made, total = updates.unbind()
    age = (made - collected).clamp(min=0).double()
    shorter = (age / (config.staleness_fraction * total.double()).clamp(min=1e-9)).floor()
    shorter = torch.where(total > 0, shorter, 0)
    return (config.td_steps - shorter).clamp(min=1).long()
