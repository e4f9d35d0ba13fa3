"""Rollouts to look at: side-by-side videos, and one sheet of several.

Legend: t time, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]

PANEL_GAP = 4
"""Pixels between pictures."""

CONTEXT_COLOR, PREDICTION_COLOR = (150, 150, 150), (235, 120, 30)
"""The bar over a picture: grey while the truth is shown, orange while the world is on its own."""


def side_by_side_video(truth: Frames, predicted: Frames, side: int = 192) -> Frames:
    """One video: context | prediction | truth.

    The left picture stops at the last frame of the context; the middle one goes on from there alone.

    Args:
        truth: uint8 [t, h, w, 3], the whole clip.
        predicted: uint8 [horizon, h, w, 3], its last frames as predicted.
        side: small pictures are enlarged (by whole numbers) to about this height.

    Returns:
        uint8 [t, H, W, 3], H and W even.
    """
    context = len(truth) - len(predicted)
    left = np.concatenate((truth[:context], np.repeat(truth[context - 1 : context], len(predicted), axis=0)))
    middle = np.concatenate((truth[:context], predicted))
    dreams = np.arange(len(truth)) >= context
    panels = [
        _render_panel(left, np.zeros_like(dreams), side),
        _render_panel(middle, dreams, side),
        _render_panel(truth, np.zeros_like(dreams), side),
    ]
    gap = np.full((*panels[0].shape[:2], PANEL_GAP, 3), 255, np.uint8)
    video = np.concatenate((panels[0], gap, panels[1], gap, panels[2]), axis=2)
    # Players and encoders like even sides.
    odd = [(0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)]
    return np.pad(video, odd, constant_values=255)


def _render_panel(frames: Frames, dreams: NDArray[np.bool_], side: int) -> Frames:
    """Enlarged frames under a bar that says where they come from."""
    frames = upscale_frames(frames, side)
    bar = np.where(dreams[:, None], PREDICTION_COLOR, CONTEXT_COLOR).astype(np.uint8)
    bars = np.broadcast_to(bar[:, None, None], (len(frames), PANEL_GAP, frames.shape[2], 3))
    return np.concatenate((bars, frames), axis=1)


def upscale_frames(frames: Frames, side: int) -> Frames:
    """Repeat pixels so that [..., h, w, 3] is about ``side`` high, if it is smaller."""
    times = max(1, side // frames.shape[-3])
    return frames.repeat(times, axis=-3).repeat(times, axis=-2)


def rollout_sheet(truth: Sequence[Frames], predicted: Sequence[Frames], side: int = 64) -> Image.Image:
    """Several rollouts on one picture: for each a row of the truth and a row of the prediction.

    Args:
        truth: clips uint8 [t, h, w, 3].
        predicted: their last frames as predicted, uint8 [horizon, h, w, 3].
        side: small pictures are enlarged (by whole numbers) to about this height.

    Returns:
        Columns are the last context frame and the horizons 1, 2, ...
    """
    horizon = len(predicted[0])
    rows = []
    for clip, guess in zip(truth, predicted, strict=True):
        shown = clip[-horizon - 1 : -horizon]
        rows += [clip[-horizon - 1 :], np.concatenate((shown, guess))]
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
