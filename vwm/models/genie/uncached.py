"""Genie without cached keys and values: what the cache saves, for ``vwm bench play``.

Every MaskGIT step computes the whole window with the same weights, through the path that training takes, and the
tokenizer decodes the window.

Legend: b batch, t time, n tokens of a frame, k codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import fold_in
from vwm.core.token_simulator import TokenWorldState
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.sampling import sample_token_frame
from vwm.models.genie.simulator import GenieSimulator


class UncachedState(NamedTuple):
    """The window's tokens [b, t, n], and the actions [b, t] that led to them (of frame 0: any)."""

    tokens: Tensor
    actions: Tensor


class UncachedDynamics:
    """A dynamics model that keeps the window's tokens instead of keys and values, for ``sample_token_frame``.

    Args:
        dynamics: the model.
    """

    def __init__(self, dynamics: MaskGITDynamics) -> None:
        self.dynamics = dynamics
        self.tokens_per_frame = dynamics.tokens_per_frame
        self.mask_token = dynamics.mask_token

    def observe(self, past: UncachedState, tokens: Tensor, actions: Tensor) -> UncachedState:
        """Append frames, and drop those that the next frame does not see."""
        keep = self.dynamics.transformer.span.window - 1
        joined = torch.cat((past.tokens, tokens), dim=1), torch.cat((past.actions, actions), dim=1)
        return UncachedState(*(x[:, max(0, x.shape[1] - keep) :] for x in joined))

    def predict_logits(self, past: UncachedState, tokens: Tensor, actions: Tensor) -> Tensor:
        """Compute the logits of the next frame, [b, 1, n, k], from all frames at once."""
        joined = torch.cat((past.tokens, tokens), dim=1)
        action_embedding = self.dynamics._action_embeddings(joined, torch.cat((past.actions, actions), dim=1))
        x = self.dynamics.transformer(self.dynamics._embed(joined, action_embedding))
        return self.dynamics._logits(x[:, -1:], past.tokens[:, -1:])


class GenieCacheComparison:
    """Genie with and without its cache, once the window is full: see ``CacheComparison``.

    Args:
        simulator: to play with.
        context: frames to start from, uint8 [b, 1, h, w, 3].
        actions: the actions [b, ...] of a step, by its number.
    """

    def __init__(self, simulator: GenieSimulator, context: Tensor, actions: Callable[[int], Tensor]) -> None:
        self.simulator = simulator
        self.actions = actions
        self.state, past = self._fill_window(context)
        self.uncached = UncachedDynamics(simulator.dynamics)
        self.whole_past = past
        self.past = self.uncached.observe(past, past.tokens[:, :0], past.actions[:, :0])
        self._before: TokenWorldState = self.state
        self._latent = self.state.latent

    @torch.inference_mode()
    def check_agreement(self) -> str:
        """Compare the two on the same frames, as many as a window holds.

        Beyond it, the results differ: with several blocks, cached keys depend on frames before the window.

        Raises:
            RuntimeError: they differ by more than rounding.
        """
        simulator, uncached = self.simulator, self.uncached
        dynamics, tokenizer = simulator.dynamics, simulator.tokenizer
        frames = min(dynamics.transformer.span.window, tokenizer.decoder.span.window) - 1
        past = UncachedState(self.whole_past.tokens[:, -frames:], self.whole_past.actions[:, -frames:])
        batch, seed = len(past.tokens), torch.arange(len(past.tokens), device=simulator.device)
        masked = torch.full_like(past.tokens[:, :1], dynamics.mask_token)
        action = self.actions(-1)
        state, decoder, video = dynamics.init_state(batch), tokenizer.init_decoder(batch), []
        for i in range(frames):
            state = dynamics.observe(state, past.tokens[:, i : i + 1], past.actions[:, i : i + 1])
            decoder, frame = tokenizer.decode_step(decoder, past.tokens[:, i : i + 1].unflatten(-1, tokenizer.grid))
            video.append(frame)
        cached = dynamics.predict_logits(state, masked, action[:, None])
        whole = uncached.predict_logits(past, masked, action[:, None])
        sampled = sample_token_frame(dynamics, state, action[:, None], seed, simulator.sampling)[1]
        resampled = sample_token_frame(uncached, past, action[:, None], seed, simulator.sampling)[1]  # type: ignore[arg-type]
        pixels = (torch.cat(video, dim=1) - tokenizer.decode(past.tokens.unflatten(-1, tokenizer.grid))).abs().max()
        error = float((cached - whole).abs().max() / whole.std())
        if error > (0.2 if simulator.dtype == torch.bfloat16 else 1e-2) or float(pixels) > 1e-2:
            raise RuntimeError(
                f"with and without the cache differ: logits by {error:.1e} of their std, pixels {pixels:.1e}"
            )
        same = float((sampled == resampled).float().mean())
        return (
            f"logits differ by at most {error:.0e} of their std, pixels by {pixels:.0e} of [-1, 1], "
            f"{same:.1%} of the sampled tokens are equal ({frames} frames)"
        )

    @torch.inference_mode()
    def step(self, number: int) -> None:
        """See ``CacheComparison.step``."""
        self._before = self.state
        self.state, output = self.simulator.step(self.state, self.actions(number))
        self._latent = output.latent

    @torch.inference_mode()
    def decode(self) -> None:
        """See ``CacheComparison.decode``."""
        self.simulator.tokenizer.decode_step(self._before.decoder, self._latent[:, None])

    @torch.inference_mode()
    def step_uncached(self, number: int) -> None:
        """See ``CacheComparison.step_uncached``."""
        action, seed = self.actions(number), fold_in(self.state.seed, number)
        tokenizer, sampling = self.simulator.tokenizer, self.simulator.sampling
        _, tokens = sample_token_frame(self.uncached, self.past, action[:, None], seed, sampling)  # type: ignore[arg-type]
        self.past = self.uncached.observe(self.past, tokens[:, None], action[:, None])
        tokenizer.decode(self.past.tokens.unflatten(-1, tokenizer.grid))

    @torch.inference_mode()
    def _fill_window(self, context: Tensor) -> tuple[TokenWorldState, UncachedState]:
        """Play from one frame on until the window is full; the state, and the tokens and actions of the steps."""
        state, _ = self.simulator.reset(context)
        tokens, actions = [], [self.actions(0)]
        for number in range(max(self.simulator.dynamics.transformer.span.window, 4)):
            action = self.actions(number)
            state, output = self.simulator.step(state, action)
            tokens.append(output.latent.flatten(1))
            actions.append(action)
        return state, UncachedState(torch.stack(tokens, dim=1), torch.stack(actions[1:], dim=1))
