"""kyutai/rocket-science: matches of Rocket League in WebDataset tars, four views, keys and physics.

``index.json`` lists the matches. Sample ``MATCH_cCHUNK`` holds some seconds of one: ``p0.mp4`` to ``p3.mp4``, the keys
of every frame (``p0.jsonl``) and, where they are known, the physics (``p0.physics.jsonl``). Each sample is an episode.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.action_parts import ActionPart
from vwm.core.json_files import parse_json_object, read_json_object
from vwm.data.importers.source import EpisodeSource, SourceEpisode
from vwm.data.importers.tar_members import TarMembers
from vwm.data.video import decode_frames

KEYS = ("W", "A", "S", "D", "Q", "E", "Space", "LShiftKey", "LControlKey")
"""In the order of the data set's own loader."""
BODY = ("location.x", "location.y", "location.z", "velocity.x", "velocity.y", "velocity.z")
ROTATION = ("rotation.x", "rotation.y", "rotation.z", "rotation.w")
SPIN = ("angular_velocity.x", "angular_velocity.y", "angular_velocity.z")
CAR = ("boost_amount", "is_on_ground", "is_supersonic", "attacker_player_id")
GAME = ("time_remaining", "score_blue", "score_orange", "is_overtime")
CARS = 4


class RocketScienceSource(EpisodeSource):
    """A folder with ``index.json`` and the tars that it names, as one split of the data set has them.

    Actions are the keys of the players whose views are chosen, one part for each. States are the physics as the first
    of them recorded it: numbers named by the fields of the data set, 0 where an optional one is missing.

    Args:
        folder: of the split.

    Raises:
        ValueError: the folder has no index, or one of another layout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "index.json").is_file():
            raise ValueError(f"{folder}: has no index.json; give the folder of one split of rocket-science")
        self.matches = {str(m["match_id"]): m for m in _read_entries(folder / "index.json")}
        self.cameras = tuple(f"p{i}" for i in range(max(int(m["n_players"]) for m in self.matches.values())))
        self.chosen = self.cameras
        self.state_names = tuple(name for name, _ in _STATE)

    def use(self, cameras: tuple[str, ...]) -> None:
        """See ``EpisodeSource``."""
        self.chosen = cameras

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        return [f"{match}_c{chunk:05d}" for match, entry in self.matches.items() for chunk in _chunks(entry)]

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        match, chunk = name.rsplit("_c", 1)
        entry = self.matches[match]
        position = _chunks(entry).index(int(chunk))
        length, first = int(entry["chunk_frames"][position]), sum(map(int, entry["chunk_frames"][:position]))
        players = sorted(entry["perspectives"], key=lambda player: player["player_id"])
        fps = sum(map(int, entry["chunk_frames"])) / float(players[0]["duration"])
        tar = self._open_tar(str(entry["shard"]))
        keys = [_read_keys(_read_lines(tar, f"{name}.{camera}.jsonl", length), camera) for camera in self.chosen]
        physics = f"{name}.{self.chosen[0]}.physics.jsonl"
        state = _read_physics(_read_lines(tar, physics, length)) if physics in tar.names else None
        parts = [ActionPart("keys", len(KEYS), name=camera, names=KEYS).to_json() for camera in self.chosen]
        meta: dict[str, Any] = {"action_parts": parts, "match": match, "chunk": int(chunk), "arena": entry.get("arena")}
        meta["players"] = [{key: player[key] for key in ("player_id", "team")} for player in players]
        meta["events"] = _find_events(players[int(self.chosen[0][1:])], fps, first, length)
        return SourceEpisode(
            length=length,
            iterate_frames=functools.partial(_iterate_frames, tar, name, length),
            actions=np.concatenate(keys, axis=1),
            state=state,
            fps=fps,
            meta=meta,
        )

    def _open_tar(self, shard: str) -> TarMembers:
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise ValueError(f"its shard {shard} leads out of the folder")
        if shard not in self._tars:
            self._tars[shard] = TarMembers(self.folder / shard)
        return self._tars[shard]

    @functools.cached_property
    def _tars(self) -> dict[str, TarMembers]:
        return {}


def _read_entries(index: Path) -> list[dict[str, Any]]:
    entries = read_json_object(index).get("entries")
    needed = ("match_id", "shard", "n_players", "chunk_frames", "perspectives")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{index}: lists no matches (entries)")
    for entry in entries:
        missing = [key for key in needed if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(f"{index}: a match has no {', '.join(missing)}")
    return entries


def _chunks(entry: dict[str, Any]) -> list[int]:
    """Return the numbers of a match's samples in the names of files, where some are left out."""
    count = len(entry["chunk_frames"])
    numbers = entry.get("chunk_indices")
    return list(range(count)) if numbers is None else [int(number) for number in numbers][:count]


def _read_lines(tar: TarMembers, name: str, length: int) -> list[dict[str, Any]]:
    """Return the object of every frame; an empty line is an empty one."""
    lines = tar.read(name).decode(errors="replace").splitlines()
    if len(lines) != length:
        raise ValueError(f"{name} has {len(lines)} lines for {length} frames")
    return [parse_json_object(line, f"{name}, line {i}") if line.strip() else {} for i, line in enumerate(lines, 1)]


def _read_keys(lines: list[dict[str, Any]], camera: str) -> NDArray[np.float32]:
    """Return [T, 9]: 1 where a key is held."""
    held = np.zeros((len(lines), len(KEYS)), np.float32)
    for frame, line in enumerate(lines):
        for key in line.get("keys") or ():
            if key not in KEYS:
                raise ValueError(f"key {key!r} of {camera} at frame {frame} is none of {' '.join(KEYS)}")
            held[frame, KEYS.index(key)] = 1
    return held


def _name_state() -> list[tuple[str, tuple[str | int, ...]]]:
    """Return each number of the state: its name, and the way to it in the object of a frame."""
    paths: list[tuple[str | int, ...]] = [("game", name) for name in GAME]
    paths += [("ball", *name.split(".")) for name in (*BODY, *ROTATION, *SPIN)]
    for car in range(CARS):
        paths += [("cars", car, *name.split(".")) for name in (*BODY, *ROTATION, *SPIN, *CAR)]
    return [(".".join(map(str, path)), path) for path in paths]


_STATE = _name_state()


def _read_physics(lines: list[dict[str, Any]]) -> NDArray[np.float32]:
    """Return [T, S]; cars are in the order of their players."""
    rows = []
    for line in lines:
        cars = sorted(line.get("cars") or (), key=lambda car: car.get("player_id", 0))
        rows.append([_follow(line | {"cars": cars}, path) for _, path in _STATE])
    return np.array(rows, np.float32).reshape(len(lines), len(_STATE))


def _follow(value: Any, path: tuple[str | int, ...]) -> float:
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list):
            value = value[int(step)] if int(step) < len(value) else None
    return float(value or 0)


def _find_events(player: dict[str, Any], fps: float, first: int, length: int) -> list[dict[str, Any]]:
    """Return what happens in a sample, with the frame at which it does, by the clock of a player's recording."""
    events = []
    for anchor in player.get("anchors") or ():
        frame = round((float(anchor["master_sec"]) - float(player.get("recording_offset_sec", 0))) * fps) - first
        if 0 <= frame < length:
            events.append({"event": anchor["event_name"], "frame": frame})
    return events


def _iterate_frames(tar: TarMembers, name: str, length: int, camera: str) -> Iterator[NDArray[np.uint8]]:
    yield from decode_frames(tar.read(f"{name}.{camera}.mp4"), range(length), f"{name}.{camera}.mp4")
