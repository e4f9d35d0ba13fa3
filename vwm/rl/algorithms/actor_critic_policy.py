"""Policies that live in a simulator: an actor and a critic over what they make of its observations.

Legend: n worlds, t moments, k numbers of a vector, h w pixels, d width of features. Time comes first.
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
from vwm.rl.algorithms.actor import ActionDistribution, CategoricalActionDistribution
from vwm.rl.algorithms.actor_critic import ActorConfig, ActorCritic, CriticConfig


class ActorCriticPolicy(nn.Module, ABC):
    """What ``vwm.rl.algorithms.imagination`` trains; a ``Player``.

    Args:
        spaces: of the world.
        behaviour: actor and critic over features.
        greedy: without exploring, do what is likeliest; False draws there too.
    """

    def __init__(self, spaces: EnvSpaces, behaviour: ActorCritic, greedy: bool) -> None:
        super().__init__()
        self.spaces = spaces
        self.behaviour = behaviour
        self.greedy = greedy

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return next(self.parameters()).device

    def prior(self, features: Tensor) -> ActionDistribution | None:
        """The policy from which this one came, frozen; None where it came from nothing."""
        return None

    @abstractmethod
    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``."""

    @abstractmethod
    def see(self, carry: PolicyCarry, observation: Tensor, is_first: Tensor) -> tuple[PolicyCarry, Tensor]:
        """One moment: observations [n, ...] and where an episode begins, bool [n] -> features [n, d]."""

    @abstractmethod
    def look(self, carry: PolicyCarry, observations: Tensor) -> tuple[PolicyCarry, Tensor]:
        """Some moments, none of which begins an episode: [t, n, ...] -> features [t, n, d], as ``see`` would have."""

    @torch.no_grad()
    def act(self, carry: PolicyCarry, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        carry, features = self.see(carry, time_step.observation, time_step.is_first)
        policy: ActionDistribution = self.behaviour.actor(features)
        action = policy.mode() if self.greedy and not explore else policy.sample()
        return PolicyStep(action.clamp(-1, 1) if action.is_floating_point() else action, carry, {})


class FeatureActorCriticPolicy(ActorCriticPolicy):
    """Over vectors that know the past themselves: a world's features, or its latents.

    Args:
        simulator: the world.
        spaces: of the world.
        actor, critic: see there.
        trace: lambda of the returns.
        normalise: see ``ActorCritic``.
        greedy: see ``ActorCriticPolicy``.

    Raises:
        ValueError: the world shows pictures.
    """

    def __init__(
        self,
        simulator: Simulator,
        spaces: EnvSpaces,
        actor: ActorConfig = ActorConfig(),
        critic: CriticConfig = CriticConfig(),
        trace: float = 0.95,
        normalise: bool = True,
        greedy: bool = True,
    ) -> None:
        if spaces.pixels:
            raise ValueError("a FeaturePolicy reads vectors: observe='features' or 'latent', or take a FramePolicy")
        behaviour = ActorCritic(spaces.observation[0], spaces.actions, actor, critic, trace, normalise)
        super().__init__(spaces, behaviour, greedy)

    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``: it remembers nothing."""
        return ()

    def see(self, carry: PolicyCarry, observation: Tensor, is_first: Tensor) -> tuple[PolicyCarry, Tensor]:
        """See ``ActorCriticPolicy``."""
        return carry, observation

    def look(self, carry: PolicyCarry, observations: Tensor) -> tuple[PolicyCarry, Tensor]:
        """See ``ActorCriticPolicy``."""
        return carry, observations


class ClonedActorCriticPolicy(FeatureActorCriticPolicy):
    """Begins as the policy that a world's agent tokens cloned, which stays beside it as the prior (Dreamer 4).

    Args:
        simulator: a world with a cloned policy (the part ``policy`` of its bundle).
        spaces: of the world, observed by its features.
        critic, trace, normalise, greedy: see ``FeatureActorCriticPolicy``.
        entropy: how much an undecided policy is worth, with ``Reinforce``.

    Raises:
        ValueError: the world has no cloned policy, or is not observed by its features.
    """

    def __init__(
        self,
        simulator: Simulator,
        spaces: EnvSpaces,
        critic: CriticConfig = CriticConfig(),
        entropy: float = 0.0,
        trace: float = 0.95,
        normalise: bool = True,
        greedy: bool = True,
    ) -> None:
        heads = simulator.policy if isinstance(simulator, HasClonedPolicy) else None
        if heads is None:
            raise ValueError("this world has no cloned policy: train its agent tokens, or take a FeaturePolicy")
        if spaces.observation != (heads.config.width,):
            raise ValueError(
                f"the cloned policy reads {heads.config.width} features, here {list(spaces.observation)} are observed: "
                f"observe='features'"
            )
        super().__init__(simulator, spaces, ActorConfig(entropy=entropy), critic, trace, normalise, greedy)
        self.cloned = AgentHeadsActor(heads).requires_grad_(False)
        self.behaviour.actor = AgentHeadsActor(heads)

    def prior(self, features: Tensor) -> ActionDistribution | None:
        """See ``ActorCriticPolicy``."""
        with torch.no_grad():
            said: ActionDistribution = self.cloned(features)
        return said


class AgentHeadsActor(nn.Module):
    """Agent heads as an actor; a copy of them.

    Args:
        heads: ``vwm.models.dit.policy_heads.PolicyRewardHeads``.
    """

    def __init__(self, heads: PolicyRewardHeads) -> None:
        super().__init__()
        self.heads = copy.deepcopy(heads).requires_grad_(True)

    def forward(self, features: Tensor) -> ActionDistribution:
        """[..., d] -> policies [...]."""
        said = self.heads.policy(features)
        return (
            BinnedActionDistribution(said, self.heads) if self.heads.continuous else CategoricalActionDistribution(said)
        )


class BinnedActionDistribution(ActionDistribution):
    """Continuous actions, each dimension a choice among values.

    Args:
        logits: [..., a, k].
        heads: know the values.
    """

    def __init__(self, logits: Tensor, heads: PolicyRewardHeads) -> None:
        self.choices = CategoricalActionDistribution(logits)
        self.heads = heads

    def sample(self) -> Tensor:
        """See ``ActionDistribution``."""
        return self.heads.decode_action(self.choices.sample())

    def mode(self) -> Tensor:
        """See ``ActionDistribution``."""
        return self.heads.decode_action(self.choices.mode())

    def log_prob(self, action: Tensor) -> Tensor:
        """See ``ActionDistribution``: of the choice, not of a density."""
        return self.choices.log_prob(self.heads.encode_action(action)).sum(-1)

    def entropy(self) -> Tensor:
        """See ``ActionDistribution``; exact."""
        return self.choices.entropy().sum(-1)

    def divergence(self, other: BinnedActionDistribution) -> Tensor:
        """See ``ActionDistribution``."""
        return self.choices.divergence(other.choices).sum(-1)


class FrameActorCriticPolicy(ActorCriticPolicy):
    """Convolutions and an LSTM over pictures, as IRIS (arXiv 2209.00588) and DIAMOND (arXiv 2405.12399) have it.

    The critic's loss shapes the trunk, too.

    Args:
        simulator: the world.
        spaces: of the world.
        depth, mults: channels of the convolutions; see ``DreamerV3ImageEncoder``.
        width: d, of the LSTM.
        actor, critic, trace, normalise, greedy: see ``FeatureActorCriticPolicy``.

    Raises:
        ValueError: the world does not show pictures, or of a size that cannot be halved so often.
    """

    def __init__(
        self,
        simulator: Simulator,
        spaces: EnvSpaces,
        depth: int = 16,
        mults: Sequence[int] = (1, 2, 4, 4),
        width: int = 256,
        actor: ActorConfig = ActorConfig(entropy=1e-3, layers=0),
        critic: CriticConfig = CriticConfig(layers=0),
        trace: float = 0.95,
        normalise: bool = True,
        greedy: bool = True,
    ) -> None:
        if not spaces.pixels:
            raise ValueError("a FramePolicy reads pictures: observe='frame', or take a FeaturePolicy")
        super().__init__(spaces, ActorCritic(width, spaces.actions, actor, critic, trace, normalise), greedy)
        height, across = spaces.observation[:2]
        self.encoder = DreamerV3ImageEncoder((height, across), depth, mults, max_pool=False, kernel=3)
        self.memory = nn.LSTM(self.encoder.embedding_size, width)

    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``: the LSTM's output and cell, [batch, d] each."""
        zeros = torch.zeros(batch, self.memory.hidden_size, device=self.device)
        return zeros, zeros

    def see(self, carry: PolicyCarry, observation: Tensor, is_first: Tensor) -> tuple[PolicyCarry, Tensor]:
        """See ``ActorCriticPolicy``."""
        kept = (~is_first)[:, None]
        carry, features = self.look(tuple(part * kept for part in carry), observation[None])
        return carry, features[0]

    def look(self, carry: PolicyCarry, observations: Tensor) -> tuple[PolicyCarry, Tensor]:
        """See ``ActorCriticPolicy``."""
        pictures = observations.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - 0.5
        embedded = self.encoder(pictures).unflatten(0, observations.shape[:2])
        output, cell = carry
        features, (output, cell) = self.memory(embedded, (output[None], cell[None]))
        return (output[0], cell[0]), features
