"""Violation of expectation: is the surprise of a model higher for impossible events than for possible ones?

A scorer measures the prediction error at every time step of a video. For each pair of a possible and an impossible
clip, the surprise should be higher for the impossible one (Riochet et al., 2018, arXiv 1803.07616; for prediction in
representation space Garrido et al., 2025, arXiv 2502.11831). Chance is 50%.

The surprise of a clip is the mean over time (the main result) or the maximum. Only the mean is robust against scorers
without any memory: the impossible clips of our sprite worlds consist of the same frames and the same pairs of
consecutive frames as the possible ones, so a scorer of single frames or frame pairs has equal *means* over each group
of four clips and an accuracy of 50%; this does not hold for maxima. The report therefore contains a control, the
difference between consecutive frames.

Legend: n pairs, b batch, t frames, s time steps with a score, h w pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.command_output import progress_bar
from vwm.data.frame_reading import read_episode_frames
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_episode_metadata

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SURPRISE_REPORT_FILE, SURPRISE_TABLE_FILE, SURPRISE_PLOT_FILE = "surprise.json", "surprise.md", "surprise.png"
ALL_PROPERTIES = "all"
POSSIBLE_COLOR, IMPOSSIBLE_COLOR = "#1f6fb4", "#d1662b"

SurpriseScorer = Callable[[Tensor], Tensor]
"""uint8 [b, t, h, w, 3] -> float [b, s], the surprise at s time steps; higher is more surprising."""


class Clips(Protocol):
    """Clips of one length and size, uint8 [n, t, h, w, 3]: a tensor, or what reads them batch by batch."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, t, h, w, 3)."""
        ...

    def __len__(self) -> int: ...

    def split(self, batch_size: int) -> Iterable[Tensor]:
        """Give the clips in batches, uint8 [b, t, h, w, 3]."""
        ...


@dataclass(frozen=True)
class ViolationPairs:
    """Pairs of a possible and an impossible clip.

    Attributes:
        possible, impossible: uint8 [n, t, h, w, 3].
        violation_frame: int64 [n], the first frame in which the two differ; None where that is unknown.
        properties: n names of the physical property that the impossible clip violates.
        trial_groups: int64 [n]; pairs of the same scene share a number and count as one trial.
    """

    possible: Clips
    impossible: Clips
    violation_frame: Tensor | None
    properties: tuple[str, ...]
    trial_groups: Tensor

    def __len__(self) -> int:
        return len(self.possible)


class RateInterval(NamedTuple):
    """A rate in 0..1 with its 95% interval."""

    value: float
    low: float
    high: float


# ------------------------------------------------------------------------------------------------------ reading


def read_violation_pairs(data: str | Path, limit: int | None = None) -> ViolationPairs:
    """Read the pairs of a folder of shards.

    The JSON of each episode has ``pair``, ``possible``, ``property`` and ``violation_frame``, and optionally
    ``quadruple``, which pairs of one scene share (``datasets/sprites/generate.py --pairs``).

    Args:
        data: a folder of shards, or an fsspec address of it.
        limit: read at most this many pairs.

    Raises:
        ValueError: an episode belongs to no pair, or a pair is not one possible and one impossible clip of one length.
    """
    found: dict[Any, dict[bool, tuple[Tensor, dict[str, Any]]]] = {}
    for shard in list_shards(data):
        for entry in load_shard_index(shard).episodes:
            meta, where = read_episode_metadata(shard, entry), f"{shard}:{entry.key}"
            missing = [k for k in ("pair", "possible", "property", "violation_frame") if k not in meta]
            if missing:
                raise ValueError(
                    f"{where}: its json has no {', '.join(missing)}, so it belongs to no pair; surprise is measured on "
                    f"pairs of possible and impossible clips (python datasets/sprites/generate.py OUT --pairs)"
                )
            if limit is not None and meta["pair"] not in found and len(found) >= limit:
                continue
            pair = found.setdefault(meta["pair"], {})
            if bool(meta["possible"]) in pair:
                raise ValueError(f"{where}: pair {meta['pair']} has two clips with possible={meta['possible']}")
            pair[bool(meta["possible"])] = torch.from_numpy(read_episode_frames(shard, entry)), meta
    return _stack_pairs(found, str(data))


