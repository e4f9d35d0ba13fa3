"""The network of MuZero (arXiv 1911.08265) with the value prefix and consistency loss of EfficientZero (2111.00210).

The latent is trained to predict rewards, values and policies, and is not decoded to observations. Vectors are encoded
by an MLP and images by convolutions; the rest is the same. Normalization is per sample, so that the predictions of a
batch are those of its entries (the papers use batch norm).

Legend: b batch, f stacked frames, d width, h w grid of an image latent (none for vectors), a actions, k bins.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.muzero.masked_batch_norm import masked_batch_norm
from vwm.models.muzero.representation import (
    ImageNetwork,
    MuZeroResidualBlock,
    image_representation,
    layer_or_group_norm,
    linear_or_conv,
    vector_representation,
)
from vwm.nn.two_hot import symlog
from vwm.nn.value_support import ScaledSupport


class MuZeroLatentState(NamedTuple):
    """Latent state of a batch.

    Attributes:
        latent: float [b, d] or [b, d, h, w], scaled to 0..1 for each batch entry.
        lstm_state: float [b, 2, r], hidden and cell state of the value prefix LSTM; r is 0 without one.
        value_prefix: float [b], sum of predicted rewards since the last reset of the LSTM.
        steps_since_observation: int64 [b].
    """

    latent: Tensor
    lstm_state: Tensor
    value_prefix: Tensor
    steps_since_observation: Tensor


class MuZeroPrediction(NamedTuple):
    """Logits of the actions [b, a], and of the value bins [b, k]."""

    policy_logits: Tensor
    value_logits: Tensor


class MuZeroTransition(NamedTuple):
    """Next state, expected reward float [b], and logits [b, k] of the reward or the value prefix."""

    state: MuZeroLatentState
    reward: Tensor
    reward_logits: Tensor


class MuZeroNetwork(ModelMixin, ConfigMixin):
    """Representation, dynamics and prediction networks.

    Args:
        observation_shape: [k] for vectors, [h, w, 3] for images with sides divisible by ``image_downsampling``.
        num_actions: a.
        num_stacked_frames: f, number of observations in the input.
        width: d.
        num_blocks: number of residual blocks of the representation (in each stage) and of the dynamics.
        hidden: width of the hidden layer of each head.
        support_limit: outermost bin; see ``ScaledSupport``.
        value_prefix_horizon: number of steps over which an LSTM predicts the sum of rewards before it is reset, so that
            the exact time step of a reward need not be predicted; 0 predicts each reward independently (MuZero).
        prefix_hidden: size of that LSTM.
        projection_size: size of the projections in the consistency loss.
        image_network, image_downsampling: see ``image_representation``.
        prediction_blocks: residual blocks before the heads of policy and value.
        projector_layers: layers of the projector in the consistency loss, 2 or more (EfficientZero: 3).
        predictor_hidden: width of the predictor's hidden layer there; 0 takes ``projection_size``.

    Raises:
        ValueError: the observation shape is another, or its sides are not divisible by ``image_downsampling``.
    """

    @register_to_config
    def __init__(
        self,
        observation_shape: list[int] = [4],  # noqa: B006
        num_actions: int = 2,
        num_stacked_frames: int = 1,
        width: int = 64,
        num_blocks: int = 1,
        hidden: int = 64,
        support_limit: int = 300,
        value_prefix_horizon: int = 5,
        prefix_hidden: int = 64,
        projection_size: int = 128,
        image_network: ImageNetwork = "strided",
        image_downsampling: int = 16,
        prediction_blocks: int = 0,
        projector_layers: int = 2,
        predictor_hidden: int = 0,
    ) -> None:
        super().__init__()
        self.observation_shape = tuple(observation_shape)
        self.num_actions = num_actions
        self.num_stacked_frames = num_stacked_frames
        self.from_pixels = len(observation_shape) == 3
        self.value_prefix_horizon = value_prefix_horizon
        sides = observation_shape[:2] if self.from_pixels else []
        if len(observation_shape) not in (1, 3) or any(side % image_downsampling for side in sides):
            raise ValueError(
                f"observation_shape={observation_shape} must be [k], or [h, w, 3] with h and w divisible by "
                f"image_downsampling={image_downsampling}"
            )
        inputs = num_stacked_frames * observation_shape[-1]
        self.representation = nn.Sequential(
            *(
                image_representation(inputs, width, num_blocks, image_network, image_downsampling)
                if self.from_pixels
                else vector_representation(inputs, width, num_blocks)
            )
        )
        grid = [side // image_downsampling for side in sides]
        self.num_positions = math.prod(grid)
        self.latent_shape = (width, *grid)
        self.action_projection = linear_or_conv(width + num_actions, width, self.from_pixels)
        self.action_projection_norm = layer_or_group_norm(width, self.from_pixels)
        self.dynamics = nn.Sequential(*(MuZeroResidualBlock(width, self.from_pixels) for _ in range(num_blocks)))
        self.value_support = ScaledSupport(support_limit)
        bins = self.value_support.bins
        self.prediction_body = nn.Sequential(
            *(MuZeroResidualBlock(width, self.from_pixels) for _ in range(prediction_blocks))
        )
        self.policy_head = nn.Sequential(self._head_body(width, hidden), _zero_init_linear(hidden, num_actions))
        self.value_head = nn.Sequential(self._head_body(width, hidden), _zero_init_linear(hidden, bins))
        self.reward_body = self._head_body(width, hidden)
        self.lstm_size = prefix_hidden if value_prefix_horizon else 0
        self.value_prefix_lstm: nn.LSTMCell | None = None
        self.lstm_output_norm: nn.Module
        if value_prefix_horizon:
            self.value_prefix_lstm = nn.LSTMCell(hidden, prefix_hidden)
            self.lstm_output_norm = nn.Sequential(nn.LayerNorm(prefix_hidden), nn.ReLU())
        else:
            self.lstm_output_norm = nn.Identity()
        self.reward_head = _zero_init_linear(prefix_hidden if value_prefix_horizon else hidden, bins)
        self.projector = nn.Sequential(
            nn.Flatten(),
            *_simsiam_layer(width * self.num_positions, projection_size),
            *(layer for _ in range(projector_layers - 2) for layer in _simsiam_layer(projection_size, projection_size)),
            nn.Linear(projection_size, projection_size, bias=False),
            nn.BatchNorm1d(projection_size, affine=False, track_running_stats=False),
        )
        inner = predictor_hidden or projection_size
        self.predictor = nn.Sequential(*_simsiam_layer(projection_size, inner), nn.Linear(inner, projection_size))

    def _head_body(self, width: int, hidden: int) -> nn.Sequential:
        """Return a network from latents to vectors [b, hidden]."""
        layers: list[nn.Module] = []
        inputs = width
        if self.from_pixels:
            layers = [nn.Conv2d(width, 16, 1), layer_or_group_norm(16, True), nn.ReLU(), nn.Flatten()]
            inputs = 16 * self.num_positions
        return nn.Sequential(*layers, nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU())

    def represent(self, observations: Tensor) -> MuZeroLatentState:
        """Encode observations to a state.

        Args:
            observations: the last f observations, in order of time: float [b, f, k] or uint8 [b, f, h, w, 3].

        Raises:
            ValueError: ``observations`` has another shape.
        """
        if tuple(observations.shape[1:]) != (self.num_stacked_frames, *self.observation_shape):
            raise ValueError(
                f"observations must be [b, {self.num_stacked_frames}, {list(self.observation_shape)}], got "
                f"{list(observations.shape)}"
            )
        if self.from_pixels:
            x = observations.to(self.dtype).movedim(-1, 2).flatten(1, 2) / 255
        else:
            x = symlog(observations.to(self.dtype)).flatten(1)
        latent = min_max_normalize(self.representation(x))
        zeros = latent.new_zeros(len(latent))
        return MuZeroLatentState(
            latent=latent,
            lstm_state=latent.new_zeros(len(latent), 2, self.lstm_size),
            value_prefix=zeros,
            steps_since_observation=zeros.long(),
        )

    def predict(self, latent: Tensor) -> MuZeroPrediction:
        """Predict policy and value of latents."""
        latent = self.prediction_body(latent)
        return MuZeroPrediction(self.policy_head(latent), self.value_head(latent))

    def step(self, state: MuZeroLatentState, action: Tensor) -> MuZeroTransition:
        """Predict the next state and the reward for actions int64 [b]."""
        one_hot = F.one_hot(action, self.num_actions).to(state.latent.dtype)
        if self.from_pixels:
            one_hot = one_hot[:, :, None, None].expand(-1, -1, *state.latent.shape[2:])
        action_projection = self.action_projection(torch.cat((state.latent, one_hot), dim=1))
        x = state.latent + self.action_projection_norm(action_projection)
        latent = min_max_normalize(self.dynamics(F.relu(x)))
        x, lstm_state = self.reward_body(latent), state.lstm_state
        previous_prefix = torch.zeros_like(state.value_prefix)
        if self.value_prefix_lstm is not None:
            keep = (state.steps_since_observation % self.value_prefix_horizon != 0).to(x.dtype)
            previous_prefix = state.value_prefix * keep
            hidden, cell = (lstm_state * keep[:, None, None]).unbind(1)
            hidden, cell = self.value_prefix_lstm(x, (hidden, cell))
            lstm_state, x = torch.stack((hidden, cell), dim=1), hidden
        logits = self.reward_head(self.lstm_output_norm(x))
        value_prefix = self.value_support.mean(logits)
        next_state = MuZeroLatentState(
            latent=latent,
            lstm_state=lstm_state,
            value_prefix=value_prefix,
            steps_since_observation=state.steps_since_observation + 1,
        )
        return MuZeroTransition(next_state, value_prefix - previous_prefix, logits)

    def consistency_loss(self, predicted: Tensor, observed: Tensor, valid: Tensor | None = None) -> Tensor:
        """Negative cosine similarity of projected latents, -1..1 [b]: the loss of SimSiam (arXiv 2011.10566).

        Gradients flow to the predicted latents only. The projections use batch norm, by which SimSiam prevents their
        collapse.

        Args:
            predicted, observed: latents.
            valid: bool [b], the entries that count, also in the statistics of batch norm; None for all. The losses of
                others have no meaning.
        """
        with torch.no_grad():
            target = _project(self.projector, observed, valid)
        projected = _project(self.predictor, _project(self.projector, predicted, valid), valid)
        return -F.cosine_similarity(projected, target, dim=-1)


def min_max_normalize(latent: Tensor) -> Tensor:
    """Scale the latent of each batch entry to 0..1, the scale of actions (MuZero, appendix G)."""
    flat = latent.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low).clamp(min=1e-5)).view_as(latent)


def _project(layers: nn.Sequential, x: Tensor, valid: Tensor | None) -> Tensor:
    """Apply layers, of which batch norms take their statistics from valid entries only, whose number may change."""
    for layer in layers:
        x = masked_batch_norm(layer, x, valid) if isinstance(layer, nn.BatchNorm1d) and valid is not None else layer(x)
    return x


def _simsiam_layer(inputs: int, outputs: int) -> list[nn.Module]:
    """Layer of the SimSiam projections, always normalized by the statistics of the batch."""
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, track_running_stats=False), nn.ReLU()]


def _zero_init_linear(inputs: int, outputs: int) -> nn.Linear:
    """Last layer with zero weights: equal logits have a mean of 0 and give a uniform policy."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
