"""Training on the network's own rollouts, so that small errors of generated frames do not grow in play.

In play every past frame was generated, in training it was recorded (exposure bias). Here a part of the past frames in
training is generated, too, from cached keys and values as in play, and the network learns the recorded next frame
given that past (scheduled sampling, arXiv 1506.03099; DAgger, 1011.0686; for video diffusion: Self Forcing,
2506.08009, whose distribution-matching loss is replaced by the recorded frame, which known actions determine).

Legend: b batch, t time, h w c of the latents, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vwm.core.seeds import fold_in
from vwm.models.dit.network import DiT
from vwm.models.dit.sampling import (
    CONTEXT_SEED_STREAM,
    FRAME_SEED_STREAM,
    DiffusionSampling,
    observe_latents,
    sample_latent_frame,
)
from vwm.nn.clip_draws import draw_for_all_clips, draw_seeds


@dataclass(frozen=True)
class OwnRollouts:
    """Which past frames are generated in training.

    Attributes:
        share: share of the batches whose past is generated.
        context_frames: recorded frames at the start of these clips; all later past frames are generated.
        steps: sampling steps of a generated frame; fewer than in play are cheaper, and their errors larger.

    Raises:
        ValueError: a value out of range.
    """

    share: float = 0.5
    context_frames: int = 2
    steps: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.context_frames < 1 or self.steps < 1:
            raise ValueError(f"share must be between 0 and 1, context_frames and steps at least 1, got {self}")

    @torch.no_grad()
    def replace_past(
        self, dynamics: DiT, latents: Tensor, action_embedding: Tensor, sampling: DiffusionSampling
    ) -> Tensor:
        """Replace the past frames of a share of the batches by generated ones.

        Args:
            dynamics: the network.
            latents: [b, t, h, w, c], recorded.
            action_embedding: [b, t, d], of the actions that led to each frame.
            sampling: how frames are sampled in play; ``steps`` is replaced.

        Returns:
            [b, t, h, w, c].
        """
        if float(draw_for_all_clips((), torch.device("cpu"))) >= self.share:
            return latents
        seeds = draw_seeds(len(latents), latents.device)
        context = latents[:, : self.context_frames]
        sampling = sampling._replace(steps=self.steps)
        return continue_latents(dynamics, context, action_embedding, seeds, sampling).to(latents.dtype)


def continue_latents(
    dynamics: DiT, context: Tensor, action_embedding: Tensor, seeds: Tensor, sampling: DiffusionSampling
) -> Tensor:
    """Continue clips frame by frame, as in play.

    Args:
        dynamics: the network, causal in time.
        context: [b, s, h, w, c], the first frames.
        action_embedding: [b, t, d], of the actions that led to each frame.
        seeds: int64 [b].
        sampling: how a frame is sampled.

    Returns:
        [b, t, h, w, c], the context first.
    """
    start, frames = context.shape[1], action_embedding.shape[1]
    context_seeds, frame_seeds = fold_in(seeds, CONTEXT_SEED_STREAM), fold_in(seeds, FRAME_SEED_STREAM)
    noise, clip = sampling.context_noise, [context]
    state = dynamics.init_state(len(context))
    state, _ = observe_latents(dynamics, state, context, action_embedding[:, :start], context_seeds, noise)
    for i in range(start, frames):
        action = action_embedding[:, i : i + 1]
        clip.append(sample_latent_frame(dynamics, state, action, fold_in(frame_seeds, i), sampling))
        if i + 1 < frames:
            state, _ = observe_latents(dynamics, state, clip[-1], action, context_seeds, noise)
    return torch.cat(clip, dim=1)
