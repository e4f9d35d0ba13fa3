"""Choosing a share of the episodes by a hash of their keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def key_hash(key: str, salt: bytes = b"") -> float:
    """A number in [0, 1) that looks random and is the key's own; another salt (up to 16 bytes) makes another one."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4, salt=salt).digest(), "big") / 2**32


def hash_threshold(keys: Iterable[str], share: float, salt: bytes = b"") -> float:
    """The limit under which the hashes of ``share`` of the keys lie: rounded, but at least one key if share > 0.

    Where few are chosen, chance would have them be half or twice as many under ``key_hash(key) < share``.
    """
    hashes = sorted(key_hash(key, salt) for key in keys)
    count = min(len(hashes), max(round(share * len(hashes)), int(share > 0)))
    return hashes[count] if count < len(hashes) else 1.0
