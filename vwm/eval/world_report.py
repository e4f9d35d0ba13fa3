"""``vwm eval``: evaluate a world and write numbers, plots and videos to a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.checks import check_not_negative, check_positive
from vwm.core.command_output import format_command, print_output
from vwm.core.feature_extractor import FeatureExtractor
from vwm.core.network_simulator import NetworkSimulator
from vwm.data.video_encoding import write_video
from vwm.eval import plots
from vwm.eval.compounding_error import write_compounding_report
from vwm.eval.eval_clips import read_eval_clips
from vwm.eval.eval_settings import EvalSettings
from vwm.eval.features import load_feature_extractor
from vwm.eval.horizon_table import format_horizon_table
from vwm.eval.html_report import headline_rows, render_html_report
from vwm.eval.perceptual import FVD, LPIPS
from vwm.eval.provenance import collect_provenance
from vwm.eval.report_figures import REPORT_FILE
from vwm.eval.rollout_images import drift_sheet, rollout_sheet, side_by_side_video
from vwm.eval.usefulness import DriftSettings, measure_usefulness
from vwm.eval.world_comparison import OtherWorld, compare_world, load_other_world
from vwm.eval.world_measures import EvaluationData, collect_evaluation_data, measure_perceptual, measure_world
from vwm.worlds.bundle import load_simulator
from vwm.worlds.families import find_family

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HTML_FILE = "index.html"
ROLLOUT_SHEET_FILE, DRIFT_FILE = "rollouts.png", "drift_frames.png"


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
    drift_seconds: int = 5,
    drift_starts: int = 4,
    drift_encoder: str | None = None,
    lpips_weights: Path | None = None,
    fvd_weights: Path | None = None,
    compare: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a world on recorded clips and write a report: numbers, plots, videos and a page that shows them.

    For the compact latent worlds that agents learn (``vwm agent export``) the report is the compounding error only:
    ``report.json`` and a plot, see ``vwm.eval.compounding_error``. Worlds of vectors require data with ``--state``.

    Args:
        bundle: folder of the world, as `vwm export` writes it.
        data: shards that the world was not trained on: a folder, a tar, a pattern or an fsspec address.
        out: folder for the report; an earlier report there is replaced.
        horizon: frames to predict; where a step shows k frames, rounded up to a multiple of k.
        context: number of context frames; null takes the bundle's own number. Where a step shows k frames, the last
            1 + k i of them are used.
        clips: largest number of clips; they are the first of the seeded order.
        batch_size: simulations that step together; it changes no number beyond rounding.
        seed: seed of the choice of clips, the simulations and the random actions.
        part: all episodes, or those that training with the default split trained on or held out.
        videos: number of rollouts to show.
        drift_seconds: length of the rollouts under held actions, from which drift is measured; 0 leaves them out.
        drift_starts: clips that these rollouts start from.
        drift_encoder: folder of a V-JEPA model, a world or a tokenizer, in whose features drift is measured, so that
            worlds over different tokenizers can be compared; null takes the world's own tokenizer.
        lpips_weights: torchvision's AlexNet weights, for LPIPS, which is left out without them.
        fvd_weights: I3D as TorchScript, for FVD, which is left out without it.
        compare: another world, rolled out over the same clips and timed as well.
        device: where to compute; see ``resolve_device``.

    Returns:
        The report, as written to ``report.json``. Infinite or undefined numbers are None.

    Raises:
        ValueError: a setting is out of range, the data do not fit the world, the family has no report, or ``out`` is
            a folder with other content.
    """
    check_positive(horizon=horizon, context=context, clips=clips, batch_size=batch_size, drift_starts=drift_starts)
    check_not_negative(drift_seconds=drift_seconds, videos=videos, seed=seed)
    check_replaceable_folder(out, REPORT_FILE, "report")
    # Errors in the files are raised before the work begins.
    lpips = None if lpips_weights is None else LPIPS(lpips_weights)
    fvd = None if fvd_weights is None else FVD(fvd_weights)
    simulator = load_simulator(bundle, device)
    family = find_family(simulator)
    if family.report is None:
        raise ValueError(f"{bundle} {family.no_report}")
    context = simulator.spec.context_frames if context is None else context
    frames_per_step = simulator.spec.frames_per_step
    context -= (context - 1) % frames_per_step
    horizon += -horizon % frames_per_step
    settings = EvalSettings(
        data=data, part=part, horizon=horizon, context=context, clips=clips, batch_size=batch_size, seed=seed
    )
    other = None if compare is None else load_other_world(compare, device, simulator, horizon)
    if family.report != "frames":
        return write_compounding_report(simulator, bundle, out, settings, family.report == "latent_error")
    size = simulator.spec.context.image_size
    encoder = None if drift_encoder is None else load_feature_extractor(drift_encoder, image_size=size)
    drift = DriftSettings(drift_seconds, drift_starts, drift_encoder)
    return _write_frames_report(simulator, bundle, out, settings, videos, lpips, fvd, drift, encoder, other)


