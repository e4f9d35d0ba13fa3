"""Goals from recordings: start and goal are states of one recorded episode, a number of frames apart.

stable-worldmodel (Galilai, 2026) evaluates planners so, because such a goal can be reached in that time. Every pair of
frames at that distance in one episode is equally likely, and none is drawn twice.
"""

from __future__ import annotations

import os

import numpy as np

from vwm.core.checks import check_positive
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_array_rows, read_episode_metadata
from vwm.planning.goal_task import RecordedGoals


def draw_recorded_goals(path: str | os.PathLike[str], episodes: int, offset: int, seed: int = 0) -> RecordedGoals:
    """Draw pairs of recorded states.

    Args:
        path: shards with states (``vwm record --state``).
        episodes: number of pairs.
        offset: frames from a start to its goal.
        seed: of the draw.

    Returns:
        The pairs in the order of the recording, which does not depend on the draw's.

    Raises:
        ValueError: the recording has no states, states of different names, or too few pairs.
    """
    check_positive(episodes=episodes, offset=offset)
    recorded = [(shard, entry) for shard in list_shards(path) for entry in load_shard_index(shard).episodes]
    if missing := next((entry.key for _, entry in recorded if "state.npy" not in entry.members), None):
        raise ValueError(f"{path}: episode {missing} has no states, which goals are set from: record with --state")
    pairs = np.maximum([entry.frames - offset for _, entry in recorded], 0)
    ends = np.cumsum(pairs)
    if not len(ends) or ends[-1] < episodes:
        raise ValueError(
            f"{path}: has {ends[-1] if len(ends) else 0} pairs of frames {offset} apart, fewer than {episodes}: record "
            "more or longer episodes, or lower the offset"
        )
    drawn = np.sort(np.random.default_rng(seed).choice(ends[-1], episodes, replace=False))
    starts, goals, names = [], [], set()
    for pair in drawn:
        number = int(np.searchsorted(ends, pair, side="right"))
        shard, entry = recorded[number]
        start = int(pair - (ends[number] - pairs[number]))
        states = read_array_rows(shard, entry, "state", start, start + offset + 1).astype(np.float64)
        starts.append(states[0])
        goals.append(states[-1])
        names.add(tuple(read_episode_metadata(shard, entry).get("state_names", ())))
    if len(names) > 1:
        raise ValueError(f"{path}: has episodes with different states ({sorted(names)}): give one recording")
    return RecordedGoals(np.stack(starts), np.stack(goals), names.pop())
