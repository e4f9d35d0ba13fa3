"""``vwm surprise``: whether the surprise of a model is higher for impossible clips than for possible ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vwm.core.command_output import format_command, print_output
from vwm.core.devices import resolve_device
from vwm.core.family import VideoSurprise
from vwm.eval.intphys2 import is_intphys2_folder, read_intphys2_pairs
from vwm.eval.surprise import SURPRISE_TABLE_FILE, read_violation_pairs, write_surprise_report
from vwm.hub.bundle_names import find_folder
from vwm.worlds.families import world_families


def evaluate_surprise(
    bundle: Path,
    data: str,
    out: Path = Path("surprise"),
    context: int | None = None,
    mask_token: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    frame_step: int = 10,
    by: str = "condition",
) -> dict[str, Any]:
    """Measure a model's surprise on pairs of possible and impossible clips.

    Args:
        bundle: folder with ``encoder`` and ``predictor``, as ``vwm export`` writes it for a V-JEPA run.
        data: shards of pairs (python datasets/sprites/generate.py OUT --pairs), or the folder of a split of IntPhys 2.
        out: folder for the report; an earlier report there is replaced.
        context: visible frames of each window; by default half of the training clip length.
        mask_token: index of the predictor's mask token for the frames to predict: the token of the mask sampler that
            hid whole frames in training. null takes the predictor's default.
        limit: use at most this many pairs.
        batch_size: clips that are processed at a time.
        device: where to compute; see ``resolve_device``.
        frame_step: of IntPhys 2, distance in frames between those of a clip; its videos have 60 a second.
        by: of IntPhys 2, the column by which results are divided: condition, Difficulty or Camera.

    Returns:
        The report, as written to ``surprise.json``.

    Raises:
        ValueError: the folder holds no model that measures surprise, or the data are not pairs or shorter than the
            model's clips.
    """
    scorer = load_surprise_scorer(bundle, context, mask_token, str(resolve_device(device)))
    if is_intphys2_folder(data):
        pairs = read_intphys2_pairs(Path(data), scorer.image_size, frame_step, by, limit)
        # `vwm probe` reads shards, and no folder of videos
        other = "Difficulty" if by == "condition" else "condition"
        next_command = format_command("surprise", bundle, data, "--by", other)
    else:
        pairs = read_violation_pairs(data, limit)
        next_command = format_command("probe", bundle, data)
    report = write_surprise_report(
        scorer, pairs, out, scorer.frame_times(pairs.possible.shape[1]), batch_size, bundle.resolve().name
    )
    print((out / SURPRISE_TABLE_FILE).read_text())
    print_output(out, f"{SURPRISE_TABLE_FILE}, every number and plots", next_command)
    return report


def load_surprise_scorer(folder: Path, context: int | None, mask_token: int | None, device: str) -> VideoSurprise:
    """Load the scorer of the first family that has one for a folder; see ``WorldFamily.load_surprise_scorer``.

    Raises:
        ValueError: no family has one, or the networks are damaged.
    """
    folder = find_folder(folder)
    for family in world_families():
        scorer = family.load_surprise_scorer(folder, context, mask_token, device)
        if scorer is not None:
            return scorer
    raise ValueError(
        f"{folder} holds no model whose surprise can be measured: there is no config.json of a V-JEPA encoder in "
        f"{folder / 'encoder'}. Export a V-JEPA run: vwm export RUN -o {folder}"
    )
