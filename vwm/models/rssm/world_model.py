"""World model of PlaNet and the Dreamers: observation model, RSSM, reward head and continue head.

``reward[t]`` is received with ``observation[t]`` and predicted from the state there; ``action[t]`` is taken there.

Dimensions: b batch, t time, d feature size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.rssm.kl_loss import KLLoss, latent_overshooting_loss
from vwm.models.rssm.observation_models import (
    ImageNetworkType,
    ImageObservationModel,
    ObservationModel,
    ReconstructionLossType,
    VectorObservationModel,
)
from vwm.models.rssm.recurrent_cells import RecurrentCellType
from vwm.models.rssm.rssm import RSSM, RSSMState
from vwm.nn.dense_layers import ActivationType, NormType
from vwm.nn.prediction_heads import HeadDistribution, PredictionHead


@dataclass(frozen=True)
class RSSMWorldModelConfig:
    """Settings of an ``RSSMWorldModel``; the defaults are DreamerV3 at size 12m, names as in its published code.

    Attributes:
        deter, hidden, stoch, classes, cell, blocks, unimix, min_std, prior_layers, posterior_layers: See ``RSSM``.
        norm: Normalization of all layers except the recurrent cell's own.
        activation: Activation of all layers except the recurrent cell's own.
        image_activation: Activation of convolutions; None uses ``activation`` (Dreamer v1: ``"relu"``).
        units: Width of the hidden layers outside the RSSM.
        vector_layers: Hidden layers of the vector encoder and of the vector decoder.
        symlog: Whether vectors are symlog-transformed.
        image_network, depth, mults, pixel_bits: See ``ImageObservationModel``.
        reconstruction_loss: See ``ObservationModel``.
        reward_distribution: Distribution of the reward head, see ``PredictionHead``.
        reward_layers: Hidden layers of the reward head.
        reward_scale: Scale of the reward loss (PlaNet: 10).
        tanh_reward: Whether the reward head learns tanh(reward) (DreamerV2 on Atari), which ``predict_reward`` then
            returns.
        predict_continue: Whether there is a continue head.
        continue_layers: Hidden layers of the continue head.
        continue_scale: Scale of the continue loss.
        discount_horizon: Where an episode continues, the head learns probability 1 - 1 / discount_horizon, so that it
            includes the discount; 0 learns 1.
        kl: See ``KLLoss``.
        overshooting_distance: Largest distance of latent overshooting in steps; 0 disables it.
    """

    deter: int = 2048
    hidden: int = 256
    stoch: int = 32
    classes: int = 16
    cell: RecurrentCellType = "block_gru"
    blocks: int = 8
    unimix: float = 0.01
    min_std: float = 0.1
    prior_layers: int = 2
    posterior_layers: int = 1
    norm: NormType = "rms"
    activation: ActivationType = "silu"
    image_activation: ActivationType | None = None
    units: int = 256
    vector_layers: int = 3
    symlog: bool = True
    image_network: ImageNetworkType = "pooled"
    depth: int = 16
    mults: tuple[int, ...] = (2, 3, 4, 4)
    pixel_bits: int = 8
    reconstruction_loss: ReconstructionLossType = "squared"
    reward_distribution: Literal["normal", "two_hot"] = "two_hot"
    reward_layers: int = 1
    reward_scale: float = 1.0
    tanh_reward: bool = False
    predict_continue: bool = True
    continue_layers: int = 1
    continue_scale: float = 1.0
    discount_horizon: int = 333
    kl: KLLoss = field(default_factory=KLLoss)
    overshooting_distance: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RSSMWorldModelConfig:
        """Return the configuration given by plain values, as in a JSON file.

        Raises:
            ValueError: An unknown field.
        """
        try:
            kl = KLLoss(**values.get("kl", {}))
            return cls(**{**values, "mults": tuple(values.get("mults", cls.mults)), "kl": kl})
        except TypeError as error:
            raise ValueError(f"not the settings of an RSSMWorldModel: {error}") from error


class RSSMWorldModel(ModelMixin, ConfigMixin):
    """Observation model, RSSM, and heads for the reward and the continuation of the episode.

    Args:
        observation_shape: [k] for vectors or [h, w, 3] for images.
        num_actions, action_dims: See ``RSSM``.
        settings: Fields of ``RSSMWorldModelConfig`` that differ from the defaults, as a dictionary that can be stored
            as JSON; ``from_settings`` takes the dataclass.

    Raises:
        ValueError: Unknown or incompatible settings.
    """

    @register_to_config
    def __init__(
        self,
        observation_shape: list[int],
        num_actions: int = 0,
        action_dims: int = 0,
        settings: dict[str, Any] = {},  # noqa: B006
    ) -> None:
        super().__init__()
        s = RSSMWorldModelConfig.from_dict(settings)
        if len(observation_shape) not in (1, 3):
            raise ValueError(
                f"observation_shape={list(observation_shape)} must be [k] for vectors or [h, w, 3] for images"
            )
        self.settings = s
        self.observation_model = _make_observation_model(observation_shape, s)
        self.rssm = RSSM(
            num_actions,
            action_dims,
            embedding_size=self.observation_model.embedding_size,
            deter=s.deter,
            hidden=s.hidden,
            stoch=s.stoch,
            classes=s.classes,
            cell=s.cell,
            blocks=s.blocks,
            unimix=s.unimix,
            min_std=s.min_std,
            prior_layers=s.prior_layers,
            posterior_layers=s.posterior_layers,
            norm=s.norm,
            activation=s.activation,
        )
        self.feature_size = self.rssm.feature_size
        self.reward_head = self._make_head(s.reward_layers, s.reward_distribution)
        self.continue_head = self._make_head(s.continue_layers, "bernoulli") if s.predict_continue else None
        self.max_discount = 1 - 1 / s.discount_horizon if s.discount_horizon else 1.0

    @classmethod
    def from_settings(
        cls, observation_shape: tuple[int, ...], num_actions: int, action_dims: int, settings: RSSMWorldModelConfig
    ) -> RSSMWorldModel:
        """Return a world model with the given configuration; see the class for the other arguments."""
        values = {**asdict(settings), "mults": list(settings.mults)}
        world: RSSMWorldModel = cls(list(observation_shape), num_actions, action_dims, values)
        return world

    def embed(self, observation: Tensor) -> Tensor:
        """Embed observations for ``rssm.observe``: uint8 [b, t, h, w, 3] or float32 [b, t, k] -> [b, t, e]."""
        return self.observation_model.encode(self.observation_model.preprocess(observation))

    def observe_step(self, state: RSSMState, observation: Tensor, is_first: Tensor) -> RSSMState:
        """Return the posterior state after one more observation.

        Args:
            state: State of the previous time step, with the action taken there.
            observation: uint8 [b, h, w, 3] or float32 [b, k].
            is_first: bool [b], whether an episode begins here.
        """
        posterior, _ = self.rssm.observe_step(state, self.embed(observation[:, None])[:, 0], is_first)
        return posterior

    def loss(
        self,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        is_first: Tensor,
        is_terminal: Tensor,
        state: RSSMState | None = None,
    ) -> tuple[Tensor, RSSMState, dict[str, Tensor]]:
        """Compute the loss: reconstruction, reward, continuation and KL (the negative evidence lower bound).

        Args:
            observation: uint8 [b, t, h, w, 3] or float32 [b, t, k].
            action: int64 [b, t] or float [b, t, action_dims], taken at the observations.
            reward: [b, t], received with the observations.
            is_first: bool [b, t], whether an episode begins here.
            is_terminal: bool [b, t], whether an episode has terminated here.
            state: State before the first time step, see ``RSSM.observe``.

        Returns:
            The loss [], the posterior states [b, t, ...] and scalars to log.

        Raises:
            ValueError: The sequence is too short for the overshooting distance.
        """
        s = self.settings
        target = self.observation_model.preprocess(observation)
        states, priors = self.rssm.observe(self.observation_model.encode(target), action, is_first, state)
        features = self.rssm.features(states)
        kl = s.kl(self.rssm.stochastic, states.parameters, priors)
        losses = {
            "reconstruction": self.observation_model.loss(features, target).mean(),
            "reward": self.reward_head.loss(self.reward_head(features), self.reward_target(reward)).mean(),
            "kl": kl.loss,
        }
        if self.continue_head is not None:
            continue_logits = self.continue_head(features)
            losses["continue"] = self.continue_head.loss(continue_logits, self.continue_target(is_terminal)).mean()
        if s.overshooting_distance:
            losses["overshooting"] = latent_overshooting_loss(
                self.rssm, states, is_first, max_distance=s.overshooting_distance, kl_loss=s.kl
            )
        scales = {"reward": s.reward_scale, "continue": s.continue_scale}
        loss = torch.stack([scales.get(name, 1.0) * part for name, part in losses.items()]).sum()
        logs = {f"loss/{name}": part.detach() for name, part in losses.items()}
        return loss, states, {"loss/world": loss.detach(), **logs, "kl_nats": kl.kl_nats}

    def predict_reward(self, features: Tensor) -> Tensor:
        """Return the expected reward received with these states: [..., d] -> [...]."""
        return self.reward_head.mean(self.reward_head(features))

    def predict_continue(self, features: Tensor) -> Tensor:
        """Return the probability that the episode continues, discounted by ``discount_horizon``: [..., d] -> [...]."""
        if self.continue_head is None:
            return torch.full_like(features[..., 0], self.max_discount)
        return self.continue_head.mean(self.continue_head(features))

    def reward_target(self, reward: Tensor) -> Tensor:
        """Return the target of the reward head."""
        return reward.tanh() if self.settings.tanh_reward else reward

    def continue_target(self, is_terminal: Tensor) -> Tensor:
        """Return the target of the continue head: bool [...] -> float [...]."""
        return (~is_terminal).float() * self.max_discount

    def _make_head(self, layers: int, distribution: HeadDistribution) -> PredictionHead:
        s = self.settings
        return PredictionHead(
            self.feature_size, s.units, layers, distribution=distribution, norm=s.norm, activation=s.activation
        )


def _make_observation_model(observation_shape: list[int], s: RSSMWorldModelConfig) -> ObservationModel:
    stoch = s.stoch * (s.classes or 1)
    if len(observation_shape) == 1:
        return VectorObservationModel(
            vector_size=observation_shape[0],
            feature_size=s.deter + stoch,
            width=s.units,
            layers=s.vector_layers,
            norm=s.norm,
            activation=s.activation,
            symlog=s.symlog,
            reconstruction_loss=s.reconstruction_loss,
        )
    return ImageObservationModel(
        (int(observation_shape[0]), int(observation_shape[1])),
        deter=s.deter,
        stoch=stoch,
        network=s.image_network,
        depth=s.depth,
        mults=s.mults,
        width=s.units,
        blocks=s.blocks,
        norm=s.norm,
        activation=s.image_activation or s.activation,
        pixel_bits=s.pixel_bits,
        reconstruction_loss=s.reconstruction_loss,
    )
