"""Reading clips by byte range equals reading whole episodes, aligned with actions, locally and remotely."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clip_order import ClipAddress
from vwm.data.clips import ClipDataset, collate_clips
from vwm.data.episode import Episode
from vwm.data.frame_reading import read_episode_frames
from vwm.data.shard_index import load_shard_index
from vwm.data.shards import ShardWriter


def counting_episode(first: int, length: int, side: int = 8) -> Episode:
    """A world that counts: frame i shows ``first + i``, and the action is by how much the next frame's number differs.

    The count jumps by the action (1 to 3), so a pair of frames tells which action lies between them.
    """
    rng = np.random.default_rng(first)
    actions = rng.integers(1, 4, length)
    numbers = first + np.concatenate(([0], actions[:-1].cumsum()))
    frames = np.broadcast_to(numbers[:, None, None, None], (length, side, side, 3)).astype(np.uint8)
    state = np.stack((numbers, np.arange(length)), axis=1).astype(np.float32)
    return Episode(frames, actions, (actions * 0.5).astype(np.float32), state)


def shown(frames: Any) -> np.ndarray:
    """The numbers that frames [t, h, w, 3] show."""
    return np.asarray(frames).astype(float).mean(axis=(1, 2, 3)).round().astype(int)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two shards of raw frames and one of H.264."""
    for shard, raw in enumerate((True, True, False)):
        with ShardWriter(tmp_path / "data" / f"shard-{shard:06d}.tar") as writer:
            for episode in range(3):
                length = 14 + 5 * episode + shard
                writer.write(f"{shard}-{episode}", counting_episode(20 * episode + 7 * shard, length, 32), raw=raw)
    return tmp_path / "data"


FIELDS = ("frames", "actions", "rewards", "state")


@pytest.mark.parametrize("length", [1, 4, 7])
def test_clips_are_pieces_of_the_episodes(data: Path, length: int) -> None:
    clips = make_clip_dataset(str(data), length, fields=FIELDS)
    for position in range(len(clips.order)):
        address = clips.order.address(1, position)
        clip, path = clips[1, position], clips.paths[address.shard]
        entry = clips.shards[address.shard].episodes[address.episode]
        episode = counting_episode(20 * address.episode + 7 * address.shard, entry.frames, 32)
        piece = slice(address.start, address.start + length)
        assert np.array_equal(clip["frames"], read_episode_frames(path, entry)[piece])
        assert abs(shown(clip["frames"]) - episode.state[piece, 0]).max() <= (0 if address.shard < 2 else 1)
        for field in FIELDS[1:]:
            assert clip[field].dtype == getattr(episode, field).dtype
            assert np.array_equal(clip[field], getattr(episode, field)[piece])
        assert clip["seed"] == address.seed


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Python's own web server ignores byte ranges."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("has_cache", [True, False])
def test_a_server_without_byte_ranges_gives_the_same_clips(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_cache: bool
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("cache" if has_cache else "file")))
    for sidecar in data.glob("*.index.json"):
        sidecar.unlink()
    handler = functools.partial(_QuietHandler, directory=str(data))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/shard-000001.tar"
        there, here = (make_clip_dataset(path, 5, fields=FIELDS) for path in (address, f"{data}/shard-000001.tar"))
        kept = "a copy is kept" if has_cache else "no copy can be kept"
        with pytest.warns(UserWarning, match=f"shard-000001.tar: the server ignores byte ranges .*{kept}"):
            first = there[0]
        server.shutdown()
        for field in FIELDS:
            assert np.array_equal(first[field], here[0][field])
        if has_cache:
            assert all(np.array_equal(there[i]["frames"], here[i]["frames"]) for i in range(1, 4))


def test_an_action_leads_to_the_next_frame(data: Path) -> None:
    clips = make_clip_dataset(f"{data}/shard-00000[01]*.tar", 6, fields=FIELDS)
    for epoch in range(2):
        for position in range(len(clips.order)):
            clip = clips[epoch, position]
            numbers = shown(clip["frames"])
            assert np.array_equal(np.diff(numbers), clip["actions"][:-1])
            assert np.array_equal(clip["rewards"], clip["actions"] * np.float32(0.5))
            assert np.array_equal(clip["state"][:, 0], numbers)


def test_remote_shards_read_the_same(data: Path) -> None:
    for local in data.iterdir():
        with fsspec.open(f"memory://test-clips/{local.name}", "wb") as file:
            file.write(local.read_bytes())
    here, there = (make_clip_dataset(path, 5, fields=FIELDS) for path in (str(data), "memory://test-clips"))
    assert there.paths[0].startswith("memory://") and here.order.index_hash == there.order.index_hash
    for position in range(len(here.order)):
        a, b = here[0, position], there[0, position]
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_stride(data: Path) -> None:
    clips = make_clip_dataset(str(data / "shard-000000.tar"), 4, stride=3, fields=("frames", "state"))
    assert clips.order.span == 10
    for position in range(len(clips.order)):
        clip = clips[0, position]
        assert clip["frames"].shape == (4, 32, 32, 3)
        assert np.array_equal(shown(clip["frames"]), clip["state"][:, 0])
        assert np.diff(clip["state"][:, 1]).tolist() == [3, 3, 3]


