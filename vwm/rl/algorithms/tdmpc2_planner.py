"""TD-MPC2's planner: MPPI over latents, initialized with the last plan and the policy's proposals (arXiv 2310.16828).

``vwm.planning.mppi`` plans in any simulator, but it derives its noise from seeds, checks the actions of every step and
evaluates a final mean that is not needed here, which together cost as much as these small networks. This planner draws
all noise at once, computes what all sequences share (the first latent) once, and evaluates only the two members of the
Q ensemble that are used.

Legend: b problems, k sequences, p of them the policy's, e elites, i iterations, h steps of the horizon, a dimensions of
an action, d width of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.checks import check_positive
from vwm.models.tdmpc2.q_ensemble import QEnsemble
from vwm.models.tdmpc2.tanh_gaussian_policy import TanhGaussianPolicy
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel

HIGH_ACTION_DIMS, EXTRA_ITERATIONS = 20, 2
"""With at least this many action dimensions, the planner makes this many more iterations."""


@dataclass(frozen=True)
class TDMPC2PlannerConfig:
    """Settings of the planner.

    Attributes:
        horizon: h.
        samples: k, sequences per iteration.
        elites: e, the best sequences, which update the distribution.
        proposals: p, sequences of the policy among the k.
        iterations: i; two more where actions have 20 dimensions or more.
        min_std, max_std: bounds of the standard deviation; it starts at the larger one.
        temperature: elites are weighted by exp(temperature * value).

    Raises:
        ValueError: a setting is out of range.
    """

    horizon: int = 3
    samples: int = 512
    elites: int = 64
    proposals: int = 24
    iterations: int = 6
    min_std: float = 0.05
    max_std: float = 2.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        check_positive(horizon=self.horizon, samples=self.samples, elites=self.elites, iterations=self.iterations)
        if not 0 <= self.proposals <= self.samples or self.elites > self.samples:
            raise ValueError(
                f"proposals and elites must be {self.samples} (samples) at most, got {self.proposals} and {self.elites}"
            )
        if not (0 <= self.min_std <= self.max_std and self.max_std > 0 and self.temperature >= 0):
            raise ValueError(
                f"min_std must lie in 0..max_std, and max_std and temperature be positive, got {self.min_std}, "
                f"{self.max_std} and {self.temperature}"
            )

    def num_iterations(self, action_dims: int) -> int:
        """Return the number of iterations for actions of a given dimension."""
        return self.iterations + EXTRA_ITERATIONS * (action_dims >= HIGH_ACTION_DIMS)


class TDMPC2PlannerNoise(NamedTuple):
    """All noise of a plan; standard normal unless stated otherwise.

    Attributes:
        proposals: float [b, p, h, a].
        samples: float [i, b, k - p, h, a].
        final_actions: float [i, b, k, a], of the policy's action at the end of each sequence.
        member_pairs: int64 [i, 2], the members of the ensemble that evaluate the ends.
        elite: float [b, e], Gumbel noise that selects an elite.
        action: float [b, a].
    """

    proposals: Tensor
    samples: Tensor
    final_actions: Tensor
    member_pairs: Tensor
    elite: Tensor
    action: Tensor


def draw_planner_noise(
    config: TDMPC2PlannerConfig, critic: QEnsemble, batch: int, action_dims: int, like: Tensor
) -> TDMPC2PlannerNoise:
    """Draw a plan's noise from torch's generator, with the device and dtype of ``like``."""
    iterations = config.num_iterations(action_dims)
    drawn = config.samples - config.proposals

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=like.device, dtype=like.dtype)

    return TDMPC2PlannerNoise(
        proposals=normal(batch, config.proposals, config.horizon, action_dims),
        samples=normal(iterations, batch, drawn, config.horizon, action_dims),
        final_actions=normal(iterations, batch, config.samples, action_dims),
        member_pairs=critic.sample_member_pair(iterations),
        elite=-like.new_empty(batch, config.elites).exponential_().log(),
        action=normal(batch, action_dims),
    )


class TDMPC2Planner:
    """Searches for action sequences of high value.

    Args:
        world, policy, critic: the networks.
        discount: of rewards, per step.
        config: see ``TDMPC2PlannerConfig``.
    """

    def __init__(
        self,
        world: TDMPC2WorldModel,
        policy: TanhGaussianPolicy,
        critic: QEnsemble,
        discount: float,
        config: TDMPC2PlannerConfig,
    ) -> None:
        self.world = world
        self.policy = policy
        self.critic = critic
        self.discount = discount
        self.config = config

    @torch.no_grad()
    def plan(self, latent: Tensor, mean: Tensor, noise: TDMPC2PlannerNoise, explore: bool) -> tuple[Tensor, Tensor]:
        """Plan from latents.

        Args:
            latent: [b, d], current latents.
            mean: [b, h, a], initial mean of the action sequences.
            noise: see ``TDMPC2PlannerNoise``.
            explore: add noise of the final standard deviation to the action.

        Returns:
            The action [b, a] in [-1, 1], and the final mean [b, h, a].
        """
        config = self.config
        problems = torch.arange(len(latent), device=latent.device)[:, None]
        proposals = self.propose(latent, noise.proposals)
        std = torch.full_like(mean, config.max_std)
        drawn_noise = zip(noise.samples, noise.final_actions, noise.member_pairs, strict=True)
        for samples, final_noise, pair in drawn_noise:
            drawn = torch.addcmul(mean[:, None], std[:, None], samples).clamp_(-1, 1)
            actions = torch.cat((proposals, drawn), dim=1)
            returns = self.estimate_returns(latent, actions, final_noise, pair)
            returns, indices = returns.topk(config.elites, dim=1)
            elites = actions[problems, indices]
            probabilities = (config.temperature * returns).softmax(dim=1)
            weights = probabilities[:, :, None, None]
            mean = (weights * elites).sum(1)
            std = (weights * (elites - mean[:, None]).square()).sum(1).sqrt_().clamp_(config.min_std, config.max_std)
        selected = (probabilities.log() + noise.elite).argmax(1)
        action = elites[problems[:, 0], selected, 0]
        if explore:
            action = torch.addcmul(action, std[:, 0], noise.action)
        return action.clamp(-1, 1), mean

    def propose(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Return the policy's action sequences [b, p, h, a] for latents [b, d] and noise [b, p, h, a]."""
        actions: list[Tensor] = []
        latent = latent[:, None]
        for step_noise in noise.unbind(2):
            if actions:
                latent = self.world.next_latent(latent, actions[-1])
            actions.append(self.policy.sample_action(latent, step_noise))
        return torch.stack(actions, dim=2)

    def estimate_returns(self, latent: Tensor, actions: Tensor, final_noise: Tensor, pair: Tensor) -> Tensor:
        """Estimate the returns of action sequences: their rewards, and the value of their last latent.

        Args:
            latent: [b, d].
            actions: [b, k, h, a].
            final_noise: of the policy's action at the end, [b, k, a].
            pair: int64 [2], the members of the ensemble to evaluate.

        Returns:
            [b, k]; 0 where the result is NaN.
        """
        latent = latent[:, None]
        total = actions.new_zeros(actions.shape[:2])
        discount = 1.0
        running: Tensor | None = None
        for action in actions.unbind(2):
            reward = self.world.predict_reward(latent, action)
            total = total + discount * (reward if running is None else reward * running)
            discount *= self.discount
            latent = self.world.next_latent(latent, action)
            logits = self.world.termination_logits(latent)
            if logits is not None:  # a termination probability above 0.5 ends the sequence
                running = (logits <= 0) if running is None else running & (logits <= 0)
        value = self.critic.values(latent, self.policy.sample_action(latent, final_noise), pair).mean(0)
        return (total + discount * (value if running is None else value * running)).nan_to_num_(0)
