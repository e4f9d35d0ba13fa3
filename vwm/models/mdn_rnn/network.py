"""The M of World Models (arXiv 1803.10122, appendix A.2): an LSTM that foretells the next latent as a mixture.

Every number of the latent has a mixture of Gaussians of its own. The LSTM takes in a frame's latent and the action
taken there; what it then holds says how the frame after is distributed, whether there is one, and what the action
earned. A controller looks at a frame's latent and at what the LSTM held before that frame.

Legend: b batch, t time, z numbers of a latent, k mixtures, a width of an action's vector, d width of the LSTM.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.core.seeds import fold_in, seeded_normal, seeded_uniform
from vwm.core.tokenizer import FrameTokenizer, VideoTokenizer
from vwm.nn.actions import ActionEmbedding
from vwm.nn.two_hot import SymexpTwoHot

MIN_LOG_STD = -7.0
"""Of a Gaussian: a number that never changes would else be worth endless likelihood."""


class LSTMState(NamedTuple):
    """The LSTM's state: what it says, and its cell; float [b, d] each."""

    hidden: Tensor
    cell: Tensor


class GaussianMixture(NamedTuple):
    """Gaussians of every number of a latent: log-weights (normalised), means and log-deviations, float [..., z, k]."""

    log_weight: Tensor
    mean: Tensor
    log_std: Tensor

    def negative_log_likelihood(self, latent: Tensor) -> Tensor:
        """Of latents [..., z], in nats a number: [..., z]."""
        scaled = (latent[..., None] - self.mean) * (-self.log_std).exp()
        each = self.log_weight - 0.5 * scaled.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return -each.logsumexp(-1)

    def draw(self, seed: Tensor, temperature: float = 1.0) -> Tensor:
        """A latent [b, z] of mixtures [b, z, k], a function of ``seed`` int64 [b].

        Temperature divides the logits of the mixture and multiplies the variances: the deviations by its root.
        """
        size = self.mean.shape[-2]
        edges = (self.log_weight / temperature).softmax(-1).cumsum(-1)
        # The last edge is 1 but for rounding: a draw beyond it is the last Gaussian's.
        chosen = (seeded_uniform(fold_in(seed, 0), size)[..., None] > edges[..., :-1]).sum(-1, keepdim=True)
        mean, log_std = (x.gather(-1, chosen).squeeze(-1) for x in (self.mean, self.log_std))
        return mean + log_std.exp() * math.sqrt(temperature) * seeded_normal(fold_in(seed, 1), size)


class MDNRNNPrediction(NamedTuple):
    """What follows: the next latent, the logit of there being none (float [...]), and the reward's logits or None."""

    latent: GaussianMixture
    end: Tensor
    reward: Tensor | None


