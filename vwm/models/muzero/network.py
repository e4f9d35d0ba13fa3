"""MuZero's model (arXiv 1911.08265) with EfficientZero's value prefix and consistency (arXiv 2111.00210).

The latent is made to foretell rewards, values and policies, and not to show anything: nothing decodes it. A vector of
numbers is seen by layers of matrices, pictures by convolutions; all else is the same. Norms are by example,
so that a batch of worlds steps as each would alone (the papers normalise by the batch).

Legend: b batch, f frames seen at once, d width, h w places of a picture's latent (none for vectors), a actions, k bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.nn.two_hot import symlog
from vwm.nn.value_support import ScaledSupport

IMAGE_DOWNSAMPLING = 16
"""How many pixels of a side become one place: 64 pixels 4, 96 pixels 6, as in both papers."""


class MuZeroLatentState(NamedTuple):
    """One world a batch entry.

    Attributes:
        latent: float [b, d] or [b, d, h, w], each world's numbers stretched to 0..1.
        memory: float [b, 2, r], what the value prefix's LSTM remembers; r is 0 without one.
        prefix: float [b], the reward foretold since the memory began.
        age: int64 [b], steps from what was observed.
    """

    latent: Tensor
    memory: Tensor
    prefix: Tensor
    age: Tensor


class MuZeroPrediction(NamedTuple):
    """Of a latent: logits of the actions [b, a], and of the value's bins [b, k]."""

    policy: Tensor
    value: Tensor


class MuZeroTransition(NamedTuple):
    """What an action leads to: the state, its reward float [b], and logits [b, k] of the reward or the value prefix."""

    state: MuZeroLatentState
    reward: Tensor
    logits: Tensor


