"""PETS (arXiv 1805.12114): plan every action in a probabilistic ensemble of dynamics networks over vectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vwm.core.captured_steps import CaptureBackend
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.pets.network import ProbabilisticEnsemble
from vwm.models.pets.simulator import PETSSimulator
from vwm.planning.cem import CEM
from vwm.planning.sampling_planner import NegativeReturnObjective, SamplingPlanner
from vwm.rl.agent import Agent, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.exploration_noise import add_exploration_noise
from vwm.rl.optimizer_step import backward_and_step, require_finite
from vwm.rl.transitions import Transitions, transitions_of


class PETS(Agent):
    """See the module; the defaults are those of the paper where it states them for all tasks.

    Rewards and terminations are learned, as in MBPO (arXiv 1906.08253); the paper is given them. How often a transition
    is in the bootstrap sample of a member is drawn when it is stored, from the Poisson distribution of mean 1, to which
    sampling with replacement tends.

    Args:
        spaces: of the environments; observations are vectors.
        members, width, layers, predict_termination: see ``ProbabilisticEnsemble``.
        particles: of each action sequence in a plan, a multiple of the members.
        resample: whether a particle follows another member in every step (TS1) or one alone (TS-infinity).
        planner: searches for actions; None is the cross-entropy method, every plan from scratch.
        exploration_noise: see ``add_exploration_noise``, in training; the paper has none.
        lr, weight_decay: of AdamW.
        max_grad_norm: largest gradient norm.
        batch_size: transitions of an update, which all members see with their own weights.

    Raises:
        ValueError: observations are no vectors, or a value is out of range.
    """

    single_episode = True
    batch_length = 2

    def __init__(
        self,
        spaces: EnvSpaces,
        members: int = 5,
        width: int = 200,
        layers: int = 3,
        predict_termination: bool = True,
        particles: int = 20,
        resample: bool = False,
        planner: SamplingPlanner | None = None,
        exploration_noise: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        max_grad_norm: float = 100.0,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        if spaces.observation.is_image:
            raise ValueError("PETS plans over vectors, and the environment shows images: use PlaNet or a Dreamer")
        self.spaces = spaces
        self.batch_size = batch_size
        num_actions, action_dims = spaces.action_sizes
        self.dynamics = ProbabilisticEnsemble(
            spaces.observation.shape[0], num_actions, action_dims, members, width, layers, predict_termination
        )
        self.imagination = self.simulator().with_sampling(particles=particles, resample=int(resample))
        self.planner = planner or CEM(
            horizon=25, samples=400, elites=40, iterations=5, momentum=0.1, init_std=0.5, min_std=0.0,
            noise_exponent=0.0, keep_elites=0, selection="mean", max_batch_size=4000,
        )  # fmt: skip
        self.imagination_horizon = self.planner.horizon
        self.exploration_noise = exploration_noise
        self.max_grad_norm = max_grad_norm
        self.extras = {"bootstrap": ((members,), torch.float32)}
        self.optimizer = torch.optim.AdamW(self.dynamics.parameters(), lr, weight_decay=weight_decay)

    def init_carry(self, batch: int) -> tuple[()]:
        """See ``Agent.init_carry``; there is nothing to remember."""
        return ()

    @torch.no_grad()
    def act(self, carry: tuple[()], time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        self.eval()
        seed = torch.randint(2**62, (len(time_step.reward),)).to(self.device)
        start, _ = self.imagination.reset(time_step.observation[:, None], seed)
        action = self.planner.plan(self.imagination, start, NegativeReturnObjective(), seed).actions[:, 0]
        if explore:
            action = add_exploration_noise(action, self.exploration_noise, self.spaces.actions.size)
            action = action.clamp(-1, 1) if action.is_floating_point() else action
        return self.observe(carry, time_step, action)

    def observe(self, carry: tuple[()], time_step: TimeStep, action: Tensor) -> PolicyStep:
        """See ``Agent.observe``; without planning."""
        counts = draw_bootstrap_counts(len(time_step.reward), self.dynamics.members)
        return PolicyStep(action, carry, {"bootstrap": counts})

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``."""
        self.train()
        values, _ = self.run_update("update", self.learn, batch)
        return UpdateOutput(values)

    def learn(self, batch: ReplayBatch) -> tuple[dict[str, Tensor], None]:
        """Update all members once; see ``Agent.run_update``. Returns what to log."""
        weights = batch.extras["bootstrap"][:, 0].T
        return learn_ensemble(self.dynamics, self.optimizer, transitions_of(batch), weights, self.max_grad_norm), None

    def accelerate(self, backend: CaptureBackend | None) -> None:
        """See ``Agent.accelerate``; the steps of plans are captured."""
        super().accelerate(backend)
        self.imagination = self.imagination.accelerate(backend)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return {"dynamics": self.optimizer}

    def simulator(self, title: str = "world", fps: float = 15.0) -> PETSSimulator:
        """See ``Agent.simulator``."""
        return PETSSimulator(self.dynamics, self.spaces.actions, title=title, fps=fps, context_frames=1)


def draw_bootstrap_counts(batch: int, members: int) -> Tensor:
    """Draw how often each transition is in the bootstrap sample of each member, float32 [batch, members]."""
    return torch.poisson(torch.ones(batch, members))


def learn_ensemble(
    dynamics: ProbabilisticEnsemble,
    optimizer: torch.optim.Optimizer,
    batch: Transitions,
    weights: Tensor,
    max_grad_norm: float,
) -> dict[str, Tensor]:
    """Update all members of an ensemble once. Returns what to log.

    Args:
        dynamics, optimizer: the ensemble, and of its parameters.
        batch: transitions.
        weights: float [m, b], see ``ProbabilisticEnsemble.loss``.
        max_grad_norm: largest gradient norm.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    before, after = batch.observation.float(), batch.next_observation.float()
    inputs = dynamics.inputs(before, batch.action)
    dynamics.count_inputs(inputs)
    loss, logs = dynamics.loss(inputs, after - before, batch.reward, batch.terminal, weights)
    require_finite(logs)
    backward_and_step(loss, optimizer, max_grad_norm, dynamics.parameters())
    return logs
