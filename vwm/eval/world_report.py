"""`vwm eval`: everything that is measured of a world, as numbers, plots and videos in one folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.capabilities import DecodesLatents, InfersActions, MeasuresTransitionLoss
from vwm.core.checks import check_positive
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import world_seeds
from vwm.data.datamodule import make_clip_dataset
from vwm.data.video_encoding import write_video
from vwm.eval import compounding_error, plots
from vwm.eval.control import delta_psnr, shuffled_action_loss
from vwm.eval.eval_clips import EvalClips, read_eval_clips
from vwm.eval.html_report import headline_rows, render_html_report
from vwm.eval.latency import measure_step_latency
from vwm.eval.metrics import find_still_clips, frame_mse, psnr, set_psnr, ssim
from vwm.eval.mutual_information import contingency_table, corrected_mutual_information, histogram_entropy
from vwm.eval.perceptual import FVD, FVD_NOTE, LPIPS, LPIPS_NOTE
from vwm.eval.provenance import collect_provenance
from vwm.eval.reconstruction import ReconstructedClips, mean_image, reconstruct_clips
from vwm.eval.rollout_images import rollout_sheet, side_by_side_video
from vwm.eval.rollouts import open_loop_rollout, random_action_sequences, read_clip_actions, repeat_last_frame
from vwm.nn.quantize import code_counts, perplexity
from vwm.worlds.bundle import load_simulator
from vwm.worlds.families import find_family

WORLD_REPORT_FILE, HTML_FILE, ROLLOUT_SHEET_FILE = "report.json", "index.html", "rollouts.png"
DELTA_HORIZON = 4
"""Where Genie reads ΔPSNR."""


@dataclass(frozen=True)
class EvaluationData:
    """All that the numbers are taken from; n clips of ``context`` frames and a horizon."""

    simulator: NetworkSimulator
    sample: EvalClips
    context: int
    seed: int
    batch_size: int
    reconstructed: ReconstructedClips
    actions: Tensor
    own: Tensor
    random: Tensor
    milliseconds: Tensor

    @property
    def truth(self) -> Tensor:
        """The true frames after the context, uint8 [n, horizon, h, w, 3]."""
        return self.sample.frames[:, self.context :]


def evaluate_world(
    bundle: Path,
    data: str,
    out: Path = Path("report"),
    horizon: int = 10,
    context: int | None = None,
    clips: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    part: Literal["all", "train", "val"] = "all",
    videos: int = 8,
    lpips_weights: Path | None = None,
    fvd_weights: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a world on recorded clips and write a report: numbers, plots, videos and a page that shows them.

    Of the compact latent worlds that agents learn (``vwm agent export``) the report is the compounding error alone:
    ``report.json`` and a plot, see ``vwm.eval.compounding_error``. Worlds of vectors want data with ``--state``.

    Args:
        bundle: folder of the world, as `vwm export` makes it.
        data: shards that the world was not trained on: a folder, a tar, a pattern or an fsspec address.
        out: folder for the report; an earlier report there is replaced.
        horizon: frames to predict.
        context: frames that the world is shown first; null takes what the bundle likes.
        clips: clips to use, the first of the seeded order; fewer where there are not so many.
        batch_size: worlds that step together; it changes no number beyond rounding.
        seed: of the choice of clips, the worlds' draws and the random actions.
        part: all episodes, or those that training with the default split trained on or held out.
        videos: rollouts to show.
        lpips_weights: torchvision's AlexNet weights, for LPIPS; without them there is none.
        fvd_weights: I3D as TorchScript, for FVD; without it there is none.
        device: auto takes a GPU where there is one.

    Returns:
        The report, as it stands in ``report.json``. Infinite or undefined numbers are None.

    Raises:
        ValueError: a setting makes no sense, the data do not fit the world, or ``out`` is something else's folder.
    """
    check_positive(horizon=horizon, context=context, clips=clips, batch_size=batch_size)
    check_replaceable_folder(out, WORLD_REPORT_FILE, "report")
    # Whatever may be wrong with the files is said before the work begins.
    lpips = None if lpips_weights is None else LPIPS(lpips_weights)
    fvd = None if fvd_weights is None else FVD(fvd_weights)
    simulator = load_simulator(bundle, device)
    family = find_family(simulator)
    context = simulator.spec.context_frames if context is None else context
    if family.report == "compounding_error":
        return compounding_error.write_compounding_report(
            simulator, bundle, data, out, horizon, context, clips, batch_size, seed, part
        )
    if family.report is None:
        raise ValueError(f"{bundle} {family.no_report}")
    dataset = make_clip_dataset(
        data, context + horizon, fields=("frames", "actions"), seed=seed, shuffle=True, split=part
    )
    sample = read_eval_clips(dataset, clips, simulator.spec.context.image_size)
    evidence = collect_evaluation_data(simulator, sample, context, seed, batch_size)
    report = measure_world(evidence)
    report["notes"] += _measure_perceptual(report, evidence, lpips, fvd)
    if len(sample) < clips:
        report["notes"].append(
            f"only {len(sample)} clips of {context + horizon} frames are there, {clips} were asked for"
        )
    report["data"]["episodes_available"] = sum(len(shard.episodes) for shard in dataset.shards)
    settings = {"horizon": horizon, "context": context, "clips": clips, "batch_size": batch_size, "seed": seed}
    report["made"] = collect_provenance(simulator, bundle, data, sample.index_hash, part, settings)
    report["made"]["sampling"] = simulator.sampling._asdict()
    hardware = report["made"]["environment"]["hardware"]
    if (hardware["load"] or 0) > (hardware["cores"] or 1):
        report["notes"].append("the machine was busy with other work: it can be faster than the speed here says")
    report = to_json_value(report)
    _write_report(out, report, evidence, videos)
    for what, value, meaning in headline_rows(report):
        print(f"{what:28} {value:>16}   {meaning}")
    print(f"{out / HTML_FILE}: the whole report")
    return report


