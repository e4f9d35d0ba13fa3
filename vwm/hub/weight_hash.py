"""The hash of a bundle's weights, by which reports say what they measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vwm.hub.bundle_names import find_folder


def hash_weights(bundle: Path) -> str:
    """Hash the safetensors files of a bundle (a folder, or the name of a shipped one or of one on the hub)."""
    digest = hashlib.blake2b(digest_size=16)
    bundle = find_folder(bundle)
    for file in sorted(bundle.rglob("*.safetensors")):
        digest.update(f"{file.relative_to(bundle).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
