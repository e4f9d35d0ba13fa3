"""Near duplicates: the search finds what comparing all pairs finds, and copies of a video are near."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from video_sources import compressed, source

from vwm.data.curation.duplicates import HASH_BYTES, find_duplicates, hash_clip


def compare_all(hashes: list[bytes], distance: int, settled: set[int]) -> dict[int, int]:
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES), axis=1)
    kept: list[int] = sorted(settled)
    found = {}
    for index in sorted(set(range(len(hashes))) - settled):
        near = [other for other in sorted(kept) if (bits[index] != bits[other]).sum() <= distance]
        if near:
            found[index] = near[0]
        else:
            kept.append(index)
    return found


@pytest.mark.parametrize("distance", [0, 3, 16, 64])
def test_the_search_finds_what_comparing_all_pairs_finds(distance: int) -> None:
    generator = np.random.default_rng(distance)
    centers = generator.integers(0, 2, (6, HASH_BYTES * 8))
    rows = []
    for _ in range(120):  # around few centers, so that some are as far apart as allowed, and some farther
        row = centers[generator.integers(6)].copy()
        row[generator.choice(row.size, generator.integers(0, distance + 3), replace=False)] ^= 1
        rows.append(np.packbits(row).tobytes())
    for settled in (set(), {7, 40, 99}):
        found = find_duplicates(rows, distance, settled)
        assert found == compare_all(rows, distance, settled)
        assert 0 < len(found) < len(rows) and not settled & set(found)


def test_copies_of_a_video_are_near_and_other_videos_are_far() -> None:
    clips = [source("testsrc2="), source("mandelbrot=start_scale=2:"), source("life=seed=3:mold=10:")]
    small = [np.stack([np.asarray(Image.fromarray(f).resize((200, 112))) for f in clip]) for clip in clips]
    hashes = [hash_clip(clip) for clip in (*clips, *(compressed(clip, 32) for clip in small))]
    assert find_duplicates(hashes, 16) == {3: 0, 4: 1, 5: 2}
    assert find_duplicates(hashes[:3], 64) == {}


def test_the_hash_tells_one_part_of_a_video_from_another() -> None:
    zoom = source("mandelbrot=start_scale=2:", 60)
    pan = source("testsrc2=", 60)
    mirrored = zoom[:25, :, ::-1]
    assert find_duplicates([hash_clip(c) for c in (zoom[:25], mirrored, pan[:25])], 16) == {}
