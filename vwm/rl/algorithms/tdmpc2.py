"""TD-MPC2: planning in a latent world model trained for planning (Hansen, Su, Wang 2024, arXiv 2310.16828).

The model is trained to predict its own latents, rewards and values on short sequences from replay; a policy maximizes
the values, and the planner improves on the policy at every decision.

Legend: b batch, h steps of the horizon, s stacked observations, d width of a latent, a dimensions of an action,
m members of the Q ensemble.
"""

from __future__ import annotations

import copy
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
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel, random_shift
from vwm.rl.agent import Agent, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.algorithms.tdmpc2_planner import TDMPC2Planner, TDMPC2PlannerConfig, draw_planner_noise
from vwm.rl.frame_stacking import stack_frames
from vwm.rl.optimizer_step import backward_and_step, check_finite


@dataclass(frozen=True)
class TDMPC2Size:
    """Sizes of the networks; the default is the paper's with 5 million parameters.

    Attributes:
        encoder_width, encoder_layers, channels, latent: see ``TDMPC2WorldModel``.
        width: of the hidden layers of everything but the encoder.
        members: of the Q ensemble.
    """

    encoder_width: int = 256
    encoder_layers: int = 2
    channels: int = 32
    latent: int = 512
    width: int = 512
    members: int = 5


@dataclass(frozen=True)
class TDMPC2LossWeights:
    """Weights of the losses.

    Attributes:
        consistency, reward, value, end: of the model's losses.
        entropy: of the policy's entropy.
        later: weight of a step relative to the one before it (the paper's rho).
    """

    consistency: float = 20.0
    reward: float = 0.1
    value: float = 0.1
    end: float = 1.0
    entropy: float = 1e-4
    later: float = 0.5


class TDMPC2Batch(NamedTuple):
    """A batch as the losses take it.

    Attributes:
        windows: [b, h + 1, s, ...], the last s observations at each time step.
        action: float [b, h, a]; ``action[:, i]`` leads from window i to i + 1.
        reward: float [b, h], earned by that action.
        ended: float [b, h], 1 where that action ended the episode.
    """

    windows: Tensor
    action: Tensor
    reward: Tensor
    ended: Tensor


