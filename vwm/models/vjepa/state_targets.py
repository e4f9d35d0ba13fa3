"""The numbers of a data set's recorded state that a supervised training predicts, with their mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vwm.data.mixtures import DataPath
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_array, read_episode_metadata

MOST_EPISODES = 512
"""Episodes whose states give mean and deviation, at equal distances in the data."""


class StateTargets(NamedTuple):
    """Numbers of a state.

    Attributes:
        columns: int64 [o], their places in the state.
        mean, std: float32 [o], of the data.
    """

    columns: Tensor
    mean: Tensor
    std: Tensor


def read_state_targets(data: DataPath, names: Sequence[str], classes: int | None = None) -> StateTargets:
    """Find numbers of the recorded state by name (``vwm record --state``), and how they are distributed.

    Args:
        data: shards, see ``VideoDataModule``.
        names: of the numbers; where the data name none, their places, such as ``"0"``.
        classes: where they are classes, how many there are.

    Raises:
        ValueError: an episode has no state or other names, a name is unknown, a number never changes, or a class is no
            integer from 0 to ``classes`` - 1.
    """
    places = [data] if isinstance(data, str) else list(data)
    indices = [(shard, load_shard_index(shard)) for place in places for shard in list_shards(place)]
    episodes = [(shard, entry) for shard, index in indices for entry in index.episodes]
    states, known = [], None
    for shard, entry in episodes[:: -(-len(episodes) // MOST_EPISODES)]:
        if "state.npy" not in entry.members:
            raise ValueError(
                f"{shard}: episode {entry.key!r} has no state to predict: record with `vwm record --state`"
            )
        state = read_array(shard, entry, "state").astype(np.float64)
        found = read_episode_metadata(shard, entry).get("state_names") or [str(i) for i in range(state.shape[1])]
        known = known or found
        if found != known:
            raise ValueError(f"{shard}: the state of episode {entry.key!r} has other numbers than those before")
        states.append(state)
    unknown = [name for name in names if name not in (known or ())]
    if unknown or known is None:
        raise ValueError(f"state_names: there is no {', '.join(unknown)} in the state, only {', '.join(known or ())}")
    columns = [known.index(name) for name in names]
    values = np.concatenate(states)[:, columns]
    mean, std = values.mean(axis=0), values.std(axis=0)
    still = [name for name, deviation in zip(names, std, strict=True) if not deviation > 0]
    if still:
        raise ValueError(f"state_names: {', '.join(still)} never changes in these data: leave it out")
    strange = [] if classes is None else np.unique(values[(values % 1 != 0) | (values < 0) | (values >= classes)])
    if len(strange):
        raise ValueError(
            f"state_names: {', '.join(names)} has the value {strange[0]:g}, but classes are integers from 0 to "
            f"probe.classes - 1 = {(classes or 0) - 1}"
        )
    return StateTargets(torch.tensor(columns), torch.from_numpy(mean).float(), torch.from_numpy(std).float())
