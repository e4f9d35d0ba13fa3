"""TD-MPC2: planning in a latent world model trained for planning (Hansen, Su, Wang 2024, arXiv 2310.16828).

The model is trained to predict its own latents, rewards and values on short sequences from replay; a policy maximizes
the values, and the planner improves on the policy at every decision.

Legend: b batch, h steps of the horizon, s stacked observations, d width of a latent, a dimensions of an action,
m members of the Q ensemble.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.tdmpc2.q_ensemble import QEnsemble
from vwm.models.tdmpc2.simulator import TDMPC2Simulator
from vwm.models.tdmpc2.tanh_gaussian_policy import TanhGaussianPolicy
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel
from vwm.nn.image_augmentation import random_shift
from vwm.nn.percentiles import percentiles
from vwm.rl.agent import Agent, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.algorithms.tdmpc2_planner import TDMPC2Planner, TDMPC2PlannerConfig, draw_planner_noise
from vwm.rl.frame_stacking import stack_frames
from vwm.rl.optimizer_step import backward_and_step


@dataclass(frozen=True)
class TDMPC2NetworkConfig:
    """Sizes of the networks; the defaults are the paper's with 5 million parameters.

    Attributes:
        encoder_width, encoder_layers, image_channels, latent_size, simplex_size: see ``TDMPC2WorldModel``.
        width: of the hidden layers of everything but the encoder.
        num_q: members of the Q ensemble.
        dropout: in the first layer of the Q ensemble.
    """

    encoder_width: int = 256
    encoder_layers: int = 2
    image_channels: int = 32
    latent_size: int = 512
    simplex_size: int = 8
    width: int = 512
    num_q: int = 5
    dropout: float = 0.01


@dataclass(frozen=True)
class TDMPC2DistributionConfig:
    """Ranges of the predicted distributions.

    Attributes:
        num_bins, symlog_limit: of rewards and values; see ``TDMPC2WorldModel``.
        log_std_min, log_std_max: of actions; see ``TanhGaussianPolicy``.
    """

    num_bins: int = 101
    symlog_limit: float = 10.0
    log_std_min: float = -10.0
    log_std_max: float = 2.0


@dataclass(frozen=True)
class TDMPC2LossWeights:
    """Weights of the losses.

    Attributes:
        consistency, reward, value, termination: of the model's losses.
        entropy: of the policy's entropy.
        rho: weight of a step relative to the one before it.
    """

    consistency: float = 20.0
    reward: float = 0.1
    value: float = 0.1
    termination: float = 1.0
    entropy: float = 1e-4
    rho: float = 0.5


@dataclass(frozen=True)
class TDMPC2OptimizerConfig:
    """Optimizers.

    Attributes:
        lr, encoder_lr: learning rates.
        max_grad_norm: largest gradient norm.
        tau: rate at which the target ensemble and the scale of values move toward the current ones at each update.
    """

    lr: float = 3e-4
    encoder_lr: float = 0.9e-4
    max_grad_norm: float = 20.0
    tau: float = 0.01


class TDMPC2Batch(NamedTuple):
    """A batch as the losses take it.

    Attributes:
        windows: [b, h + 1, s, ...], the last s observations at each time step.
        action: float [b, h, a]; ``action[:, i]`` leads from window i to i + 1.
        reward: float [b, h], earned by that action.
        terminated: float [b, h], 1 where that action terminated the episode.
    """

    windows: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor


class TDMPC2(Agent):
    """See the module. Random actions at first, and updates before the first plan, are settings of the training.

    Args:
        spaces: of the environments; actions must be continuous.
        episode_length: T, decisions after which an episode ends or is truncated; it sets the discount to
            (T/5 - 1) / (T/5), limited to 0.95..0.995.
        episodic: whether episodes can terminate early: learn a termination head, which ends values and plans.
        num_stacked_frames: s, number of stacked observations (the paper: 3 of images, 1 of vectors).
        batch_size: sequences of an update.
        networks, distributions: see ``TDMPC2NetworkConfig`` and ``TDMPC2DistributionConfig``.
        planning: see ``TDMPC2PlannerConfig``; its horizon is also the length of training sequences.
        loss_weights, optimizer: see ``TDMPC2LossWeights`` and ``TDMPC2OptimizerConfig``.

    Raises:
        ValueError: discrete actions, or a setting that is out of range.
    """

    single_episode = True
    scale: Tensor

    def __init__(
        self,
        spaces: EnvSpaces,
        episode_length: int,
        episodic: bool = False,
        num_stacked_frames: int = 1,
        batch_size: int = 256,
        networks: TDMPC2NetworkConfig = TDMPC2NetworkConfig(),
        distributions: TDMPC2DistributionConfig = TDMPC2DistributionConfig(),
        planning: TDMPC2PlannerConfig = TDMPC2PlannerConfig(),
        loss_weights: TDMPC2LossWeights = TDMPC2LossWeights(),
        optimizer: TDMPC2OptimizerConfig = TDMPC2OptimizerConfig(),
    ) -> None:
        super().__init__()
        if spaces.actions.kind != "continuous":
            raise ValueError(
                f"TD-MPC2 plans with continuous actions, these are {spaces.actions.size} discrete ones: use MuZero or "
                "DreamerV3 for them"
            )
        if num_stacked_frames < 1:
            raise ValueError(f"num_stacked_frames must be 1 or more, got {num_stacked_frames}")
        self.spaces = spaces
        self.num_stacked_frames = num_stacked_frames
        self.episodic = episodic
        self.loss_weights = loss_weights
        self.batch_size = batch_size
        self.batch_length = planning.horizon + num_stacked_frames
        self.imagination_horizon = planning.horizon
        self.context_steps = num_stacked_frames - 1
        self.max_grad_norm = optimizer.max_grad_norm
        self.tau = optimizer.tau
        self.discount = discount_for_episode_length(episode_length)
        self.world = self._make_world_model(networks, distributions)
        self.policy, self.critic = self._make_policy_and_critic(networks, distributions)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("scale", torch.ones(()))
        self.planner = TDMPC2Planner(
            world=self.world, policy=self.policy, critic=self.critic, discount=self.discount, config=planning
        )
        self.model_optimizer, self.policy_optimizer = self._make_optimizers(optimizer)

    def _make_world_model(
        self, networks: TDMPC2NetworkConfig, distributions: TDMPC2DistributionConfig
    ) -> TDMPC2WorldModel:
        observation = self.spaces.observation
        return TDMPC2WorldModel(
            action_dims=self.spaces.actions.size,
            vector_size=None if observation.is_image else observation.shape[0],
            image_size=observation.shape[:2] if observation.is_image else (64, 64),
            num_stacked_frames=self.num_stacked_frames,
            latent_size=networks.latent_size,
            simplex_size=networks.simplex_size,
            width=networks.width,
            encoder_width=networks.encoder_width,
            encoder_layers=networks.encoder_layers,
            image_channels=networks.image_channels,
            num_bins=distributions.num_bins,
            symlog_limit=distributions.symlog_limit,
            predict_termination=self.episodic,
        )

    def _make_policy_and_critic(
        self, networks: TDMPC2NetworkConfig, distributions: TDMPC2DistributionConfig
    ) -> tuple[TanhGaussianPolicy, QEnsemble]:
        policy = TanhGaussianPolicy(
            networks.latent_size,
            self.spaces.actions.size,
            width=networks.width,
            log_std_min=distributions.log_std_min,
            log_std_max=distributions.log_std_max,
        )
        critic = QEnsemble(
            networks.latent_size,
            self.spaces.actions.size,
            num_members=networks.num_q,
            width=networks.width,
            dropout=networks.dropout,
            num_bins=distributions.num_bins,
            symlog_limit=distributions.symlog_limit,
        )
        return policy, critic

    def _make_optimizers(self, config: TDMPC2OptimizerConfig) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        """Return the optimizers of the model with the critic, and of the policy."""
        encoder = list(self.world.encoder.parameters())
        rest = [p for name, p in self.world.named_parameters() if not name.startswith("encoder.")]
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": config.encoder_lr},
            {"params": [*rest, *self.critic.parameters()]},
        ]
        model_optimizer = torch.optim.Adam(groups, lr=config.lr, fused=True)
        return model_optimizer, torch.optim.Adam(self.policy.parameters(), lr=config.lr, eps=1e-5, fused=True)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return {"model": self.model_optimizer, "policy": self.policy_optimizer}

    def simulator(self, title: str = "world", fps: float = 15.0) -> TDMPC2Simulator:
        """See ``Agent.simulator``."""
        return TDMPC2Simulator(
            self.world, self.spaces.actions, title=title, fps=fps, context_frames=self.num_stacked_frames
        )

    # -------------------------------------------------------------------------------------------------------- acting

    def init_carry(self, batch: int) -> dict[str, Tensor]:
        """See ``Agent.init_carry``: the mean of the last plan, shifted by one step, and the previous observations."""
        space = self.spaces.observation
        shape = (batch, self.planner.config.horizon, self.spaces.actions.size)
        return {
            "mean": torch.zeros(shape, device=self.device, dtype=self.scale.dtype),
            "past": torch.zeros(
                (batch, self.num_stacked_frames - 1, *space.shape), device=self.device, dtype=space.dtype
            ),
        }

    @torch.no_grad()
    def act(self, carry: dict[str, Tensor], time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``; an elite is sampled in evaluation, too, but without added noise."""
        decide = functools.partial(self._decide, explore=explore)
        carry, action = self.run_step(f"act(explore={explore})", decide, carry, time_step)
        return PolicyStep(action, carry, {})

    def _decide(self, carry: dict[str, Tensor], time_step: TimeStep, explore: bool) -> tuple[dict[str, Tensor], Tensor]:
        mean = torch.where(time_step.is_first[:, None, None], 0, carry["mean"])
        window = self._window(carry["past"], time_step)
        latent = self.world.encode(window)
        noise = draw_planner_noise(self.planner.config, self.critic, len(latent), self.spaces.actions.size, latent)
        action, mean = self.planner.plan(latent, mean, noise, explore)
        shifted = torch.cat((mean[:, 1:], torch.zeros_like(mean[:, :1])), dim=1)
        return {"mean": shifted, "past": window[:, 1:]}, action.float()

    def observe(self, carry: dict[str, Tensor], time_step: TimeStep, action: Tensor) -> PolicyStep:
        """See ``Agent.observe``; without planning, so that the next plan starts from zeros."""
        past = self._window(carry["past"], time_step)[:, 1:]
        return PolicyStep(action, {"mean": torch.zeros_like(carry["mean"]), "past": past}, {})

    def _window(self, past: Tensor, time_step: TimeStep) -> Tensor:
        """Return the last observations [b, s, ...]; at the start of an episode its first one is repeated."""
        now = time_step.observation[:, None]
        first = time_step.is_first.view(-1, *[1] * (now.ndim - 1))
        return torch.cat((torch.where(first, now.expand_as(past), past), now), dim=1)

    # ------------------------------------------------------------------------------------------------------ learning

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``."""
        values, _ = self.run_update("update", self.learn, batch)
        return UpdateOutput(values)

    def learn(self, batch: ReplayBatch) -> tuple[dict[str, Tensor], None]:
        """Update the model, then the policy on the model's latents, then the target critic; see ``Agent.run_update``.

        Returns:
            What to log.
        """
        loss, latents, logs = self.model_loss(self.prepare(batch))
        logs["gradient_norm"] = backward_and_step(loss, self.model_optimizer, self.max_grad_norm)
        loss, policy_logs = self.policy_loss(latents.detach())
        norm = backward_and_step(loss, self.policy_optimizer, self.max_grad_norm, name="policy_loss")
        logs |= policy_logs | {"policy_gradient_norm": norm}
        targets, online = list(self.target_critic.parameters()), list(self.critic.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(targets, online, self.tau)
        return {name: value.detach() for name, value in logs.items()}, None

    def prepare(self, batch: ReplayBatch) -> TDMPC2Batch:
        """Make windows of observations (images randomly shifted), with each action's reward and termination."""
        skipped = self.num_stacked_frames - 1
        windows = stack_frames(batch.observation, batch.is_first, self.num_stacked_frames)
        if self.spaces.observation.is_image:
            windows = random_shift(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        dtype = self.scale.dtype
        return TDMPC2Batch(
            windows=windows,
            action=batch.action[:, skipped:-1].to(dtype),
            reward=batch.reward[:, skipped + 1 :].to(dtype),
            terminated=batch.is_terminal[:, skipped + 1 :].to(dtype),
        )

    def model_loss(self, batch: TDMPC2Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the model's loss (equation 3), its latents [b, h + 1, d], and logs."""
        world, weights = self.world, self.loss_weights
        windows, action, reward, terminated = batch
        with torch.no_grad():
            encoded = world.encode(windows[:, 1:])
            target = reward + self.discount * (1 - terminated) * self.next_value(encoded)
        latents = [world.encode(windows[:, 0])]
        for step_action in action.unbind(1):
            latents.append(world.next_latent(latents[-1], step_action))
        latent = torch.stack(latents, dim=1)
        step_weights = self._step_weights(latent[:, :-1])
        losses = {
            "consistency": (latent[:, 1:] - encoded).square().mean((0, 2)) @ step_weights,
            "reward": world.two_hot.loss(world.reward_logits(latent[:, :-1], action), reward).mean(0) @ step_weights,
            "value": self.critic.two_hot.loss(self.critic(latent[:, :-1], action, use_dropout=True), target).mean(
                (0, 1)
            )
            @ step_weights,
        }
        logits = world.termination_logits(latent[:, 1:])
        if logits is not None:
            losses["termination"] = F.binary_cross_entropy_with_logits(logits, terminated)
        loss = torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()
        return loss, latent, {**{f"{name}_loss": value for name, value in losses.items()}, "target": target.mean()}

    def next_value(self, latent: Tensor) -> Tensor:
        """Return the policy's values at latents [b, h, d]: the smaller of two target critics, [b, h]."""
        action = self.policy.sample_action(latent, self._draw_action_noise(latent))
        return self.target_critic.values(latent, action, self.critic.sample_member_pair()).amin(0)

    def policy_loss(self, latent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy's loss at latents [b, h + 1, d], minus scaled values and entropy, and logs."""
        policy = self.policy(latent, self._draw_action_noise(latent))
        values = self.critic.values(
            latent, policy.action, self.critic.sample_member_pair(), detach_weights=True, use_dropout=True
        ).mean(0)
        self._update_scale(values[:, 0].detach())
        objective = self.loss_weights.entropy * policy.entropy + values / self.scale
        loss = -objective.mean(0) @ self._step_weights(latent)
        return loss, {"policy_loss": loss, "entropy": policy.entropy.mean(), "scale": self.scale.clone()}

    def _step_weights(self, latent: Tensor) -> Tensor:
        """Return the weights of the time steps of latents [b, h, d] in a loss, [h]."""
        steps = latent.shape[1]
        return self.loss_weights.rho ** torch.arange(steps, device=latent.device, dtype=latent.dtype) / steps

    def _draw_action_noise(self, latent: Tensor) -> Tensor:
        """Draw the noise of one action per latent."""
        shape = (*latent.shape[:-1], self.spaces.actions.size)
        return torch.randn(shape, device=latent.device, dtype=latent.dtype)

    def _update_scale(self, values: Tensor) -> None:
        """Update the value scale toward the range from the 5th to the 95th percentile, at least 1."""
        low, high = percentiles(values, 0.05, 0.95)
        self.scale.lerp_((high - low).clamp(min=1), self.tau)


def discount_for_episode_length(episode_length: int) -> float:
    """Return the discount (T/5 - 1) / (T/5), limited to 0.95..0.995: it grows with the length of episodes."""
    if episode_length < 1:
        raise ValueError(f"episode_length must be 1 or more, got {episode_length}")
    horizon = episode_length / 5
    return min(max((horizon - 1) / horizon, 0.95), 0.995)