class MDNRNN(ModelMixin, ConfigMixin):
    """The network.

    Args:
        latent_size: z.
        num_actions: of discrete actions; 0 for continuous ones.
        action_dims: dimensions of continuous actions; 0 for discrete ones.
        width: d.
        mixtures: k.
        action_width: a.
        unknown_actions: learn a vector for actions that are not told, so that a past without actions counts.
        reward: foretell what actions earn (two-hot), for games in which that is not just living on.
        bins: of the reward.

    Raises:
        ValueError: neither discrete nor continuous actions, or both.
    """

    @register_to_config
    def __init__(
        self,
        latent_size: int = 32,
        num_actions: int = 0,
        action_dims: int = 0,
        width: int = 256,
        mixtures: int = 5,
        action_width: int = 16,
        unknown_actions: bool = False,
        reward: bool = False,
        bins: int = 255,
    ) -> None:
        super().__init__()
        if bool(num_actions) == bool(action_dims):
            raise ValueError(f"num_actions={num_actions} and action_dims={action_dims}: exactly one must be set")
        self.latent_size, self.width, self.mixtures = latent_size, width, mixtures
        self.embed_action = ActionEmbedding([num_actions] if num_actions else [], action_dims, action_width)
        if num_actions:
            nn.init.normal_(self.embed_action.tables[0].get_parameter("weight"))  # as large as the latents beside them
        self.no_action = nn.Parameter(torch.zeros(action_width)) if unknown_actions else None
        self.lstm = nn.LSTM(latent_size + action_width, width, batch_first=True)
        self.head = nn.Linear(width, 3 * mixtures * latent_size + 1)
        self.reward_head: nn.Linear | None = None
        if reward:
            self.two_hot = SymexpTwoHot(bins)
            self.reward_head = nn.Linear(width, bins)
            nn.init.zeros_(self.reward_head.weight)
            nn.init.zeros_(self.reward_head.bias)

    def init_state(self, batch: int) -> LSTMState:
        """Before the first frame."""
        nothing = self.head.weight.new_zeros(batch, self.width)
        return LSTMState(nothing, nothing)

    def lead(self, actions: Tensor, known: Tensor | None = None) -> Tensor:
        """Vectors [b, t, a] of actions [b, t] or [b, t, n]; where ``known`` (bool [b, t]) is False, of unknown ones."""
        vectors = self.embed_action(actions)
        if known is None:
            return vectors
        if self.no_action is None:
            raise ValueError("some actions are not known: train with dynamics.unknown_actions=true")
        return torch.where(known[..., None], vectors, self.no_action.to(vectors.dtype))

    def forward(self, memory: LSTMState, latents: Tensor, lead: Tensor) -> tuple[Tensor, LSTMState]:
        """Take in frames' latents [b, t, z] and the vectors [b, t, a] of the actions taken there.

        Returns:
            What the LSTM says after each, [b, t, d], and its state after the last.
        """
        dtype = self.head.weight.dtype
        inputs = torch.cat((latents.to(dtype), lead.to(dtype)), dim=-1)
        said, (hidden, cell) = self.lstm(inputs, (memory.hidden[None].contiguous(), memory.cell[None].contiguous()))
        return said, LSTMState(hidden[0], cell[0])

    def predict(self, said: Tensor) -> MDNRNNPrediction:
        """What follows, in float32 or finer: [..., d] -> ``MDNRNNPrediction``."""
        out = self.head(said)
        out = out.float() if out.dtype in (torch.bfloat16, torch.float16) else out
        parts = out[..., 1:].unflatten(-1, (3, self.latent_size, self.mixtures))
        log_weight, mean, log_std = parts.unbind(-3)
        mixture = GaussianMixture(log_weight.log_softmax(-1), mean, log_std.clamp(min=MIN_LOG_STD))
        return MDNRNNPrediction(mixture, out[..., 0], None if self.reward_head is None else self.reward_head(said))

    def earned(self, prediction: MDNRNNPrediction) -> Tensor:
        """The mean reward, float [...]; zeros where the network knows none."""
        if prediction.reward is None:
            return torch.zeros_like(prediction.end)
        return self.two_hot.mean(prediction.reward)


def check_mdn_rnn_tokenizer(tokenizer: VideoTokenizer, dynamics: MDNRNN) -> FrameTokenizer:
    """The tokenizer, if the two were made for each other; else ValueError, naming both values."""
    if not isinstance(tokenizer, FrameTokenizer) or not tokenizer.channels:
        raise ValueError(
            f"an MDN-RNN wants continuous latents of each frame by itself, and this is a {type(tokenizer).__name__}: "
            "train one of configs/vae/..._frame.yaml"
        )
    size = tokenizer.tokens_per_frame * tokenizer.channels
    if size != dynamics.latent_size:
        raise ValueError(
            f"dynamics.latent_size={dynamics.latent_size} but the tokenizer gives {size} numbers a frame "
            f"({tokenizer.grid[0]} x {tokenizer.grid[1]} x {tokenizer.channels}). Set dynamics.latent_size={size}."
        )
    return tokenizer
