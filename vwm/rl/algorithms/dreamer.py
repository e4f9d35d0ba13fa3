"""Dreamer: a latent world learned from replay, and a policy learned in its imagination.

Versions 1 (arXiv 1912.01603), 2 (arXiv 2010.02193) and 3 (Nature 640, 2025; arXiv 2301.04104) differ in their world
(``RSSMWorldModelConfig``), in how the policy improves (``ActorConfig``, ``CriticConfig``) and in what is optimised
how; all of
that stands in a config over one agent.

Legend: b batch, t time, h steps of the horizon, n = b t ways, d width of features.
"""

from __future__ import annotations

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
from vwm.rl.algorithms.actor import ActionDistribution
from vwm.rl.algorithms.actor_critic import ActorConfig, ActorCritic, ActorCriticLosses, CriticConfig, ImaginedTrajectory
from vwm.rl.algorithms.laprop import LaProp
from vwm.rl.exploration_noise import add_exploration_noise
from vwm.rl.lambda_returns import lambda_returns
from vwm.rl.optimizer_step import check_finite, clip_and_step


@dataclass(frozen=True)
class DreamerOptimizerConfig:
    """What moves the weights.

    Attributes:
        lr: of the world; of everything where there is one optimizer.
        actor_lr, critic_lr: of these, with Adam each, as in v1 and v2; None has DreamerV3's one optimizer.
        clip: with Adam the largest norm of each one's gradient (v1, v2: 100); else see ``LaProp``.
        eps: of Adam.
        weight_decay: of AdamW, which takes it times the rate (v2's own takes its 1e-6 whatever the rate).
        warmup: updates over which the one optimizer's rate grows from 0.
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


class Dreamer(Agent):
    """See above; the defaults are DreamerV3 at size 12m.

    Args:
        spaces: of the environments.
        world, actor, critic, optimizers: see there.
        horizon: h.
        discount: of imagined rewards, beside the world's own (``RSSMWorldModelConfig.discount_horizon``).
        trace: lambda of the returns.
        normalise: whether returns are divided by their range (v3).
        replay_critic_scale: scale of the critic's loss on what was really earned, whose gradient also shapes the
        world's
            features (v3: 0.3); 0 has none.
        store_latents: replay keeps the states and an update goes on from them, rather than from nothing (v3).
        exploration: deviation of noise that is added to continuous actions in training (v1: 0.3), or the share of
            random choices.
        batch_size, batch_length: of an update.
        imagine_last_steps: only so many moments of each sequence are imagined from; 0 takes all.

    Raises:
        ValueError: settings that do not go together.
    """

    def __init__(
        self,
        spaces: EnvSpaces,
        world: RSSMWorldModelConfig = RSSMWorldModelConfig(),
        actor: ActorConfig = ActorConfig(),
        critic: CriticConfig = CriticConfig(),
        optimizers: DreamerOptimizerConfig = DreamerOptimizerConfig(),
        horizon: int = 15,
        discount: float = 1.0,
        trace: float = 0.95,
        normalise: bool = True,
        replay_critic_scale: float = 0.3,
        store_latents: bool = True,
        exploration: float = 0.0,
        batch_size: int = 16,
        batch_length: int = 64,
        imagine_last_steps: int = 0,
    ) -> None:
        super().__init__()
        if horizon < 1 or batch_length < 2 or imagine_last_steps < 0:
            raise ValueError(
                f"horizon={horizon} must be 1 or more, batch_length={batch_length} 2 or more and "
                f"imagine_last_steps={imagine_last_steps} 0 or more"
            )
        if replay_critic_scale and imagine_last_steps:
            raise ValueError(
                "replay_critic_scale bootstraps from what every moment imagines: it wants imagine_last_steps=0"
            )
        self.spaces = spaces
        self.batch_size = batch_size
        self.batch_length = batch_length + store_latents  # a moment to go on from
        self.world = RSSMWorldModel.from_settings(spaces.observation, *spaces.action_sizes, world)
        self.behaviour = ActorCritic(self.world.feature_size, spaces.actions, actor, critic, trace, normalise)
        self.horizon = horizon
        self.discount = discount
        self.replay_critic_scale = replay_critic_scale
        self.store_latents = store_latents
        self.exploration = exploration
        self.imagine_last_steps = imagine_last_steps
        self.settings = optimizers
        self.trained = self._make_optimizers(optimizers)
        if store_latents:
            rssm = self.world.rssm
            small = torch.uint8 if world.classes else torch.float16  # one-hots are whole numbers
            self.extras = {
                "deter": ((rssm.deter_size,), torch.float16),
                "stoch": ((rssm.stochastic.sample_size,), small),
            }

    # ----------------------------------------------------------------------------------------------------- playing

    def init_carry(self, batch: int) -> RSSMState:
        """See ``Agent.init_carry``."""
        return self.world.rssm.init_state(batch)

    @torch.no_grad()
    def act(self, carry: RSSMState, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        self.eval()
        state = self.world.observe_step(carry, time_step.observation, time_step.is_first)
        policy = self.behaviour.actor(self.world.rssm.features(state))
        action = policy.mode()
        if explore:
            action = add_exploration_noise(policy.sample(), self.exploration, self.spaces.actions.size)
        if action.is_floating_point():
            action = action.clamp(-1, 1)
        return PolicyStep(action, self.world.rssm.with_action(state, action), self._kept(state))

    @torch.no_grad()
    def observe(self, carry: RSSMState, time_step: TimeStep, action: Tensor) -> PolicyStep:
        """See ``Agent.watch``."""
        self.eval()
        state = self.world.observe_step(carry, time_step.observation, time_step.is_first)
        return PolicyStep(action, self.world.rssm.with_action(state, action), self._kept(state))

    def simulator(self, title: str = "world", fps: float = 15.0) -> RSSMSimulator:
        """See ``Agent.simulator``."""
        return RSSMSimulator(self.world, self.spaces.actions, title=title, fps=fps, context_frames=1)

    def _kept(self, states: RSSMState) -> dict[str, Tensor]:
        """What replay keeps of states [..., d]."""
        return {name: getattr(states, name).to(dtype) for name, (_, dtype) in self.extras.items()}

    # ---------------------------------------------------------------------------------------------------- learning

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``."""
        self.train()
        state, batch = self._begin(batch)
        world_loss, states, logs = self.world.loss(
            batch.observation, batch.action, batch.reward, batch.is_first, batch.is_terminal, state
        )
        latest = -self.imagine_last_steps or None
        start = flatten_rssm_states(tree_map(lambda part: part[:, latest:].detach(), states))
        way, policy = self.imagine(start, ~batch.is_terminal[:, latest:].flatten())
        learnt = self.behaviour.losses(way, policy)
        loss = world_loss + learnt.critic
        if self.replay_critic_scale:
            loss = loss + self.replay_critic_scale * self.replay_critic_loss(batch, states, learnt)
        numbers = check_finite({**logs, **learnt.logs})
        self._step(loss, learnt.actor)
        self.behaviour.follow()
        if not self.store_latents:
            return UpdateOutput(numbers)
        return UpdateOutput(numbers, self._kept(tree_map(Tensor.detach, states)), batch.indices[:, 1:])

    def imagine(self, start: RSSMState, going: Tensor) -> tuple[ImaginedTrajectory, ActionDistribution]:
        """Follow the policy into what the world expects.

        Args:
            start: states [n, ...].
            going: bool [n], whether the world goes on there.

        Returns:
            The ways, and the policy of all their moments but the last, [h, n].
        """
        rssm, actor = self.world.rssm, self.behaviour.actor
        through = self.behaviour.actor_config.gradient == "dynamics"
        with torch.set_grad_enabled(through):
            state, features, actions = start, [rssm.features(start)], []
            for _ in range(self.horizon):
                action = actor(features[-1].detach()).sample()
                state = rssm.imagine_step(state, action)
                features.append(rssm.features(state))
                actions.append(action)
            seen = torch.stack(features)
            reward, live = self.world.predict_reward(seen), self.discount * self.world.predict_continue(seen)
        way = ImaginedTrajectory(seen, torch.stack(actions).detach(), reward, live, going.to(reward.dtype))
        return way, actor(seen[:-1].detach())

    def replay_critic_loss(self, batch: ReplayBatch, states: RSSMState, learnt: ActorCriticLosses) -> Tensor:
        """The critic's loss on what was really earned; beyond the batch, imagination has the word."""
        rest = learnt.returns[0].unflatten(0, batch.reward.shape).T
        live = self.discount * self.world.max_discount * (~batch.is_terminal.T).to(rest.dtype)
        lam = self.behaviour.trace * (~batch.is_last.T).to(rest.dtype)
        returns = lambda_returns(self.world.reward_target(batch.reward).T, rest, live, lam)
        features = self.world.rssm.features(states)[:, :-1].transpose(0, 1)
        return ((~batch.is_last.T[:-1]) * self.behaviour.critic_loss(features, returns)).mean()

    def _begin(self, batch: ReplayBatch) -> tuple[RSSMState | None, ReplayBatch]:
        """The state to go on from, and the moments that are learned from."""
        if not self.store_latents:
            return None, batch
        first = {name: value[:, 0] for name, value in batch.extras.items()}
        state = self.world.rssm.state_from_replay(first["deter"], first["stoch"], batch.action[:, 0])
        fields = {name: value for name, value in batch._asdict().items() if name not in ("extras", "indices")}
        return state, batch._replace(**{name: value[:, 1:] for name, value in fields.items()})

    # -------------------------------------------------------------------------------------------------- optimizers

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return self.trained

    def _make_optimizers(self, settings: DreamerOptimizerConfig) -> dict[str, torch.optim.Optimizer]:
        actor, critic = self.behaviour.actor.parameters(), self.behaviour.critic.parameters()
        if settings.actor_lr is None or settings.critic_lr is None:
            everything = [*self.world.parameters(), *actor, *critic]
            return {"all": LaProp(everything, settings.lr, clip=settings.clip, warmup=settings.warmup)}
        rates: dict[str, tuple[Iterable[nn.Parameter], float]] = {
            "world": (self.world.parameters(), settings.lr),
            "actor": (actor, settings.actor_lr),
            "critic": (critic, settings.critic_lr),
        }
        more: dict[str, Any] = {"eps": settings.eps, "weight_decay": settings.weight_decay}
        return {name: torch.optim.AdamW(list(what), lr, **more) for name, (what, lr) in rates.items()}

    def _step(self, loss: Tensor, actor_loss: Tensor) -> None:
        for optimizer in self.trained.values():
            optimizer.zero_grad()
        actor = list(self.behaviour.actor.parameters())
        # The way from the actor's loss may lead through the world, whose weights are not to be moved by it.
        for weight, gradient in zip(actor, torch.autograd.grad(actor_loss, actor), strict=True):
            weight.grad = gradient
        loss.backward()
        for name, optimizer in self.trained.items():
            if name == "all":
                optimizer.step()  # LaProp clips by itself
            else:
                clip_and_step(optimizer, self.settings.clip, name=name)
