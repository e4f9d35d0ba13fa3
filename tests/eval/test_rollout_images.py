"""Layout of rollout videos and images."""

from __future__ import annotations

import numpy as np

from vwm.eval.rollout_images import CONTEXT_COLOR, PANEL_GAP, PREDICTION_COLOR, rollout_sheet, side_by_side_video


def test_side_by_side_videos_show_the_context_and_mark_predictions() -> None:
    truth = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    predicted = truth[3:] + 100
    video = side_by_side_video(truth, predicted, side=32)
    assert video.shape == (5, PANEL_GAP + 32, 3 * 32 + 2 * PANEL_GAP, 3)
    columns = [0, 32 + PANEL_GAP, 64 + 2 * PANEL_GAP]
    levels = [[int(frame[-1, x, 0]) for x in columns] for frame in video]
    assert levels == [[1, 1, 1], [2, 2, 2], [3, 3, 3], [3, 104, 4], [3, 105, 5]]
    assert [tuple(map(int, frame[0, columns[1]])) for frame in video] == [CONTEXT_COLOR] * 3 + [PREDICTION_COLOR] * 2


def test_odd_video_sizes_are_padded_to_even() -> None:
    video = side_by_side_video(np.zeros((3, 15, 17, 3), np.uint8), np.zeros((1, 15, 17, 3), np.uint8), side=15)
    assert video.shape[1] % 2 == video.shape[2] % 2 == 0


def test_the_sheet_has_two_rows_per_clip_and_one_column_per_horizon() -> None:
    truth = np.full((5, 16, 16, 3), 10, np.uint8)
    image = np.asarray(rollout_sheet([truth, truth], [truth[2:] + 90] * 2, side=16))[20:, 76:]  # without the captions
    assert (image == 10).all(axis=-1).sum() == 2 * (4 + 1) * 16 * 16  # the truth, and the context on both rows
    assert (image == 100).all(axis=-1).sum() == 2 * 3 * 16 * 16
