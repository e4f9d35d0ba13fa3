"""The masked dynamics transformer: the next frame's tokens from the past frames' tokens and the actions.

Genie (arXiv 2402.15391), section 2.1; MaskGIT (arXiv 2202.04200).

Because the transformer is factored and causal in time, a past frame's keys and values never change. Playing keeps
them, and each of the k MaskGIT steps runs the tokens of the new frame alone. That is exact, not
an approximation.

Legend: b batch, t time, n tokens a frame, d width, k codebook size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.core.seeds import fold_in, seeded_uniform
from vwm.nn.space_time import SpaceTimeTransformer, TransformerState, clean_context_mask


class MaskGITOutput(NamedTuple):
    """logits float [b, t-1, n, k] of frames 1..t-1, and features [b, t, d] of all frames, unmasked."""

    logits: Tensor
    features: Tensor


class MaskGITDynamics(ModelMixin, ConfigMixin):
    """Tokens and actions in, logits of masked tokens out.

    Args:
        codebook_size: k.
        tokens_per_frame: n.
        num_actions: discrete actions; or the dimensions of a continuous action.
        continuous: the actions are float [.., num_actions] rather than indices.
        width: d.
        depth: number of blocks.
        heads: attention heads.
        window: frames that time attention spans.
        conditioning: ``"add"`` the action's embedding to every token of the frame it leads to (Genie), or
            ``"prepend"`` it to them as a token of its own.
        context: what a masked frame sees of the past in training: ``"clean"`` (every past frame whole, as in play;
            costs two passes) or ``"masked"`` (Genie: the past is masked like the present).
        mask_rate: the lowest rate at which a frame is masked in training; each sample draws its own from
            [mask_rate, 1].
        corruption: with a clean context, the share of past tokens that are replaced by random ones, so that the
            model learns not to trust its own slips.
    """

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
        mask_rate: float = 0.5,
        corruption: float = 0.0,
    ) -> None:
        super().__init__()
        if conditioning not in ("add", "prepend"):
            raise ValueError(f"conditioning={conditioning!r} must be 'add' or 'prepend'")
        if context not in ("clean", "masked"):
            raise ValueError(f"context={context!r} must be 'clean' or 'masked'")
        self.codebook_size, self.tokens_per_frame, self.num_actions = codebook_size, tokens_per_frame, num_actions
        self.conditioning, self.context, self.continuous = conditioning, context, continuous
        self.mask_rate, self.corruption = mask_rate, corruption
        self.mask_token = codebook_size
        self.prefix = 1 if conditioning == "prepend" else 0
        self.embed = nn.Embedding(codebook_size + 1, width)
        self.places = nn.Parameter(torch.randn(self.prefix + tokens_per_frame, width) * 0.02)
        self.embed_action: nn.Module = nn.Linear(num_actions, width) if continuous else nn.Embedding(num_actions, width)
        self.no_action = nn.Parameter(torch.zeros(width))
        self.transformer = SpaceTimeTransformer(width, depth, heads, window)
        self.head = nn.Linear(width, codebook_size)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Logits of every token given the unmasked ones, in the training mode that ``context`` names.

        Args:
            tokens: int64 [b, t, n], the true tokens.
            actions: int64 [b, t-1] or float [b, t-1, num_actions]; ``actions[:, i]`` leads from frame i to i+1.
            mask: bool [b, t-1, n], True where a token of frames 1..t-1 is hidden.

        Returns:
            float [b, t-1, n, k], logits of frames 1..t-1.
        """
        lead = self._clip_action_embeddings(tokens, actions)
        if self.context == "masked":
            return self._logits(self.transformer(self._embed(self._hide(tokens, mask), lead))[:, 1:])
        return self._forward_clean_context(tokens, tokens[:, :-1], lead, mask).logits

    def forward_with_features(self, tokens: Tensor, actions: Tensor, mask: Tensor) -> MaskGITOutput:
        """As ``forward``, and what outcomes are read from: features of whole frames, as play computes them.

        The last frame's too, which leads nowhere: the action that ends an episode is taken there.
        """
        lead = self._clip_action_embeddings(tokens, actions)
        if self.context == "clean":
            return self._forward_clean_context(tokens, tokens, lead, mask)
        x = self.transformer(self._embed(tokens, lead))
        return MaskGITOutput(self(tokens, actions, mask), self._features(x))

    def loss(self, tokens: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the hidden tokens, and their accuracy, at mask rates drawn a sample."""
        mask = self._sample_mask(tokens)
        return _masked_cross_entropy(self(tokens, actions, mask), tokens, mask)

    def loss_with_features(self, tokens: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As ``loss``, and the features of ``forward_with_features``."""
        mask = self._sample_mask(tokens)
        out = self.forward_with_features(tokens, actions, mask)
        return *_masked_cross_entropy(out.logits, tokens, mask), out.features

    def _sample_mask(self, tokens: Tensor) -> Tensor:
        """bool [b, t-1, n]. A rate a sample (not a batch) keeps the loss's variance low."""
        b, t, n = tokens.shape
        rate = self.mask_rate + (1 - self.mask_rate) * torch.rand(b, 1, 1, device=tokens.device)
        return torch.rand(b, t - 1, n, device=tokens.device) < rate

    def _hide(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return torch.cat((tokens[:, :1], tokens[:, 1:].masked_fill(mask, self.mask_token)), dim=1)

    def _forward_clean_context(self, tokens: Tensor, past: Tensor, lead: Tensor, mask: Tensor) -> MaskGITOutput:
        """Both kinds of frame in one long clip: first whole ones, then the masked ones, which look back at them."""
        seen, hidden = past.shape[1], self._hide(tokens, mask)[:, 1:]
        x = torch.cat((self._embed(self._corrupt(past), lead[:, :seen]), self._embed(hidden, lead[:, 1:])), dim=1)
        x = self.transformer(x, *clean_context_mask(seen, hidden.shape[1], self.transformer.window, x.device))
        return MaskGITOutput(self._logits(x[:, seen:]), self._features(x[:, :seen]))

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(x[:, :, self.prefix :])

    def _features(self, x: Tensor) -> Tensor:
        return x[:, :, self.prefix :].mean(dim=2)

    def init_state(self, batch: int) -> TransformerState:
        """The state of worlds in which no frame has been seen."""
        return self.transformer.init_state(batch, self.prefix + self.tokens_per_frame)

    def observe(self, state: TransformerState, tokens: Tensor, actions: Tensor | None) -> TransformerState:
        """Take whole frames into the state.

        Args:
            state: of the frames before.
            tokens: int64 [b, t, n].
            actions: the actions that led to each of them, [b, t] (or [b, t, num_actions]); None where unknown.
        """
        return self.observe_with_features(state, tokens, actions)[0]

    def observe_with_features(
        self, state: TransformerState, tokens: Tensor, actions: Tensor | None
    ) -> tuple[TransformerState, Tensor]:
        """As ``observe``, and the frames' features, [b, t, d]."""
        x, state = self.transformer.step(self._embed(tokens, self._lead(tokens, actions)), state)
        return state, self._features(x)

    def logits(self, state: TransformerState, tokens: Tensor, actions: Tensor | None) -> Tensor:
        """What the next frame may be: tokens [b, 1, n] with masked ones among them -> float [b, 1, n, k].

        Does not advance the state.
        """
        x, _ = self.transformer.step(self._embed(tokens, self._lead(tokens, actions)), state)
        return self._logits(x)

    def embed_actions(self, actions: Tensor) -> Tensor:
        """Vectors of actions: [b, t] or [b, t, num_actions] -> [b, t, d]."""
        vectors: Tensor = self.embed_action(actions.to(self.places.dtype) if self.continuous else actions)
        return vectors

    def _clip_action_embeddings(self, tokens: Tensor, actions: Tensor) -> Tensor:
        """[b, t, d]; what led to a clip's first frame is not known."""
        return torch.cat((self.no_action.expand(len(tokens), 1, -1), self.embed_actions(actions)), dim=1)

    def _lead(self, tokens: Tensor, actions: Tensor | None) -> Tensor:
        if actions is None:
            return self.no_action.expand(*tokens.shape[:2], -1)
        return self.embed_actions(actions)

    def _embed(self, tokens: Tensor, lead: Tensor) -> Tensor:
        x = self.embed(tokens)
        lead = lead[:, :, None].to(x.dtype)
        x = torch.cat((lead, x), dim=2) if self.prefix else x + lead
        return x + self.places

    def _corrupt(self, tokens: Tensor) -> Tensor:
        if not self.corruption or not self.training:
            return tokens
        # The share is itself random, so that a clean past stays the commonest case.
        share = self.corruption * torch.rand(len(tokens), 1, 1, device=tokens.device)
        noise = torch.randint_like(tokens, self.codebook_size)
        return torch.where(torch.rand(tokens.shape, device=tokens.device) < share, noise, tokens)


def _masked_cross_entropy(logits: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy of the hidden tokens of frames 1..t-1."""
    said, target = logits[mask].float(), tokens[:, 1:][mask]
    return F.cross_entropy(said, target), (said.argmax(-1) == target).float().mean()


class MaskGITSampling(NamedTuple):
    """How a frame's tokens are drawn.

    Cooler and less random than in the papers: on small models the tail of the distribution is mostly error.

    Attributes:
        steps: MaskGIT steps a frame (Genie: 25).
        temperature: of the token distribution (Genie: 1); 0 takes the likeliest token.
        choice: how random the order is in which tokens are fixed, annealed to 0 over the steps; 0 = strictly by
            confidence (MaskGIT: 4.5).
    """

    steps: int = 8
    temperature: float = 0.5
    choice: float = 1.0


def sample_token_frame(
    dynamics: MaskGITDynamics, state: TransformerState, actions: Tensor | None, seed: Tensor, sampling: MaskGITSampling
) -> tuple[TransformerState, Tensor]:
    """Draw the next frame of each world and take it into the state (MaskGIT, section 3.2).

    Args:
        dynamics: the model.
        state: of the frames so far.
        actions: the action that leads to the new frame, [b] or [b, num_actions]; None where unknown.
        seed: int64 [b], what the draw is a function of, besides state and action.
        sampling: steps and temperatures.

    Returns:
        The new state, and the frame's tokens int64 [b, n].
    """
    tokens = sample_tokens(dynamics, state, actions, seed, sampling)
    lead = None if actions is None else actions[:, None]
    return dynamics.observe(state, tokens[:, None], lead), tokens


def sample_tokens(
    dynamics: MaskGITDynamics, state: TransformerState, actions: Tensor | None, seed: Tensor, sampling: MaskGITSampling
) -> Tensor:
    """The tokens of ``sample_token_frame``, int64 [b, n], not yet taken into the state."""
    b, n, steps = len(seed), dynamics.tokens_per_frame, sampling.steps
    lead = None if actions is None else actions[:, None]
    tokens = torch.full((b, 1, n), dynamics.mask_token, dtype=torch.int64, device=seed.device)
    for step in range(steps):
        logits = dynamics.logits(state, tokens, lead)[:, 0].float()
        noise = seeded_uniform(fold_in(seed, step), 2, n)
        drawn, confidence = _sample_categorical(logits, noise[:, 0], sampling.temperature)
        masked = tokens[:, 0] == dynamics.mask_token
        drawn = torch.where(masked, drawn, tokens[:, 0])
        # Tokens fixed earlier stay; of the rest the surest stay, with some Gumbel noise that dies away.
        gumbel = -torch.log(-torch.log(noise[:, 1]))
        sureness = confidence + sampling.choice * (1 - (step + 1) / steps) * gumbel
        sureness = sureness.masked_fill(~masked, float("inf"))
        hide = masked_token_count(n, step + 1, steps)
        order = sureness.argsort(dim=-1, stable=True)
        tokens = drawn.scatter(1, order[:, :hide], dynamics.mask_token)[:, None]
    return tokens[:, 0]


def masked_token_count(tokens: int, step: int, steps: int) -> int:
    """How many of ``tokens`` stay hidden after ``step`` of ``steps``: MaskGIT's cosine schedule; 0 at the end."""
    return int(tokens * math.cos(math.pi / 2 * step / steps))


def _sample_categorical(logits: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens drawn by inverting the distribution function, and their log-probabilities: [b, n, k] -> [b, n] twice."""
    log_p = (logits / temperature).log_softmax(-1) if temperature > 0 else logits.log_softmax(-1)
    if temperature > 0:
        cumulative = log_p.exp().cumsum(-1)
        drawn = torch.searchsorted(cumulative, (noise * cumulative[..., -1])[..., None]).squeeze(-1)
        drawn = drawn.clamp(max=logits.shape[-1] - 1)
    else:
        drawn = log_p.argmax(-1)
    return drawn, log_p.gather(-1, drawn[..., None]).squeeze(-1)
