"""What limits the first frames of a diffusion world: its sampler, the noise in its past, its context, or the network.

    python tools/dit_errors.py carracing data/carracing_unseen
    python tools/dit_errors.py runs/carracing_packed/world data/carracing_unseen --horizon 8

prints the PSNR of rollouts by frame for several numbers of sampling steps and shares of context noise, and the squared
error of the next latent that the network predicts from recorded ones, in the unit of the latents: by the number of
latents that it has seen, and by frame within a latent where frames were packed into one (``PackedVAE``).

Legend: n clips, t latents, k frames per latent.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

import vwm
from vwm.core.frames import frames_to_float
from vwm.core.seeds import fold_in, seeded_normal, world_seeds
from vwm.eval.eval_clips import EvalClips, read_eval_clips
from vwm.eval.eval_settings import EvalSettings
from vwm.eval.metrics import set_psnr
from vwm.eval.rollouts import open_loop_rollout, read_clip_actions, repeat_last_frame
from vwm.models.dit import DiTSimulator
from vwm.models.dit.network import NoisyFrames
from vwm.models.dit.noise_schedule import add_noise, predicted_clean_and_noise
from vwm.models.dit.sampling import finest_step_index, make_noisy_context
from vwm.tokenizers import PackedVAE

BATCH = 16
SAMPLINGS = ((1, 0.2), (2, 0.2), (4, 0.2), (8, 0.2), (4, 0.1), (4, 0.05), (4, 0.0))
"""Sampling steps and context noise."""
SIGNALS = (0.0, 0.5, 0.9)
LATENTS = 8


def print_row(name: str, values: Iterable[float], digits: int) -> None:
    print(f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |", flush=True)


def print_rollouts(world: DiTSimulator, sample: EvalClips, actions: Tensor, context: int) -> None:
    """Print the PSNR of the set, in dB, by frame after the context."""
    seeds, truth = world_seeds(0, len(sample)), sample.frames[:, context:]
    print_row("copy of the last frame", set_psnr(truth, repeat_last_frame(sample.frames, context)).tolist(), 2)
    for steps, noise in SAMPLINGS:
        world.sampling = world.sampling._replace(steps=steps, context_noise=noise)
        shown = open_loop_rollout(world, sample.frames, actions, context, seeds, BATCH, f"{steps} steps")
        print_row(f"steps {steps}, context noise {noise}", set_psnr(truth, shown).tolist(), 2)


def predict_latents(world: DiTSimulator, latents: Tensor, actions: Tensor, level: float, seeds: Tensor) -> Tensor:
    """Predict latents 1 to t-1 from recorded ones: those before, and itself at a signal level: [n, t-1, h, w, c]."""
    dynamics, t = world.dynamics, latents.shape[1]
    embedding = dynamics.embed_previous_actions(actions, len(latents), t)
    noise = seeded_normal(seeds, *latents.shape[1:])
    past = make_noisy_context(dynamics, latents, noise, embedding, world.sampling.context_noise)
    past = NoisyFrames(*(None if x is None else x[:, :-1] for x in past))  # type: ignore[arg-type]
    signal = latents.new_full((len(latents), t - 1), level)
    x = add_noise(
        dynamics.prediction, latents[:, 1:], seeded_normal(fold_in(seeds, 1), *latents[:, 1:].shape[1:]), signal
    )
    noisy = NoisyFrames(x, signal, finest_step_index(dynamics, signal), embedding[:, 1:])
    return predicted_clean_and_noise(dynamics.prediction, x, dynamics(noisy, past).prediction, signal)[0]


def print_latent_errors(world: DiTSimulator, sample: EvalClips, actions: Tensor) -> None:
    """Print the squared error of the next latent by the number of latents seen, and by frame within it."""
    k, tokenizer, seeds = world.dynamics.frames_per_latent, world.tokenizer, world_seeds(0, len(sample))
    latents = torch.cat([tokenizer.encode(frames_to_float(frames)) for frames in sample.frames.split(BATCH)])
    print_row("copy of the last latent, after 1, 2, ... latents", mean_by_latent(latents[:, :-1], latents[:, 1:]), 3)
    for level in SIGNALS:
        parts = zip(*(x.split(BATCH) for x in (latents, actions, seeds)), strict=True)
        predicted = torch.cat([predict_latents(world, x, a, level, s) for x, a, s in parts])
        print_row(
            f"next latent at signal {level}, after 1, 2, ... latents", mean_by_latent(predicted, latents[:, 1:]), 3
        )
        if isinstance(tokenizer, PackedVAE):
            frames = (predicted - latents[:, 1:]).square().unflatten(-1, (k, -1)).mean(dim=(0, 1, 2, 3, 5))
            print_row(f"the same by frame 1 to {k} of the latent", frames.tolist(), 3)


def mean_by_latent(x: Tensor, y: Tensor) -> list[float]:
    """Mean squared difference of [n, t, h, w, c]: t numbers."""
    return list((x - y).square().mean(dim=(0, 2, 3, 4)).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", help="bundle of a diffusion world, or the name of one that comes with vwm")
    parser.add_argument("data", help="recordings that it was not trained on")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--horizon", type=int, default=8, help="frames of the rollouts")
    parser.add_argument("--context", type=int, default=5, help="frames before them")
    options = parser.parse_args()
    world = vwm.load(options.world, "cpu")
    if not isinstance(world, DiTSimulator):
        parser.error(f"{options.world} is a {type(world).__name__}, not a diffusion world")
    k = world.dynamics.frames_per_latent
    frames = max(options.context + options.horizon, 1 + k * (LATENTS - 1))
    settings = EvalSettings(
        data=options.data, part="all", horizon=frames - 1, context=1, clips=options.clips, batch_size=BATCH, seed=0
    )
    sample = read_eval_clips(settings.dataset("frames", "actions"), options.clips, world.spec.context.image_size)
    actions = read_clip_actions(world, sample, BATCH)
    with torch.inference_mode():
        print_latent_errors(world, cut(sample, 1 + k * (LATENTS - 1)), actions[:, : k * (LATENTS - 1)])
        length = options.context + options.horizon
        print_rollouts(world, cut(sample, length), actions[:, : length - 1], options.context)


def cut(sample: EvalClips, frames: int) -> EvalClips:
    """Keep the first frames of each clip."""
    return replace(sample, frames=sample.frames[:, :frames])


if __name__ == "__main__":
    main()