def collect_evaluation_data(
    simulator: NetworkSimulator, sample: EvalClips, context: int, seed: int, batch_size: int
) -> EvaluationData:
    """Run the world: tokenizer, rollouts under its own and under random actions, and a stop-watch."""
    actions = read_clip_actions(simulator, sample, batch_size)
    reconstructed = reconstruct_clips(simulator, sample.frames, batch_size)
    seeds = world_seeds(seed, len(sample))
    # Both rollouts begin alike and draw the same random numbers: only the actions after the context differ.
    wrong = random_action_sequences(simulator.spec.actions, seeds, actions.shape[1])
    wrong[:, : context - 1] = actions[:, : context - 1]
    own, random = (
        open_loop_rollout(simulator, sample.frames, chosen, context, seeds, batch_size, f"rollout, {name} actions")
        for name, chosen in (("own", actions), ("random", wrong))
    )
    times = measure_step_latency(simulator, sample.frames[0, :context], seed)
    return EvaluationData(simulator, sample, context, seed, batch_size, reconstructed, actions, own, random, times)


def measure_world(evidence: EvaluationData) -> dict[str, Any]:
    """The numbers, by topic."""
    sample, simulator = evidence.sample, evidence.simulator
    still = find_still_clips(sample.frames, evidence.context)
    notes = []
    if still.all():
        notes.append(
            "nothing moves in any clip: copying the last frame is exact, and these clips say nothing of the world"
        )
    control = _measure_control(evidence)
    if control["shuffle_cost"] is None:
        why = "needs two clips" if len(sample) < 2 else f"is not defined for a {type(simulator).__name__}"
        notes.append(f"the cost of shuffled actions {why}")
    return {
        "tokenizer": _measure_tokenizer(evidence),
        "codebook": _measure_codebook(evidence),
        "rollout": _measure_rollout(evidence),
        "control": control,
        "latent_action": _measure_latent_actions(evidence),
        "play": _measure_speed(evidence),
        "data": {
            "clips": len(sample),
            "clips_available": sample.available,
            "episodes": sample.episodes,
            "still_clips": int(still.sum()),
            "still_fraction": still.double().mean(),
        },
        "notes": notes,
    }


