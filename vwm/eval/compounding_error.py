"""Compounding errors of a compact latent world: its predictions under the recorded actions, compared with the truth.

If the simulator predicts observations (vectors or images), they are compared with the true ones. If it predicts latents
only (TD-MPC2, MuZero), or its frames are a by-product (V-JEPA 2-AC), latents are compared with its own encoding of the
true observations. Errors are in standard deviations of the truth, so that predicting the mean of all clips scores 1.

Legend: n clips, t time, k numbers that are compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwm.core.atomic_files import atomic_folder
from vwm.core.command_output import format_command, print_output, progress_bar
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import world_seeds
from vwm.data.clips import ClipBatch, collate_clips
from vwm.eval import plots
from vwm.eval.eval_clips import EvalClips, read_eval_clips
from vwm.eval.eval_settings import EvalSettings
from vwm.eval.provenance import collect_provenance
from vwm.eval.report_figures import REPORT_FILE
from vwm.eval.rollouts import random_action_sequences, read_clip_actions, repeat_last_frame


def measure_compounding_error(
    simulator: NetworkSimulator,
    sample: EvalClips,
    rewards: Tensor | None,
    context: int,
    seed: int,
    batch_size: int,
    in_latents: bool = False,
) -> dict[str, Any]:
    """Measure errors by horizon: of the simulator, also under random actions, and of copying the last observation.

    Args:
        simulator: the simulator to measure.
        sample: clips; ``frames`` are observations, uint8 [n, t, h, w, 3] or float32 [n, t, k].
        rewards: float32 [n, t], of the actions; None where the data have none.
        context: observations that are shown.
        seed: seed of the simulations and of the random actions.
        batch_size: simulations that step together.
        in_latents: whether latents are compared even if the simulator predicts observations.

    Returns:
        ``observed`` (``vectors``, ``images`` or ``latents``), and the curves ``error``, ``error_random_actions`` and
        ``error_copy_last``; ``reward_error`` and ``reward_error_mean`` (of always predicting the mean), None
        where there are no rewards, or they never change.
    """
    observations, seeds = sample.frames, world_seeds(seed, len(sample))
    in_latents = in_latents or simulator.spec.observation.is_latent
    actions = read_clip_actions(simulator, sample, batch_size)
    # Both rollouts start equal and use the same random numbers: only the actions after the context differ.
    others = random_action_sequences(simulator.spec.actions, seeds, actions.shape[1])
    others[:, : context - 1] = actions[:, : context - 1]
    own, earned = predict_open_loop(simulator, observations, actions, context, seeds, batch_size, in_latents)
    random, _ = predict_open_loop(simulator, observations, others, context, seeds, batch_size, in_latents)
    truth = observations
    if in_latents:
        truth = encode_observations(simulator, observations, actions, context, seeds, batch_size)
    after = truth[:, context:]
    result: dict[str, Any] = {
        "observed": "latents" if in_latents else "images" if observations.ndim == 5 else "vectors",
        "error": normalized_rmse(after, own),
        "error_random_actions": normalized_rmse(after, random),
        "error_copy_last": normalized_rmse(after, repeat_last_frame(truth, context)),
        "reward_error": None,
        "reward_error_mean": None,
    }
    if rewards is not None and rewards.std(correction=0) > 0:  # a constant reward has no scale
        paid = rewards[:, context - 1 : -1, None]  # rewards[t] belongs to actions[t], which leads to observation t + 1
        result["reward_error"] = normalized_rmse(paid, earned[..., None])
        result["reward_error_mean"] = normalized_rmse(paid, paid.mean().expand_as(paid))
    return result


def predict_open_loop(
    simulator: NetworkSimulator,
    observations: Tensor,
    actions: Tensor,
    context: int,
    seeds: Tensor,
    batch_size: int,
    in_latents: bool,
) -> tuple[Tensor, Tensor]:
    """Roll out after a context: predicted observations, or latents [n, h, k], and rewards [n, h]."""
    shown, earned = [], []
    batches = list(zip(*(x.split(batch_size) for x in (observations, actions, seeds)), strict=True))
    for clip, action, own_seeds in progress_bar(batches, desc="rollout", unit="batch"):
        between = action[:, : context - 1] if context > 1 else None
        state, _ = simulator.reset(clip[:, :context], own_seeds, between)
        steps = []
        for taken in action[:, context - 1 :].unbind(1):
            state, out = simulator.step(state, taken, decode=not in_latents)
            steps.append((out.latent.flatten(1) if out.frame is None else out.frame, out.reward))
        shown.append(torch.stack([what.cpu() for what, _ in steps], dim=1))
        earned.append(torch.stack([reward.cpu() for _, reward in steps], dim=1))
    return torch.cat(shown), torch.cat(earned)


def encode_observations(
    simulator: NetworkSimulator, observations: Tensor, actions: Tensor, context: int, seeds: Tensor, batch_size: int
) -> Tensor:
    """Encode every observation, given those before it, to latents [n, t, k].

    Before the end of the context the latents are zeros, because no prediction is compared with them.
    """
    clips = []
    for clip, action, own_seeds in zip(*(x.split(batch_size) for x in (observations, actions, seeds)), strict=True):
        found = []
        for end in range(context, clip.shape[1] + 1):
            state, _ = simulator.reset(clip[:, :end], own_seeds, action[:, : end - 1] if end > 1 else None)
            found.append(simulator.latent(state).flatten(1).cpu())
        clips.append(torch.stack([torch.zeros_like(found[0])] * (context - 1) + found, dim=1))
    return torch.cat(clips)


def normalized_rmse(truth: Tensor, predicted: Tensor) -> Tensor:
    """Compute the root mean squared error by time, in standard deviations of the truth: [n, t, ...] -> float64 [t].

    Each number of a vector is scaled by its own deviation over clips and times, and left out where it never changes;
    all pixels share one scale. NaN where nothing changes.
    """
    truth, predicted = truth.double(), predicted.double()
    if truth.ndim == 5:
        return (truth - predicted).square().mean(dim=(0, 2, 3, 4)).sqrt() / truth.std(correction=0)
    spread = truth.flatten(0, 1).std(dim=0, correction=0)
    moves = spread > 1e-6 * truth.flatten(0, 1).abs().amax(dim=0)
    return ((truth - predicted)[..., moves] / spread[moves]).square().mean(dim=(0, 2)).sqrt()


def read_observations(simulator: NetworkSimulator, settings: EvalSettings) -> tuple[EvalClips, Tensor | None]:
    """Read clips as the simulator observes them, and their rewards float32 [n, t]; None unless all clips have rewards.

    Raises:
        ValueError: the data hold no vectors, or vectors of another size.
    """
    space, dataset = simulator.spec.context, settings.dataset("actions", "rewards", "state")
    addresses = [dataset.order.address(0, i) for i in range(min(settings.clips, len(dataset.order)))]
    batch: ClipBatch = collate_clips([dataset.read(address) for address in addresses])
    if space.is_image:
        images = settings.dataset("frames", "actions")
        return read_eval_clips(images, settings.clips, space.image_size), batch.rewards
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
    simulator: NetworkSimulator, bundle: Path, out: Path, settings: EvalSettings, in_latents: bool = False
) -> dict[str, Any]:
    """Evaluate a compact latent world for ``vwm eval``: write ``report.json`` and ``compounding_error.png``.

    Rewards are compared where observations are: a world in representation space predicts none.
    """
    sample, rewards = read_observations(simulator, settings)
    curves = measure_compounding_error(
        simulator,
        sample,
        None if in_latents else rewards,
        settings.context,
        settings.seed,
        settings.batch_size,
        in_latents,
    )
    found = {name: _to_json_curve(curve) for name, curve in curves.items()}
    result = {
        "compounding": found,
        "data": {"clips": len(sample), "clips_available": sample.num_available, "episodes": sample.num_episodes},
        "provenance": collect_provenance(
            simulator, bundle, settings.data, sample.index_hash, settings.part, settings.numbers()
        ),
    }
    with atomic_folder(out) as aside:
        (aside / REPORT_FILE).write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
        plots.plot_latent_error(found).savefig(aside / "compounding_error.png")
    print(f"{len(sample)} clips; errors of {found['observed']}, in standard deviations of the truth")
    for name, curve in found.items():
        if isinstance(curve, list):
            values = "   ".join(
                f"{at}: {'none' if curve[at - 1] is None else format(curve[at - 1], '.3f')}"
                for at in sorted({1, (settings.horizon + 1) // 2, settings.horizon})
            )
            print(f"{name.replace('_', ' '):24} at horizon   {values}")
    contents = f"{REPORT_FILE}, the whole report, and a plot"
    print_output(out, contents, format_command("bench", "play", bundle))
    return result


def _to_json_curve(curve: Any) -> Any:
    """Convert a curve to a list, with None for numbers that are not finite."""
    if not isinstance(curve, Tensor):
        return curve
    return [value if value == value and abs(value) != float("inf") else None for value in curve.tolist()]
