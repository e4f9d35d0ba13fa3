"""Shots by TransNet V2, in windows that slide over a video while it is decoded."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.data.curation.shots import ShotChanges
from vwm.data.curation.transnet import FRAME_SIZE, TransNetV2, load_transnet
from vwm.data.one_thread import one_thread

WINDOW = 100
"""Frames that the network sees at a time."""
STEP = 50
"""Frames in the middle of a window whose probabilities count."""
MARGIN = (WINDOW - STEP) // 2
THRESHOLD = 0.5


class TransNetShots:
    """Finds cuts and gradual transitions; see ``ShotDetector``.

    A frame whose probability is above one half is the last of its shot. Where several follow each other, those after
    the first lie in a gradual transition. The first frame below begins a shot.

    Args:
        folder: of the weights; see ``load_transnet``.
    """

    def __init__(self, folder: str) -> None:
        self._network = _load(folder)
        self._window: list[NDArray[np.uint8]] = []
        self._added = 0
        self._known = 0
        self._was_transition = False

    @property
    def delay(self) -> int:
        return STEP + MARGIN - 1

    def add(self, preview: NDArray[np.uint8]) -> ShotChanges:
        frame = _shrink(preview)
        self._window += [frame] * (1 if self._added else 1 + MARGIN)
        self._added += 1
        return self._predict() if len(self._window) == WINDOW else ShotChanges([])

    def finish(self) -> ShotChanges:
        begins: list[int] = []
        between: list[int] = []
        while self._known < self._added:
            self._window += [self._window[-1]] * (WINDOW - len(self._window))
            changes = self._predict()
            begins += changes.begins
            between += changes.between
        return ShotChanges(begins, between)

    @torch.inference_mode()
    def _predict(self) -> ShotChanges:
        """Read the frames in the middle of the window, and slide it."""
        with one_thread():
            probabilities = self._network(torch.from_numpy(np.stack(self._window)))[MARGIN : MARGIN + STEP].tolist()
        del self._window[:STEP]
        begins: list[int] = []
        between: list[int] = []
        for number, probability in enumerate(probabilities[: self._added - self._known], self._known):
            is_transition = probability > THRESHOLD
            if self._was_transition:
                (between if is_transition else begins).append(number)
            self._was_transition = is_transition
        self._known = min(self._known + STEP, self._added)
        return ShotChanges(begins, between)


def _shrink(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = FRAME_SIZE
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


@cache
def _load(folder: str) -> TransNetV2:
    return load_transnet(Path(folder))
