"""A latent world: what PlaNet and the Dreamers learn of an environment, before any behaviour.

``reward[t]`` came with ``observation[t]``, and is read from the state there; ``action[t]`` was taken at it.

Legend: b batch, t time, d width of features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

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
from vwm.nn.prediction_heads import PredictionHead


@dataclass(frozen=True)
class RSSMWorldModelConfig:
    """All choices about a latent world; the defaults are DreamerV3's at size 12m.

    Attributes:
        deter, hidden, stoch, classes, cell, blocks, unimix, min_std, prior_layers, posterior_layers: see ``RSSM``.
        norm, activation: of all layers but the recurrent cell's own.
        image_activation: of convolutions; None has ``activation`` (Dreamer v1: ``"relu"``).
        units: width of the layers around the RSSM.
        vector_layers: of the encoder and of the decoder of vectors.
        symlog: whether vectors are squeezed.
        pictures, depth, mults, bits: see ``ImageObservationModel``.
        error: see ``ObservationModel``.
        reward, reward_layers: what the head says, and its layers.
        reward_scale: of its loss (PlaNet: 10).
        tanh_reward: whether rewards are learned through tanh (DreamerV2 on Atari); then it is such rewards that
            ``predict_reward`` gives.
        continues, continue_layers, continue_scale: whether there is a head that says if the episode goes on, its
            layers and the scale of its loss.
        horizon: the head learns that episodes go on with probability 1 - 1 / horizon where they do, so that it is a
            discount too; 0 leaves 1.
        divergence: objective, dynamics, representation, free_nats, free, scale: see ``KLLoss``.
        overshooting: the longest distance of latent overshooting; 0 has none.
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
    pictures: ImageNetworkType = "pooled"
    depth: int = 16
    mults: tuple[int, ...] = (2, 3, 4, 4)
    bits: int = 8
    error: ReconstructionLossType = "squared"
    reward: Literal["normal", "two_hot"] = "two_hot"
    reward_layers: int = 1
    reward_scale: float = 1.0
    tanh_reward: bool = False
    continues: bool = True
    continue_layers: int = 1
    continue_scale: float = 1.0
    horizon: int = 333
    divergence: KLLoss = field(default_factory=KLLoss)
    overshooting: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RSSMWorldModelConfig:
        """The settings of plain values, as a config has them. Raises ValueError for one that does not exist."""
        try:
            divergence = KLLoss(**values.get("divergence", {}))
            return cls(**{**values, "mults": tuple(values.get("mults", cls.mults)), "divergence": divergence})
        except TypeError as error:
            raise ValueError(f"not the settings of a latent world: {error}") from error


