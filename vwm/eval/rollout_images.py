"""Images of rollouts: side-by-side videos, and one image with several rollouts.

Legend: t time, h w pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]

PANEL_GAP = 4
"""Pixels between images."""

CONTEXT_COLOR, PREDICTION_COLOR = (150, 150, 150), (235, 120, 30)
"""Color of the bar above an image: gray for recorded frames, orange for predicted ones."""


def side_by_side_video(truth: Frames, predicted: Frames, side: int = 192) -> Frames:
    """Make one video of three panels: context | prediction | truth.

    The left panel stops at the last frame of the context; the middle one continues with the prediction.

    Args:
        truth: uint8 [t, h, w, 3], the whole clip.
        predicted: uint8 [horizon, h, w, 3], the prediction of its last frames.
        side: small images are enlarged (by an integer factor) to about this height.

    Returns:
        uint8 [t, H, W, 3], H and W even.
    """
    context = len(truth) - len(predicted)
    left = np.concatenate((truth[:context], np.repeat(truth[context - 1 : context], len(predicted), axis=0)))
    middle = np.concatenate((truth[:context], predicted))
    is_predicted = np.arange(len(truth)) >= context
    panels = [
        _render_panel(left, np.zeros_like(is_predicted), side),
        _render_panel(middle, is_predicted, side),
        _render_panel(truth, np.zeros_like(is_predicted), side),
    ]
    gap = np.full((*panels[0].shape[:2], PANEL_GAP, 3), 255, np.uint8)
    video = np.concatenate((panels[0], gap, panels[1], gap, panels[2]), axis=2)
    # Video encoders and players require even sizes.
    odd = [(0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)]
    return np.pad(video, odd, constant_values=255)


def _render_panel(frames: Frames, is_predicted: NDArray[np.bool_], side: int) -> Frames:
    """Enlarge frames and draw a bar above each, whose color shows whether it is recorded or predicted."""
    frames = upscale_frames(frames, side)
    bar = np.where(is_predicted[:, None], PREDICTION_COLOR, CONTEXT_COLOR).astype(np.uint8)
    bars = np.broadcast_to(bar[:, None, None], (len(frames), PANEL_GAP, frames.shape[2], 3))
    return np.concatenate((bars, frames), axis=1)


def upscale_frames(frames: Frames, side: int) -> Frames:
    """Repeat the pixels of images [..., h, w, 3] lower than ``side`` so that they have about that height."""
    times = max(1, side // frames.shape[-3])
    return frames.repeat(times, axis=-3).repeat(times, axis=-2)


def rollout_sheet(truth: Sequence[Frames], predicted: Sequence[Frames], side: int = 64) -> Image.Image:
    """Draw several rollouts in one image: for each a row of the truth and a row of the prediction.

    Args:
        truth: clips uint8 [t, h, w, 3].
        predicted: predictions of their last frames, uint8 [horizon, h, w, 3].
        side: small images are enlarged (by an integer factor) to about this height.

    Returns:
        An image whose columns are the last context frame and the horizons 1, 2, ...
    """
    horizon = len(predicted[0])
    rows = []
    for clip, prediction in zip(truth, predicted, strict=True):
        last_context = clip[-horizon - 1 : -horizon]
        rows += [clip[-horizon - 1 :], np.concatenate((last_context, prediction))]
    cells = [upscale_frames(row, side) for row in rows]
    _, height, width, _ = cells[0].shape
    left, top = 76, 20
    tops = [top + i * (height + PANEL_GAP) + (i // 2) * 2 * PANEL_GAP for i in range(len(cells))]
    canvas = Image.new("RGB", (left + (horizon + 1) * (width + PANEL_GAP), tops[-1] + height + PANEL_GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for column in range(horizon + 1):
        x = left + column * (width + PANEL_GAP)
        draw.text((x + width // 2, 4), "context" if column == 0 else f"+{column}", "black", font, anchor="mt")
        for y, cell in zip(tops, cells, strict=True):
            canvas.paste(Image.fromarray(cell[column]), (x, y))
    for i, y in enumerate(tops):
        draw.text(
            (4, y + height // 2),
            "prediction" if i % 2 else "truth",
            PREDICTION_COLOR if i % 2 else "black",
            font,
            anchor="lm",
        )
    return canvas


def drift_sheet(by_pattern: Mapping[str, Frames], side: int = 64) -> Image.Image:
    """Draw long rollouts in one image: a row for each pattern of actions, a column for each second.

    Args:
        by_pattern: by name, uint8 [s, h, w, 3], a frame of each second.
        side: small images are enlarged (by an integer factor) to about this height.
    """
    cells = [upscale_frames(frames, side) for frames in by_pattern.values()]
    seconds, height, width, _ = cells[0].shape
    left, top = 150, 20
    size = (left + seconds * (width + PANEL_GAP), top + len(cells) * (height + PANEL_GAP))
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for column in range(seconds):
        draw.text((left + column * (width + PANEL_GAP) + width // 2, 4), f"{column + 1} s", "black", font, anchor="mt")
    for row, (name, frames) in enumerate(zip(by_pattern, cells, strict=True)):
        y = top + row * (height + PANEL_GAP)
        draw.text((4, y + height // 2), name[:22], "black", font, anchor="lm")
        for column, frame in enumerate(frames):
            canvas.paste(Image.fromarray(frame), (left + column * (width + PANEL_GAP), y))
    return canvas
