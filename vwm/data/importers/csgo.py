"""Counter-Strike of Pearce and Zhu, on which DIAMOND was trained: HDF5 files of about 1,000 frames each.

Of frame i, a file has ``frame_i_x`` (uint8 [150, 280, 3], blue first), ``frame_i_y`` (51 columns of actions),
``frame_i_helperarr`` (a kill, a death) and ``frame_i_xaux`` (earlier actions, and health, ammunition and team), as
github.com/TeaPearce/Counter-Strike_Behavioural_Cloning describes. The data set comes in tars of 200 files.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.data.importers.csgo_actions import csgo_action_space, csgo_actions
from vwm.data.importers.source import EpisodeSummary, SeekableSource, SourceEpisode

FPS = 16.0
"""Rate of the recordings."""
FRAMES_AT_ONCE = 64
AUX_KEYS_AND_MOUSE = 15
"""Columns of ``frame_i_xaux`` before the health, ammunition and team of the frame before."""


class CsgoSource(SeekableSource):
    """A folder of such files, searched to any depth, or one file.

    States are what the files say besides the frame: whether the step to it brought a kill or a death, and health (of
    1), ammunition (of 30 rounds) and team (1 for counter-terrorists) one frame before. There are no rewards.

    Args:
        path: of the folder or file.

    Raises:
        ValueError: there are no such files.
        ImportError: h5py is not installed.
    """

    cameras = ("x",)
    state_names = ("kill", "death", "health before", "ammunition before", "team before")

    def __init__(self, path: Path) -> None:
        self.root = path if path.is_dir() else path.parent
        self.files = sorted(path.rglob("*.hdf5"), key=_number) if path.is_dir() else [path]
        if not self.files:
            raise ValueError(f"{path}: has no .hdf5 files: unpack the tars of the data set")

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        return [file.relative_to(self.root).as_posix() for file in self.files]

    def summarize(self) -> dict[str, EpisodeSummary]:
        """See ``SeekableSource``."""
        found = {}
        for name, path in zip(self.episode_names(), self.files, strict=True):
            try:
                with _open_file(path) as file:
                    found[name] = EpisodeSummary(_count_frames(file), str(path.stat().st_size))
            except ValueError as error:
                reason = str(error).removeprefix(f"{path.name}: ")
                raise ValueError(f"{path}: {reason}: download it again, or remove it") from error
        return found

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        with _open_file(self.root / name) as file:
            length = _count_frames(file)
            actions = csgo_actions(np.stack([_read(file, i, "y") for i in range(length)]))
            state = None
            if "frame_0_helperarr" in file and "frame_0_xaux" in file:
                events = np.stack([_read(file, i, "helperarr") for i in range(length)])
                known = slice(AUX_KEYS_AND_MOUSE, AUX_KEYS_AND_MOUSE + 3)
                state = np.hstack((events, np.stack([_read(file, i, "xaux")[known] for i in range(length)])))
                if state.shape[1] != len(self.state_names):
                    raise ValueError(f"has events and states of {state.shape[1]} columns, not {len(self.state_names)}")
        return SourceEpisode(
            length=length,
            iterate_frames=functools.partial(self._iterate_frames, name, length),
            actions=actions,
            state=state,
            fps=FPS,
            meta={"action_parts": [part.to_json() for part in csgo_action_space().parts]},
        )

    def files_of(self, name: str, cameras: Sequence[str]) -> list[Path]:
        """See ``SeekableSource``."""
        return [self.root / name]

    def read_frames(self, name: str, camera: str, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """See ``SeekableSource``."""
        with _open_file(self.root / name) as file:
            return [_read_picture(file, index) for index in indices]

    def _iterate_frames(self, name: str, length: int, camera: str) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, length, FRAMES_AT_ONCE):
            yield from self.read_frames(name, camera, range(start, min(start + FRAMES_AT_ONCE, length)))


def _count_frames(file: Any) -> int:
    """Return the number of frames of a file, which has equally many entries for each."""
    kinds = [kind for kind in ("x", "y", "xaux", "helperarr") if f"frame_0_{kind}" in file]
    if not {"x", "y"} <= set(kinds):
        raise ValueError("has no frame_0_x and frame_0_y, so that it is no recording of Counter-Strike")
    length, rest = divmod(len(file), len(kinds))
    if rest or f"frame_{length - 1}_x" not in file:
        raise ValueError(f"has {len(file)} entries, of which {len(kinds)} a frame are known: frames are missing")
    return length


def _read(file: Any, index: int, kind: str) -> NDArray[Any]:
    if f"frame_{index}_{kind}" not in file:
        raise ValueError(f"has no frame_{index}_{kind}")
    return np.asarray(file[f"frame_{index}_{kind}"][()])


def _read_picture(file: Any, index: int) -> NDArray[np.uint8]:
    picture = _read(file, index, "x")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"frame_{index}_x is {picture.dtype} {list(picture.shape)}, not uint8 [H, W, 3]")
    return np.ascontiguousarray(picture[..., ::-1])


@contextlib.contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Counter-Strike's recordings require h5py: pip install 'vwm[hdf5]'") from error
    try:
        file = h5py.File(path)
    except OSError as error:
        raise ValueError(f"{path.name}: is no HDF5 file, or a damaged one ({error})") from error
    with file:
        try:
            yield file
        except (OSError, RuntimeError) as error:  # h5py's, of damaged entries
            raise ValueError(f"{path.name}: is damaged ({error})") from error


def _number(file: Path) -> tuple[int, str]:
    """Return a key of sorting: files are numbered at the end of their names."""
    found = re.search(r"(\d+)$", file.stem)
    return int(found[1]) if found else -1, file.as_posix()