class RSSMWorldModel(ModelMixin, ConfigMixin):
    """Encoder, RSSM, decoder, and heads for rewards and whether the episode goes on.

    Args:
        observation: (k,) of vectors or (h, w, 3) of pictures.
        num_actions, action_dims: see ``RSSM``.
        settings: the fields of ``RSSMWorldModelConfig`` that differ, as a dictionary (so that a config can hold them);
            ``build`` takes the dataclass.

    Raises:
        ValueError: settings that do not exist or do not go together.
    """

    @register_to_config
    def __init__(
        self,
        observation: list[int],
        num_actions: int = 0,
        action_dims: int = 0,
        settings: dict[str, Any] = {},  # noqa: B006
    ) -> None:
        super().__init__()
        s = self.settings = RSSMWorldModelConfig.of(settings)
        if len(observation) not in (1, 3):
            raise ValueError(f"observation={list(observation)} must be [k] of vectors or [h, w, 3] of pictures")
        stoch = s.stoch * (s.classes or 1)
        self.observations = _make_observation_model(observation, stoch, s)
        self.rssm = RSSM(
            num_actions,
            action_dims,
            embed=self.observations.width,
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
        self.feature_width = width = self.rssm.feature_width
        self.reward = PredictionHead(width, s.units, s.reward_layers, s.reward, s.norm, s.activation)
        self.going = (
            PredictionHead(width, s.units, s.continue_layers, "bernoulli", s.norm, s.activation)
            if s.continues
            else None
        )
        self.longest = 1 - 1 / s.horizon if s.horizon else 1.0

    @classmethod
    def build(
        cls, observation: tuple[int, ...], num_actions: int, action_dims: int, settings: RSSMWorldModelConfig
    ) -> RSSMWorldModel:
        """A world of these settings; see the class."""
        values = {**asdict(settings), "mults": list(settings.mults)}
        world: RSSMWorldModel = cls(list(observation), num_actions, action_dims, values)
        return world

    def embed(self, observation: Tensor) -> Tensor:
        """uint8 [b, t, h, w, 3] or float32 [b, t, k] -> [b, t, e], for ``rssm.observe``."""
        return self.observations.embed(self.observations.prepare(observation))

    def observe_step(self, state: RSSMState, observation: Tensor, is_first: Tensor) -> RSSMState:
        """Follow what is seen by one moment.

        Args:
            state: of the moment before, with the action taken there.
            observation: uint8 [b, h, w, 3] or float32 [b, k].
            is_first: bool [b], where an episode begins.
        """
        after, _ = self.rssm.observe_step(state, self.embed(observation[:, None])[:, 0], is_first)
        return after

    def loss(
        self,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        is_first: Tensor,
        is_terminal: Tensor,
        state: RSSMState | None = None,
    ) -> tuple[Tensor, RSSMState, dict[str, Tensor]]:
        """Reconstruction, reward, going on, and the divergence of posterior and prior (minus the evidence bound).

        Args:
            observation: uint8 [b, t, h, w, 3] or float32 [b, t, k].
            action: int64 [b, t] or float [b, t, a], taken at the observations.
            reward: [b, t], which came with them.
            is_first, is_terminal: bool [b, t].
            state: before the first, see ``RSSM.observe``.

        Returns:
            The loss [], the posterior states [b, t, ...] and numbers to log.

        Raises:
            ValueError: latent overshooting over more than the sequence.
        """
        seen = self.observations.prepare(observation)
        states, priors = self.rssm.observe(self.observations.embed(seen), action, is_first, state)
        features = self.rssm.features(states)
        divergence = self.settings.divergence(self.rssm.stochastic, states.parameters, priors)
        parts = {
            "reconstruction": self.observations.loss(features, seen).mean(),
            "reward": self.reward.loss(self.reward(features), self.reward_target(reward)).mean(),
            "divergence": divergence.loss,
        }
        if self.going is not None:
            parts["continue"] = self.going.loss(self.going(features), self.continue_target(is_terminal)).mean()
        if self.settings.overshooting:
            longest = self.settings.overshooting
            parts["overshooting"] = latent_overshooting_loss(
                self.rssm, states, is_first, longest, self.settings.divergence
            )
        scales = {"reward": self.settings.reward_scale, "continue": self.settings.continue_scale}
        loss = torch.stack([scales.get(name, 1.0) * part for name, part in parts.items()]).sum()
        logs = {f"loss/{name}": part.detach() for name, part in parts.items()}
        return loss, states, {"loss/world": loss.detach(), **logs, "nats": divergence.nats}

    def predict_reward(self, features: Tensor) -> Tensor:
        """The expected reward that came with these features: [..., d] -> [...]."""
        return self.reward.mean(self.reward(features))

    def predict_continue(self, features: Tensor) -> Tensor:
        """The probability, discounted by ``horizon``, that the episode goes on from here: [..., d] -> [...]."""
        if self.going is None:
            return torch.full_like(features[..., 0], self.longest)
        return self.going.mean(self.going(features))

    def reward_target(self, reward: Tensor) -> Tensor:
        """What the head learns of rewards."""
        return reward.tanh() if self.settings.tanh_reward else reward

    def continue_target(self, is_terminal: Tensor) -> Tensor:
        """What the head learns of ends: bool [...] -> float [...]."""
        return (~is_terminal).float() * self.longest


def _make_observation_model(observation: list[int], stoch: int, s: RSSMWorldModelConfig) -> ObservationModel:
    if len(observation) == 1:
        return VectorObservationModel(
            observation[0], s.deter + stoch, s.units, s.vector_layers, s.norm, s.activation, s.symlog, s.error
        )
    return ImageObservationModel(
        (int(observation[0]), int(observation[1])),
        s.deter,
        stoch,
        style=s.pictures,
        depth=s.depth,
        mults=s.mults,
        width=s.units,
        blocks=s.blocks,
        norm=s.norm,
        activation=s.image_activation or s.activation,
        bits=s.bits,
        error=s.error,
    )
