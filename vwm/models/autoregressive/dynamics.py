"""The dynamics of an autoregressive token world: each token of a frame from all before it, frames and actions alike.

IRIS (arXiv 2209.00588), section 2.2; GAIA-1 (arXiv 2309.17080), section 2.3. The probability of a clip's frames
x_0 ... x_T given its actions a_0 ... a_{T-1} is the product over frames t and places j of

    p(x_t^j | x_{<t}, a_{<t}, x_t^{<j}),

a softmax over the codes at the token before: that of place j - 1, or the action for the first place of a frame. Because
the transformer is causal, keys and values of the past never change; in play they are cached.

Where a latent holds r video frames, "frame" below means latent frame, and the r actions that lead from the last video
frame of one latent to that of the next are pooled into one token.

Legend: b batch, t time, n tokens per frame, m = n + 1, d width, k codebook size, r video frames per latent.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.checks import check_fraction, check_positive
from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.core.states import merge_states
from vwm.models.autoregressive.transformer import PositionKind, TokenCache, TokenGroup, TokenTransformer
from vwm.nn.action_pooling import ActionPooling, ActionPoolingKind, pool_action_embeddings
from vwm.nn.actions import make_action_embedding
from vwm.nn.code_embedding import CodeEmbedding, CodeLogits
from vwm.nn.precision import at_least_float32
from vwm.nn.token_corruption import corrupt_tokens


class TokenPrediction(NamedTuple):
    """What the network computes of clips.

    Attributes:
        logits: float [b, t-1, n, k], of the frames 1..t-1.
        first_logits: float [b, n-1, k], of the tokens of frame 0 after its first one.
        action_features: float [b, u, d], the outputs at the u actions, for outcomes.
        features: float [b, t, d], of the frames: the mean of their tokens' outputs.
    """

    logits: Tensor
    first_logits: Tensor
    action_features: Tensor
    features: Tensor


class TokenLoss(NamedTuple):
    """Mean cross-entropy and accuracy of tokens, scalars; see ``TokenPrediction`` for the features."""

    loss: Tensor
    accuracy: Tensor
    action_features: Tensor
    features: Tensor


class AutoregressiveState(NamedTuple):
    """Everything a prediction needs to know about the past.

    Attributes:
        cache: keys and values.
        tokens: int64 [b, n], of the last frame; zeros before the first one.
    """

    cache: TokenCache
    tokens: Tensor


class FrameInProgress(NamedTuple):
    """A frame that is predicted token by token.

    Attributes:
        group: keys and values.
        previous: int64 [b, n], tokens of the frame before.
        tokens: int64 [b, i], its tokens so far.
        outputs: the transformer's outputs at them, float [b, i, d].
    """

    group: TokenGroup
    previous: Tensor
    tokens: Tensor
    outputs: Tensor


class AutoregressiveDynamics(ModelMixin, ConfigMixin):
    """Predict logits of the next token from all tokens and actions before it.

    Args:
        codebook_size: k.
        tokens_per_frame: n.
        num_actions: number of discrete actions.
        action_dims: dimensions of continuous actions.
        action_parts: parts of composite actions; see ``make_action_embedding``.
        width: d.
        depth: number of blocks.
        heads: number of attention heads.
        window: number of frames of the context, the predicted one included.
        positions: ``rotary``, a sliding window without an end, or ``learned``, as in IRIS: where the positions end, the
            context begins anew with the last frame alone.
        dropout: of inputs, attention weights and the branches of blocks.
        frames_per_latent: r, the tokenizer's ``time_compression``.
        action_pooling: how the r actions of a latent become one, see ``ActionPooling``; without effect for r = 1.
        copy_previous: whether a token's logits get a learned weight for the code that the previous frame has at its
            place, as in ``MaskGITDynamics``.
        codebook_levels: the levels of the tokenizer's FSQ codebook, whose codes then share weights; see
            ``vwm.nn.code_embedding``. None or [] shares nothing.
        context_corruption: the largest share of input tokens that are replaced by random ones in training.

    Attributes:
        action_space: what actions are, without names.

    Raises:
        ValueError: not one kind of action, or a value out of range.
    """

    @register_to_config
    def __init__(
        self,
        codebook_size: int = 512,
        tokens_per_frame: int = 16,
        num_actions: int = 0,
        action_dims: int = 0,
        action_parts: list[dict[str, Any]] | None = None,
        width: int = 256,
        depth: int = 10,
        heads: int = 4,
        window: int = 20,
        positions: PositionKind = "rotary",
        dropout: float = 0.0,
        frames_per_latent: int = 1,
        action_pooling: ActionPoolingKind = "learned",
        copy_previous: bool = False,
        codebook_levels: list[int] | None = None,
        context_corruption: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(codebook_size=codebook_size, frames_per_latent=frames_per_latent)
        check_fraction(context_corruption=context_corruption)
        if codebook_levels and math.prod(codebook_levels) != codebook_size:
            raise ValueError(
                f"codebook_levels={codebook_levels} make {math.prod(codebook_levels)} codes, not "
                f"codebook_size={codebook_size}"
            )
        embed_action = make_action_embedding(width, num_actions, action_dims, action_parts)
        if embed_action is None:
            raise ValueError("set num_actions, action_dims or action_parts: an action leads to every frame")
        self.codebook_size = codebook_size
        self.tokens_per_frame = tokens_per_frame
        self.frames_per_latent = frames_per_latent
        self.context_corruption = context_corruption
        self.action_space = embed_action.space
        self.embed_action = embed_action
        self.no_action = nn.Parameter(torch.zeros(width))
        pools = frames_per_latent > 1
        self.pool_actions = ActionPooling(frames_per_latent, width, action_pooling) if pools else None
        levels = codebook_levels
        self.embed = CodeEmbedding(levels, width) if levels else nn.Embedding(codebook_size, width)
        self.transformer = TokenTransformer(tokens_per_frame, width, depth, heads, window, positions, dropout)
        last = CodeLogits(levels, width) if levels else nn.Linear(width, codebook_size)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)
        self.copy_weight = nn.Linear(width, 1) if copy_previous else None
        self.apply(_init_weights)
        if self.copy_weight is not None:
            nn.init.zeros_(self.copy_weight.weight)
            nn.init.constant_(self.copy_weight.bias, math.log(codebook_size))

    def forward(self, tokens: Tensor, actions: Tensor, known: Tensor | None = None) -> TokenPrediction:
        """Predict every token of clips from the true ones before it.

        Args:
            tokens: int64 [b, t, n].
            actions: of ``action_space``, [b, u r, ...] with u of t - 1 or t; ``actions[:, i]`` leads from video frame
                i to i+1, and the last r of t may be taken at the last frame, for outcomes.
            known: see ``embed_actions``.
        """
        return self._predict(tokens, tokens, actions, known)

    def loss(
        self, tokens: Tensor, actions: Tensor, known: Tensor | None = None, first_frame: bool = False
    ) -> TokenLoss:
        """Return the mean cross-entropy of the tokens of frames 1..t-1, and of frame 0 on request; see ``forward``.

        The first token of frame 0 has none before it and never counts.
        """
        share = self.context_corruption if self.training else 0.0
        predicted = self._predict(corrupt_tokens(tokens, share, self.codebook_size), tokens, actions, known)
        logits, target = predicted.logits.flatten(0, 2), tokens[:, 1:].flatten()
        if first_frame:
            logits = torch.cat((predicted.first_logits.flatten(0, 1), logits))
            target = torch.cat((tokens[:, 0, 1:].flatten(), target))
        accuracy = (logits.argmax(-1) == target).float().mean()
        loss = F.cross_entropy(at_least_float32(logits), target)
        return TokenLoss(loss, accuracy, predicted.action_features, predicted.features)

    def init_state(self, batch: int) -> AutoregressiveState:
        """Return the state before the first frame."""
        cache = self.transformer.init_cache(batch)
        return AutoregressiveState(cache, cache.position.new_zeros(batch, self.tokens_per_frame))

    def observe(self, state: AutoregressiveState, tokens: Tensor, actions: Tensor | None) -> AutoregressiveState:
        """Add frames to the state.

        Args:
            state: the state before these frames.
            tokens: int64 [b, t, n].
            actions: the actions that led to the frames, [b, t r, ...]; None if unknown. That of a first frame has no
                effect.
        """
        return self.observe_with_features(state, tokens, actions)[0]

    def observe_with_features(
        self, state: AutoregressiveState, tokens: Tensor, actions: Tensor | None
    ) -> tuple[AutoregressiveState, Tensor]:
        """As ``observe``, and also return the features of the frames, [b, t, d]."""
        embedded = self.no_action.expand(*tokens.shape[:2], -1) if actions is None else self.embed_actions(actions)
        features = []
        for i in range(tokens.shape[1]):
            state, outputs = self._process_frame(self.with_room(state), tokens[:, i], embedded[:, i])
            features.append(outputs[:, 1:].mean(dim=1))
        return state, torch.stack(features, dim=1)

    def predict_logits(self, state: AutoregressiveState, tokens: Tensor, actions: Tensor) -> Tensor:
        """Predict the next frame's tokens [b, n], each from the true ones before it: float [b, n, k].

        Args:
            state: after the frames so far.
            tokens: int64 [b, n].
            actions: the r actions that lead to the frame, [b, r, ...].
        """
        state = self.with_room(state)
        _, outputs = self._process_frame(state, tokens, self.embed_actions(actions)[:, 0])
        return self._logits(outputs[:, :-1], state.tokens)

    def begin_frame(self, state: AutoregressiveState, action_embedding: Tensor) -> tuple[FrameInProgress, Tensor]:
        """Begin the next frame with the action that leads to it, embedded as [b, d]; also return the output at it."""
        state = self.with_room(state)
        output, group = self.transformer.extend(action_embedding[:, None], self.transformer.open_group(state.cache))
        return FrameInProgress(group, state.tokens, state.tokens[:, :0], output[:, :0]), output[:, 0]

    def token_logits(self, frame: FrameInProgress, output: Tensor) -> Tensor:
        """Predict the next token from the output [b, d] at the token or action before it: float [b, k]."""
        place = frame.tokens.shape[1]
        return self._logits(output[:, None], frame.previous[:, place : place + 1])[:, 0]

    def add_token(self, frame: FrameInProgress, token: Tensor) -> tuple[FrameInProgress, Tensor]:
        """Add the next token, int64 [b]; also return the output at it, [b, d]."""
        output, group = self.transformer.extend(self.embed(token)[:, None], frame.group)
        tokens, outputs = torch.cat((frame.tokens, token[:, None]), 1), torch.cat((frame.outputs, output), 1)
        return FrameInProgress(group, frame.previous, tokens, outputs), output[:, 0]

    def end_frame(self, frame: FrameInProgress) -> tuple[AutoregressiveState, Tensor]:
        """Return the state after a frame with all its tokens, and its features [b, d]."""
        state = AutoregressiveState(self.transformer.close_group(frame.group), frame.tokens)
        return state, frame.outputs.mean(dim=1)

    def with_room(self, state: AutoregressiveState) -> AutoregressiveState:
        """Begin anew with the last frame alone where learned positions have none for another one (IRIS).

        The one frame is computed whether or not a stream needs it, so that all streams take the same operations.
        """
        if not self.transformer.restarts:
            return state
        first = self.init_state(len(state.tokens))
        again, _ = self._process_frame(first, state.tokens, self.no_action.expand(len(state.tokens), -1))
        merged: AutoregressiveState = merge_states(self.transformer.is_full(state.cache), again, state)
        return merged

    def embed_actions(self, actions: Tensor, known: Tensor | None = None) -> Tensor:
        """Embed actions: [b, t r, ...] -> [b, t, d].

        Args:
            actions: of ``action_space``.
            known: bool [b, t r], False where the action is unknown; [b, t r, p] for parts of composite actions. None
                where all are known.
        """
        embedding = self.embed_action.embed(actions, known, self.no_action)
        return pool_action_embeddings(self.pool_actions, embedding, self.no_action)

    def _predict(self, inputs: Tensor, previous: Tensor, actions: Tensor, known: Tensor | None) -> TokenPrediction:
        """Predict from the tokens ``inputs``; ``previous`` are those that may be copied. Both int64 [b, t, n]."""
        b, t, n = inputs.shape
        embedded, m = self.embed_actions(actions, known), n + 1
        missing = t - embedded.shape[1]
        if missing not in (0, 1):
            raise ValueError(f"{t} frames have {t - 1} or {t} actions, got {embedded.shape[1]}")
        tail = embedded.new_zeros(b, missing, embedded.shape[2])
        sequence = torch.cat((self.embed(inputs), torch.cat((embedded, tail), dim=1)[:, :, None]), dim=2).flatten(1, 2)
        y = self.transformer(sequence[:, : t * m - missing])
        groups = y[:, n : n + (t - 1) * m].unflatten(1, (t - 1, m))  # the actions, and the frames that follow
        frames = torch.cat((y[:, None, :n], groups[:, :, 1:]), dim=1)
        return TokenPrediction(
            logits=self._logits(groups[:, :, :-1], previous[:, :-1]),
            first_logits=self.head(y[:, : n - 1]),
            action_features=y[:, n::m],
            features=frames.mean(dim=2),
        )

    def _process_frame(
        self, state: AutoregressiveState, tokens: Tensor, action_embedding: Tensor
    ) -> tuple[AutoregressiveState, Tensor]:
        """Process an action [b, d] and the frame [b, n] that it leads to; also return the outputs [b, m, d]."""
        x = torch.cat((action_embedding[:, None], self.embed(tokens)), dim=1)
        outputs, group = self.transformer.extend(x, self.transformer.open_group(state.cache))
        return AutoregressiveState(self.transformer.close_group(group), tokens), outputs

    def _logits(self, x: Tensor, previous: Tensor) -> Tensor:
        """Logits [..., k] from outputs [..., d] and the codes [...] of the previous frame at the predicted places."""
        logits: Tensor = self.head(x)
        if self.copy_weight is None:
            return logits
        return logits.scatter_add(-1, previous[..., None], self.copy_weight(x).to(logits.dtype))


def _init_weights(module: nn.Module) -> None:
    """Initialize as GPT-2 and IRIS do."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