class TDMPC2(Agent):
    """See the module. Random actions at first, and updates before the first plan, are settings of the training.

    Args:
        spaces: of the environments; actions must be continuous.
        episode_length: T, decisions after which an episode ends or is truncated; it sets the discount to
            (T/5 - 1) / (T/5), limited to 0.95..0.995.
        episodic: episodes can terminate early: learn a termination head, which ends values and plans.
        size: of the networks.
        frames: s, number of stacked observations (the paper: 3 of images, 1 of vectors).
        planning: see ``TDMPC2PlannerConfig``; its horizon is also the length of training sequences.
        weights: of the losses.
        batch_size: sequences of an update.
        lr, encoder_lr: learning rates.
        max_norm: largest gradient norm.
        tau: rate at which the target ensemble and the scale of values follow the current ones at each update.
        dropout: in the ensemble's first layer.
        simplex, bins, reach: see ``simplex_size``, ``num_bins`` and ``symlog_limit`` of ``TDMPC2WorldModel``.
        log_std_min, log_std_max: see ``TanhGaussianPolicy``.

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
        size: TDMPC2Size = TDMPC2Size(),
        frames: int = 1,
        planning: TDMPC2PlannerConfig = TDMPC2PlannerConfig(),
        weights: TDMPC2LossWeights = TDMPC2LossWeights(),
        batch_size: int = 256,
        lr: float = 3e-4,
        encoder_lr: float = 0.9e-4,
        max_norm: float = 20.0,
        tau: float = 0.01,
        dropout: float = 0.01,
        simplex: int = 8,
        bins: int = 101,
        reach: float = 10.0,
        log_std_min: float = -10.0,
        log_std_max: float = 2.0,
    ) -> None:
        super().__init__()
        if spaces.actions.kind != "continuous":
            raise ValueError(
                f"TD-MPC2 plans with continuous actions, these are {spaces.actions.size} discrete ones: use MuZero or "
                "DreamerV3 for them"
            )
        if frames < 1:
            raise ValueError(f"frames must be 1 or more, got {frames}")
        self.spaces = spaces
        self.frames = frames
        self.episodic = episodic
        self.weights = weights
        self.batch_size = batch_size
        self.batch_length = planning.horizon + frames
        self.context_steps = frames - 1
        self.max_norm = max_norm
        self.tau = tau
        self.discount = discount_for_episode_length(episode_length)
        dims = spaces.actions.size
        self.world = TDMPC2WorldModel(
            dims,
            vector_size=None if spaces.observation.is_image else spaces.observation.shape[0],
            image_size=spaces.observation.shape[:2] if spaces.observation.is_image else (64, 64),
            num_stacked_frames=frames,
            latent_size=size.latent,
            simplex_size=simplex,
            width=size.width,
            encoder_width=size.encoder_width,
            encoder_layers=size.encoder_layers,
            image_channels=size.channels,
            num_bins=bins,
            symlog_limit=reach,
            predict_termination=episodic,
        )
        self.policy = TanhGaussianPolicy(size.latent, dims, size.width, log_std_min, log_std_max)
        self.critic = QEnsemble(size.latent, dims, size.members, size.width, dropout, bins, reach)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("scale", torch.ones(()))
        self.planner = TDMPC2Planner(self.world, self.policy, self.critic, self.discount, planning)
        encoder = list(self.world.encoder.parameters())
        rest = [p for name, p in self.world.named_parameters() if not name.startswith("encoder.")]
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": encoder_lr},
            {"params": [*rest, *self.critic.parameters()]},
        ]
        self.model_optimizer = torch.optim.Adam(groups, lr=lr, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), lr=lr, eps=1e-5, fused=True)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return {"model": self.model_optimizer, "policy": self.policy_optimizer}

    def simulator(self, title: str = "world", fps: float = 15.0) -> TDMPC2Simulator:
        """See ``Agent.simulator``."""
        return TDMPC2Simulator(self.world, self.spaces.actions, title=title, fps=fps, context_frames=self.frames)

    # -------------------------------------------------------------------------------------------------------- acting

    def init_carry(self, batch: int) -> dict[str, Tensor]:
        """See ``Agent.init_carry``: the mean of the last plan, shifted by one step, and the previous observations."""
        space = self.spaces.observation
        shape = (batch, self.planner.planning.horizon, self.spaces.actions.size)
        return {
            "mean": torch.zeros(shape, device=self.device, dtype=self.scale.dtype),
            "past": torch.zeros((batch, self.frames - 1, *space.shape), device=self.device, dtype=space.dtype),
        }

    @torch.no_grad()
    def act(self, carry: dict[str, Tensor], time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``; an elite is sampled in evaluation, too, but without added noise."""
        mean = torch.where(time_step.is_first[:, None, None], 0, carry["mean"])
        window = self._window(carry["past"], time_step)
        latent = self.world.encode(window)
        noise = draw_planner_noise(self.planner.planning, self.critic, len(latent), self.spaces.actions.size, latent)
        action, mean = self.planner.plan(latent, mean, noise, explore)
        later = torch.cat((mean[:, 1:], torch.zeros_like(mean[:, :1])), dim=1)
        return PolicyStep(action.float(), {"mean": later, "past": window[:, 1:]}, {})

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
        """See ``Agent.update``: the model, then the policy on the model's latents, then the target critic."""
        loss, latents, logs = self.model_loss(self.prepare(batch))
        logs["gradient_norm"] = backward_and_step(loss, self.model_optimizer, self.max_norm)
        loss, said = self.policy_loss(latents.detach())
        norm = backward_and_step(loss, self.policy_optimizer, self.max_norm, name="policy_loss")
        logs |= said | {"policy_gradient_norm": norm}
        targets, online = list(self.target_critic.parameters()), list(self.critic.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(targets, online, self.tau)
        return UpdateOutput(check_finite(logs), {})

    def prepare(self, batch: ReplayBatch) -> TDMPC2Batch:
        """Make windows of observations (images randomly shifted), and the outcomes of each action."""
        frames = self.frames
        windows = stack_frames(batch.observation, batch.is_first, frames)
        if self.spaces.observation.is_image:
            windows = random_shift(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        dtype = self.scale.dtype
        return TDMPC2Batch(
            windows,
            batch.action[:, frames - 1 : -1].to(dtype),
            batch.reward[:, frames:].to(dtype),
            batch.is_terminal[:, frames:].to(dtype),
        )

    def model_loss(self, piece: TDMPC2Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the model's loss (equation 3), its latents [b, h + 1, d], and logs."""
        world, weights = self.world, self.weights
        windows, action, reward, ended = piece
        with torch.no_grad():
            seen = world.encode(windows[:, 1:])
            target = reward + self.discount * (1 - ended) * self.next_value(seen)
        latents = [world.encode(windows[:, 0])]
        for taken in action.unbind(1):
            latents.append(world.next_latent(latents[-1], taken))
        latent = torch.stack(latents, dim=1)
        steps = action.shape[1]
        shares = weights.later ** torch.arange(steps, device=action.device, dtype=latent.dtype) / steps
        losses = {
            "consistency": (latent[:, 1:] - seen).square().mean((0, 2)) @ shares,
            "reward": world.two_hot.loss(world.reward_logits(latent[:, :-1], action), reward).mean(0) @ shares,
            "value": self.critic.two_hot.loss(self.critic(latent[:, :-1], action, use_dropout=True), target).mean(
                (0, 1)
            )
            @ shares,
        }
        logits = world.termination_logits(latent[:, 1:])
        if logits is not None:
            losses["end"] = F.binary_cross_entropy_with_logits(logits, ended)
        loss = torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()
        return loss, latent, {**{f"{name}_loss": value for name, value in losses.items()}, "target": target.mean()}

    def next_value(self, latent: Tensor) -> Tensor:
        """Return the policy's values at latents [b, h, d]: the smaller of two target critics, [b, h]."""
        action = self.policy.sample_action(latent, self._noise(latent))
        return self.target_critic.values(latent, action, self.critic.sample_member_pair()).amin(0)

    def policy_loss(self, latent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy's loss at latents [b, h + 1, d], minus scaled values and entropy, and logs."""
        chosen = self.policy(latent, self._noise(latent))
        values = self.critic.values(
            latent, chosen.action, self.critic.sample_member_pair(), detach_weights=True, use_dropout=True
        ).mean(0)
        self._measure(values[:, 0].detach())
        steps = latent.shape[1]
        shares = self.weights.later ** torch.arange(steps, device=latent.device, dtype=latent.dtype) / steps
        loss = -(self.weights.entropy * chosen.entropy + values / self.scale).mean(0) @ shares
        return loss, {"policy_loss": loss, "entropy": chosen.entropy.mean(), "scale": self.scale.clone()}

    def _noise(self, latent: Tensor) -> Tensor:
        """Draw the noise of one action per latent."""
        shape = (*latent.shape[:-1], self.spaces.actions.size)
        return torch.randn(shape, device=latent.device, dtype=latent.dtype)

    def _measure(self, values: Tensor) -> None:
        """Update the value scale towards the range from the 5th to the 95th percentile, at least 1."""
        low, high = values.quantile(torch.tensor([0.05, 0.95]).to(values))
        self.scale.lerp_((high - low).clamp(min=1), self.tau)


def discount_for_episode_length(episode_length: int) -> float:
    """Return the discount (T/5 - 1) / (T/5), limited to 0.95..0.995: it grows with the length of episodes."""
    if episode_length < 1:
        raise ValueError(f"episode_length must be 1 or more, got {episode_length}")
    part = episode_length / 5
    return min(max((part - 1) / part, 0.95), 0.995)
