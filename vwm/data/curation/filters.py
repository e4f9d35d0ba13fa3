"""Which clips a filter removes: a limit on a measure of the clip. Nothing is removed unless a filter is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vwm.core.suggestions import suggest


@dataclass(frozen=True)
class ClipFilter:
    """A filter: the measure of the same name, and its limit.

    Attributes:
        default: limit where the user gives none. Calibrated so that only clear cases are removed
            (``tests/data/curation/test_calibration.py``).
        highest: largest limit that makes sense; the smallest is 0.
        removes_below: the filter removes clips whose measure is below the limit, instead of above it.
        meaning: of the measure, for reports.
    """

    default: float
    highest: float
    removes_below: bool
    meaning: str


FILTERS = {
    "black": ClipFilter(0.9, 1.0, False, "share of frames that are nearly black everywhere"),
    "frozen": ClipFilter(0.9, 1.0, False, "share of frames that show nothing new, up to the noise of compression"),
    "motion": ClipFilter(0.0003, 10.0, True, "mean optical flow, in widths of the frame a second"),
    "text": ClipFilter(0.02, 1.0, False, "share of the frame's area covered by marks shaped like lines of text"),
    "duplicates": ClipFilter(16, 64, True, "bits of 256 in which the perceptual hash differs from an earlier clip's"),
}
"""By name. ``duplicates`` compares clips with each other; the others are measures of one clip."""

CLIP_MEASURES = ("black", "frozen", "motion", "text")


@dataclass(frozen=True)
class CurationSettings:
    """What is done with the clips of an ingest in addition to cutting and resizing.

    Attributes:
        shots: ``"detect"`` for PySceneDetect, or the folder of TransNet V2's weights; None does not look for shots.
        measures: names of the measures that are computed and stored with the clips, sorted.
        limits: name of each filter that removes clips to its limit, sorted by name.
    """

    shots: str | None = None
    measures: list[str] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def compares_clips(self) -> bool:
        """Whether shards must wait until all clips are known."""
        return "duplicates" in self.limits


def make_curation(
    shots: str | None, measure: Sequence[str] | None, remove: Sequence[str] | None
) -> CurationSettings | None:
    """Check what the user asked for; None if it is nothing.

    Args:
        shots: see ``CurationSettings``.
        measure: names of measures.
        remove: names of filters, with a limit (``"black=0.5"``) or without one (``"black"``, the default limit).

    Raises:
        ValueError: a name is not known, or a limit is out of range.
    """
    limits = dict(_parse_filter(text) for text in remove or ())
    for name in measure or ():
        if name not in CLIP_MEASURES:
            raise ValueError(f"no measure {name!r}{suggest(name, CLIP_MEASURES)}; there are {', '.join(CLIP_MEASURES)}")
    if shots not in (None, "detect"):
        if not Path(shots).is_dir():
            raise ValueError(f"--shots must be detect, or a folder with the weights of TransNet V2, got {shots!r}")
        shots = str(Path(shots).resolve())
    measures = sorted({*(measure or ()), *(name for name in limits if name in CLIP_MEASURES)})
    settings = CurationSettings(shots, measures, dict(sorted(limits.items())))
    return None if settings == CurationSettings() else settings


def _parse_filter(text: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    if name not in FILTERS:
        raise ValueError(f"no filter {name!r}{suggest(name, FILTERS)}; there are {', '.join(FILTERS)}")
    highest = FILTERS[name].highest
    if not equals:
        return name, FILTERS[name].default
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= highest:
        raise ValueError(f"the limit of {name} must be a number from 0 to {highest:g}, got {number!r} in {text!r}")
    return name, limit


def find_removing_filter(scores: Mapping[str, float], limits: Mapping[str, float]) -> str | None:
    """Return the name of the first filter that removes a clip with these measures; None keeps it.

    Args:
        scores: measures of the clip.
        limits: limit of each filter.
    """
    for name in CLIP_MEASURES:
        if name in limits and name in scores:
            removes_below = FILTERS[name].removes_below
            if scores[name] < limits[name] if removes_below else scores[name] > limits[name]:
                return name
    return None
