"""Global batches do not depend on the ranks or on how much fits on one of them."""

from __future__ import annotations

import pytest

from vwm.data.batch_division import BatchDivision


@pytest.mark.parametrize(
    ("global_batch", "ranks", "limit", "accumulation", "sizes"),
    [
        (8, 2, 4, 1, [4, 4]),
        (8, 2, 2, 2, [2, 2, 2, 2]),
        (12, 8, 2, 1, [1, 2, 1, 2, 1, 2, 1, 2]),
        (4, 3, 4, 1, [1, 1, 2]),
        (16, 3, 3, 2, [2, 3, 3, 2, 3, 3]),
        (4, 3, 1, 2, [0, 1, 1, 0, 1, 1]),  # more parts than clips: every rank computes gradients twice
        (2, 4, 8, 1, [0, 1, 0, 1]),
    ],
)
def test_every_clip_is_in_one_part_and_weighs_the_same(
    global_batch: int, ranks: int, limit: int, accumulation: int, sizes: list[int]
) -> None:
    division = BatchDivision(global_batch, ranks, limit)
    assert division.accumulation == accumulation
    parts = [(rank, index) for index in range(accumulation) for rank in range(ranks)]
    assert [len(division.clips(*part)) for part in parts] == sizes
    assert [clip for part in parts for clip in division.clips(*part)] == list(range(global_batch))
    # The mean over parts of weighted means of the clips' values 0, 1, ... is the mean of all values.
    weighted = []
    for part in parts:
        computed = division.computed_clips(*part)
        assert 1 <= len(computed) <= limit and computed[-1] < global_batch
        weighted.append(division.weight(*part) * sum(computed) / len(computed))
    assert sum(weighted) / len(parts) == pytest.approx((global_batch - 1) / 2, rel=1e-14)


def test_a_batch_without_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch must be 1 or more, got 0"):
        BatchDivision(0, 2, 4)