class MuZeroNetwork(ModelMixin, ConfigMixin):
    """Representation, dynamics and prediction.

    Args:
        observation: [k] for vectors, [h, w, 3] for pictures, whose sides 16 must divide.
        num_actions: a.
        frames: how many observations are seen at once, f.
        width: d.
        blocks: residual blocks of the representation (of each of its stages) and of the dynamics.
        hidden: width of the layer before every prediction.
        support: reach of the bins, see ``ScaledSupport``.
        value_prefix: steps over which an LSTM adds up the rewards before it begins anew, so that it need not know at
            which step a reward comes; 0 foretells every reward by itself, as MuZero does.
        prefix_hidden: width of that LSTM.
        projection: width of the projections that are compared for consistency.

    Raises:
        ValueError: observations of another kind, or a side that 16 does not divide.
    """

    @register_to_config
    def __init__(
        self,
        observation: list[int] = [4],  # noqa: B006
        num_actions: int = 2,
        frames: int = 1,
        width: int = 64,
        blocks: int = 1,
        hidden: int = 64,
        support: int = 300,
        value_prefix: int = 5,
        prefix_hidden: int = 64,
        projection: int = 128,
    ) -> None:
        super().__init__()
        self.observation, self.num_actions, self.frames = tuple(observation), num_actions, frames
        self.pixels, self.value_prefix = len(observation) == 3, value_prefix
        if len(observation) not in (1, 3) or (
            self.pixels and any(side % IMAGE_DOWNSAMPLING for side in observation[:2])
        ):
            raise ValueError(
                f"observations are [k] or [h, w, 3] with h and w divisible by {IMAGE_DOWNSAMPLING}, not {observation}"
            )
        seen = frames * observation[-1]
        layers = (
            _image_representation(seen, width, blocks) if self.pixels else _vector_representation(seen, width, blocks)
        )
        self.representation = nn.Sequential(*layers)
        self.places = (
            observation[0] // IMAGE_DOWNSAMPLING * (observation[1] // IMAGE_DOWNSAMPLING) if self.pixels else 1
        )
        grid = [side // IMAGE_DOWNSAMPLING for side in observation[:2]] if self.pixels else []
        self.latent_shape = (width, *grid)
        self.lead = _linear_or_conv(width + num_actions, width, self.pixels)
        self.action_projection_norm = _layer_or_group_norm(width, self.pixels)
        self.dynamics = nn.Sequential(*(MuZeroResidualBlock(width, self.pixels) for _ in range(blocks)))
        self.bins = ScaledSupport(support)
        count = self.bins.bins
        self.policy = nn.Sequential(self._summary(width, hidden), _zero_init_linear(hidden, num_actions))
        self.value = nn.Sequential(self._summary(width, hidden), _zero_init_linear(hidden, count))
        self.reward_body = self._summary(width, hidden)
        self.lstm_size = prefix_hidden if value_prefix else 0
        self.cell = nn.LSTMCell(hidden, prefix_hidden) if value_prefix else None
        self.lstm_output_norm = nn.Sequential(nn.LayerNorm(prefix_hidden), nn.ReLU()) if value_prefix else nn.Identity()
        self.reward = _zero_init_linear(prefix_hidden if value_prefix else hidden, count)
        self.projector = nn.Sequential(
            nn.Flatten(),
            *_simsiam_layer(width * self.places, projection),
            nn.Linear(projection, projection, bias=False),
            nn.BatchNorm1d(projection, affine=False, track_running_stats=False),
        )
        self.predictor = nn.Sequential(*_simsiam_layer(projection, projection), nn.Linear(projection, projection))

    def _summary(self, width: int, hidden: int) -> nn.Sequential:
        """Latents to vectors [b, hidden]."""
        narrow = (
            [nn.Conv2d(width, 16, 1), _layer_or_group_norm(16, True), nn.ReLU(), nn.Flatten()] if self.pixels else []
        )
        inputs = 16 * self.places if self.pixels else width
        return nn.Sequential(*narrow, nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU())

    def represent(self, seen: Tensor) -> MuZeroLatentState:
        """The state of worlds that were just observed.

        Args:
            seen: the last f observations, the latest last: float [b, f, k] or uint8 [b, f, h, w, 3].

        Raises:
            ValueError: another shape.
        """
        if tuple(seen.shape[1:]) != (self.frames, *self.observation):
            raise ValueError(f"seen must be [b, {self.frames}, {list(self.observation)}], got {list(seen.shape)}")
        if self.pixels:
            x = seen.to(self.dtype).movedim(-1, 2).flatten(1, 2) / 255
        else:
            x = symlog(seen.to(self.dtype)).flatten(1)
        latent = min_max_normalize(self.representation(x))
        nothing = latent.new_zeros(len(latent))
        memory = latent.new_zeros(len(latent), 2, self.lstm_size)
        return MuZeroLatentState(latent, memory, nothing, nothing.long())

    def predict(self, latent: Tensor) -> MuZeroPrediction:
        """Policy and value of latents."""
        return MuZeroPrediction(self.policy(latent), self.value(latent))

    def step(self, state: MuZeroLatentState, action: Tensor) -> MuZeroTransition:
        """What actions int64 [b] lead to."""
        taken = F.one_hot(action, self.num_actions).to(state.latent.dtype)
        if self.pixels:
            taken = taken[:, :, None, None].expand(-1, -1, *state.latent.shape[2:])
        x = state.latent + self.action_projection_norm(self.lead(torch.cat((state.latent, taken), dim=1)))
        latent = min_max_normalize(self.dynamics(F.relu(x)))
        x, memory = self.reward_body(latent), state.memory
        before = torch.zeros_like(state.prefix)
        if self.cell is not None:
            kept = (state.age % self.value_prefix != 0).to(x.dtype)
            before = state.prefix * kept
            hidden, cell = self.cell(x, (memory[:, 0] * kept[:, None], memory[:, 1] * kept[:, None]))
            memory, x = torch.stack((hidden, cell), dim=1), hidden
        logits = self.reward(self.lstm_output_norm(x))
        prefix = self.bins.mean(logits)
        return MuZeroTransition(MuZeroLatentState(latent, memory, prefix, state.age + 1), prefix - before, logits)

    def consistency(self, foretold: Tensor, observed: Tensor) -> Tensor:
        """How little foretold latents agree with those observed, -1..1 [b]: SimSiam's loss (arXiv 2011.10566).

        Gradients go into what was foretold alone. Here alone the batch is normalised: by that SimSiam keeps its
        projections apart, which would else all become one.
        """
        with torch.no_grad():
            target = self.projector(observed)
        return -F.cosine_similarity(self.predictor(self.projector(foretold)), target, dim=-1)


class MuZeroResidualBlock(nn.Module):
    """Two layers with a way around them."""

    def __init__(self, width: int, pixels: bool) -> None:
        super().__init__()
        self.first, self.first_norm = _linear_or_conv(width, width, pixels), _layer_or_group_norm(width, pixels)
        self.second, self.second_norm = _linear_or_conv(width, width, pixels), _layer_or_group_norm(width, pixels)

    def forward(self, x: Tensor) -> Tensor:
        """[b, d, ...] -> [b, d, ...], none below 0."""
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(y)))


def min_max_normalize(latent: Tensor) -> Tensor:
    """Each world's numbers to 0..1 (MuZero, appendix G): the scale that the actions have, and none can run away."""
    flat = latent.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low).clamp(min=1e-5)).view_as(latent)


def _vector_representation(inputs: int, width: int, blocks: int) -> list[nn.Module]:
    first = [nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU()]
    return [*first, *(MuZeroResidualBlock(width, False) for _ in range(blocks))]


def _image_representation(inputs: int, width: int, blocks: int) -> list[nn.Module]:
    """Four stages, each of which halves the sides; the first has half the channels."""
    layers: list[nn.Module] = []
    for wide in (max(1, width // 2), width, width, width):
        layers += [nn.Conv2d(inputs, wide, 3, stride=2, padding=1), _layer_or_group_norm(wide, True), nn.ReLU()]
        layers += [MuZeroResidualBlock(wide, True) for _ in range(blocks)]
        inputs = wide
    return layers


def _linear_or_conv(inputs: int, outputs: int, pixels: bool) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1) if pixels else nn.Linear(inputs, outputs)


def _layer_or_group_norm(width: int, pixels: bool) -> nn.Module:
    return nn.GroupNorm(1, width) if pixels else nn.LayerNorm(width)


def _simsiam_layer(inputs: int, outputs: int) -> list[nn.Module]:
    """A layer of what SimSiam compares; normalised by the batch at hand, always."""
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, track_running_stats=False), nn.ReLU()]


def _zero_init_linear(inputs: int, outputs: int) -> nn.Linear:
    """A last layer that says nothing at first: equal bins mean 0, equal logits no preference."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
