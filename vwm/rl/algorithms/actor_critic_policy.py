"""Policies that learn in a simulator: an actor and a critic over features of its observations.

Legend: n environments, t time steps, k size of a vector, h w pixels, d width of features. Time comes first.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vwm.core.capabilities import HasClonedPolicy
from vwm.core.simulator import Simulator
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.models.rssm.image_networks import DreamerV3ImageEncoder
from vwm.rl.agent import PolicyCarry, PolicyStep
from vwm.rl.algorithms.actor import ActionDistribution, ActorConfig, CategoricalActionDistribution
from vwm.rl.algorithms.actor_critic import ActorCritic, CriticConfig


class ActorCriticPolicy(nn.Module, ABC):
    """The policies that ``vwm.rl.algorithms.imagination`` trains; each is an ``ActingPolicy``.

    Args:
        spaces: of the simulator as an environment.
        actor_critic: actor and critic over features.
        deterministic: evaluation takes the mode of the action distribution; False samples there, too.
    """

    def __init__(self, spaces: EnvSpaces, actor_critic: ActorCritic, deterministic: bool) -> None:
        super().__init__()
        self.spaces = spaces
        self.actor_critic = actor_critic
        self.deterministic = deterministic

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return next(self.parameters()).device

    def prior(self, features: Tensor) -> ActionDistribution | None:
        """Return the policy that this one is kept close to, or None: the one that it started from."""
        return None

    def update_prior(self, simulator: Simulator) -> None:
        """Take over the prior of a world that has learned since; nothing where there is none."""

    @abstractmethod
    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``."""

    @abstractmethod
    def encode_step(self, carry: PolicyCarry, observation: Tensor, is_first: Tensor) -> tuple[PolicyCarry, Tensor]:
        """Encode one time step: observations [n, ...] and whether episodes begin, bool [n] -> features [n, d]."""

    @abstractmethod
    def encode_sequence(self, carry: PolicyCarry, observations: Tensor) -> tuple[PolicyCarry, Tensor]:
        """Encode time steps within an episode: [t, n, ...] -> features [t, n, d]; see ``encode_step``."""

    @torch.no_grad()
    def act(self, carry: PolicyCarry, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        carry, features = self.encode_step(carry, time_step.observation, time_step.is_first)
        policy: ActionDistribution = self.actor_critic.actor(features)
        action = policy.mode() if self.deterministic and not explore else policy.sample()
        return PolicyStep(action.clamp(-1, 1) if action.is_floating_point() else action, carry, {})


class FeatureActorCriticPolicy(ActorCriticPolicy):
    """A policy over vectors that summarize the past: a simulator's features, or its latents.

    Args:
        simulator: the simulator.
        spaces: of the simulator as an environment.
        actor, critic: see ``ActorConfig`` and ``CriticConfig``.
        lam: λ of the returns.
        normalize_returns: see ``ActorCritic``.
        deterministic: see ``ActorCriticPolicy``.

    Raises:
        ValueError: observations are images.
    """

    def __init__(
        self,
        simulator: Simulator,
        spaces: EnvSpaces,
        actor: ActorConfig = ActorConfig(),
        critic: CriticConfig = CriticConfig(),
        lam: float = 0.95,
        normalize_returns: bool = True,
        deterministic: bool = True,
    ) -> None:
        if spaces.observation.is_image:
            raise ValueError(
                "FeatureActorCriticPolicy takes vectors: set observe to features or latent, or use "
                "FrameActorCriticPolicy"
            )
        actor_critic = ActorCritic(spaces.observation.shape[0], spaces.actions, actor, critic, lam, normalize_returns)
        super().__init__(spaces, actor_critic, deterministic)

    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``: the policy has no memory."""
        return ()

    def encode_step(self, carry: PolicyCarry, observation: Tensor, is_first: Tensor) -> tuple[PolicyCarry, Tensor]:
        """See ``ActorCriticPolicy``."""
        return carry, observation

    def encode_sequence(self, carry: PolicyCarry, observations: Tensor) -> tuple[PolicyCarry, Tensor]:
        """See ``ActorCriticPolicy``."""
        return carry, observations


class ClonedActorCriticPolicy(FeatureActorCriticPolicy):
    """Starts as the policy cloned by a simulator's agent tokens, which also stays as the prior (Dreamer 4).

    The prior is frozen in a world that does not change. Where a world learns on, what its features mean changes, and
    with it the cloned policy that reads them: ``update_prior`` takes over the clone as it is now.

    Args:
        simulator: a simulator with a cloned policy (the component ``policy`` of its bundle).
        spaces: of the simulator, observed by its features.
        critic, lam, normalize_returns, deterministic: see ``FeatureActorCriticPolicy``.
        entropy_scale: weight of the entropy, with ``ReinforceObjective``.

    Raises:
        ValueError: the simulator has no cloned policy, or is not observed by its features.
    """

    def __init__(
        self,
        simulator: Simulator,
        spaces: EnvSpaces,
        critic: CriticConfig = CriticConfig(),
        entropy_scale: float = 0.0,
        lam: float = 0.95,
        normalize_returns: bool = True,
        deterministic: bool = True,
    ) -> None:
        heads = simulator.policy if isinstance(simulator, HasClonedPolicy) else None
        if heads is None:
            raise ValueError(
                "this simulator has no cloned policy: train its agent tokens, or use FeatureActorCriticPolicy"
            )
        if spaces.observation.shape != (heads.config.width,):
            raise ValueError(
                f"the cloned policy takes {heads.config.width} features, but observations are "
                f"{list(spaces.observation.shape)}: set observe=features"
            )
        super().__init__(
            simulator, spaces, ActorConfig(entropy_scale=entropy_scale), critic, lam, normalize_returns, deterministic
        )
        self.prior_actor = AgentHeadsActor(heads).requires_grad_(False)
        self.actor_critic.actor = AgentHeadsActor(heads)

    def prior(self, features: Tensor) -> ActionDistribution | None:
        """See ``ActorCriticPolicy``."""
        with torch.no_grad():
            outputs: ActionDistribution = self.prior_actor(features)
        return outputs

    def update_prior(self, simulator: Simulator) -> None:
        """See ``ActorCriticPolicy``."""
        assert isinstance(simulator, HasClonedPolicy) and simulator.policy is not None
        self.prior_actor.heads.load_state_dict(simulator.policy.state_dict())


class AgentHeadsActor(nn.Module):
    """An actor that is a copy of policy heads.

    Args:
        heads: ``vwm.models.dit.policy_heads.PolicyRewardHeads``.
    """

    def __init__(self, heads: PolicyRewardHeads) -> None:
        super().__init__()
        self.heads = copy.deepcopy(heads).requires_grad_(True)

    def forward(self, features: Tensor) -> ActionDistribution:
        """Return the action distributions [...] for features [..., d]."""
        outputs = self.heads.policy(features)
        return (
            BinnedActionDistribution(outputs, self.heads)
            if self.heads.continuous
            else CategoricalActionDistribution(outputs)
        )


class BinnedActionDistribution(ActionDistribution):
    """Continuous actions, discretized into bins per dimension.

    Args:
        logits: [..., a, k].
        heads: defines the bins' values.
    """

    def __init__(self, logits: Tensor, heads: PolicyRewardHeads) -> None:
        self.categorical = CategoricalActionDistribution(logits)
        self.heads = heads

    def sample(self) -> Tensor:
        """See ``ActionDistribution``."""
        return self.heads.decode_action(self.categorical.sample())

    def mode(self) -> Tensor:
        """See ``ActionDistribution``."""
        return self.heads.decode_action(self.categorical.mode())

    def log_prob(self, action: Tensor) -> Tensor:
        """See ``ActionDistribution``; the probability of the bin, not a density."""
        return self.categorical.log_prob(self.heads.encode_action(action)).sum(-1)

    def entropy(self) -> Tensor:
        """See ``ActionDistribution``; exact."""
        return self.categorical.entropy().sum(-1)

    def kl_divergence(self, other: BinnedActionDistribution) -> Tensor:
        """See ``ActionDistribution``."""
        return self.categorical.kl_divergence(other.categorical).sum(-1)


class FrameActorCriticPolicy(ActorCriticPolicy):
    """Convolutions and an LSTM over images, as in IRIS (arXiv 2209.00588) and DIAMOND (arXiv 2405.12399).

    The critic's loss also trains the encoder and the LSTM.

    Args:
        simulator: the simulator.
        spaces: of the simulator as an environment.
        conv_channels, channel_multipliers: of the convolutions; see ``DreamerV3ImageEncoder``.
        width: d, of the LSTM.
        actor, critic, lam, normalize_returns, deterministic: see ``FeatureActorCriticPolicy``.

    Raises:
        ValueError: observations are not images, or their size cannot be halved often enough.
    """

    def __init__(
        self,
        simulator: Simulator,
        spaces: EnvSpaces,
        conv_channels: int = 16,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        width: int = 256,
        actor: ActorConfig = ActorConfig(entropy_scale=1e-3, layers=0),
        critic: CriticConfig = CriticConfig(layers=0),
        lam: float = 0.95,
        normalize_returns: bool = True,
        deterministic: bool = True,
    ) -> None:
        if not spaces.observation.is_image:
            raise ValueError("FrameActorCriticPolicy takes images: set observe=frame, or use FeatureActorCriticPolicy")
        super().__init__(
            spaces, ActorCritic(width, spaces.actions, actor, critic, lam, normalize_returns), deterministic
        )
        height, width_pixels = spaces.observation.shape[:2]
        self.encoder = DreamerV3ImageEncoder(
            (height, width_pixels), conv_channels, channel_multipliers, max_pool=False, kernel=3
        )
        self.lstm = nn.LSTM(self.encoder.embedding_size, width)

    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``: the LSTM's output and cell, [batch, d] each."""
        zeros = torch.zeros(batch, self.lstm.hidden_size, device=self.device)
        return zeros, zeros

    def encode_step(self, carry: PolicyCarry, observation: Tensor, is_first: Tensor) -> tuple[PolicyCarry, Tensor]:
        """See ``ActorCriticPolicy``."""
        keep = (~is_first)[:, None]
        carry, features = self.encode_sequence(tuple(part * keep for part in carry), observation[None])
        return carry, features[0]

    def encode_sequence(self, carry: PolicyCarry, observations: Tensor) -> tuple[PolicyCarry, Tensor]:
        """See ``ActorCriticPolicy``."""
        images = observations.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - 0.5
        embedded = self.encoder(images).unflatten(0, observations.shape[:2])
        output, cell = carry
        features, (output, cell) = self.lstm(embedded, (output[None], cell[None]))
        return (output[0], cell[0]), features
