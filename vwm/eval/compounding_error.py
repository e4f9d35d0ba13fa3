"""How errors of a compact latent world compound: what it foretells under the recorded actions, against what came.

Where the world foretells what is observed, vectors or pictures, that is compared; where it foretells latents alone
(TD-MPC2, MuZero), these are compared with its own encoding of what came. Errors are in standard deviations of the
truth, so that foretelling the mean of all clips scores 1.

Legend: n clips, t time, k numbers that are compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from vwm.core.atomic_files import atomic_folder
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import world_seeds
from vwm.data.clips import ClipBatch, collate_clips
from vwm.data.datamodule import make_clip_dataset
from vwm.eval import plots
from vwm.eval.eval_clips import EvalClips, read_eval_clips
from vwm.eval.provenance import collect_provenance
from vwm.eval.rollouts import random_action_sequences, read_clip_actions, repeat_last_frame

COMPOUNDING_REPORT_FILE = "report.json"


def measure_compounding_error(
    simulator: NetworkSimulator, sample: EvalClips, rewards: Tensor | None, context: int, seed: int, batch_size: int
) -> dict[str, Any]:
    """Errors by horizon, each a list of numbers: of the world, under random actions, and of what knows nothing.

    Args:
        simulator: the world.
        sample: clips; ``frames`` are what the world observes, uint8 [n, t, h, w, 3] or float32 [n, t, k].
        rewards: float32 [n, t], which came of the actions; None where the data have none.
        context: observations that are shown.
        seed: of what the worlds draw and of the random actions.
        batch_size: worlds that step together.

    Returns:
        ``observed`` (``vectors``, ``pictures`` or ``latents``), and the curves ``error``, ``error_random_actions`` and
        ``error_copy_last``; ``reward_error`` and ``reward_error_mean`` (of always expecting the mean), None
        where there are no rewards, or always the same.
    """
    seen, seeds = sample.frames, world_seeds(seed, len(sample))
    actions = read_clip_actions(simulator, sample, batch_size)
    # Both rollouts begin alike and draw the same random numbers: only the actions after the context differ.
    wrong = random_action_sequences(simulator.spec.actions, seeds, actions.shape[1])
    wrong[:, : context - 1] = actions[:, : context - 1]
    own, earned = predict_open_loop(simulator, seen, actions, context, seeds, batch_size)
    random, _ = predict_open_loop(simulator, seen, wrong, context, seeds, batch_size)
    truth = seen
    if simulator.spec.observation.is_latent:
        truth = encode_observations(simulator, seen, actions, context, seeds, batch_size)
    after = truth[:, context:]
    result: dict[str, Any] = {
        "observed": "latents" if simulator.spec.observation.is_latent else "pictures" if seen.ndim == 5 else "vectors",
        "error": normalized_rmse(after, own),
        "error_random_actions": normalized_rmse(after, random),
        "error_copy_last": normalized_rmse(after, repeat_last_frame(truth, context)),
        "reward_error": None,
        "reward_error_mean": None,
    }
    if rewards is not None and rewards.std(correction=0) > 0:  # of rewards that never change there is nothing to learn
        paid = rewards[:, context - 1 : -1, None]  # rewards[t] came of actions[t], with observation t + 1
        result["reward_error"] = normalized_rmse(paid, earned[..., None])
        result["reward_error_mean"] = normalized_rmse(paid, paid.mean().expand_as(paid))
    return result


def predict_open_loop(
    simulator: NetworkSimulator, seen: Tensor, actions: Tensor, context: int, seeds: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """What the world shows (its latents, [n, h, k], where it shows nothing) after a context, and the rewards [n, h]."""
    shown, earned = [], []
    batches = list(zip(*(x.split(batch_size) for x in (seen, actions, seeds)), strict=True))
    for clip, action, own_seeds in tqdm(batches, desc="rollout", unit="batch", disable=None):
        between = action[:, : context - 1] if context > 1 else None
        state, _ = simulator.reset(clip[:, :context], own_seeds, between)
        steps = []
        for taken in action[:, context - 1 :].unbind(1):
            state, out = simulator.step(state, taken)
            steps.append((out.latent.flatten(1) if out.frame is None else out.frame, out.reward))
        shown.append(torch.stack([what.cpu() for what, _ in steps], dim=1))
        earned.append(torch.stack([reward.cpu() for _, reward in steps], dim=1))
    return torch.cat(shown), torch.cat(earned)


def encode_observations(
    simulator: NetworkSimulator, seen: Tensor, actions: Tensor, context: int, seeds: Tensor, batch_size: int
) -> Tensor:
    """The latents [n, t, k] that the world makes of every observation and those before it; 0 before the context's end.

    Nothing is foretold from earlier than the last observation of the context.
    """
    clips = []
    for clip, action, own_seeds in zip(*(x.split(batch_size) for x in (seen, actions, seeds)), strict=True):
        found = []
        for end in range(context, clip.shape[1] + 1):
            state, _ = simulator.reset(clip[:, :end], own_seeds, action[:, : end - 1] if end > 1 else None)
            found.append(simulator.latent(state).flatten(1).cpu())
        clips.append(torch.stack([torch.zeros_like(found[0])] * (context - 1) + found, dim=1))
    return torch.cat(clips)


def normalized_rmse(truth: Tensor, guess: Tensor) -> Tensor:
    """Root of the mean squared error by time, in standard deviations of the truth: [n, t, ...] twice -> float64 [t].

    Numbers of a vector are scaled each by its own deviation over clips and times, and one that never changes is left
    out; pixels have one scale together. NaN where nothing ever changes.
    """
    truth, guess = truth.double(), guess.double()
    if truth.ndim == 5:
        return (truth - guess).square().mean(dim=(0, 2, 3, 4)).sqrt() / truth.std(correction=0)
    spread = truth.flatten(0, 1).std(dim=0, correction=0)
    moves = spread > 1e-6 * truth.flatten(0, 1).abs().amax(dim=0)
    return ((truth - guess)[..., moves] / spread[moves]).square().mean(dim=(0, 2)).sqrt()


def read_observations(
    simulator: NetworkSimulator,
    data: str,
    length: int,
    clips: int,
    seed: int,
    part: Literal["all", "train", "val"],
) -> tuple[EvalClips, Tensor | None]:
    """Clips as the world observes them, and their rewards float32 [n, t] where all have some.

    Raises:
        ValueError: the data hold no vectors, or others than the world's.
    """
    space, numbers = simulator.spec.context, ("actions", "rewards", "state")
    dataset = make_clip_dataset(data, length, fields=numbers, seed=seed, shuffle=True, split=part)
    addresses = [dataset.order.address(0, i) for i in range(min(clips, len(dataset.order)))]
    batch: ClipBatch = collate_clips([dataset.read(address) for address in addresses])
    if space.is_image:
        pictures = make_clip_dataset(data, length, fields=("frames", "actions"), seed=seed, shuffle=True, split=part)
        return read_eval_clips(pictures, clips, space.image_size), batch.rewards
    if batch.state is None or batch.state.shape[2:] != space.shape:
        found = "none" if batch.state is None else f"{batch.state.shape[-1]}"
        raise ValueError(
            f"the world observes {space.shape[0]} numbers, and the data hold {found} a frame: "
            "record the environment that it was learned in with vwm record ... --state"
        )
    episodes = len({(a.shard, a.episode) for a in addresses})
    sample = EvalClips(batch.state, batch.actions, (), dataset.order.index_hash, len(dataset.order), episodes)
    return sample, batch.rewards


def write_compounding_report(
    simulator: NetworkSimulator,
    bundle: Path,
    data: str,
    out: Path,
    horizon: int,
    context: int,
    clips: int,
    batch_size: int,
    seed: int,
    part: Literal["all", "train", "val"],
) -> dict[str, Any]:
    """Evaluate a compact latent world for ``vwm eval``: write ``report.json`` and ``compounding_error.png``."""
    sample, rewards = read_observations(simulator, data, context + horizon, clips, seed, part)
    curves = measure_compounding_error(simulator, sample, rewards, context, seed, batch_size)
    found = {name: _to_json_curve(curve) for name, curve in curves.items()}
    settings = {"horizon": horizon, "context": context, "clips": clips, "batch_size": batch_size, "seed": seed}
    result = {
        "compounding": found,
        "data": {"clips": len(sample), "clips_available": sample.available, "episodes": sample.episodes},
        "made": collect_provenance(simulator, bundle, data, sample.index_hash, part, settings),
    }
    with atomic_folder(out) as aside:
        (aside / COMPOUNDING_REPORT_FILE).write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
        plots.plot_latent_error(found).savefig(aside / "compounding_error.png")
    print(f"{len(sample)} clips; errors of {found['observed']}, in standard deviations of the truth")
    for name, curve in found.items():
        if isinstance(curve, list):
            told = "   ".join(
                f"{at}: {'none' if curve[at - 1] is None else format(curve[at - 1], '.3f')}"
                for at in sorted({1, (horizon + 1) // 2, horizon})
            )
            print(f"{name.replace('_', ' '):24} at horizon   {told}")
    print(f"{out / COMPOUNDING_REPORT_FILE}: the whole report")
    return result


def _to_json_curve(curve: Any) -> Any:
    """As JSON can hold it."""
    if not isinstance(curve, Tensor):
        return curve
    return [value if value == value and abs(value) != float("inf") else None for value in curve.tolist()]
