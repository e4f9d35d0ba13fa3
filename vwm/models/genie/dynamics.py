"""The masked dynamics transformer: predicts the tokens of the next frame from past tokens and actions.

Genie (arXiv 2402.15391), section 2.1; MaskGIT (arXiv 2202.04200).

Because the transformer is factored and causal in time, the keys and values of past frames never change. In play they
are cached, and each MaskGIT step processes only the tokens of the new frame. This is exact, not an approximation.

Where a latent holds r video frames, "frame" below means latent frame, and the r actions that lead from the last video
frame of one latent to that of the next are pooled into one.

Legend: b batch, t time, n tokens per frame, d width, k codebook size, r video frames per latent.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.action_parts import read_action_parts
from vwm.core.checks import check_positive
from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.core.spaces import ActionSpace
from vwm.nn.action_pooling import ActionPooling, ActionPoolingKind, pool_action_embeddings
from vwm.nn.actions import CompositeActionEmbedding
from vwm.nn.clip_draws import draw_uniform
from vwm.nn.code_embedding import CodeEmbedding, CodeLogits
from vwm.nn.context_parallel import ContextGroup, DividedFrames, divide_frames, join_frames, own_frames
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import mean_count
from vwm.nn.space_time import SpaceTimeTransformer, TransformerState
from vwm.nn.token_corruption import corrupt_tokens


class MaskGITOutput(NamedTuple):
    """Logits float [b, t-1, n, k] of frames 1..t-1, and features [b, t, d] of all frames, computed without masks."""

    logits: Tensor
    features: Tensor


class MaskedPrediction(NamedTuple):
    """What is predicted of the masked frames of clips, of those frames that this process computes.

    Attributes:
        logits: float [b, t, n, k].
        tokens: int64 [b, t, n], the true ones.
        mask: bool [b, t, n], True where a token is masked.
        features: [b, t, d], of the unmasked frames of all processes.
        division: how frames are divided over processes; None where this one computes all.
    """

    logits: Tensor
    tokens: Tensor
    mask: Tensor
    features: Tensor
    division: DividedFrames | None

    def whole_logits(self, frames: int) -> Tensor:
        """Logits of the last frames, of all processes: float [b, frames, n, k]."""
        return join_frames(self.logits, self.division, segment=-1)[:, -frames:]

    def cross_entropy(self) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy of the masked tokens, of all processes that share the clips."""
        logits, target = at_least_float32(self.logits[self.mask]), self.tokens[self.mask]
        entropy = F.cross_entropy(logits, target, reduction="sum")
        hits = (logits.argmax(-1) == target).to(entropy.dtype).sum()
        # Divided by the mean number of a process, so that the mean over processes is that of all masked tokens.
        count = mean_count(self.mask, entropy.dtype)
        if self.division is not None:
            entropy, hits = self.division.group.sum(torch.stack((entropy, hits))).unbind()
            count = count * self.division.group.size
        return entropy / count, hits / count


class MaskGITState(NamedTuple):
    """Everything a prediction needs to know about the past.

    Attributes:
        transformer: cached keys and values.
        tokens: int64 [b, n], of the last frame; mask tokens before the first one.
    """

    transformer: TransformerState
    tokens: Tensor

    @property
    def position(self) -> Tensor:
        """int64 [b], number of frames seen so far."""
        return self.transformer.position


