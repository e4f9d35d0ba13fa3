"""Clips cut from a video by byte ranges of packets equal the frames of the decoded whole video."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from vwm.data import video_packets
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clip_order import ClipAddress
from vwm.data.shards import ShardWriter
from vwm.data.video import decode_frames
from vwm.data.video_encoding import encode_video

FRAMES = 40


def moving(height: int = 46, width: int = 62) -> np.ndarray:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (height, width + FRAMES, 3), dtype=np.uint8)
    return np.stack([scene[:, i : i + width] for i in range(FRAMES)])


def with_b_frames() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=15, options={"bf": "3", "x264-params": "b-adapt=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in moving(48, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


VIDEOS = {
    "short GOP": lambda: encode_video(moving(), fps=15),
    "odd sides": lambda: encode_video(moving(45, 61), fps=15),
    "long GOP": lambda: encode_video(moving(), fps=15, gop=250),
    "B-frames": with_b_frames,
}


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("stride", [1, 3])
def test_clips_of_a_video_equal_those_of_the_whole_video(name, stride, tmp_path):
    video = VIDEOS[name]()
    with ShardWriter(tmp_path / "shard-000000.tar") as shard:
        shard.write_sample({"__key__": "before", "json": {}, "mp4": encode_video(moving(), fps=15)})
        shard.write_sample({"__key__": "clip", "json": {}, "mp4": video})
    every = decode_frames(video, range(FRAMES), "clip", backend="pyav")
    dataset = make_clip_dataset(str(tmp_path), 6, stride=stride, fields=("frames",))
    for start in range(FRAMES - 5 * stride):
        address = ClipAddress(0, 1, start, 0)
        assert np.array_equal(dataset.read(address)["frames"], every[start : start + 5 * stride + 1 : stride])


@pytest.mark.parametrize(("name", "simple"), [("short GOP", True), ("B-frames", False)])
def test_only_simple_videos_are_cut_by_packets(name, simple, tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(VIDEOS[name]())
    table = video_packets._packet_table(str(path), 0, path.stat().st_size, name)
    assert (table is not None) == simple
    if table is not None:
        assert table.keyframes.tolist() == [0, 12, 24, 36] and len(table.offset) == FRAMES