def _stack_pairs(found: dict[Any, dict[bool, tuple[Tensor, dict[str, Any]]]], data: str) -> ViolationPairs:
    for number, pair in found.items():
        if len(pair) < 2:
            raise ValueError(f"{data}: pair {number} has no {'im' if True in pair else ''}possible clip")
    clips = {kind: [pair[kind][0] for pair in found.values()] for kind in (True, False)}
    if len(shapes := {tuple(c.shape) for c in clips[True] + clips[False]}) != 1:
        raise ValueError(f"{data}: clips must have one length and size, found {sorted(shapes)}")
    metas = [pair[False][1] for pair in found.values()]
    numbers: dict[Any, int] = {}
    groups = [numbers.setdefault(m.get("quadruple", ("pair", m["pair"])), len(numbers)) for m in metas]
    return ViolationPairs(
        possible=torch.stack(clips[True]),
        impossible=torch.stack(clips[False]),
        violation_frame=torch.tensor([int(m["violation_frame"]) for m in metas]),
        properties=tuple(str(m["property"]) for m in metas),
        trial_groups=torch.tensor(groups),
    )


# ----------------------------------------------------------------------------------------------------- measures


def score_clips(scorer: SurpriseScorer, frames: Clips, batch_size: int, desc: str) -> Tensor:
    """Compute a scorer's surprise for clips uint8 [n, t, h, w, 3], batch by batch; return float64 [n, s].

    Raises:
        ValueError: the scorer returns another shape, or values that are not finite.
    """
    parts = []
    batches = progress_bar(frames.split(batch_size), desc=desc, unit="batch", total=-(-len(frames) // batch_size))
    for batch in batches:
        surprise = scorer(batch)
        if surprise.ndim != 2 or len(surprise) != len(batch) or surprise.shape[1] == 0:
            raise ValueError(f"surprise must be [b, s] with b={len(batch)} clips, got {list(surprise.shape)}")
        parts.append(surprise.detach().double().cpu())
    scores = torch.cat(parts)
    if not scores.isfinite().all():
        raise ValueError(f"{desc}: surprise must be finite, got {scores[~scores.isfinite()][0].item()}")
    return scores


def frame_difference_score(frames: Tensor) -> Tensor:
    """Compute the control score, the mean absolute change to the next frame: [b, t, h, w, 3] -> [b, t - 1]."""
    changes = ((later.double() - earlier.double()).abs() for earlier, later in pairwise(frames.unbind(1)))
    return torch.stack([change.mean(dim=(1, 2, 3)) for change in changes], dim=1)


def pairwise_wins(possible: Tensor, impossible: Tensor) -> Tensor:
    """Return 1 where the impossible clip of a pair is more surprising, 1/2 for ties, else 0: [n] twice -> [n].

    Values within the rounding error of float32 are ties.
    """
    ties = torch.isclose(impossible, possible, rtol=1e-6, atol=0.0)
    return torch.where(ties, 0.5, (impossible > possible).double())


def pairwise_auroc(possible: Tensor, impossible: Tensor) -> float:
    """Compute the share of (possible, impossible) clips where the latter is more surprising (ties: 1/2): [n], [m]."""
    return float(pairwise_wins(possible[None, :], impossible[:, None]).mean())


def wilson_interval(rate: float, trials: int) -> RateInterval:
    """Compute the 95% interval of a rate observed in a number of trials (Wilson, 1927)."""
    z = 1.959963984540054
    middle = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return RateInterval(rate, max(middle - half, 0.0), min(middle + half, 1.0))


def measure_surprise(possible: Tensor, impossible: Tensor, properties: Sequence[str], groups: Tensor) -> dict[str, Any]:
    """Summarize scores, by property and for all pairs.

    Args:
        possible, impossible: float [n, s], surprise of the clips of each pair.
        properties: n names.
        groups: int64 [n]; the interval counts the pairs of a group as one trial, because they share their frames.

    Returns:
        By property: ``pairs``, ``trials``, and for ``mean`` and ``max`` over time ``accuracy`` (value, low, high) and
        ``auroc``.

    Raises:
        ValueError: the lengths differ or are 0.
    """
    if not len(possible) == len(impossible) == len(properties) == len(groups) > 0:
        raise ValueError(f"{len(possible)} possible, {len(impossible)} impossible clips of {len(properties)} pairs")
    named = sorted(set(properties))
    rows = {name: torch.tensor([p == name for p in properties]) for name in named}
    if len(named) > 1:
        rows[ALL_PROPERTIES] = torch.ones(len(properties), dtype=torch.bool)
    return {name: _measure_property(possible[row], impossible[row], groups[row]) for name, row in rows.items()}


def _measure_property(possible: Tensor, impossible: Tensor, groups: Tensor) -> dict[str, Any]:
    trials = len(groups.unique())
    found: dict[str, Any] = {"pairs": len(possible), "trials": trials}
    for name, one, other in (
        ("mean", possible.mean(dim=1), impossible.mean(dim=1)),
        ("max", possible.amax(dim=1), impossible.amax(dim=1)),
    ):
        rate = wilson_interval(float(pairwise_wins(one, other).mean()), trials)
        found[name] = {"accuracy": rate._asdict(), "auroc": pairwise_auroc(one, other)}
    return found


def align_to_violation(scores: Tensor, violation: Tensor, times: Tensor) -> dict[str, list[float]]:
    """Average surprise over clips by the time relative to the violation: [n, s], [n], [s].

    Returns:
        ``offset`` in frames after the violation, ``mean`` and ``stderr`` over the clips that have a score there.
    """
    offsets = (times[None, :] - violation[:, None]).flatten()
    values = scores.flatten()
    curve: dict[str, list[float]] = {"offset": [], "mean": [], "stderr": []}
    for offset in offsets.unique().tolist():
        here = values[offsets == offset]
        curve["offset"].append(offset)
        curve["mean"].append(float(here.mean()))
        curve["stderr"].append(float(here.std(correction=0) / math.sqrt(len(here))))
    return curve


# ------------------------------------------------------------------------------------------------------- report


def write_surprise_report(
    scorer: SurpriseScorer,
    pairs: ViolationPairs,
    out: Path,
    frame_times: Sequence[int] | None = None,
    batch_size: int = 32,
    title: str = "model",
) -> dict[str, Any]:
    """Measure a scorer, and write ``surprise.json``, ``surprise.md`` and ``surprise.png``.

    Args:
        scorer: the scorer to evaluate.
        pairs: clips to evaluate it on.
        out: folder for the report; an earlier report there is replaced.
        frame_times: the last frame that each of the scorer's s values depends on; by default the last s frames.
        batch_size: clips per call of the scorer.
        title: name of the scorer in the report.

    Returns:
        The report, as written to ``surprise.json``.

    Raises:
        ValueError: ``out`` is a folder with other content, or the scorer returns a wrong shape.
    """
    check_replaceable_folder(out, SURPRISE_REPORT_FILE, "report")
    clips = {"possible": pairs.possible, "impossible": pairs.impossible}
    frames = pairs.possible.shape[1]

    def score_both(batch: Tensor) -> Tensor:  # clips of videos are decoded once
        return torch.cat((scorer(batch).double().cpu(), frame_difference_score(batch)), dim=1)

    both = {kind: score_clips(score_both, frames, batch_size, kind) for kind, frames in clips.items()}
    scores = {kind: values[:, : 1 - frames] for kind, values in both.items()}
    control = {kind: values[:, 1 - frames :] for kind, values in both.items()}
    steps = scores["possible"].shape[1]
    times = torch.arange(frames - steps, frames) if frame_times is None else torch.tensor(list(frame_times))
    if len(times) != steps:
        raise ValueError(f"the scorer returns {steps} values per clip, but frame_times names {len(times)} frames")
    found = {
        "title": title,
        "pairs": len(pairs),
        "frames": frames,
        "chance": 0.5,
        "violation_known": pairs.violation_frame is not None,
        "before_violation": _difference_before_violation(scores, pairs, times),
        "results": measure_surprise(scores["possible"], scores["impossible"], pairs.properties, pairs.trial_groups),
        "control": measure_surprise(control["possible"], control["impossible"], pairs.properties, pairs.trial_groups),
        "curves": _surprise_curves(scores, pairs, times),
    }
    with atomic_folder(out) as folder:
        (folder / SURPRISE_REPORT_FILE).write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
        (folder / SURPRISE_TABLE_FILE).write_text(render_surprise_table(found))
        plot_surprise(found).savefig(folder / SURPRISE_PLOT_FILE)
    return found


def _difference_before_violation(scores: dict[str, Tensor], pairs: ViolationPairs, times: Tensor) -> float:
    """Return the largest difference within a pair before its violation; above 0 if a scorer uses later frames."""
    if pairs.violation_frame is None:
        return 0.0
    earlier = times[None, :] < pairs.violation_frame[:, None]
    return float(((scores["possible"] - scores["impossible"]).abs() * earlier).max())


def _surprise_curves(scores: dict[str, Tensor], pairs: ViolationPairs, times: Tensor) -> dict[str, dict[str, Any]]:
    curves: dict[str, dict[str, Any]] = {}
    for name in sorted(set(pairs.properties)):
        row = torch.tensor([p == name for p in pairs.properties])
        violation = torch.zeros(len(row)) if pairs.violation_frame is None else pairs.violation_frame
        curves[name] = {k: align_to_violation(s[row], violation[row], times) for k, s in scores.items()}
    return curves


def render_surprise_table(found: dict[str, Any]) -> str:
    """Format the results as Markdown."""
    lines = [
        f"# Surprise of {found['title']}",
        "",
        f"{found['pairs']} pairs of a possible and an impossible clip. Accuracy: how often the impossible one is more "
        "surprising, with its 95% interval; chance is 50%. AUROC: over single clips, regardless of the pairs.",
        "",
        "| Property | Pairs | Accuracy (mean over time) | AUROC | Accuracy (maximum) | AUROC |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, suffix in (("results", ""), ("control", ", frame difference")):
        for name, row in found[key].items():
            cells = [f"{_format_rate(row[by]['accuracy'])} | {row[by]['auroc']:.3f}" for by in ("mean", "max")]
            lines.append(f"| {name}{suffix} | {row['pairs']} | {' | '.join(cells)} |")
    lines += [
        "",
        "The control, frame difference, has no memory: its accuracy by the maximum comes from the construction of the "
        "clips. Intervals count pairs that consist of the same frames as one trial.",
    ]
    if found["before_violation"] > 0:
        lines += [
            "",
            f"Before the violation, where the clips of a pair are equal, their surprise differs by up to "
            f"{found['before_violation']:.3g}: the scorer uses later frames, or its frame times are wrong.",
        ]
    return "\n".join(lines) + "\n"


def _format_rate(rate: dict[str, float]) -> str:
    return f"{100 * rate['value']:.1f}% ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def plot_surprise(found: dict[str, Any]) -> Figure:
    """Plot surprise over time around the violation, one panel per property."""
    curves = found["curves"]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(curves), 3.2), dpi=130, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(curves)))
    for axes, (name, kinds) in zip(panels, curves.items(), strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for kind, color in (("impossible", IMPOSSIBLE_COLOR), ("possible", POSSIBLE_COLOR)):
            offset, mean, stderr = (np.array(kinds[kind][k]) for k in ("offset", "mean", "stderr"))
            axes.fill_between(offset, mean - stderr, mean + stderr, color=color, alpha=0.25, linewidth=0)
            axes.plot(offset, mean, color=color, label=kind, linestyle="-" if kind == "impossible" else "--")
        rate = found["results"][name]["mean"]["accuracy"]["value"]
        axes.set_title(f"{name}: {100 * rate:.0f}% of pairs", fontsize=10)
        axes.set_xlabel("frames after the violation" if found["violation_known"] else "frame of the clip")
    panels[0].set_ylabel("surprise, mean ± standard error")
    panels[0].legend(frameon=False, fontsize=8)
    return figure
