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

from vwm.data.counts import check_positive
from vwm.data.datamodule import open_clips
from vwm.data.folders import check_replaceable, written_aside
from vwm.data.video import write_video
from vwm.eval import compounding, plots
from vwm.eval.control import delta_psnr, shuffle_cost
from vwm.eval.information import contingency, entropy, information
from vwm.eval.metrics import psnr, set_psnr, squared_error, ssim, still_clips
from vwm.eval.page import headline, page
from vwm.eval.perceptual import FVD, FVD_NOTE, LPIPS, LPIPS_NOTE
from vwm.eval.pictures import sheet, side_by_side
from vwm.eval.provenance import made
from vwm.eval.reconstruction import Reconstructed, mean_image, reconstruct
from vwm.eval.rollout import copy_last, own_actions, random_actions, rollout
from vwm.eval.sample import Sample, read_sample
from vwm.eval.speed import step_latency
from vwm.nn.quantize import perplexity, usage
from vwm.nn.random import world_seeds
from vwm.simulator.bundle import load_simulator
from vwm.simulator.consistency import ConsistencySimulator
from vwm.simulator.muzero import MuZeroSimulator
from vwm.simulator.rssm import RSSMSimulator
from vwm.simulator.video import VideoSimulator

REPORT, PAGE, SHEET = "report.json", "index.html", "rollouts.png"
COMPACT = (RSSMSimulator, ConsistencySimulator, MuZeroSimulator)
"""Worlds of which the compounding error is all that is measured."""
DELTA_HORIZON = 4
"""Where Genie reads ΔPSNR."""


@dataclass(frozen=True)
class Evidence:
    """All that the numbers are taken from; n clips of ``context`` frames and a horizon."""

    simulator: VideoSimulator
    sample: Sample
    context: int
    seed: int
    batch_size: int
    reconstructed: Reconstructed
    actions: Tensor
    own: Tensor
    random: Tensor
    milliseconds: Tensor

    @property
    def truth(self) -> Tensor:
        """The true frames after the context, uint8 [n, horizon, h, w, 3]."""
        return self.sample.frames[:, self.context :]


