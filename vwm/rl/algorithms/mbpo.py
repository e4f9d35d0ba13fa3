"""MBPO (Janner et al., arXiv 1906.08253): SAC that learns from short rollouts in a probabilistic ensemble.

Legend: b batch, m members of the ensemble.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from vwm.core.checks import check_fraction, check_not_negative, check_positive
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.pets.network import ProbabilisticEnsemble
from vwm.models.pets.simulator import PETSSimulator
from vwm.rl.agent import PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.algorithms.branched_rollouts import RolloutLengthSchedule, branch_rollouts, predict_by_members
from vwm.rl.algorithms.pets import draw_bootstrap_counts, learn_ensemble
from vwm.rl.algorithms.sac import SAC
from vwm.rl.algorithms.soft_actor_critic import SACConfig
from vwm.rl.transitions import TransitionBuffer, Transitions, transitions_of

HOLDOUT_RATE = 0.02
"""Rate at which the members' errors on held-out transitions follow those of a batch."""


class MBPO(SAC):
    """See the module; the defaults are those of the paper where it states them for all tasks.

    An update trains the ensemble on its batch, branches a rollout from each state of the batch, stores the transitions
    of the rollouts, and trains the policy ``policy_updates`` times on batches of which ``real_ratio`` is real. The
    paper trains the ensemble anew to convergence at intervals; here it learns all the time. As there, members are
    trained on bootstrap samples, and those with the smallest squared errors on transitions that none is trained on make
    the predictions.

    Args:
        spaces: of the environments; observations are vectors, actions continuous.
        sac: see ``SACConfig``; the paper's discount is 0.99.
        members, width, layers, predict_termination: see ``ProbabilisticEnsemble``.
        elites: members that predict rollouts.
        rollouts: the length of rollouts, in numbers of updates.
        model_capacity: transitions of rollouts that are kept.
        warmup_updates: updates at first that train the ensemble alone.
        policy_updates: of the policy in each update.
        real_ratio: share of the policy's batches that is from replay, 0..1.
        policy_batch_size: transitions of an update of the policy.
        holdout: share of the transitions that no member is trained on.
        lr, weight_decay, max_grad_norm: of the ensemble's AdamW.
        batch_size: transitions of an update of the ensemble, and rollouts.

    Raises:
        ValueError: observations are no vectors, actions not continuous, or a value is out of range.
    """

    updates_made: Tensor
    holdout_error: Tensor

    def __init__(
        self,
        spaces: EnvSpaces,
        sac: SACConfig = SACConfig(),
        members: int = 7,
        width: int = 200,
        layers: int = 4,
        predict_termination: bool = True,
        elites: int = 5,
        rollouts: RolloutLengthSchedule = RolloutLengthSchedule(),
        model_capacity: int = 100_000,
        warmup_updates: int = 0,
        policy_updates: int = 20,
        real_ratio: float = 0.05,
        policy_batch_size: int = 256,
        holdout: float = 0.2,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        max_grad_norm: float = 100.0,
        batch_size: int = 256,
    ) -> None:
        super().__init__(spaces, sac, batch_size)
        check_positive(elites=elites, policy_updates=policy_updates, policy_batch_size=policy_batch_size)
        check_not_negative(warmup_updates=warmup_updates)
        check_fraction(real_ratio=real_ratio, holdout=holdout)
        self.num_real = round(real_ratio * policy_batch_size)
        if elites > members:
            raise ValueError(f"elites={elites} must be at most members={members}")
        if self.num_real > batch_size:
            raise ValueError(
                f"real_ratio={real_ratio} of policy_batch_size={policy_batch_size} are {self.num_real} transitions, "
                f"more than batch_size={batch_size}"
            )
        size = spaces.observation.shape[0]
        self.dynamics = ProbabilisticEnsemble(size, 0, spaces.actions.size, members, width, layers, predict_termination)
        self.model_data = TransitionBuffer(model_capacity, size, spaces.actions.size)
        self.register_buffer("updates_made", torch.zeros((), dtype=torch.int64))
        self.register_buffer("holdout_error", torch.zeros(members))
        self.elites = elites
        self.rollouts = rollouts
        self.warmup_updates = warmup_updates
        self.policy_updates = policy_updates
        self.policy_batch_size = policy_batch_size
        self.holdout = holdout
        self.max_grad_norm = max_grad_norm
        self.imagination_horizon = rollouts.last
        self.extras = {"bootstrap": ((members,), torch.float32)}
        self.optimizer = torch.optim.AdamW(self.dynamics.parameters(), lr, weight_decay=weight_decay)

    def observe(self, carry: tuple[()], time_step: TimeStep, action: Tensor) -> PolicyStep:
        """See ``Agent.observe``; draws how often each member is trained on the transition, or that it is held out."""
        batch = len(time_step.reward)
        counts = draw_bootstrap_counts(batch, self.dynamics.members)
        return PolicyStep(action, carry, {"bootstrap": counts * (torch.rand(batch, 1) >= self.holdout)})

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``."""
        self.train()
        made = int(self.updates_made)
        steps = 0 if made < self.warmup_updates else self.rollouts.length(made)
        learn = functools.partial(self.learn, steps=steps)
        values, _ = self.run_update(f"update({steps} steps)", learn, batch)
        return UpdateOutput(values)

    def learn(self, batch: ReplayBatch, steps: int = 1) -> tuple[dict[str, Tensor], None]:
        """Update the ensemble, and with it the policy; see ``Agent.run_update``.

        Args:
            batch: from replay.
            steps: of the rollouts; 0 leaves the policy as it is.

        Returns:
            What to log.
        """
        real = transitions_of(batch)
        weights = batch.extras["bootstrap"][:, 0].T
        logs = learn_ensemble(self.dynamics, self.optimizer, real, weights, self.max_grad_norm)
        logs["holdout_error"] = self.measure_holdout(real, weights)
        if steps:
            self.imagine(real.observation, steps)
            for _ in range(self.policy_updates):
                logs |= self.sac.learn(self.mix(real))
        self.updates_made += 1
        return logs, None

    @torch.no_grad()
    def measure_holdout(self, real: Transitions, weights: Tensor) -> Tensor:
        """Take the members' squared errors on held-out transitions [b] into account. Returns their mean over members.

        Args:
            real: from replay.
            weights: [m, b], all 0 for a transition that is held out.
        """
        held_out = (weights == 0).all(0).float()
        inputs = self.dynamics.inputs(real.observation, real.action)
        predicted = self.dynamics(inputs.expand(self.dynamics.members, -1, -1)).mean
        target = torch.cat((real.next_observation - real.observation, real.reward[:, None]), dim=-1)
        squared = (predicted - target).square().mean(-1)
        error = squared @ held_out.to(squared.dtype) / held_out.sum().clamp(min=1)
        rate = HOLDOUT_RATE * held_out.any().to(error.dtype)
        self.holdout_error.lerp_(error.to(self.holdout_error.dtype), rate.to(self.holdout_error.dtype))
        return error.mean()

    @property
    def elite_members(self) -> Tensor:
        """The members that predict rollouts, int64 [elites]."""
        return self.holdout_error.topk(self.elites, largest=False).indices

    @torch.no_grad()
    def imagine(self, start: Tensor, steps: int) -> None:
        """Branch rollouts of the policy from observations [b, k], and store their transitions."""
        predict = functools.partial(predict_by_members, self.dynamics, self.elite_members)
        self.model_data.add(*branch_rollouts(start.float(), steps, lambda at: self.sac.sample(at)[0], predict))

    def mix(self, real: Transitions) -> Transitions:
        """Draw a batch of the policy: of given transitions, without repetition, and of those of rollouts."""
        chosen = torch.rand(len(real.reward), device=real.reward.device).topk(self.num_real).indices
        if self.num_real == self.policy_batch_size:
            return Transitions(*(part[chosen] for part in real))
        imagined = self.model_data.sample(self.policy_batch_size - self.num_real)
        return Transitions(*(torch.cat((a[chosen], b)) for a, b in zip(real, imagined, strict=True)))

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return {"dynamics": self.optimizer, **super().optimizers()}

    def simulator(self, title: str = "world", fps: float = 15.0) -> PETSSimulator:
        """See ``Agent.simulator``; in it all members predict, not the elite ones alone."""
        return PETSSimulator(self.dynamics, self.spaces.actions, title=title, fps=fps, context_frames=1)
