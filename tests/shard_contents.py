"""What shards hold, read without the project's readers."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


def read_shards(folder: Path) -> list[tuple[Arrays, dict[str, Any]]]:
    """Return arrays and metadata of each episode, in order."""
    found: dict[str, tuple[Arrays, dict[str, Any]]] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                arrays, meta = found.setdefault(key, ({}, {}))
                if extension == "json":
                    meta.update(json.loads(content))
                elif extension.endswith(".npy"):
                    arrays[extension[:-4]] = np.load(io.BytesIO(content))
    return [found[key] for key in sorted(found)]