def _measure_tokenizer(evidence: EvaluationData) -> dict[str, Any]:
    frames, shown = evidence.sample.frames, evidence.reconstructed.frames
    return {
        "psnr": psnr(frame_mse(frames, shown).mean()),
        "ssim": ssim(frames, shown).mean(),
        "psnr_mean_image": psnr(frame_mse(frames, mean_image(frames)).mean()),
    }


def _measure_codebook(evidence: EvaluationData) -> dict[str, Any] | None:
    """None where latents are no tokens of a codebook."""
    simulator, latents = evidence.simulator, evidence.reconstructed.latents
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


def _measure_rollout(evidence: EvaluationData) -> dict[str, Any]:
    """By horizon."""
    shown = {
        "": evidence.own,
        "_random_actions": evidence.random,
        "_copy_last": repeat_last_frame(evidence.sample.frames, evidence.context),
        "_tokenizer": evidence.reconstructed.frames[:, evidence.context :],
    }
    result: dict[str, Any] = {}
    for name, frames in shown.items():
        result[f"psnr{name}"], result[f"ssim{name}"] = set_psnr(evidence.truth, frames), ssim(evidence.truth, frames)
    return result


def _measure_control(evidence: EvaluationData) -> dict[str, Any]:
    delta = delta_psnr(evidence.truth, evidence.own, evidence.random)
    at = min(DELTA_HORIZON, len(delta.by_clip)) - 1
    simulator, latents = evidence.simulator, evidence.reconstructed.latents
    cost = None
    if latents is not None:
        cost = shuffled_action_loss(simulator, latents, evidence.actions, evidence.batch_size)
    name = simulator.transition_loss_name if isinstance(simulator, MeasuresTransitionLoss) else None
    return {
        "delta_psnr": {**delta.by_clip[at]._asdict(), "excluded": delta.excluded[at], "horizon": at + 1},
        "delta_psnr_by_horizon": [
            {**e._asdict(), "excluded": excluded} for e, excluded in zip(delta.by_clip, delta.excluded, strict=True)
        ],
        "delta_psnr_set_by_horizon": delta.over_set,
        "shuffle_ratio": None if cost is None else cost.shuffled / cost.right,
        "shuffle_cost": None if cost is None else {"loss": name, **cost._asdict()},
        **_measure_action_information(evidence),
    }


def _measure_action_information(evidence: EvaluationData) -> dict[str, Any]:
    """What latent actions know of the recorded ones; None where one of the two is missing."""
    sample, recorded = evidence.sample, evidence.sample.actions
    inferred = isinstance(evidence.simulator, InfersActions) and evidence.simulator.num_latent_actions
    if not inferred or recorded is None or recorded.ndim != 2:
        keys = ("mi_bits", "mi_bits_shuffled", "entropy_bits", "table", "names")
        return {f"action_{key}": None for key in keys}
    latent, true = evidence.actions.flatten(), recorded[:, :-1].flatten()
    rows, columns = evidence.simulator.spec.actions.size, max(len(sample.action_names), int(true.max()) + 1)
    found = corrected_mutual_information(latent, true, rows, columns, evidence.seed)
    table = contingency_table(latent, true, rows, columns)
    unnamed = tuple(str(i) for i in range(len(sample.action_names), columns))
    return {
        "action_mi_bits": found.bits,
        "action_mi_bits_shuffled": found.shuffled,
        "action_entropy_bits": histogram_entropy(table.sum(dim=0)),
        "action_table": table,
        "action_names": list(sample.action_names + unnamed),
    }


