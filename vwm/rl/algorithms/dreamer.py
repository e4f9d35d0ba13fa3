"""Dreamer: a recurrent state-space model learned from replay, and a policy learned in its imagination.

Versions 1 (arXiv 1912.01603), 2 (arXiv 2010.02193) and 3 (Nature 640, 2025; arXiv 2301.04104) differ in their world
model (``RSSMWorldModelConfig``), in how the policy improves (``ActorConfig``, ``CriticConfig``) and in their
optimizers; all of these are settings of one agent.

Legend: b batch, t time, h steps of the horizon, n = b t trajectories, d width of features.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.rssm.rssm import RSSMState, flatten_rssm_states
from vwm.models.rssm.simulator import RSSMSimulator
from vwm.models.rssm.world_model import RSSMWorldModel, RSSMWorldModelConfig
from vwm.rl.agent import Agent, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.algorithms.actor import ActionDistribution, ActorConfig
from vwm.rl.algorithms.actor_critic import ActorCritic, ActorCriticLosses, CriticConfig, ImaginedTrajectory
from vwm.rl.algorithms.laprop import LaProp
from vwm.rl.exploration_noise import add_exploration_noise
from vwm.rl.lambda_returns import lambda_returns
from vwm.rl.optimizer_step import clip_and_step, require_finite


@dataclass(frozen=True)
class DreamerOptimizerConfig:
    """Optimizers and learning rates.

    Attributes:
        lr: of the world model; of everything where there is one optimizer.
        actor_lr, critic_lr: of these, with separate Adams as in v1 and v2; None selects DreamerV3's one optimizer.
        clip: with Adam the largest gradient norm of each optimizer (v1, v2: 100); otherwise see ``LaProp``.
        eps: of Adam.
        weight_decay: of AdamW, which multiplies it by the learning rate (v2's own optimizer applies its 1e-6 directly).
        warmup: updates over which the one optimizer's learning rate grows from 0.
    """

    lr: float = 4e-5
    actor_lr: float | None = None
    critic_lr: float | None = None
    clip: float = 0.3
    eps: float = 1e-7
    weight_decay: float = 0.0
    warmup: int = 1000

    def __post_init__(self) -> None:
        if (self.actor_lr is None) != (self.critic_lr is None):
            raise ValueError(
                f"actor_lr={self.actor_lr} and critic_lr={self.critic_lr}: give both, or neither for one optimizer"
            )


@dataclass(frozen=True)
class DreamerImaginationConfig:
    """Imagined trajectories and their returns.

    Attributes:
        horizon: h.
        discount: of imagined rewards, in addition to the world model's own
            (``RSSMWorldModelConfig.discount_horizon``).
        lam: λ of the returns.
        normalize_returns: divide returns by their range (v3).
        start_steps: imagine only from this many time steps at the end of each sequence; 0 takes all.
    """

    horizon: int = 15
    discount: float = 1.0
    lam: float = 0.95
    normalize_returns: bool = True
    start_steps: int = 0

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.start_steps < 0:
            raise ValueError(
                f"horizon must be 1 or more and start_steps 0 or more, got {self.horizon} and {self.start_steps}"
            )


class Dreamer(Agent):
    """See the module; the defaults are DreamerV3 at size 12m.

    Args:
        spaces: of the environments.
        world_model, actor, critic, optimizers, imagination: see their classes.
        replay_critic_scale: weight of the critic's loss on replayed rewards, whose gradient also trains the world
            model's features (v3: 0.3); 0 omits it.
        store_latents: replay stores the latent states, and an update starts from them instead of from zero (v3).
        exploration_noise: deviation of noise added to continuous actions in training (v1: 0.3), or the fraction of
            random discrete actions.
        deterministic: evaluation takes the mode of the action distribution (v1, v2); False samples there, too, as v3's
            published code does, which matters for discrete actions.
        batch_size, batch_length: sequences of an update and their time steps.

    Raises:
        ValueError: settings that exclude each other.
    """

    def __init__(
        self,
        spaces: EnvSpaces,
        world_model: RSSMWorldModelConfig = RSSMWorldModelConfig(),
        actor: ActorConfig = ActorConfig(),
        critic: CriticConfig = CriticConfig(),
        optimizers: DreamerOptimizerConfig = DreamerOptimizerConfig(),
        imagination: DreamerImaginationConfig = DreamerImaginationConfig(),
        replay_critic_scale: float = 0.3,
        store_latents: bool = True,
        exploration_noise: float = 0.0,
        deterministic: bool = True,
        batch_size: int = 16,
        batch_length: int = 64,
    ) -> None:
        super().__init__()
        if batch_length < 2:
            raise ValueError(f"batch_length must be 2 or more, got {batch_length}")
        if replay_critic_scale and imagination.start_steps:
            raise ValueError(
                "replay_critic_scale bootstraps from returns imagined at every time step: set imagination.start_steps=0"
            )
        self.spaces = spaces
        self.batch_size = batch_size
        self.batch_length = batch_length + store_latents  # one time step more, to start from
        self.world_model = RSSMWorldModel.from_settings(spaces.observation.shape, *spaces.action_sizes, world_model)
        self.actor_critic = ActorCritic(
            self.world_model.feature_size,
            spaces.actions,
            actor,
            critic,
            lam=imagination.lam,
            normalize_returns=imagination.normalize_returns,
        )
        self.imagination = imagination
        self.imagination_horizon = imagination.horizon
        self.replay_critic_scale = replay_critic_scale
        self.store_latents = store_latents
        self.exploration_noise = exploration_noise
        self.deterministic = deterministic
        self.clip = optimizers.clip
        self._optimizers = self._make_optimizers(optimizers)
        if store_latents:
            rssm = self.world_model.rssm
            stoch_dtype = torch.uint8 if world_model.classes else torch.float16  # one-hot vectors are integers
            self.extras = {
                "deter": ((rssm.deter_size,), torch.float16),
                "stoch": ((rssm.stochastic.sample_size,), stoch_dtype),
            }

    # ------------------------------------------------------------------------------------------------------ acting

    def init_carry(self, batch: int) -> RSSMState:
        """See ``Agent.init_carry``."""
        return self.world_model.rssm.init_state(batch)

    @torch.no_grad()
    def act(self, carry: RSSMState, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        self.eval()
        decide = functools.partial(self._decide, explore=explore)
        carry, (action, extras) = self.run_step(f"act(explore={explore})", decide, carry, time_step)
        return PolicyStep(action, carry, extras)

    def _decide(
        self, carry: RSSMState, time_step: TimeStep, explore: bool
    ) -> tuple[RSSMState, tuple[Tensor, dict[str, Tensor]]]:
        state = self.world_model.observe_step(carry, time_step.observation, time_step.is_first)
        policy = self.actor_critic.actor(self.world_model.rssm.features(state))
        action = policy.mode() if self.deterministic and not explore else policy.sample()
        if explore:
            action = add_exploration_noise(action, self.exploration_noise, self.spaces.actions.size)
        if action.is_floating_point():
            action = action.clamp(-1, 1)
        return self.world_model.rssm.with_action(state, action), (action, self._stored_latents(state))

    @torch.no_grad()
    def observe(self, carry: RSSMState, time_step: TimeStep, action: Tensor) -> PolicyStep:
        """See ``Agent.observe``."""
        self.eval()
        state = self.world_model.observe_step(carry, time_step.observation, time_step.is_first)
        return PolicyStep(action, self.world_model.rssm.with_action(state, action), self._stored_latents(state))

    def simulator(self, title: str = "world", fps: float = 15.0) -> RSSMSimulator:
        """See ``Agent.simulator``."""
        return RSSMSimulator(self.world_model, self.spaces.actions, title=title, fps=fps, context_frames=1)

    def _stored_latents(self, states: RSSMState) -> dict[str, Tensor]:
        """Return what replay stores of states [..., d]."""
        return {name: getattr(states, name).to(dtype) for name, (_, dtype) in self.extras.items()}

    # ---------------------------------------------------------------------------------------------------- learning

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``."""
        self.train()
        values, extras = self.run_update("update", self.learn, batch)
        return UpdateOutput(values, extras, batch.indices[:, 1:] if self.store_latents else None)

    def learn(self, batch: ReplayBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Update everything once; see ``Agent.run_update``. Returns what to log, and new latents for replay."""
        state, batch = self._initial_state(batch)
        world_loss, states, logs = self.world_model.loss(
            batch.observation, batch.action, batch.reward, batch.is_first, batch.is_terminal, state
        )
        latest = -self.imagination.start_steps or None
        start = flatten_rssm_states(tree_map(lambda part: part[:, latest:].detach(), states))
        trajectory, policy = self.imagine(start, ~batch.is_terminal[:, latest:].flatten())
        losses = self.actor_critic.losses(trajectory, policy)
        loss = world_loss + losses.critic_loss
        if self.replay_critic_scale:
            loss = loss + self.replay_critic_scale * self.replay_critic_loss(batch, states, losses)
        logs = {**logs, **losses.logs}
        require_finite(logs)
        self._optimizer_step(loss, losses.actor_loss)
        self.actor_critic.update_target()
        return logs, self._stored_latents(tree_map(Tensor.detach, states)) if self.store_latents else {}

    def imagine(self, start: RSSMState, alive: Tensor) -> tuple[ImaginedTrajectory, ActionDistribution]:
        """Roll the policy out in the world model.

        Args:
            start: states [n, ...].
            alive: bool [n], whether the episode continues there.

        Returns:
            The trajectories, and the action distributions of every time step but the last, [h, n].
        """
        rssm, actor = self.world_model.rssm, self.actor_critic.actor
        through_dynamics = self.actor_critic.actor_config.gradient == "dynamics"
        with torch.set_grad_enabled(through_dynamics):
            state, features, actions = start, [rssm.features(start)], []
            for _ in range(self.imagination.horizon):
                action = actor(features[-1].detach()).sample()
                state = rssm.imagine_step(state, action)
                features.append(rssm.features(state))
                actions.append(action)
            stacked = torch.stack(features)
            reward = self.world_model.predict_reward(stacked)
            discount = self.imagination.discount * self.world_model.predict_continue(stacked)
        action = torch.stack(actions).detach()
        trajectory = ImaginedTrajectory(stacked, action, reward, discount, alive.to(reward.dtype))
        return trajectory, actor(stacked[:-1].detach())

    def replay_critic_loss(self, batch: ReplayBatch, states: RSSMState, losses: ActorCriticLosses) -> Tensor:
        """Compute the critic's loss on replayed rewards; at the batch's end it bootstraps from the imagined returns."""
        imagined = losses.returns[0].unflatten(0, batch.reward.shape).T
        discount = self.imagination.discount * self.world_model.max_discount * (~batch.is_terminal.T).to(imagined.dtype)
        lam = self.actor_critic.lam * (~batch.is_last.T).to(imagined.dtype)
        returns = lambda_returns(self.world_model.reward_target(batch.reward).T, imagined, discount, lam)
        features = self.world_model.rssm.features(states)[:, :-1].transpose(0, 1)
        return ((~batch.is_last.T[:-1]) * self.actor_critic.critic_loss(features, returns)).mean()

    def _initial_state(self, batch: ReplayBatch) -> tuple[RSSMState | None, ReplayBatch]:
        """Return the state to start from, and the time steps to learn from."""
        if not self.store_latents:
            return None, batch
        first = {name: value[:, 0] for name, value in batch.extras.items()}
        state = self.world_model.rssm.state_from_replay(first["deter"], first["stoch"], batch.action[:, 0])
        fields = {name: value for name, value in batch._asdict().items() if name not in ("extras", "indices")}
        return state, batch._replace(**{name: value[:, 1:] for name, value in fields.items()})

    # -------------------------------------------------------------------------------------------------- optimizers

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return self._optimizers

    def _make_optimizers(self, config: DreamerOptimizerConfig) -> dict[str, torch.optim.Optimizer]:
        actor, critic = self.actor_critic.actor.parameters(), self.actor_critic.critic.parameters()
        if config.actor_lr is None or config.critic_lr is None:
            everything = [*self.world_model.parameters(), *actor, *critic]
            return {"all": LaProp(everything, config.lr, clip=config.clip, warmup=config.warmup)}
        rates: dict[str, tuple[Iterable[nn.Parameter], float]] = {
            "world": (self.world_model.parameters(), config.lr),
            "actor": (actor, config.actor_lr),
            "critic": (critic, config.critic_lr),
        }
        more: dict[str, Any] = {"eps": config.eps, "weight_decay": config.weight_decay}
        return {name: torch.optim.AdamW(list(what), lr, **more) for name, (what, lr) in rates.items()}

    def _optimizer_step(self, loss: Tensor, actor_loss: Tensor) -> None:
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()
        actor = list(self.actor_critic.actor.parameters())
        # The actor's loss may depend on the world model, whose weights it must not change.
        for weight, gradient in zip(actor, torch.autograd.grad(actor_loss, actor), strict=True):
            weight.grad = gradient
        loss.backward()
        for name, optimizer in self._optimizers.items():
            if name == "all":
                optimizer.step()  # LaProp clips by itself
            else:
                clip_and_step(optimizer, self.clip, name=name)
