"""Replay: a ring of the latest moments of every environment, from which pieces are drawn.

On disk a replay is a folder of files that are never changed, each a stretch of moments, so that saving it costs what is
new. What an agent writes back (``extras``) stands in a file of its own.

Legend: n environments, m moments kept of each, b pieces drawn, t their length.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.atomic_files import atomic_write
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import ReplayBatch

MAX_SAMPLING_ATTEMPTS = 1000


class ReplayBuffer:
    """The last ``capacity`` moments.

    Args:
        capacity: moments, over all environments.
        environments: n.
        spaces: of the environments.
        extras: what else is kept with each moment: shape and dtype by name.
        seed: of the drawing.
        folder: keep the ring in files there rather than in memory; it is scratch, not what ``save`` writes.

    Raises:
        ValueError: the capacity is below one moment an environment.
    """

    def __init__(
        self,
        capacity: int,
        environments: int,
        spaces: EnvSpaces,
        extras: Mapping[str, tuple[tuple[int, ...], torch.dtype]] | None = None,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        if capacity < environments:
            raise ValueError(f"a replay of {capacity} moments has no room for {environments} environments")
        self.environments, self.size = environments, capacity // environments
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "observation": (spaces.observation, torch.uint8 if spaces.pixels else torch.float32),
            "reward": ((), torch.float32),
            "is_first": ((), torch.bool),
            "is_last": ((), torch.bool),
            "is_terminal": ((), torch.bool),
            "action": (spaces.action_shape, spaces.action_dtype),
        }
        self.extras = tuple(extras or {})
        self.played = tuple(shapes)
        self.ring = {
            name: _allocate_storage(name, (environments, self.size, *shape), dtype, folder)
            for name, (shape, dtype) in {**shapes, **(extras or {})}.items()
        }
        self.added = self.saved = 0
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Moments in it, over all environments."""
        return self.environments * self._kept

    @property
    def _kept(self) -> int:
        return min(self.added, self.size)

    def add(self, moment: TimeStep, action: Tensor, extras: Mapping[str, Tensor]) -> None:
        """Keep a moment of every environment, with what was done there."""
        place = self.added % self.size
        for name, value in {**moment._asdict(), "action": action, **extras}.items():
            self.ring[name][:, place] = value.detach().cpu().numpy()
        self.added += 1

    def can_sample(self, length: int) -> bool:
        """Whether there are pieces of this length at all."""
        return self._kept >= length

    def sample(self, batch: int, length: int, single_episode: bool = False, lead: int = 0) -> ReplayBatch:
        """Draw pieces, each start alike likely.

        Args:
            batch: b.
            length: t.
            single_episode: only pieces of one episode.
            lead: but for so many moments at their beginning, which may be of the episode before.

        Raises:
            ValueError: nothing in it is so long.
        """
        if not self.can_sample(length):
            raise ValueError(f"the replay has {self._kept} moments of each environment, pieces of {length} were asked")
        found: list[NDArray[np.int64]] = []
        for _ in range(MAX_SAMPLING_ATTEMPTS):
            lanes = self.generator.integers(self.environments, size=batch)
            first = self.generator.integers(self._kept - length + 1, size=batch) + self.added - self._kept
            times = (first[:, None] + np.arange(length)) % self.size
            places = lanes[:, None] * self.size + times
            if single_episode:
                places = places[~self._flat("is_first")[places[:, 1 + lead :]].any(axis=1)]
            found.append(places)
            if sum(map(len, found)) >= batch:
                return self.batch(np.concatenate(found)[:batch])
        raise ValueError(f"hardly an episode in the replay is {length} moments long: ask for shorter pieces")

    def batch(self, places: NDArray[np.int64]) -> ReplayBatch:
        """The moments at int64 [b, t] places."""
        drawn = {name: torch.from_numpy(self._flat(name)[places]) for name in self.ring}
        extras = {name: drawn.pop(name) for name in self.extras}
        return ReplayBatch(**drawn, extras=extras, places=torch.from_numpy(places))

    def write(self, places: Tensor, extras: Mapping[str, Tensor]) -> None:
        """Write extras [b, t, ...] back to where a batch came from; of places drawn twice the last one counts."""
        for name, value in extras.items():
            self._flat(name)[places.cpu().numpy()] = value.detach().cpu().numpy()

    def _flat(self, name: str) -> NDArray[Any]:
        array = self.ring[name]
        return array.reshape(-1, *array.shape[2:])

    # ------------------------------------------------------------------------------------------------------ on disk

    def save(self, folder: Path) -> dict[str, Any]:
        """Add what is new to a folder; returns what ``load`` needs beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        start = max(self.saved, self.added - self.size)
        if start < self.added:
            times = np.arange(start, self.added) % self.size
            _write_npz(folder / f"{start:012d}-{self.added:012d}.npz", {n: self.ring[n][:, times] for n in self.played})
        if self.extras:
            kept = np.arange(self.added - self._kept, self.added) % self.size
            _write_npz(folder / f"extras-{self.added:012d}.npz", {n: self.ring[n][:, kept] for n in self.extras})
        self.saved = self.added
        return {"added": self.added, "generator": self.generator.bit_generator.state}

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Take up what ``save`` wrote when it returned ``state``; what was written later is left out, but not deleted.

        Raises:
            ValueError: a stretch is missing, or of another shape.
        """
        self.added = self.saved = int(state["added"])
        oldest = self.added - self._kept
        covered = oldest
        for path in sorted(folder.glob("[0-9]*-[0-9]*.npz")):
            start, end = map(int, path.stem.split("-"))
            if oldest < end <= self.added:
                if start > covered:
                    break
                self._take(path, np.arange(start, end), oldest)
                covered = end
        if covered < self.added:
            raise ValueError(f"{folder}: the replay's moments {covered} to {self.added} are missing; start a new run")
        if self.extras:
            self._take(folder / f"extras-{self.added:012d}.npz", np.arange(oldest, self.added), oldest)
        self.generator.bit_generator.state = state["generator"]

    def prune(self, folder: Path) -> None:
        """Delete what the checkpoint that was saved or loaded last does not need: what is older, or was lived after it.

        For the run itself alone: whoever else reads the folder may find a checkpoint on its way into place.
        """
        for path in folder.glob("extras-*.npz"):
            if path.stem != f"extras-{self.saved:012d}":
                path.unlink()
        for path in folder.glob("[0-9]*-[0-9]*.npz"):
            if not self.saved - self.size < int(path.stem.split("-")[1]) <= self.saved:
                path.unlink()

    def _take(self, path: Path, times: NDArray[np.int64], oldest: int) -> None:
        kept = times >= oldest
        with np.load(path) as stretch:
            for name in stretch.files:
                if name not in self.ring or stretch[name].shape[2:] != self.ring[name].shape[2:]:
                    raise ValueError(f"{path}: holds {name} {stretch[name].shape[2:]}, which this run does not keep")
                self.ring[name][:, times[kept] % self.size] = stretch[name][:, kept]


def _allocate_storage(name: str, shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> NDArray[Any]:
    kind = torch.zeros((), dtype=dtype).numpy().dtype
    if folder is None:
        return np.zeros(shape, kind)
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape)


def _write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with atomic_write(path) as file:
        np.savez(file, **arrays)