@pytest.mark.parametrize("fields", [("frames", "actions"), ("rewards",), ("terminated",)])
def test_rejects_a_stride_with_actions(data: Path, fields: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="stride=2 skips frames, so actions and rewards would not lead"):
        make_clip_dataset(str(data), 4, stride=2, fields=fields)


def test_rejects_unknown_fields(data: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown fields \['action'\]; choose from frames, actions"):
        make_clip_dataset(str(data), 4, fields=("frames", "action"))


def test_missing_fields_are_left_out(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.tar") as writer:
        writer.write("a", Episode(np.zeros((8, 4, 4, 3), np.uint8)))
    clips = make_clip_dataset(str(tmp_path), 4)
    batch = collate_clips([clips[0, 0], clips[0, 1]])
    assert batch.frames is not None and batch.actions is None and batch.state is None


def test_terminations_are_at_the_last_frame_of_their_episode(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.tar") as writer:
        for key, terminated in (("ended", True), ("cut", False)):
            writer.write(
                key, Episode(np.zeros((7, 4, 4, 3), np.uint8), terminated=terminated, truncated=not terminated)
            )
    clips = make_clip_dataset(str(tmp_path), 4, fields=("frames", "terminated"))
    for episode, last in ((0, True), (1, False)):
        said = [clips.read(ClipAddress(0, episode, start, 0))["terminated"].tolist() for start in range(4)]
        assert said == [[False] * 4] * 3 + [[False] * 3 + [last]]
    batch = collate_clips([clips[0, 0], clips[0, 1]])
    assert batch.terminated is not None and batch.terminated.dtype == torch.bool and batch.terminated.shape == (2, 4)


def test_json_is_read_only_for_terminations(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the json was read")

    monkeypatch.setattr("vwm.data.clips.read_episode_metadata", refuse)
    clips = make_clip_dataset(str(data), 4)
    assert "terminated" not in clips[0, 0]
    with pytest.raises(AssertionError, match="the json was read"):
        make_clip_dataset(str(data), 4, fields=("terminated",))[0, 0]


def test_rejects_frames_of_encoded_shards_without_video(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.tar") as writer:
        latents = np.arange(8 * 4, dtype=np.int32).reshape(8, 2, 2)
        writer.write_sample({"__key__": "a", "latents.npy": latents})
    clips = make_clip_dataset(str(tmp_path), 4, fields=("latents",))
    batch = collate_clips([clips[0, 0]])
    assert batch.latents.dtype == torch.int64
    start = clips.order.address(0, 0).start
    assert np.array_equal(batch.latents[0], latents[start : start + 4])
    with pytest.raises(ValueError, match=r"episode 'a' holds no frames .*data\.fields=\[latents, actions\]"):
        make_clip_dataset(str(tmp_path), 4)[0, 0]


def test_missing_rows_are_an_error(tmp_path: Path) -> None:
    """Foreign shards with T - 1 actions for T frames: the bytes behind the array are none of it."""
    with ShardWriter(tmp_path / "s.tar") as writer:
        sample = {"frames.npy": np.zeros((8, 4, 4, 3), np.uint8), "actions.npy": np.arange(7)}
        writer.write_sample({"__key__": "a", **sample})
    path = str(tmp_path / "s.tar")
    clips = make_clip_dataset(path, 4)
    assert np.array_equal(clips.read(ClipAddress(0, 0, 3, 0))["actions"], [3, 4, 5, 6])
    with pytest.raises(ValueError, match=r"s\.tar:a\.actions\.npy: has 7 rows, .* at least 8 frames"):
        clips.read(ClipAddress(0, 0, 4, 0))
    assert len(load_shard_index(path).episodes) == 1


def clip(side: int = 4, **more: Any) -> dict[str, Any]:
    return {"seed": np.int64(1), "frames": np.zeros((2, side, side, 3), np.uint8), **more}


def test_collate_types() -> None:
    actions = {"actions": np.zeros(2, np.uint8), "rewards": np.zeros(2, np.float32)}
    batch = collate_clips([clip(**actions), clip(**actions), clip(**actions)])
    assert batch.frames.shape == (3, 2, 4, 4, 3) and batch.frames.dtype == torch.uint8
    assert batch.actions.dtype == torch.int64 and batch.rewards.dtype == torch.float32
    assert batch.seed.tolist() == [1, 1, 1]
    assert collate_clips([clip(actions=np.zeros((2, 3), np.float32))]).actions.dtype == torch.float32


def test_rejects_a_batch_of_clips_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"differ in frames: .*4, 4.*8, 8.*one size"):
        collate_clips([clip(4), clip(8)])
    labeled = clip(actions=np.zeros(2, np.int64))
    for batch in ([labeled, clip()], [clip(), labeled]):
        with pytest.raises(ValueError, match=r"differ in actions: .*None.*leave actions out of data\.fields"):
            collate_clips(batch)


def test_a_dataset_can_be_sent_to_another_process(data: Path) -> None:
    import pickle

    clips = make_clip_dataset(str(data), 4)
    again: ClipDataset = pickle.loads(pickle.dumps(clips))
    assert all(np.array_equal(clips[0, 3][key], again[0, 3][key]) for key in clips[0, 3])
