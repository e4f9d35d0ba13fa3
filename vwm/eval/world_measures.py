"""The numbers of ``vwm eval`` for a simulator that shows frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vwm.core.capabilities import DecodesLatents, InfersActions, MeasuresTransitionLoss
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import world_seeds
from vwm.eval.control import delta_psnr, shuffled_action_loss
from vwm.eval.eval_clips import EvalClips
from vwm.eval.latency import measure_step_latency
from vwm.eval.metrics import find_still_clips, frame_mse, psnr, set_psnr, ssim
from vwm.eval.mutual_information import contingency_table, corrected_mutual_information, histogram_entropy
from vwm.eval.perceptual import FVD, FVD_NOTE, LPIPS, LPIPS_NOTE
from vwm.eval.reconstruction import ReconstructedClips, mean_image, reconstruct_clips
from vwm.eval.rollouts import open_loop_rollout, random_action_sequences, read_clip_actions, repeat_last_frame
from vwm.nn.quantize import code_counts, perplexity

DELTA_HORIZON = 4
"""The horizon at which Genie reports ΔPSNR."""


@dataclass(frozen=True)
class EvaluationData:
    """The data from which all numbers of a report are computed: n clips of ``context`` frames and a horizon.

    Attributes:
        simulator: the simulator to evaluate.
        sample: the clips.
        context: number of context frames.
        seed: seed of the simulations and of the random actions.
        batch_size: simulations that step together.
        reconstruction: the clips, encoded and decoded.
        actions: actions of the clips, int64 [n, t-1] or float32 [n, t-1, a].
        predicted: frames predicted under these actions, uint8 [n, horizon, h, w, 3].
        predicted_random_actions: frames predicted under random actions, of the same shape.
        step_milliseconds: durations of single steps.
    """

    simulator: NetworkSimulator
    sample: EvalClips
    context: int
    seed: int
    batch_size: int
    reconstruction: ReconstructedClips
    actions: Tensor
    predicted: Tensor
    predicted_random_actions: Tensor
    step_milliseconds: Tensor

    @property
    def true_frames(self) -> Tensor:
        """The true frames after the context, uint8 [n, horizon, h, w, 3]."""
        return self.sample.frames[:, self.context :]


def collect_evaluation_data(
    simulator: NetworkSimulator, sample: EvalClips, context: int, seed: int, batch_size: int
) -> EvaluationData:
    """Run the simulator: reconstruct the clips, roll out under their own and random actions, and time steps."""
    actions = read_clip_actions(simulator, sample, batch_size)
    reconstruction = reconstruct_clips(simulator, sample.frames, batch_size)
    seeds = world_seeds(seed, len(sample))
    # Both rollouts start equal and use the same random numbers: only the actions after the context differ.
    random_actions = random_action_sequences(simulator.spec.actions, seeds, actions.shape[1])
    random_actions[:, : context - 1] = actions[:, : context - 1]
    predicted, predicted_random_actions = (
        open_loop_rollout(simulator, sample.frames, taken, context, seeds, batch_size, f"rollout, {name} actions")
        for name, taken in (("own", actions), ("random", random_actions))
    )
    return EvaluationData(
        simulator=simulator,
        sample=sample,
        context=context,
        seed=seed,
        batch_size=batch_size,
        reconstruction=reconstruction,
        actions=actions,
        predicted=predicted,
        predicted_random_actions=predicted_random_actions,
        step_milliseconds=measure_step_latency(simulator, sample.frames[0, :context], seed),
    )


def measure_world(evaluation: EvaluationData) -> dict[str, Any]:
    """Compute the numbers of a report, by topic."""
    sample, simulator = evaluation.sample, evaluation.simulator
    still = find_still_clips(sample.frames, evaluation.context)
    notes = []
    if still.all():
        notes.append("nothing moves in any clip: copying the last frame is exact, and these clips measure nothing")
    control = None if simulator.spec.actions.has_one_action else _measure_control(evaluation)
    if control is None:
        notes.append("this world takes no actions, so that there is no control to measure")
    elif control["shuffle_cost"] is None:
        why = "needs two clips" if len(sample) < 2 else f"is not defined for a {type(simulator).__name__}"
        notes.append(f"the cost of shuffled actions {why}")
    return {
        "tokenizer": _measure_tokenizer(evaluation),
        "codebook": _measure_codebook(evaluation),
        "rollout": _measure_rollout(evaluation),
        "control": control,
        "latent_action": _measure_latent_actions(evaluation),
        "play": _measure_speed(evaluation),
        "data": {
            "clips": len(sample),
            "clips_available": sample.num_available,
            "episodes": sample.num_episodes,
            "still_clips": int(still.sum()),
            "still_fraction": still.double().mean(),
        },
        "notes": notes,
    }


def _measure_tokenizer(evaluation: EvaluationData) -> dict[str, Any]:
    frames, shown = evaluation.sample.frames, evaluation.reconstruction.frames
    return {
        "psnr": psnr(frame_mse(frames, shown).mean()),
        "ssim": ssim(frames, shown).mean(),
        "psnr_mean_image": psnr(frame_mse(frames, mean_image(frames)).mean()),
    }


def _measure_codebook(evaluation: EvaluationData) -> dict[str, Any] | None:
    """Count the codes that the clips use; None where latents are not tokens of a codebook."""
    simulator, latents = evaluation.simulator, evaluation.reconstruction.latents
    size = simulator.codebook_size if isinstance(simulator, DecodesLatents) else 0
    if not size or latents is None:
        return None
    counts = code_counts(latents, size)
    return {
        "perplexity": perplexity(counts),
        "used": int((counts > 0).sum()),
        "size": size,
        "counts": counts.long(),
    }


def _measure_rollout(evaluation: EvaluationData) -> dict[str, Any]:
    """Compare rollouts with the truth, by horizon."""
    shown = {
        "": evaluation.predicted,
        "_random_actions": evaluation.predicted_random_actions,
        "_copy_last": repeat_last_frame(evaluation.sample.frames, evaluation.context),
        "_tokenizer": evaluation.reconstruction.frames[:, evaluation.context :],
    }
    horizon, fps = evaluation.true_frames.shape[1], evaluation.simulator.spec.fps
    result: dict[str, Any] = {"horizon_seconds": [(frame + 1) / fps for frame in range(horizon)]}
    for name, frames in shown.items():
        result[f"psnr{name}"], result[f"ssim{name}"] = (
            set_psnr(evaluation.true_frames, frames),
            ssim(evaluation.true_frames, frames),
        )
    gain = delta_psnr(evaluation.true_frames, evaluation.predicted, shown["_copy_last"])
    return result | {"gain_over_copy_by_horizon": gain.estimates()}


def _measure_control(evaluation: EvaluationData) -> dict[str, Any]:
    delta = delta_psnr(evaluation.true_frames, evaluation.predicted, evaluation.predicted_random_actions)
    at = min(DELTA_HORIZON, len(delta.by_clip)) - 1
    simulator, latents = evaluation.simulator, evaluation.reconstruction.latents
    cost = None
    if latents is not None:
        cost = shuffled_action_loss(simulator, latents, evaluation.actions, evaluation.batch_size)
    name = simulator.transition_loss_name if isinstance(simulator, MeasuresTransitionLoss) else None
    return {
        "delta_psnr": {**delta.estimates()[at], "horizon": at + 1},
        "delta_psnr_by_horizon": delta.estimates(),
        "delta_psnr_set_by_horizon": delta.over_set,
        "shuffle_ratio": None if cost is None else cost.shuffled / cost.own,
        "shuffle_cost": None if cost is None else {"loss": name, **cost._asdict()},
        **_measure_action_information(evaluation),
    }


def _measure_action_information(evaluation: EvaluationData) -> dict[str, Any]:
    """Measure the information of latent actions about the recorded ones; None unless both are there and discrete."""
    sample, recorded = evaluation.sample, evaluation.sample.actions
    inferred = isinstance(evaluation.simulator, InfersActions) and evaluation.simulator.num_latent_actions
    if not inferred or not evaluation.simulator.spec.actions.is_discrete or recorded is None or recorded.ndim != 2:
        keys = ("mi_bits", "mi_bits_shuffled", "entropy_bits", "table", "names")
        return {f"action_{key}": None for key in keys}
    latent, true = evaluation.actions.flatten(), recorded[:, :-1].flatten()
    rows, columns = evaluation.simulator.spec.actions.size, max(len(sample.action_names), int(true.max()) + 1)
    found = corrected_mutual_information(latent, true, rows, columns, evaluation.seed)
    table = contingency_table(latent, true, rows, columns)
    unnamed = tuple(str(i) for i in range(len(sample.action_names), columns))
    return {
        "action_mi_bits": found.bits,
        "action_mi_bits_shuffled": found.chance_bits,
        "action_entropy_bits": histogram_entropy(table.sum(dim=0)),
        "action_table": table,
        "action_names": list(sample.action_names + unnamed),
    }


def _measure_latent_actions(evaluation: EvaluationData) -> dict[str, Any] | None:
    """Measure how latent actions are used: of codes their counts, of dimensions in [-1, 1] their deviations."""
    simulator = evaluation.simulator
    if not isinstance(simulator, InfersActions) or not simulator.num_latent_actions:
        return None
    size = simulator.num_latent_actions
    if not simulator.spec.actions.is_discrete:
        return {"size": size, "std": evaluation.actions.flatten(0, 1).std(dim=0, correction=0)}
    counts = code_counts(evaluation.actions, size)
    return {"perplexity": perplexity(counts), "size": size, "counts": counts.long()}


def _measure_speed(evaluation: EvaluationData) -> dict[str, Any]:
    times, simulator = evaluation.step_milliseconds, evaluation.simulator
    return {
        "step_ms": {"p50": times.quantile(0.5), "p95": times.quantile(0.95)},
        "frames_per_step": simulator.spec.frames_per_step,
        "frame_ms": times.quantile(0.5) / simulator.spec.frames_per_step,
        "fps": 1000 * len(times) * simulator.spec.frames_per_step / times.sum(),
        "real_time_fps": simulator.spec.fps,
        "steps": len(times),
        "sampling_steps": simulator.sampling._asdict().get("steps"),
        "threads": torch.get_num_threads(),
        "device": str(simulator.device),
    }


def measure_perceptual(
    report: dict[str, Any], evaluation: EvaluationData, lpips: LPIPS | None, fvd: FVD | None
) -> list[str]:
    """Add LPIPS and FVD to the report where their networks are given; return notes about those that are not."""
    frames, notes = evaluation.sample.frames, []
    if lpips is None:
        notes.append(LPIPS_NOTE)
    else:
        report["rollout"]["lpips"] = lpips.per_time_step(evaluation.true_frames, evaluation.predicted)
        report["tokenizer"]["lpips"] = lpips.per_time_step(frames, evaluation.reconstruction.frames).mean()
    if fvd is None:
        notes.append(FVD_NOTE)
    else:
        report["rollout"]["fvd"] = fvd(
            frames, torch.cat((frames[:, : evaluation.context], evaluation.predicted), dim=1)
        )
    return notes
