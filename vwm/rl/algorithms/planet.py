"""PlaNet (arXiv 1811.04551): a recurrent state-space model without a policy; every action is planned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vwm.core.captured_steps import CaptureBackend
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.rssm.kl_loss import KLLoss
from vwm.models.rssm.rssm import RSSMState
from vwm.models.rssm.simulator import RSSMSimulator, RSSMSimulatorState
from vwm.models.rssm.world_model import RSSMWorldModel, RSSMWorldModelConfig
from vwm.planning.cem import CEM
from vwm.planning.sampling_planner import NegativeReturnObjective, SamplingPlanner
from vwm.rl.agent import Agent, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.exploration_noise import add_exploration_noise
from vwm.rl.optimizer_step import backward_and_step, require_finite

PLANET_WORLD_SETTINGS = RSSMWorldModelConfig(
    deter=200,
    hidden=200,
    stoch=30,
    classes=0,
    cell="gru",
    prior_layers=1,
    norm="none",
    activation="relu",
    units=200,
    vector_layers=2,
    symlog=False,
    image_network="plain",
    depth=32,
    pixel_bits=5,
    reconstruction_loss="normal",
    reward_distribution="normal",
    reward_layers=2,
    reward_scale=10.0,
    predict_continue=False,
    discount_horizon=0,
    kl=KLLoss("elbo", free_nats=3.0),
)
"""The world model of the paper."""


class PlaNet(Agent):
    """See the module; the defaults are those of the paper.

    Args:
        spaces: of the environments.
        world_model: see ``RSSMWorldModelConfig``.
        planner: searches for actions; None is the paper's cross-entropy method, which starts every plan from scratch
            and takes the mean of the final distribution.
        exploration_noise: deviation of noise added to continuous actions in training, or the fraction of random
            discrete actions.
        lr, eps: of Adam.
        max_grad_norm: largest gradient norm.
        batch_size, batch_length: of an update.
    """

    def __init__(
        self,
        spaces: EnvSpaces,
        world_model: RSSMWorldModelConfig = PLANET_WORLD_SETTINGS,
        planner: SamplingPlanner | None = None,
        exploration_noise: float = 0.3,
        lr: float = 1e-3,
        eps: float = 1e-4,
        max_grad_norm: float = 1000.0,
        batch_size: int = 50,
        batch_length: int = 50,
    ) -> None:
        super().__init__()
        self.spaces = spaces
        self.batch_size = batch_size
        self.batch_length = batch_length
        self.world_model = RSSMWorldModel.from_settings(spaces.observation.shape, *spaces.action_sizes, world_model)
        self.imagination = RSSMSimulator(self.world_model, spaces.actions)
        self.planner = planner or CEM(
            horizon=12,
            samples=1000,
            elites=100,
            iterations=10,
            momentum=0.0,
            init_std=1.0,
            min_std=0.0,
            noise_exponent=0.0,
            keep_elites=0,
            selection="mean",
            max_batch_size=4000,
        )
        self.imagination_horizon = self.planner.horizon
        self.exploration_noise = exploration_noise
        self.max_grad_norm = max_grad_norm
        self.optimizer = torch.optim.Adam(self.world_model.parameters(), lr, eps=eps)

    def init_carry(self, batch: int) -> RSSMState:
        """See ``Agent.init_carry``."""
        return self.world_model.rssm.init_state(batch)

    @torch.no_grad()
    def act(self, carry: RSSMState, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        self.eval()
        state = self.world_model.observe_step(carry, time_step.observation, time_step.is_first)
        seed = torch.randint(2**62, (len(time_step.reward),)).to(self.device)
        start = RSSMSimulatorState(state, torch.zeros_like(seed), seed)
        action = self.planner.plan(self.imagination, start, NegativeReturnObjective(), seed).actions[:, 0]
        if explore:
            action = add_exploration_noise(action, self.exploration_noise, self.spaces.actions.size)
            action = action.clamp(-1, 1) if action.is_floating_point() else action
        return PolicyStep(action, self.world_model.rssm.with_action(state, action), {})

    @torch.no_grad()
    def observe(self, carry: RSSMState, time_step: TimeStep, action: Tensor) -> PolicyStep:
        """See ``Agent.observe``; without planning."""
        self.eval()
        state = self.world_model.observe_step(carry, time_step.observation, time_step.is_first)
        return PolicyStep(action, self.world_model.rssm.with_action(state, action), {})

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``."""
        self.train()
        values, _ = self.run_update("update", self.learn, batch)
        return UpdateOutput(values)

    def learn(self, batch: ReplayBatch) -> tuple[dict[str, Tensor], None]:
        """Update the world model once; see ``Agent.run_update``. Returns what to log."""
        loss, _, logs = self.world_model.loss(
            batch.observation, batch.action, batch.reward, batch.is_first, batch.is_terminal
        )
        require_finite(logs)
        backward_and_step(loss, self.optimizer, self.max_grad_norm, self.world_model.parameters())
        return logs, None

    def accelerate(self, backend: CaptureBackend | None) -> None:
        """See ``Agent.accelerate``; the steps of plans are captured."""
        super().accelerate(backend)
        self.imagination = self.imagination.accelerate(backend)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return {"world": self.optimizer}

    def simulator(self, title: str = "world", fps: float = 15.0) -> RSSMSimulator:
        """See ``Agent.simulator``."""
        return RSSMSimulator(self.world_model, self.spaces.actions, title=title, fps=fps, context_frames=1)
