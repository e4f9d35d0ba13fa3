"""Near duplicates: clips whose perceptual hashes differ in few bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

HASHED_FRAMES = 4
"""Frames of a clip that are hashed, of 64 bits each."""
HASH_BYTES = HASHED_FRAMES * 8
_BITS_SET = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)


def hash_clip(frames: NDArray[np.uint8]) -> bytes:
    """Return the perceptual hash of a clip, 256 bits: those of four frames, evenly spaced.

    Compression, a change of size and small changes of brightness move a few bits. A clip that begins elsewhere in the
    same video, that is mirrored or cropped, has another hash.

    Args:
        frames: uint8 [T, H, W, 3].

    Raises:
        ImportError: ImageHash is not installed.
    """
    try:
        import imagehash
    except ImportError as error:
        raise ImportError("near duplicates need ImageHash: pip install 'vwm[curate]'") from error
    from PIL import Image

    chosen = [(2 * i + 1) * len(frames) // (2 * HASHED_FRAMES) for i in range(HASHED_FRAMES)]
    bits = [imagehash.phash(Image.fromarray(frames[i])).hash for i in chosen]
    return np.packbits(np.stack(bits)).tobytes()


def find_duplicates(hashes: Sequence[bytes], distance: int, settled: Iterable[int] = ()) -> dict[int, int]:
    """Find the clips that repeat another one.

    Every clip is compared with those before it that are kept, so that of similar clips the first stays.

    Args:
        hashes: of the clips, in order.
        distance: largest number of differing bits.
        settled: indices of clips that are kept in any case; they come before all others.

    Returns:
        Index of each duplicate to the index of the kept clip that it repeats: of several, the first.
    """
    table = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), HASH_BYTES)
    bands = _bands(table, distance)
    kept: list[dict[int, list[int]]] = [defaultdict(list) for _ in bands]
    duplicates: dict[int, int] = {}
    fixed = sorted(set(settled))
    order = [*fixed, *sorted(set(range(len(hashes))) - set(fixed))]
    for position, index in enumerate(order):
        if position >= len(fixed):
            near = {other for band, seen in zip(bands, kept, strict=True) for other in seen.get(int(band[index]), ())}
            original = _first_near(table, index, sorted(near), distance)
            if original is not None:
                duplicates[index] = original
                continue
        for band, seen in zip(bands, kept, strict=True):
            seen[int(band[index])].append(index)
    return duplicates


def _bands(table: NDArray[np.uint8], distance: int) -> list[NDArray[np.uint64]]:
    """Cut hashes into distance + 1 pieces: of two that differ in ``distance`` bits, at least one piece is equal."""
    pieces = np.array_split(np.unpackbits(table, axis=1), distance + 1, axis=1)
    # Bits that do not fit an integer are left out: comparing fewer bits finds more candidates, never fewer.
    return [piece[:, :64] @ (np.uint64(1) << np.arange(min(64, piece.shape[1]), dtype=np.uint64)) for piece in pieces]


def _first_near(table: NDArray[np.uint8], index: int, candidates: list[int], distance: int) -> int | None:
    if not candidates:
        return None
    counts = _BITS_SET[table[candidates] ^ table[index]].sum(axis=1)
    near = np.flatnonzero(counts <= distance)
    return candidates[int(near[0])] if len(near) else None
