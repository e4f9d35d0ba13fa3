"""Replay buffer: a ring of the latest time steps of every environment, from which sequences are drawn.

On disk it is a folder of files that never change, each a range of time steps, so that saving costs only what is new.
The values that an agent writes back (``extras``) are in a file of their own.

Legend: n environments, m time steps kept of each, b sequences drawn, t their length.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.atomic_files import atomic_write
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import ReplayBatch
from vwm.rl.replay_priorities import SequencePriorities
from vwm.rl.replay_storage import DeviceField, HostField, ReplayField

MAX_SAMPLING_ATTEMPTS = 1000


class ReplayBuffer:
    """The last ``capacity`` time steps.

    Args:
        capacity: time steps, over all environments.
        num_envs: n.
        spaces: of the environments.
        extras: what else is stored with each time step: shape and dtype by name.
        seed: of the sampling.
        folder: keep the ring in files there instead of in memory; scratch files, not those that ``save`` writes.
        device: keep observations and extras there, and read them there; None keeps them where the rest is. The samples
            are the same.
        priorities: of the sequences, for ``sample_by_priority``.

    Raises:
        ValueError: the capacity is below one time step per environment.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        spaces: EnvSpaces,
        extras: Mapping[str, tuple[tuple[int, ...], torch.dtype]] | None = None,
        seed: int = 0,
        folder: Path | None = None,
        device: torch.device | None = None,
        priorities: SequencePriorities | None = None,
    ) -> None:
        if capacity < num_envs:
            raise ValueError(f"capacity={capacity} must be at least the number of environments, {num_envs}")
        self.num_envs = num_envs
        self.size = capacity // num_envs
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "observation": (spaces.observation.shape, spaces.observation.dtype),
            "reward": ((), torch.float32),
            "is_first": ((), torch.bool),
            "is_last": ((), torch.bool),
            "is_terminal": ((), torch.bool),
            "action": (spaces.actions.shape, spaces.actions.dtype),
        }
        self.extras = tuple(extras or {})
        self.step_keys = tuple(shapes)
        self.fields: dict[str, ReplayField] = {}
        for name, (shape, dtype) in {**shapes, **(extras or {})}.items():
            if device is not None and (name == "observation" or name in self.extras):
                self.fields[name] = DeviceField(num_envs, self.size, shape, dtype, device)
            else:
                file = None if folder is None else folder / f"{name}.npy"
                self.fields[name] = HostField(num_envs, self.size, shape, dtype, file)
        is_first, is_terminal = self.fields["is_first"], self.fields["is_terminal"]
        assert isinstance(is_first, HostField) and isinstance(is_terminal, HostField)  # they decide what is drawn
        self.is_first, self.is_terminal = is_first.flat, is_terminal.flat
        self.priorities = priorities
        self.num_added = 0
        self.num_saved = 0
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Return the number of time steps stored, over all environments."""
        return self.num_envs * self._steps_per_env

    @property
    def _steps_per_env(self) -> int:
        return min(self.num_added, self.size)

    @property
    def _oldest(self) -> int:
        """Number of the oldest time step stored, counted from the first one ever added."""
        return self.num_added - self._steps_per_env

    def add(self, time_step: TimeStep, action: Tensor, extras: Mapping[str, Tensor]) -> None:
        """Store a time step of every environment, with the action taken there."""
        position = self.num_added % self.size
        for name, value in {**time_step._asdict(), "action": action, **extras}.items():
            self.fields[name].write(position, value)
        self.num_added += 1
        if self.priorities is not None:
            self.priorities.follow(self.num_added)

    def can_sample(self, length: int) -> bool:
        """Return whether the buffer holds sequences of this length."""
        return self._steps_per_env >= length

    def sample(
        self, batch: int, length: int, single_episode: bool = False, context_steps: int = 0, past_ends: bool = False
    ) -> ReplayBatch:
        """Draw sequences, with uniform starts.

        Args:
            batch: b.
            length: t.
            single_episode: only sequences within one episode.
            context_steps: how many of the first time steps may belong to the previous episode all the same.
            past_ends: of a single episode, also sequences that run past its termination, whose last time step is
                repeated there, so that an end may be at any place.

        Raises:
            ValueError: the buffer holds no such sequence.
        """
        if not self.can_sample(length):
            raise ValueError(
                f"the replay buffer holds {self._steps_per_env} time steps per environment, fewer than length={length}"
            )
        sequences: list[NDArray[np.int64]] = []
        for _ in range(MAX_SAMPLING_ATTEMPTS):
            env_indices = self.generator.integers(self.num_envs, size=batch)
            first = self.generator.integers(self._steps_per_env - length + 1, size=batch) + self._oldest
            times = (first[:, None] + np.arange(length)) % self.size
            indices = env_indices[:, None] * self.size + times
            if past_ends:
                indices = self._stay_at_ends(indices)
            if single_episode:
                indices = indices[~self.is_first[indices[:, 1 + context_steps :]].any(axis=1)]
            sequences.append(indices)
            if sum(map(len, sequences)) >= batch:
                return self.gather(np.concatenate(sequences)[:batch])
        raise ValueError(f"too few episodes in the replay buffer are {length} time steps long: reduce the batch length")

    def _stay_at_ends(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return sequences [n, t] in which the first termination after the first time step is repeated to the end."""
        terminal = self.is_terminal[indices]
        terminal[:, 0] = False  # nothing is learned from what only follows an end
        places = np.arange(indices.shape[1])
        end = np.where(terminal.any(axis=1), terminal.argmax(axis=1), places[-1])
        return np.take_along_axis(indices, np.minimum(places, end[:, None]), axis=1)

    def sample_by_priority(self, batch: int) -> ReplayBatch:
        """Draw b sequences of the length that ``priorities`` has, in proportion to them.

        The batch's extras also hold ``relative_probability`` float32 [b], with which each sequence was drawn, as a
        multiple of the probability that all would have equally.
        """
        assert self.priorities is not None
        env_indices, first, relative = self.priorities.draw(self.generator, batch)
        times = (first[:, None] + np.arange(self.priorities.length)) % self.size
        drawn = self.gather(env_indices[:, None] * self.size + times)
        return drawn._replace(extras={**drawn.extras, "relative_probability": torch.from_numpy(relative)})

    def update_priorities(self, batch: ReplayBatch, priorities: Tensor) -> None:
        """Set the priorities [b] of a batch that ``sample_by_priority`` drew; of duplicates the last one counts."""
        assert self.priorities is not None
        self.priorities.update(batch.indices[:, self.priorities.root].numpy(), priorities.cpu().numpy())

    def gather(self, indices: NDArray[np.int64]) -> ReplayBatch:
        """Return the time steps at given indices, int64 [b, t]."""
        drawn = {name: field.read(indices) for name, field in self.fields.items()}
        extras = {name: drawn.pop(name) for name in self.extras}
        return ReplayBatch(**drawn, extras=extras, indices=torch.from_numpy(indices))

    def update_extras(self, indices: Tensor, extras: Mapping[str, Tensor]) -> None:
        """Write extras [b, t, ...] back to the indices of a batch; of duplicate indices the last value counts."""
        for name, value in extras.items():
            self.fields[name].overwrite(indices, value)

    # ------------------------------------------------------------------------------------------------------ on disk

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what is new into a folder; return the state that ``load`` needs in addition."""
        folder.mkdir(parents=True, exist_ok=True)
        start = max(self.num_saved, self.num_added - self.size)
        if start < self.num_added:
            times = np.arange(start, self.num_added) % self.size
            segment = {name: self.fields[name].dump(times) for name in self.step_keys}
            _write_npz(folder / f"{start:012d}-{self.num_added:012d}.npz", segment)
        if self.extras:
            kept = np.arange(self._oldest, self.num_added) % self.size
            extras = {name: self.fields[name].dump(kept) for name in self.extras}
            _write_npz(folder / f"extras-{self.num_added:012d}.npz", extras)
        self.num_saved = self.num_added
        state = {"num_added": self.num_added, "generator": self.generator.bit_generator.state}
        return state if self.priorities is None else {**state, "priorities": self.priorities.state_dict()}

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Restore the buffer as it was when ``save`` returned ``state``; files written later are ignored, not deleted.

        Raises:
            ValueError: a file is missing, or has arrays of another shape.
        """
        self.num_added = int(state["num_added"])
        self.num_saved = self.num_added
        oldest = self._oldest
        covered = oldest
        for path in sorted(folder.glob("[0-9]*-[0-9]*.npz")):
            start, end = map(int, path.stem.split("-"))
            if oldest < end <= self.num_added:
                if start > covered:
                    break
                self._load_segment(path, np.arange(start, end), oldest)
                covered = end
        if covered < self.num_added:
            raise ValueError(
                f"{folder}: time steps {covered} to {self.num_added} of the replay buffer are missing; start a new run"
            )
        if self.extras:
            self._load_segment(folder / f"extras-{self.num_added:012d}.npz", np.arange(oldest, self.num_added), oldest)
        self.generator.bit_generator.state = state["generator"]
        if self.priorities is not None:
            self.priorities.load_state_dict(state["priorities"])

    def prune(self, folder: Path) -> None:
        """Delete the files that the checkpoint saved or loaded last does not need: too old or written after it.

        Only the run itself may call this: another reader of the folder may be using a checkpoint that is being
        replaced.
        """
        for path in folder.glob("extras-*.npz"):
            if path.stem != f"extras-{self.num_saved:012d}":
                path.unlink()
        for path in folder.glob("[0-9]*-[0-9]*.npz"):
            if not self.num_saved - self.size < int(path.stem.split("-")[1]) <= self.num_saved:
                path.unlink()

    def _load_segment(self, path: Path, times: NDArray[np.int64], oldest: int) -> None:
        kept = times >= oldest
        for name, rows in _read_npz(path):
            if name not in self.fields or rows.shape[2:] != self.fields[name].shape:
                raise ValueError(f"{path}: holds {name} of shape {rows.shape[2:]}, which this run does not store")
            self.fields[name].restore(times[kept] % self.size, rows[:, kept])


def _read_npz(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield names and arrays, with their checksums compared, which ``np.load`` does not do for whole arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                yield member.removesuffix(".npy"), np.load(io.BytesIO(archive.read(member)), allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path}: is cut off or damaged ({error}): start a new run") from error


def _write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with atomic_write(path) as file:
        np.savez(file, **arrays)