def _write_frames_report(
    simulator: NetworkSimulator,
    bundle: Path,
    out: Path,
    settings: EvalSettings,
    videos: int,
    lpips: LPIPS | None,
    fvd: FVD | None,
    drift: DriftSettings,
    encoder: FeatureExtractor | None,
    other: OtherWorld | None,
) -> dict[str, Any]:
    """Compute all measures of predicted frames, and write the report."""
    dataset = settings.dataset("frames", "actions")
    sample = read_eval_clips(dataset, settings.clips, simulator.spec.context.image_size)
    evaluation = collect_evaluation_data(simulator, sample, settings.context, settings.seed, settings.batch_size)
    report = measure_world(evaluation)
    report["comparison"] = None if other is None else compare_world(evaluation, other)
    report["notes"] += measure_perceptual(report, evaluation, lpips, fvd)
    usefulness = measure_usefulness(evaluation, drift, encoder)
    report |= usefulness.numbers
    if len(sample) < settings.clips:
        report["notes"].append(
            f"only {len(sample)} clips of {settings.clip_length} frames are there, {settings.clips} were asked for"
        )
    report["data"]["episodes_available"] = sum(len(shard.episodes) for shard in dataset.shards)
    report["provenance"] = collect_provenance(
        simulator, bundle, settings.data, sample.index_hash, settings.part, settings.numbers()
    )
    report["provenance"]["settings"] |= {f"drift_{name}": value for name, value in drift._asdict().items()}
    report["provenance"]["sampling"] = simulator.sampling._asdict()
    hardware = report["provenance"]["environment"]["hardware"]
    if (hardware["load"] or 0) > (hardware["cores"] or 1):
        report["notes"].append("the machine was busy with other work: it can be faster than the speed here says")
    report = to_json_value(report)
    _write_report(out, report, evaluation, usefulness.drift_frames, videos)
    for what, value, meaning in headline_rows(report):
        print(f"{what:28} {value:>16}   {meaning}")
    print(format_horizon_table(report))
    print_output(out / HTML_FILE, "the whole report", format_command("play", bundle))
    return report


def to_json_value(value: Any) -> Any:
    """Convert to JSON values: tensors to numbers and lists, numbers that are not finite to None."""
    if isinstance(value, Tensor):
        return to_json_value(value.tolist())
    if isinstance(value, dict):
        return {key: to_json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_report(
    out: Path, report: dict[str, Any], evaluation: EvaluationData, drift_frames: dict[str, Tensor], videos: int
) -> None:
    """Write the folder atomically."""
    with atomic_folder(out) as aside:
        (aside / REPORT_FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        drawings = _report_plots(report, evaluation)
        for name, draw in drawings.items():
            draw().savefig(aside / name)
        truth, own = evaluation.sample.frames[:videos].numpy(), evaluation.predicted[:videos].numpy()
        shown = [f"rollout_{i:02d}.mp4" for i in range(len(truth))]
        for name, clip, predicted in zip(shown, truth, own, strict=True):
            write_video(aside / name, side_by_side_video(clip, predicted), evaluation.simulator.spec.fps)
        if shown:
            rollout_sheet(list(truth), list(own)).save(aside / ROLLOUT_SHEET_FILE)
        if drift_frames:
            drift_sheet({name: frames[0].numpy() for name, frames in drift_frames.items()}).save(aside / DRIFT_FILE)
        html = render_html_report(
            evaluation.simulator.spec.title,
            report,
            list(drawings),
            shown,
            ROLLOUT_SHEET_FILE if shown else "",
            DRIFT_FILE if drift_frames else "",
        )
        (aside / HTML_FILE).write_text(html)


def _report_plots(report: dict[str, Any], evaluation: EvaluationData) -> dict[str, Callable[[], Figure]]:
    """Return the functions that draw the plots, by file name."""
    control, codebook, play = report["control"], report["codebook"], report["play"]
    step = play["step_ms"]
    drawings: dict[str, Callable[[], Figure]] = {
        "compounding_error.png": lambda: plots.plot_compounding_error(report["rollout"]),
        "step_latency.png": lambda: plots.plot_step_latency(
            evaluation.step_milliseconds.numpy(), step["p50"], step["p95"], play["real_time_fps"]
        ),
    }
    if report["drift"] is not None:
        drawings["drift.png"] = lambda: plots.plot_drift(report["drift"])
    if codebook is not None:
        drawings["codebook.png"] = lambda: plots.plot_codebook_usage(codebook["counts"], codebook["perplexity"])
    if control is not None:
        drawings["delta_psnr.png"] = lambda: plots.plot_delta_psnr(control)
    if control is not None and control["action_table"] is not None:
        table, names, bits = (control[f"action_{key}"] for key in ("table", "names", "mi_bits"))
        drawings["actions.png"] = lambda: plots.plot_action_table(table, names, bits)
    return drawings