def evaluate(
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
    ``report.json`` and a plot, see ``vwm.eval.compounding``. Worlds of vectors want data with ``--state true``.

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
    check_replaceable(out, REPORT, "report")
    # Whatever may be wrong with the files is said before the work begins.
    lpips = None if lpips_weights is None else LPIPS(lpips_weights)
    fvd = None if fvd_weights is None else FVD(fvd_weights)
    simulator = load_simulator(bundle, device)
    if isinstance(simulator, COMPACT):
        context = simulator.context_frames if context is None else context
        return compounding.report(simulator, bundle, data, out, horizon, context, clips, batch_size, seed, part)
    if not isinstance(simulator, VideoSimulator):
        raise ValueError(
            f"{bundle} is a world in representation space: its pictures, if it has any, are a by-product, and nothing "
            "that vwm eval measures of pictures would say how good it is. Score it by planning in it (vwm.agents)"
        )
    context = simulator.context_frames if context is None else context
    dataset = open_clips(data, context + horizon, fields=("frames", "actions"), seed=seed, shuffle=True, part=part)
    sample = read_sample(dataset, clips, simulator.image_size)
    evidence = gather(simulator, sample, context, seed, batch_size)
    report = measure(evidence)
    report["notes"] += _perceptual(report, evidence, lpips, fvd)
    if len(sample) < clips:
        report["notes"].append(
            f"only {len(sample)} clips of {context + horizon} frames are there, {clips} were asked for"
        )
    report["data"]["episodes_available"] = sum(len(shard.episodes) for shard in dataset.shards)
    settings = {"horizon": horizon, "context": context, "clips": clips, "batch_size": batch_size, "seed": seed}
    report["made"] = made(simulator, bundle, data, sample.index_hash, part, settings)
    report["made"]["sampling"] = simulator.sampling._asdict()
    hardware = report["made"]["environment"]["hardware"]
    if (hardware["load"] or 0) > (hardware["cores"] or 1):
        report["notes"].append("the machine was busy with other work: it can be faster than the speed here says")
    report = plain(report)
    _write(out, report, evidence, videos)
    for what, value, meaning in headline(report):
        print(f"{what:28} {value:>16}   {meaning}")
    print(f"{out / PAGE}: the whole report")
    return report


def gather(simulator: VideoSimulator, sample: Sample, context: int, seed: int, batch_size: int) -> Evidence:
    """Run the world: tokenizer, rollouts under its own and under random actions, and a stop-watch."""
    actions = own_actions(simulator, sample, batch_size)
    reconstructed = reconstruct(simulator.tokenizer, sample.frames, batch_size)
    seeds = world_seeds(seed, len(sample))
    # Both rollouts begin alike and draw the same random numbers: only the actions after the context differ.
    wrong = random_actions(simulator.actions, seeds, actions.shape[1])
    wrong[:, : context - 1] = actions[:, : context - 1]
    own, random = (
        rollout(simulator, sample.frames, chosen, context, seeds, batch_size, f"rollout, {name} actions")
        for name, chosen in (("own", actions), ("random", wrong))
    )
    times = step_latency(simulator, sample.frames[0, :context], seed)
    return Evidence(simulator, sample, context, seed, batch_size, reconstructed, actions, own, random, times)


def measure(evidence: Evidence) -> dict[str, Any]:
    """The numbers, by topic."""
    sample, simulator = evidence.sample, evidence.simulator
    still = still_clips(sample.frames, evidence.context)
    notes = []
    if still.all():
        notes.append(
            "nothing moves in any clip: copying the last frame is exact, and these clips say nothing of the world"
        )
    control = _control(evidence)
    if control["shuffle_cost"] is None:
        why = "needs two clips" if len(sample) < 2 else f"is not defined for a {type(simulator).__name__}"
        notes.append(f"the cost of shuffled actions {why}")
    return {
        "tokenizer": _tokenizer(evidence),
        "codebook": _codebook(evidence),
        "rollout": _rollout(evidence),
        "control": control,
        "latent_action": _latent_action(evidence),
        "play": _play(evidence),
        "data": {
            "clips": len(sample),
            "clips_available": sample.available,
            "episodes": sample.episodes,
            "still_clips": int(still.sum()),
            "still_fraction": still.double().mean(),
        },
        "notes": notes,
    }


def _tokenizer(evidence: Evidence) -> dict[str, Any]:
    frames, shown = evidence.sample.frames, evidence.reconstructed.frames
    return {
        "psnr": psnr(squared_error(frames, shown).mean()),
        "ssim": ssim(frames, shown).mean(),
        "psnr_mean_image": psnr(squared_error(frames, mean_image(frames)).mean()),
    }


def _codebook(evidence: Evidence) -> dict[str, Any] | None:
    """None where the latents are continuous."""
    size = evidence.simulator.tokenizer.codebook_size
    if not size:
        return None
    counts = usage(evidence.reconstructed.latents, size)
    return {
        "perplexity": perplexity(counts),
        "used": int((counts > 0).sum()),
        "size": size,
        "counts": counts.long(),
    }


def _rollout(evidence: Evidence) -> dict[str, Any]:
    """By horizon."""
    shown = {
        "": evidence.own,
        "_random_actions": evidence.random,
        "_copy_last": copy_last(evidence.sample.frames, evidence.context),
        "_tokenizer": evidence.reconstructed.frames[:, evidence.context :],
    }
    result: dict[str, Any] = {}
    for name, frames in shown.items():
        result[f"psnr{name}"], result[f"ssim{name}"] = set_psnr(evidence.truth, frames), ssim(evidence.truth, frames)
    return result


def _control(evidence: Evidence) -> dict[str, Any]:
    delta = delta_psnr(evidence.truth, evidence.own, evidence.random)
    at = min(DELTA_HORIZON, len(delta.by_clip)) - 1
    cost = shuffle_cost(evidence.simulator, evidence.reconstructed.latents, evidence.actions, evidence.batch_size)
    return {
        "delta_psnr": {**delta.by_clip[at]._asdict(), "excluded": delta.excluded[at], "horizon": at + 1},
        "delta_psnr_by_horizon": [
            {**e._asdict(), "excluded": excluded} for e, excluded in zip(delta.by_clip, delta.excluded, strict=True)
        ],
        "delta_psnr_set_by_horizon": delta.by_set,
        "shuffle_ratio": None if cost is None else cost.shuffled / cost.right,
        "shuffle_cost": None if cost is None else {"loss": evidence.simulator.LOSS, **cost._asdict()},
        **_action_information(evidence),
    }


def _action_information(evidence: Evidence) -> dict[str, Any]:
    """What latent actions know of the recorded ones; None where one of the two is missing."""
    sample, recorded = evidence.sample, evidence.sample.actions
    if evidence.simulator.latent_action is None or recorded is None or recorded.ndim != 2:
        keys = ("mi_bits", "mi_bits_shuffled", "entropy_bits", "table", "names")
        return {f"action_{key}": None for key in keys}
    latent, true = evidence.actions.flatten(), recorded[:, :-1].flatten()
    rows, columns = evidence.simulator.actions.size, max(len(sample.action_names), int(true.max()) + 1)
    found = information(latent, true, rows, columns, evidence.seed)
    table = contingency(latent, true, rows, columns)
    unnamed = tuple(str(i) for i in range(len(sample.action_names), columns))
    return {
        "action_mi_bits": found.bits,
        "action_mi_bits_shuffled": found.shuffled,
        "action_entropy_bits": entropy(table.sum(dim=0)),
        "action_table": table,
        "action_names": list(sample.action_names + unnamed),
    }


def _latent_action(evidence: Evidence) -> dict[str, Any] | None:
    model = evidence.simulator.latent_action
    if model is None:
        return None
    counts = usage(evidence.actions, model.num_actions)
    return {"perplexity": perplexity(counts), "size": model.num_actions, "counts": counts.long()}


def _play(evidence: Evidence) -> dict[str, Any]:
    times, simulator = evidence.milliseconds, evidence.simulator
    return {
        "step_ms": {"p50": times.quantile(0.5), "p95": times.quantile(0.95)},
        "fps": 1000 * len(times) / times.sum(),
        "real_time_fps": simulator.fps,
        "steps": len(times),
        "sampling_steps": simulator.sampling.steps,
        "threads": torch.get_num_threads(),
        "device": str(simulator.device),
    }


def _perceptual(report: dict[str, Any], evidence: Evidence, lpips: LPIPS | None, fvd: FVD | None) -> list[str]:
    """Add LPIPS and FVD to the report where there are networks for them; else say what is missing."""
    frames, notes = evidence.sample.frames, []
    if lpips is None:
        notes.append(LPIPS_NOTE)
    else:
        report["rollout"]["lpips"] = lpips.by_time(evidence.truth, evidence.own)
        report["tokenizer"]["lpips"] = lpips.by_time(frames, evidence.reconstructed.frames).mean()
    if fvd is None:
        notes.append(FVD_NOTE)
    else:
        report["rollout"]["fvd"] = fvd(frames, torch.cat((frames[:, : evidence.context], evidence.own), dim=1))
    return notes


def plain(value: Any) -> Any:
    """As JSON can hold it: tensors as numbers and lists, what is not finite as None."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(out: Path, report: dict[str, Any], evidence: Evidence, videos: int) -> None:
    """Write the folder (aside, then renamed over what was there)."""
    with written_aside(out) as aside:
        (aside / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        drawn = _plots(report, evidence)
        for name, draw in drawn.items():
            draw().savefig(aside / name)
        truth, own = evidence.sample.frames[:videos].numpy(), evidence.own[:videos].numpy()
        shown = [f"rollout_{i:02d}.mp4" for i in range(len(truth))]
        for name, clip, predicted in zip(shown, truth, own, strict=True):
            write_video(aside / name, side_by_side(clip, predicted), evidence.simulator.fps)
        if shown:
            sheet(list(truth), list(own)).save(aside / SHEET)
        html = page(evidence.simulator.title, report, list(drawn), shown, SHEET if shown else "")
        (aside / PAGE).write_text(html)


def _plots(report: dict[str, Any], evidence: Evidence) -> dict[str, Callable[[], Figure]]:
    """File names, and what draws them."""
    control, codebook, play = report["control"], report["codebook"], report["play"]
    step = play["step_ms"]
    drawn: dict[str, Callable[[], Figure]] = {
        "compounding_error.png": lambda: plots.compounding_error(report["rollout"]),
        "delta_psnr.png": lambda: plots.delta_psnr(control),
        "step_latency.png": lambda: plots.step_latency(
            evidence.milliseconds.numpy(), step["p50"], step["p95"], play["real_time_fps"]
        ),
    }
    if codebook is not None:
        drawn["codebook.png"] = lambda: plots.codebook_usage(codebook["counts"], codebook["perplexity"])
    if control["action_table"] is not None:
        table, names, bits = (control[f"action_{key}"] for key in ("table", "names", "mi_bits"))
        drawn["actions.png"] = lambda: plots.action_table(table, names, bits)
    return drawn