def _measure_latent_actions(evidence: EvaluationData) -> dict[str, Any] | None:
    simulator = evidence.simulator
    if not isinstance(simulator, InfersActions) or not simulator.num_latent_actions:
        return None
    size = simulator.num_latent_actions
    counts = code_counts(evidence.actions, size)
    return {"perplexity": perplexity(counts), "size": size, "counts": counts.long()}


def _measure_speed(evidence: EvaluationData) -> dict[str, Any]:
    times, simulator = evidence.milliseconds, evidence.simulator
    return {
        "step_ms": {"p50": times.quantile(0.5), "p95": times.quantile(0.95)},
        "fps": 1000 * len(times) / times.sum(),
        "real_time_fps": simulator.spec.fps,
        "steps": len(times),
        "sampling_steps": simulator.sampling._asdict().get("steps"),
        "threads": torch.get_num_threads(),
        "device": str(simulator.device),
    }


def _measure_perceptual(
    report: dict[str, Any], evidence: EvaluationData, lpips: LPIPS | None, fvd: FVD | None
) -> list[str]:
    """Add LPIPS and FVD to the report where there are networks for them; else say what is missing."""
    frames, notes = evidence.sample.frames, []
    if lpips is None:
        notes.append(LPIPS_NOTE)
    else:
        report["rollout"]["lpips"] = lpips.per_time_step(evidence.truth, evidence.own)
        report["tokenizer"]["lpips"] = lpips.per_time_step(frames, evidence.reconstructed.frames).mean()
    if fvd is None:
        notes.append(FVD_NOTE)
    else:
        report["rollout"]["fvd"] = fvd(frames, torch.cat((frames[:, : evidence.context], evidence.own), dim=1))
    return notes


def to_json_value(value: Any) -> Any:
    """As JSON can hold it: tensors as numbers and lists, what is not finite as None."""
    if isinstance(value, Tensor):
        return to_json_value(value.tolist())
    if isinstance(value, dict):
        return {key: to_json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_report(out: Path, report: dict[str, Any], evidence: EvaluationData, videos: int) -> None:
    """Write the folder (aside, then renamed over what was there)."""
    with atomic_folder(out) as aside:
        (aside / WORLD_REPORT_FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        drawn = _report_plots(report, evidence)
        for name, draw in drawn.items():
            draw().savefig(aside / name)
        truth, own = evidence.sample.frames[:videos].numpy(), evidence.own[:videos].numpy()
        shown = [f"rollout_{i:02d}.mp4" for i in range(len(truth))]
        for name, clip, predicted in zip(shown, truth, own, strict=True):
            write_video(aside / name, side_by_side_video(clip, predicted), evidence.simulator.spec.fps)
        if shown:
            rollout_sheet(list(truth), list(own)).save(aside / ROLLOUT_SHEET_FILE)
        html = render_html_report(
            evidence.simulator.spec.title, report, list(drawn), shown, ROLLOUT_SHEET_FILE if shown else ""
        )
        (aside / HTML_FILE).write_text(html)


def _report_plots(report: dict[str, Any], evidence: EvaluationData) -> dict[str, Callable[[], Figure]]:
    """File names, and what draws them."""
    control, codebook, play = report["control"], report["codebook"], report["play"]
    step = play["step_ms"]
    drawn: dict[str, Callable[[], Figure]] = {
        "compounding_error.png": lambda: plots.plot_compounding_error(report["rollout"]),
        "delta_psnr.png": lambda: plots.plot_delta_psnr(control),
        "step_latency.png": lambda: plots.plot_step_latency(
            evidence.milliseconds.numpy(), step["p50"], step["p95"], play["real_time_fps"]
        ),
    }
    if codebook is not None:
        drawn["codebook.png"] = lambda: plots.plot_codebook_usage(codebook["counts"], codebook["perplexity"])
    if control["action_table"] is not None:
        table, names, bits = (control[f"action_{key}"] for key in ("table", "names", "mi_bits"))
        drawn["actions.png"] = lambda: plots.plot_action_table(table, names, bits)
    return drawn
