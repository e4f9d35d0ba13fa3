"""What an export reads from the data of a run: starting contexts, the frame rate and the names of actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vwm.data.clip_folders import make_clip_dataset
from vwm.data.data_set_checks import check_same_kind
from vwm.data.in_place import short_data_name
from vwm.data.mixtures import DataPath, DataSet, list_data_sets
from vwm.data.shard_index import list_shards, load_shard_index, load_shard_indices
from vwm.data.shard_reading import read_episode_metadata


def find_export_data(config: Any, data: str | None) -> DataPath | None:
    """Return the data to read from, or None: a run can be exported after its own data was deleted.

    Args:
        config: of the run.
        data: what the user chose; "none" is no data, and None the run's own: of a mixture all data sets that are there.

    Raises:
        ValueError: the data sets of the run's mixture have come to differ in what was trained on.
    """
    if data == "none":
        return None
    if data is not None:
        list_shards(data)
        return data
    settings = config["data"]["init_args"]
    found = settings["path"]
    if isinstance(found, str):
        return found if _exists(found) else None
    there = [str(name) for name in found if _exists(str(name))]
    if not there:
        return None
    lost = [str(name) for name in found if str(name) not in there]
    if lost:
        print(f"note: {', '.join(lost)} of the run's data is no longer there; the export reads {', '.join(there)}")
    path: DataPath = {name: found[name] for name in there} if isinstance(found, Mapping) else there
    data_sets = list_data_sets(path)
    shards = [shard for data_set in data_sets for shard in data_set.shards]
    check_same_kind(data_sets, load_shard_indices(shards), settings["fields"])
    return path


def _exists(path: str) -> bool:
    try:
        list_shards(path)
    except FileNotFoundError:
        return False
    return True


def data_set_names(path: DataPath) -> list[str]:
    """Return the data sets of a path by name."""
    return [path] if isinstance(path, str) else [str(name) for name in path]


def read_recording(path: DataPath) -> tuple[dict[str, Any], float]:
    """Return the metadata of the first episode with actions, or else of the first one, and the frames per second.

    Only episodes that begin a data set are looked at: those of one data set are of one kind.
    """
    first = [(shard, load_shard_index(shard).episodes[0]) for shard in _first_shards(path)]
    described = next(((shard, entry) for shard, entry in first if "actions.npy" in entry.members), first[0])
    fps = next((entry.fps for _, entry in first if entry.fps), 0.0)
    return read_episode_metadata(*described), fps


def read_starts(path: DataPath, context: int, count: int) -> Tensor | None:
    """Read starting contexts, uint8 [n, t, h, w, 3], spread over the data; None where no data set holds video."""
    filmed = [
        data_set
        for data_set, shard in zip(list_data_sets(path), _first_shards(path), strict=True)
        if load_shard_index(shard).episodes[0].has_frames
    ]
    if not filmed:
        print(f"note: {', '.join(data_set_names(path))} holds no video, so that the bundle has no starting frames: "
              "give shards with video by --data")  # fmt: skip
        return None
    dataset = make_clip_dataset(_path_of(filmed), context, fields=("frames",), seed=1)
    total = len(dataset.order)
    count = min(count, total)
    chosen = [dataset[(0, i * total // count)]["frames"] for i in range(count)]
    return torch.stack([torch.from_numpy(clip.copy()) for clip in chosen])


def _path_of(data_sets: list[DataSet]) -> DataPath:
    if data_sets[0].weight is None:
        return [data_set.name for data_set in data_sets]
    return {data_set.name: float(data_set.weight) for data_set in data_sets if data_set.weight is not None}


def _first_shards(path: DataPath) -> list[str]:
    return [data_set.shards[0] for data_set in list_data_sets(path)]


def format_data(path: DataPath | None) -> str:
    """Return the data for a model card."""
    return "not named" if path is None else ", ".join(map(short_data_name, data_set_names(path)))
