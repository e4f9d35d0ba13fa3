"""Names of latent actions by their effect in the data, for the legend of the player's keys.

Legend: n transitions, t time, h w pixels.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vwm.core.capabilities import InfersActions
from vwm.core.simulator import Simulator
from vwm.data.clips import ClipDataset
from vwm.eval.eval_clips import EvalClips, read_eval_clips
from vwm.eval.mutual_information import contingency_table
from vwm.eval.rollouts import infer_latent_actions

MAX_DESCRIPTION_LENGTH = 27
"""Largest number of characters of a description; the player has no space for more."""

NOT_SEEN = "not seen"
MIN_TYPICAL_SHARE = 0.3
MIN_TYPICAL_LIFT = 2.0
"""Share of a latent action's transitions that a recorded action needs to name it, and multiple of its usual share."""

MIN_VISIBLE_SHIFT = 0.3
"""Smallest shift of the scene that is described, in pixels per frame."""

MIN_VISIBLE_CHANGE = 0.25
"""Smallest mean absolute change that counts as visible, in levels of 0..255."""


def describe_actions(simulator: Simulator, clips: ClipDataset, count: int = 128, batch_size: int = 16) -> list[str]:
    """Describe every action of a world.

    A latent action is named after the recorded action that occurs in more than half of its transitions, with the share,
    or else ``like`` the one that occurs in it most beyond its share of all transitions. If there is none, it is
    described by the motion of the view. Of continuous latent actions, each dimension is described by the motion at its
    upper end. Equal descriptions are numbered. Labeled actions keep their names.

    Args:
        simulator: the world.
        clips: clips with frames, and actions if there are any; preferably held-out.
        count: number of clips.
        batch_size: clips that are processed at a time.

    Returns:
        One description per action, or dimension, shorter than 28 characters.

    Raises:
        ValueError: the clips' frames do not have the world's size.
    """
    space = simulator.spec.actions
    if not isinstance(simulator, InfersActions) or not simulator.num_latent_actions:
        return list(space.names) or [f"action {i}" for i in range(space.size)]
    sample = read_eval_clips(clips, count, simulator.spec.context.image_size)
    latent = infer_latent_actions(simulator, sample.frames, batch_size)
    masks = [latent.flatten() == i if space.is_discrete else latent[..., i].flatten() > 0.5 for i in range(space.size)]
    texts = _describe_by_motion(masks, sample.frames)
    if space.is_discrete and sample.actions is not None and sample.actions.ndim == 2 and sample.action_names:
        recorded = _describe_by_recorded_action(latent, sample, space.size)
        texts = [name or text for name, text in zip(recorded, texts, strict=True)]
    return _number_equal_texts(texts)


def _describe_by_recorded_action(latent: Tensor, sample: EvalClips, size: int) -> list[str]:
    """Name each latent action after a recorded one that is frequent, or more frequent than usual, in it; else ""."""
    assert sample.actions is not None
    columns = max(len(sample.action_names), int(sample.actions.max()) + 1)
    table = contingency_table(latent.flatten(), sample.actions[:, :-1].flatten(), size, columns)
    usual = table.sum(dim=0) / table.sum()
    texts = []
    for row in table:
        shares = row / max(row.sum(), 1)
        best = int(shares.argmax())
        prefix = ""
        if shares[best] <= 0.5:
            best, prefix = int((shares - usual).argmax()), "like "
        is_typical = shares[best] > 0.5 or (
            shares[best] >= MIN_TYPICAL_SHARE and shares[best] >= MIN_TYPICAL_LIFT * usual[best]
        )
        name = sample.action_names[best] if best < len(sample.action_names) else f"action {best}"
        share = f" {shares[best]:.0%}"
        texts.append((prefix + name)[: MAX_DESCRIPTION_LENGTH - len(share)] + share if is_typical else "")
    return texts


def _number_equal_texts(texts: list[str]) -> list[str]:
    """Append a number to texts that occur several times, so that a player can tell the keys apart."""
    numbered = []
    for i, text in enumerate(texts):
        number = f" ({texts[:i].count(text) + 1})" if texts.count(text) > 1 and text != NOT_SEEN else ""
        numbered.append(text[: MAX_DESCRIPTION_LENGTH - len(number)] + number)
    return numbered


def _describe_by_motion(masks: list[Tensor], frames: Tensor) -> list[str]:
    """Describe actions by the transitions in which they were taken, bool [n] each."""
    before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    shift = torch.cat([estimate_scene_shift(x, y) for x, y in zip(before.split(64), after.split(64), strict=True)])
    change = torch.stack([(x.int() - y.int()).abs().double().mean() for x, y in zip(before, after, strict=True)])
    return [
        describe_motion(shift[mask].mean(dim=0), float(change[mask].mean())) if mask.any() else NOT_SEEN
        for mask in masks
    ]


def describe_motion(shift: Tensor, change: float) -> str:
    """Describe a motion in words, as the player sees it: where the scene moves left, the view moves right.

    Args:
        shift: float [2], of the scene (down, right), in pixels per frame.
        change: mean absolute change of the pixels, in levels.
    """
    down, right = shift.tolist()
    if max(abs(down), abs(right)) < MIN_VISIBLE_SHIFT:
        return "no visible change" if change < MIN_VISIBLE_CHANGE else "change, view stays"
    parts = [
        (abs(down), f"{'up' if down > 0 else 'down'} {abs(down):.1f}"),
        (abs(right), f"{'left' if right > 0 else 'right'} {abs(right):.1f}"),
    ]
    (most, main), (least, other) = sorted(parts, reverse=True)
    if least < max(MIN_VISIBLE_SHIFT, most / 4):
        return f"view moves {main} px"
    return f"view {main}, {other} px"


def estimate_scene_shift(before: Tensor, after: Tensor) -> Tensor:
    """Estimate the shift of the whole scene: uint8 [n, h, w, 3] twice -> float [n, 2], (down, right) in pixels.

    Returns the shift with the smallest change in the center of the image; of equal ones the shortest. Phase
    correlation, the usual method, fails where games keep their character in the center of a scrolling scene. Large
    images are downsampled, and shifts of more than a sixth of the image are not considered.
    """
    coarse = max(1, min(before.shape[1:3]) // 64)
    x, y = (avg_pool2d(frames.float().mean(dim=-1), coarse) for frames in (before, after))
    height, width = x.shape[1:]
    reach = min(height, width) // 6
    middle = x[:, reach : height - reach, reach : width - reach]
    shifts = sorted(product(range(-reach, reach + 1), repeat=2), key=lambda s: s[0] ** 2 + s[1] ** 2)
    least, best = torch.full((len(x),), torch.inf), torch.zeros(len(x), 2)
    for down, right in shifts:
        moved = y[:, reach + down : height - reach + down, reach + right : width - reach + right]
        change = (moved - middle).abs().mean(dim=(1, 2))
        better = change < least
        least, best[better] = torch.where(better, change, least), torch.tensor([down, right], dtype=best.dtype)
    return best * coarse
