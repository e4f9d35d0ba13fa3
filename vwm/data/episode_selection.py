"""Select a fraction of the episodes by a hash of their keys."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vwm.data.shard_index import ShardIndex

_PIECE_KEY = re.compile(r"(.*\d{6}-\d{4})-\d{5}")
"""Keys of the pieces into which ``vwm ingest`` cuts a video: shard, video, piece."""
LABELED_SALT = b"labelled"  # British spelling: another salt would select other episodes
"""Salt of the hash that selects labeled episodes, so that it is independent of the validation split."""


def split_group(key: str) -> str:
    """Return what decides on the split of an episode: pieces of one video are on the same side."""
    matched = _PIECE_KEY.fullmatch(key)
    return matched[1] if matched else key


def key_hash(key: str, salt: bytes = b"") -> float:
    """Map a key to a pseudo-random number in [0, 1). Other salts (up to 16 bytes) give independent numbers."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4, salt=salt).digest(), "big") / 2**32


def hash_threshold(keys: Iterable[str], fraction: float, salt: bytes = b"") -> float:
    """Return the threshold below which the hashes of exactly ``fraction`` of the keys lie.

    Their number is rounded, and at least 1 if ``fraction`` is above 0. (Comparing ``key_hash(key) < fraction`` would
    select that number only on average, and with few keys half or twice as many.)
    """
    hashes = sorted(key_hash(key, salt) for key in keys)
    count = min(len(hashes), max(round(fraction * len(hashes)), int(fraction > 0)))
    return hashes[count] if count < len(hashes) else 1.0


def find_labeled(shards: Sequence[ShardIndex], fraction: float) -> list[NDArray[np.bool_]]:
    """Return which episodes of each shard are labeled: they have actions, and are of the fraction that may use them."""
    labeled = [np.array(["actions.npy" in entry.members for entry in shard.episodes], bool) for shard in shards]
    if fraction == 1:
        return labeled
    threshold = hash_threshold((entry.key for shard in shards for entry in shard.episodes), fraction, LABELED_SALT)
    for shard, mask in zip(shards, labeled, strict=True):
        mask &= np.array([key_hash(entry.key, LABELED_SALT) < threshold for entry in shard.episodes], bool)
    return labeled
