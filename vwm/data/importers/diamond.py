"""DIAMOND's recordings: a ``.pt`` file an episode, with ``obs``, ``act``, ``rew``, ``end`` and ``trunc``.

The layout is that of github.com/eloialonso/diamond: ``obs`` is uint8 [T, 3, H, W], and entry t of all others belongs to
the observation t. The files are read without running code of theirs. Of Counter-Strike at low resolution, ``act`` has
51 columns.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.data.importers.csgo_actions import csgo_action_space, csgo_actions
from vwm.data.importers.named_arrays import count_frames, find_cameras, make_episode
from vwm.data.importers.source import EpisodeSource, SourceEpisode

ARRAYS = ("obs", "act", "rew", "end", "trunc")


class DiamondSource(EpisodeSource):
    """A folder of recordings, such as ``dataset/train`` of a run of DIAMOND, or one file.

    Args:
        path: of the folder or file.

    Raises:
        ValueError: there are no recordings.
    """

    cameras = ("obs",)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path if path.is_dir() else path.parent
        if not any(True for _ in self._find_files()):
            raise ValueError(f"{path}: has no recordings of DIAMOND (.pt)")

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        return [file.relative_to(self.root).as_posix() for file in sorted(self._find_files(), key=_number)]

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        arrays = _load(self.root / name)
        if "obs" not in find_cameras(arrays):
            raise ValueError(f"obs must be uint8 [T, 3, H, W], is {_describe(arrays.get('obs'))}")
        part = slice(0, count_frames(arrays, "obs"))
        if arrays.get("act", np.empty(0)).ndim < 2:
            return make_episode(arrays, self.cameras, part)
        actions = csgo_actions(arrays.pop("act"))
        meta = {"action_parts": [part.to_json() for part in csgo_action_space().parts]}
        return replace(make_episode(arrays, self.cameras, part, meta=meta), actions=actions[part])

    def _find_files(self) -> Iterator[Path]:
        for file in self.path.rglob("*.pt") if self.path.is_dir() else [self.path]:
            if file.name != "info.pt":  # which counts the episodes
                yield file


def _load(file: Path) -> dict[str, NDArray[Any]]:
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it names {found.group(1)}, which could run code" if found else "it is damaged, or another kind of file"
        )
        raise ValueError(f"cannot be read as a file of tensors only: {reason}") from error
    if not isinstance(content, dict) or not isinstance(content.get("obs"), torch.Tensor):
        raise ValueError("has no tensor `obs`, so that it is no recording of DIAMOND")
    return {name: content[name].numpy() for name in ARRAYS if isinstance(content.get(name), torch.Tensor)}


def _describe(array: NDArray[Any] | None) -> str:
    return "missing" if array is None else f"{array.dtype} {list(array.shape)}"


def _number(file: Path) -> tuple[str, int, str]:
    """Return a key of sorting: recordings lie in three levels of folders by the digits of their number."""
    split = next((part for part in file.parts if part in ("train", "test")), "")
    found = re.fullmatch(r"\d+", file.stem)
    return split, int(found.group()) if found else -1, file.as_posix()
