"""The clip order is a pure function, and every epoch has every clip once, for every layout of the shards."""

from __future__ import annotations

import numpy as np
import pytest

from vwm.data.clip_order import ClipAddress, ClipOrder
from vwm.data.shard_index import EpisodeIndexEntry, ShardIndex


def shards(lengths: list[list[int]]) -> list[ShardIndex]:
    """Shards whose episodes have these lengths."""
    made = []
    for s, shard in enumerate(lengths):
        episodes = tuple(EpisodeIndexEntry(f"{s}-{e}", frames, 8, 8, 0, {}) for e, frames in enumerate(shard))
        made.append(ShardIndex(f"shard-{s:06d}.tar", 0, f"hash{s}", episodes))
    return made


def random_layout(rng: np.random.Generator) -> list[list[int]]:
    """Some shards and episodes are empty or too short; one episode is always long."""
    layout = [rng.integers(0, 40, rng.integers(0, 6)).tolist() for _ in range(rng.integers(1, 12))]
    return [*layout, [50]]


def epoch(order: ClipOrder, number: int) -> list[ClipAddress]:
    return [order.address(number, position) for position in range(len(order))]


@pytest.mark.parametrize("trial", range(25))
def test_every_clip_once_and_inside_its_episode(trial: int) -> None:
    rng = np.random.default_rng(trial)
    layout, length, stride = random_layout(rng), int(rng.integers(1, 8)), int(rng.integers(1, 4))
    span, block = (length - 1) * stride + 1, int(rng.integers(1, 6))
    order = ClipOrder(shards(layout), length, stride, seed=trial, shuffle=bool(trial % 3), shards_per_block=block)
    assert len(order) == sum(frames // span for shard in layout for frames in shard)
    for number in (0, 1, 7):
        clips = epoch(order, number)
        by_episode: dict[tuple[int, int], list[int]] = {}
        for clip in clips:
            by_episode.setdefault((clip.shard, clip.episode), []).append(clip.start)
        for (shard, episode), starts in by_episode.items():
            starts.sort()
            frames = layout[shard][episode]
            assert len(starts) == frames // span
            assert np.diff(starts).tolist() == [span] * (len(starts) - 1)  # next to each other, without overlap
            assert 0 <= starts[0] <= frames % span
            assert starts[-1] + span <= frames
        assert sum(map(len, by_episode.values())) == len(clips)
        assert len({clip.seed for clip in clips}) > 0.9 * len(clips)


@pytest.mark.parametrize("trial", range(10))
def test_the_same_arguments_give_the_same_address(trial: int) -> None:
    rng = np.random.default_rng(trial)
    layout = random_layout(rng)
    order = ClipOrder(shards(layout), 4, seed=trial, shards_per_block=3)
    there = {(e, p): order.address(e, p) for e in range(4) for p in range(len(order))}
    other = ClipOrder(shards(layout), 4, seed=trial, shards_per_block=3)
    visits = list(there)
    for i in rng.permutation(len(visits))[:200]:  # in any order of asking, by an order that saw nothing before
        assert other.address(*visits[i]) == there[visits[i]]
    assert other.index_hash == order.index_hash


def test_epochs_and_seeds_differ() -> None:
    layout = [[37, 22], [15, 41], [33]]
    order = ClipOrder(shards(layout), 4)
    first, second = epoch(order, 0), epoch(order, 1)
    assert len(first) == len(second)
    for other in (second, epoch(ClipOrder(shards(layout), 4, seed=1), 0)):
        assert [c[:2] for c in first] != [c[:2] for c in other]  # other places in the epoch
        assert {c.start for c in first if c[:2] == (0, 0)} != {c.start for c in other if c[:2] == (0, 0)} or (
            {c[:3] for c in first} != {c[:3] for c in other}
        )
        assert not {c.seed for c in first} & {c.seed for c in other}


def test_every_offset_comes_up() -> None:
    order = ClipOrder(shards([[11]]), 4)
    assert {order.address(e, 0).start % 4 for e in range(60)} == {0, 1, 2, 3}


def test_unshuffled() -> None:
    order = ClipOrder(shards([[9, 3], [], [4, 5]]), 4, shuffle=False, shards_per_block=2)
    for number in (0, 3):
        assert [c[:3] for c in epoch(order, number)] == [(0, 0, 0), (0, 0, 4), (2, 0, 0), (2, 1, 0)]


def test_clips_of_a_block_stay_together() -> None:
    """Reads stay local: a block's clips are one run of positions, and the shards of a block change each epoch."""
    order = ClipOrder(shards([[20]] * 9), 4, shards_per_block=3)
    blocks = []
    for number in range(3):
        members = [{c.shard for c in epoch(order, number)[i : i + 15]} for i in (0, 15, 30)]
        assert all(len(m) == 3 for m in members) and set().union(*members) == set(range(9))
        blocks.append(members)
    assert blocks[0] != blocks[1] != blocks[2]


def test_past_the_end() -> None:
    order = ClipOrder(shards([[9]]), 4)
    for position in (-1, 2, 100):
        with pytest.raises(IndexError, match=f"position {position} is outside an epoch of 2 clips"):
            order.address(0, position)


@pytest.mark.parametrize("layout", [[[6, 3], [2]], [[], []], [[0]]])
def test_rejects_episodes_shorter_than_a_clip(layout: list[list[int]]) -> None:
    longest, episodes = max((n for s in layout for n in s), default=0), sum(map(len, layout))
    with pytest.raises(ValueError, match="a clip of 4 frames at stride 2 spans 7 frames") as caught:
        ClipOrder(shards(layout), 4, stride=2)
    assert f"the longest of {episodes} episodes has {longest}" in str(caught.value)


def test_the_hash_depends_on_the_data() -> None:
    base = shards([[9, 8], [12]])
    renamed = [ShardIndex("other.tar", 0, base[0].hash, base[0].episodes), base[1]]
    changed = [ShardIndex(base[0].tar, 0, "other", base[0].episodes), base[1]]
    fewer = [ShardIndex(base[0].tar, 0, base[0].hash, base[0].episodes[:1]), base[1]]  # as when more is held out
    hashes = [ClipOrder(s, 4).index_hash for s in (base, renamed, changed, fewer, base[::-1], base[:1])]
    assert len(set(hashes)) == len(hashes)
