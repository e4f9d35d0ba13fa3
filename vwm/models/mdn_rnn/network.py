"""M of World Models (arXiv 1803.10122, appendix A.2): an LSTM that predicts a mixture density of the next latent.

Each element of the latent has its own mixture of Gaussians. The inputs of the LSTM are the latent of a frame and the
action taken at it; its output predicts the latent of the next frame, the termination and the reward. The observation of
a controller is the latent of a frame and the hidden state of the LSTM before that frame.

Legend: b batch, t time, z size of a latent, k mixture components, a size of an action embedding, d size of the LSTM.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.core.seeds import fold_in, seeded_normal, seeded_uniform
from vwm.core.tokenizer import FrameTokenizer, VideoTokenizer
from vwm.nn.actions import DiscreteActionEmbedding, make_action_embedding
from vwm.nn.precision import at_least_float32
from vwm.nn.two_hot import SymexpTwoHot

MIN_LOG_STD = -7.0
"""Lower bound of the logarithm of standard deviations. Constant elements would otherwise get infinite likelihood."""


class LSTMState(NamedTuple):
    """State of the LSTM: hidden (its last output) and cell, float [b, d] each."""

    hidden: Tensor
    cell: Tensor


class GaussianMixture(NamedTuple):
    """Mixture density of each element of a latent: normalized log weights, means and log stds, float [..., z, k]."""

    log_weight: Tensor
    mean: Tensor
    log_std: Tensor

    def negative_log_likelihood(self, latent: Tensor) -> Tensor:
        """Negative log-likelihood of the elements of latents [..., z], in nats: [..., z]."""
        scaled = (latent[..., None] - self.mean) * (-self.log_std).exp()
        log_density = self.log_weight - 0.5 * scaled.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return -log_density.logsumexp(-1)

    def sample(self, seed: Tensor, temperature: float = 1.0) -> Tensor:
        """Sample a latent [b, z] from mixtures [b, z, k], as a function of ``seed`` int64 [b].

        The temperature divides the logits of the mixture and multiplies the variances.
        """
        size = self.mean.shape[-2]
        cumulative = (self.log_weight / temperature).softmax(-1).cumsum(-1)
        # The last value is 1 except for rounding, so larger samples also select the last component.
        component = (seeded_uniform(fold_in(seed, 0), size)[..., None] > cumulative[..., :-1]).sum(-1, keepdim=True)
        mean, log_std = (x.gather(-1, component).squeeze(-1) for x in (self.mean, self.log_std))
        return mean + log_std.exp() * math.sqrt(temperature) * seeded_normal(fold_in(seed, 1), size)


class MDNRNNPrediction(NamedTuple):
    """Predicted next latent, termination logit (float [...]), and reward logits ([..., bins], or None)."""

    next_latent: GaussianMixture
    termination_logits: Tensor
    reward_logits: Tensor | None


class MDNRNN(ModelMixin, ConfigMixin):
    """LSTM with heads for the next latent, termination and reward.

    Args:
        latent_size: z.
        num_actions, action_dims, action_parts: discrete, continuous or composite actions; see
            ``vwm.nn.actions.make_action_embedding``.
        hidden_size: d.
        num_mixtures: k.
        action_embedding_size: a.
        allow_unknown_actions: learn an embedding for unknown actions, so that a context without actions is possible.
        predict_reward: predict rewards (two-hot), for environments whose reward is not constant.
        num_reward_bins: number of reward bins.

    Raises:
        ValueError: neither discrete nor continuous actions, or both.
    """

    @register_to_config
    def __init__(
        self,
        latent_size: int = 32,
        num_actions: int = 0,
        action_dims: int = 0,
        action_parts: list[dict[str, Any]] | None = None,
        hidden_size: int = 256,
        num_mixtures: int = 5,
        action_embedding_size: int = 16,
        allow_unknown_actions: bool = False,
        predict_reward: bool = False,
        num_reward_bins: int = 255,
    ) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.hidden_size = hidden_size
        self.num_mixtures = num_mixtures
        embedding = make_action_embedding(action_embedding_size, num_actions, action_dims, action_parts)
        if embedding is None:
            raise ValueError("an MDN-RNN needs actions: set dynamics.num_actions, action_dims or action_parts")
        self.embed_action = embedding
        if isinstance(embedding, DiscreteActionEmbedding):
            nn.init.normal_(embedding.table.weight)  # unit standard deviation, as the latents have
        self.no_action = nn.Parameter(torch.zeros(action_embedding_size)) if allow_unknown_actions else None
        self.lstm = nn.LSTM(latent_size + action_embedding_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 3 * num_mixtures * latent_size + 1)
        self.reward_head: nn.Linear | None = None
        if predict_reward:
            self.two_hot = SymexpTwoHot(num_reward_bins)
            self.reward_head = nn.Linear(hidden_size, num_reward_bins)
            nn.init.zeros_(self.reward_head.weight)
            nn.init.zeros_(self.reward_head.bias)

    def init_state(self, batch: int) -> LSTMState:
        """Return the state before the first frame."""
        zeros = self.head.weight.new_zeros(batch, self.hidden_size)
        return LSTMState(zeros, zeros)

    def embed_actions(self, actions: Tensor, known: Tensor | None = None) -> Tensor:
        """Embed actions [b, t] or [b, t, n] -> [b, t, a]; see ``ActionEmbedding.embed`` for ``known``.

        Raises:
            ValueError: ``known`` is given, but unknown actions are not allowed.
        """
        if known is None:
            embedding: Tensor = self.embed_action(actions)
            return embedding
        if self.no_action is None:
            raise ValueError("some actions are unknown: train with dynamics.allow_unknown_actions=true")
        return self.embed_action.embed(actions, known, self.no_action)

    def forward(self, state: LSTMState, latents: Tensor, action_embedding: Tensor) -> tuple[Tensor, LSTMState]:
        """Process the latents of frames [b, t, z] and embeddings [b, t, a] of the actions taken at them.

        Returns:
            The outputs of the LSTM, [b, t, d], and its last state.
        """
        dtype = self.head.weight.dtype
        inputs = torch.cat((latents.to(dtype), action_embedding.to(dtype)), dim=-1)
        outputs, (hidden, cell) = self.lstm(inputs, (state.hidden[None].contiguous(), state.cell[None].contiguous()))
        return outputs, LSTMState(hidden[0], cell[0])

    def predict(self, outputs: Tensor) -> MDNRNNPrediction:
        """Apply the heads to outputs of the LSTM [..., d], in at least float32."""
        x = at_least_float32(self.head(outputs))
        parameters = x[..., 1:].unflatten(-1, (3, self.latent_size, self.num_mixtures))
        log_weight, mean, log_std = parameters.unbind(-3)
        return MDNRNNPrediction(
            next_latent=GaussianMixture(log_weight.log_softmax(-1), mean, log_std.clamp(min=MIN_LOG_STD)),
            termination_logits=x[..., 0],
            reward_logits=None if self.reward_head is None else self.reward_head(outputs),
        )

    def mean_reward(self, prediction: MDNRNNPrediction) -> Tensor:
        """Return the expected reward, float [...]; zeros if rewards are not predicted."""
        if prediction.reward_logits is None:
            return torch.zeros_like(prediction.termination_logits)
        return self.two_hot.mean(prediction.reward_logits)


def check_mdn_rnn_tokenizer(tokenizer: VideoTokenizer, dynamics: MDNRNN) -> FrameTokenizer:
    """Return the tokenizer. Raises ValueError if it does not fit the dynamics, naming both values."""
    if not isinstance(tokenizer, FrameTokenizer) or not tokenizer.channels:
        raise ValueError(
            f"an MDN-RNN needs a tokenizer with continuous latents of single frames, and this is a "
            f"{type(tokenizer).__name__}: train one of configs/vae/..._frame.yaml"
        )
    size = tokenizer.tokens_per_frame * tokenizer.channels
    if size != dynamics.latent_size:
        raise ValueError(
            f"dynamics.latent_size={dynamics.latent_size} but the tokenizer gives {size} numbers per frame "
            f"({tokenizer.grid[0]} x {tokenizer.grid[1]} x {tokenizer.channels}). Set dynamics.latent_size={size}."
        )
    return tokenizer