class MaskGITDynamics(ModelMixin, ConfigMixin):
    """Predict logits of masked tokens from unmasked tokens and actions.

    Args:
        codebook_size: k.
        tokens_per_frame: n.
        num_actions: number of discrete actions, or dimensions of a continuous action.
        continuous: whether actions are float [..., num_actions] instead of indices.
        width: d.
        depth: number of blocks.
        heads: number of attention heads.
        window: number of frames that temporal attention spans.
        conditioning: ``"add"`` the action embedding to every token of the next frame (Genie), or ``"prepend"`` it as an
            additional token.
        context: the past of a masked frame in training: ``"clean"`` (unmasked frames, as in play; costs two passes) or
            ``"masked"`` (Genie: all frames are masked alike).
        min_mask_rate: lower bound of the mask rate in training; the rate of each sample is uniform in
            [min_mask_rate, 1].
        context_corruption: with a clean context, the largest share of past tokens that are replaced by random ones, so
            that the model becomes robust to its own errors.
        frames_per_latent: r, the tokenizer's ``time_compression``.
        action_pooling: how the r actions of a latent become one, see ``ActionPooling``; without effect for r = 1.
        action_parts: the parts of composite actions, float [..., a], instead of ``num_actions`` and ``continuous``; see
            ``vwm.nn.actions.make_action_embedding``.
        copy_previous: whether a token's logits get a learned weight for the code that the previous frame has at its
            place, which depends on the token's features and begins at even odds (as pointer-generator networks copy
            words, arXiv 1704.04368). Most of a video is equal in consecutive frames, and a network without it has to
            learn each code's copy by itself. Requires a clean context.
        codebook_levels: the levels of the tokenizer's FSQ codebook, whose product is k: codes of one level then share
            a part of their embedding and output weights (see ``vwm.nn.code_embedding``). None or [] shares nothing.

    Attributes:
        context_group: the processes over which predictions divide the frames of clips; None computes all frames here.

    Raises:
        ValueError: an unknown ``conditioning`` or ``context``, one that does not fit ``copy_previous``, levels that do
            not fit ``codebook_size``, or invalid parts.
    """

    context_group: ContextGroup | None = None

    @register_to_config
    def __init__(
        self,
        codebook_size: int = 1000,
        tokens_per_frame: int = 64,
        num_actions: int = 8,
        continuous: bool = False,
        width: int = 256,
        depth: int = 6,
        heads: int = 8,
        window: int = 16,
        conditioning: str = "add",
        context: str = "clean",
        min_mask_rate: float = 0.5,
        context_corruption: float = 0.0,
        frames_per_latent: int = 1,
        action_pooling: ActionPoolingKind = "learned",
        action_parts: list[dict[str, Any]] | None = None,
        copy_previous: bool = False,
        codebook_levels: list[int] | None = None,
    ) -> None:
        super().__init__()
        check_positive(frames_per_latent=frames_per_latent)
        if conditioning not in ("add", "prepend"):
            raise ValueError(f"conditioning={conditioning!r} must be 'add' or 'prepend'")
        if context not in ("clean", "masked"):
            raise ValueError(f"context={context!r} must be 'clean' or 'masked'")
        if copy_previous and context != "clean":
            raise ValueError("copy_previous=true requires context=clean: masked frames have nothing to copy")
        if codebook_levels and math.prod(codebook_levels) != codebook_size:
            raise ValueError(
                f"codebook_levels={codebook_levels} make {math.prod(codebook_levels)} codes, not "
                f"codebook_size={codebook_size}"
            )
        self.codebook_size = codebook_size
        self.tokens_per_frame = tokens_per_frame
        self.continuous = continuous
        self.action_space = ActionSpace("continuous" if continuous else "discrete", num_actions)
        if action_parts:
            self.action_space = ActionSpace.composite(*read_action_parts(action_parts))
        self.num_actions = self.action_space.size
        self.conditioning = conditioning
        self.context = context
        self.min_mask_rate = min_mask_rate
        self.context_corruption = context_corruption
        self.frames_per_latent = frames_per_latent
        self.mask_token = codebook_size
        self.num_prefix_tokens = 1 if conditioning == "prepend" else 0
        levels = codebook_levels
        self.embed = CodeEmbedding(levels, width) if levels else nn.Embedding(codebook_size + 1, width)
        self.places = nn.Parameter(torch.empty(self.num_prefix_tokens + tokens_per_frame, width).normal_(std=0.02))
        self.embed_action = _make_action_embedding(self.action_space, width)
        self.no_action = nn.Parameter(torch.zeros(width))
        pools = frames_per_latent > 1
        self.pool_actions = ActionPooling(frames_per_latent, width, action_pooling) if pools else None
        self.transformer = SpaceTimeTransformer(width=width, depth=depth, heads=heads, window=window)
        self.head = CodeLogits(levels, width) if levels else nn.Linear(width, codebook_size)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.copy_weight = nn.Linear(width, 1) if copy_previous else None
        if self.copy_weight is not None:
            nn.init.zeros_(self.copy_weight.weight)
            nn.init.constant_(self.copy_weight.bias, math.log(codebook_size))

    def forward(self, tokens: Tensor, actions: Tensor, mask: Tensor, known: Tensor | None = None) -> Tensor:
        """Predict the logits of all tokens from the unmasked ones, with the training ``context``.

        Args:
            tokens: int64 [b, t, n], the true tokens.
            actions: int64 [b, (t-1) r] or float [b, (t-1) r, num_actions]; ``actions[:, i]`` leads from video frame i
                to i+1.
            mask: bool [b, t-1, n], True where a token of frames 1..t-1 is masked.
            known: see ``embed_actions``.

        Returns:
            float [b, t-1, n, k], logits of frames 1..t-1.
        """
        action_embedding = self._clip_action_embeddings(tokens, actions, known)
        return self._predict(tokens, tokens[:, :-1], action_embedding, mask).whole_logits(mask.shape[1])

    def forward_with_features(
        self, tokens: Tensor, actions: Tensor, mask: Tensor, known: Tensor | None = None
    ) -> MaskGITOutput:
        """As ``forward``, and also return the features of unmasked frames, as in play, for the outcome heads.

        They include the last frame, at which the action that ends an episode is taken.
        """
        predicted = self._predict_with_features(tokens, actions, mask, known)
        return MaskGITOutput(predicted.whole_logits(mask.shape[1]), predicted.features)

    def loss(self, tokens: Tensor, actions: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy and accuracy of masked tokens, with a random mask rate per sample."""
        mask = self._sample_mask(tokens)
        action_embedding = self._clip_action_embeddings(tokens, actions, known)
        return self._predict(tokens, tokens[:, :-1], action_embedding, mask).cross_entropy()

    def loss_with_features(
        self, tokens: Tensor, actions: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``loss``, and also return the features of ``forward_with_features``."""
        predicted = self._predict_with_features(tokens, actions, self._sample_mask(tokens), known)
        return *predicted.cross_entropy(), predicted.features

    def _sample_mask(self, tokens: Tensor) -> Tensor:
        """bool [b, t-1, n]. One rate per sample, not per batch, reduces the variance of the loss."""
        b, t, n = tokens.shape
        rate = self.min_mask_rate + (1 - self.min_mask_rate) * draw_uniform((b, 1, 1), tokens.device)
        return draw_uniform((b, t - 1, n), tokens.device) < rate

    def _mask_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return torch.cat((tokens[:, :1], tokens[:, 1:].masked_fill(mask, self.mask_token)), dim=1)

    def _predict_with_features(
        self, tokens: Tensor, actions: Tensor, mask: Tensor, known: Tensor | None
    ) -> MaskedPrediction:
        action_embedding = self._clip_action_embeddings(tokens, actions, known)
        predicted = self._predict(tokens, tokens, action_embedding, mask)
        if self.context == "clean":
            return predicted
        unmasked = self._process_clip(tokens, action_embedding, predicted.division)
        return predicted._replace(features=join_frames(self._features(unmasked), predicted.division))

    def _predict(self, tokens: Tensor, past: Tensor, action_embedding: Tensor, mask: Tensor) -> MaskedPrediction:
        """Predict masked frames, with a clean context from the unmasked frames ``past``."""
        if self.context == "clean":
            return self._predict_from_clean(tokens, past, action_embedding, mask)
        division = divide_frames(self.context_group, tokens.shape[1])
        x = self._process_clip(self._mask_tokens(tokens, mask), action_embedding, division)
        mask = torch.cat((torch.zeros_like(mask[:, :1]), mask), dim=1)
        tokens, mask = own_frames(tokens, division), own_frames(mask, division)
        return MaskedPrediction(self._logits(x, tokens), tokens, mask, self._features(x), division)

    def _process_clip(self, tokens: Tensor, action_embedding: Tensor, division: DividedFrames | None) -> Tensor:
        x = self._embed(own_frames(tokens, division), own_frames(action_embedding, division))
        return self.transformer(x, division=division)

    def _predict_from_clean(
        self, tokens: Tensor, past: Tensor, action_embedding: Tensor, mask: Tensor
    ) -> MaskedPrediction:
        """Process unmasked frames ``past`` and masked frames 1..t-1, which attend to them, as one long clip."""
        num_past, frames = past.shape[1], mask.shape[1]
        positions, attends = self.transformer.span.clean_context(num_past, frames, tokens.device)
        division = divide_frames(self.context_group, num_past, frames)
        masked, past = self._mask_tokens(tokens, mask)[:, 1:], self._corrupt(past)
        seen = self._embed(own_frames(past, division), own_frames(action_embedding[:, :num_past], division))
        hidden = self._embed(own_frames(masked, division), own_frames(action_embedding[:, 1:], division))
        x = self.transformer(torch.cat((seen, hidden), dim=1), positions, attends, division)
        x, x_hidden = x.split([seen.shape[1], hidden.shape[1]], dim=1)
        previous, tokens, mask = (own_frames(part, division) for part in (past[:, :frames], tokens[:, 1:], mask))
        features = join_frames(self._features(x), division)
        return MaskedPrediction(self._logits(x_hidden, previous), tokens, mask, features, division)

    def _logits(self, x: Tensor, previous: Tensor) -> Tensor:
        """Logits [b, t, n, k] from the network's output and the tokens of the frames before, [b, t, n]."""
        x = x[:, :, self.num_prefix_tokens :]
        logits: Tensor = self.head(x)
        if self.copy_weight is None:
            return logits
        weight = self.copy_weight(x) * (previous != self.mask_token)[..., None]
        return logits.scatter_add(-1, previous.clamp(max=self.codebook_size - 1)[..., None], weight.to(logits.dtype))

    def _features(self, x: Tensor) -> Tensor:
        return x[:, :, self.num_prefix_tokens :].mean(dim=2)

    def init_state(self, batch: int) -> MaskGITState:
        """Return the state before the first frame."""
        transformer = self.transformer.init_state(batch, self.num_prefix_tokens + self.tokens_per_frame)
        shape = (batch, self.tokens_per_frame)
        return MaskGITState(transformer, transformer.position.new_full(shape, self.mask_token))

    def observe(self, state: MaskGITState, tokens: Tensor, actions: Tensor | None) -> MaskGITState:
        """Add frames to the state.

        Args:
            state: the state before these frames.
            tokens: int64 [b, t, n].
            actions: the actions that led to the frames, [b, t r] or [b, t r, num_actions]; None if unknown.
        """
        return self.observe_with_features(state, tokens, actions)[0]

    def observe_with_features(
        self, state: MaskGITState, tokens: Tensor, actions: Tensor | None
    ) -> tuple[MaskGITState, Tensor]:
        """As ``observe``, and also return the features of the frames, [b, t, d]."""
        embedded = self._embed(tokens, self._action_embeddings(tokens, actions))
        x, transformer = self.transformer.step(embedded, state.transformer)
        return MaskGITState(transformer, tokens[:, -1]), self._features(x)

    def predict_logits(self, state: MaskGITState, tokens: Tensor, actions: Tensor | None) -> Tensor:
        """Predict the next frame from its unmasked tokens, without advancing the state: [b, 1, n] -> [b, 1, n, k]."""
        embedded = self._embed(tokens, self._action_embeddings(tokens, actions))
        return self._logits(self.transformer.predict(embedded, state.transformer), state.tokens[:, None])

    def embed_actions(self, actions: Tensor, known: Tensor | None = None) -> Tensor:
        """Embed actions: [b, t r] or [b, t r, num_actions] -> [b, t, d].

        Args:
            actions: see above.
            known: bool [b, t r], False where the action is unknown; [b, t r, p] for parts of composite actions. None
                where all are known.
        """
        embedding: Tensor
        if isinstance(self.embed_action, CompositeActionEmbedding):
            embedding = self.embed_action.embed(actions, known, self.no_action)
        else:
            embedding = self.embed_action(actions.to(self.places.dtype) if self.continuous else actions)
            embedding = embedding if known is None else torch.where(known[..., None], embedding, self.no_action)
        return pool_action_embeddings(self.pool_actions, embedding, self.no_action)

    def _clip_action_embeddings(self, tokens: Tensor, actions: Tensor, known: Tensor | None) -> Tensor:
        """Embed the action that led to each frame of a clip, [b, t, d]; that of the first frame is unknown."""
        return torch.cat((self.no_action.expand(len(tokens), 1, -1), self.embed_actions(actions, known)), dim=1)

    def _action_embeddings(self, tokens: Tensor, actions: Tensor | None) -> Tensor:
        if actions is None:
            return self.no_action.expand(*tokens.shape[:2], -1)
        return self.embed_actions(actions)

    def _embed(self, tokens: Tensor, action_embedding: Tensor) -> Tensor:
        x = self.embed(tokens)
        action_embedding = action_embedding[:, :, None].to(x.dtype)
        x = torch.cat((action_embedding, x), dim=2) if self.num_prefix_tokens else x + action_embedding
        return x + self.places

    def _corrupt(self, tokens: Tensor) -> Tensor:
        share = self.context_corruption if self.training else 0.0
        return corrupt_tokens(tokens, share, self.codebook_size)


def _make_action_embedding(space: ActionSpace, width: int) -> nn.Module:
    if space.is_composite:
        return CompositeActionEmbedding(space.parts, width)
    return nn.Embedding(space.size, width) if space.is_discrete else nn.Linear(space.size, width)
