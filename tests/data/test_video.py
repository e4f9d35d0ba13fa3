"""Encoding, probing and reading: exact frame counts, and the same frame of an index from every backend."""

from __future__ import annotations

import importlib.util
import io
import struct
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vwm.data import video
from vwm.data.timeouts import call_with_timeout
from vwm.data.video import decode_frames, probe_video
from vwm.data.video_encoding import encode_video, write_video

BACKENDS = [b for b in ("decord", "torchcodec", "pyav") if b == "pyav" or importlib.util.find_spec(b)]


def numbered(count: int, height: int = 32, width: int = 64) -> NDArray[np.uint8]:
    """Frames with their number in binary, as eight upright stripes: ``numbers_of`` reads it back."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    stripes = np.repeat(bits * 200 + 20, width // 8, axis=1).astype(np.uint8)
    return np.broadcast_to(stripes[:, None, :, None], (count, height, width, 3)).copy()


def numbers_of(frames: NDArray[np.uint8]) -> list[int]:
    stripes = frames.mean(axis=(1, 3)).reshape(len(frames), 8, -1).mean(axis=2)
    return ((stripes > 120) @ (1 << np.arange(8))).tolist()


def encode(
    frames: NDArray[np.uint8],
    stamps: list[int] | None = None,
    container_format: str = "mp4",
    codec: str = "libx264",
    **options: str,
) -> bytes:
    """A video made as other people make them: B-frames, long GOPs, any time stamps (in 1/30 s)."""
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


VARIABLE = list(np.cumsum([1, 1, 5, 1, 2, 7, 1, 1] * 10))
FOREIGN = {
    "b-frames": lambda: encode(numbered(80), crf="10", bf="3", g="25"),
    "variable frame rate": lambda: encode(numbered(80), VARIABLE, crf="10", bf="2", g="25"),
    "matroska": lambda: encode(numbered(80), VARIABLE, "matroska", crf="10", bf="2", g="25"),
    "mpeg-4 in avi": lambda: encode(numbered(80), None, "avi", "mpeg4", bf="2", g="25", qmax="3"),
    "own": lambda: encode_video(numbered(80), 15),
}


@pytest.mark.parametrize("size", [(64, 64), (63, 64), (64, 35), (17, 33), (2, 2), (1, 1)])
def test_encoding_keeps_size_count_rate_and_pixels(size: tuple[int, int]) -> None:
    frames = np.broadcast_to(np.arange(0, 150, 10, dtype=np.uint8)[:, None, None, None], (15, *size, 3))
    data = encode_video(frames, 12.5)
    assert probe_video(data, "x") == {"frames": 15, "height": size[0], "width": size[1], "fps": 12.5}
    assert np.abs(decode_frames(data, range(15), "x").astype(int) - frames).max() <= 3


def test_encoding_is_deterministic_and_has_short_gops() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    data = encode_video(noise, 15)
    assert data == encode_video(noise, 15)
    with av.open(io.BytesIO(data)) as container:
        keys = [i for i, p in enumerate(q for q in container.demux(video=0) if q.size) if p.is_keyframe]
    assert max(np.diff([*keys, 30])) <= 12


@pytest.mark.parametrize("bad", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((0, 4, 4, 3), np.uint8)])
def test_encoding_rejects_invalid_frames(bad: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="frames must be uint8"):
        encode_video(bad, 15)
    with pytest.raises(ValueError, match="fps must be above 0"):
        encode_video(numbered(2), 0)


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_every_backend_returns_the_frame_of_an_index(kind: str, backend: video.VideoBackend) -> None:
    if backend == "decord" and kind == "mpeg-4 in avi":
        pytest.skip("decord mixes up B-frames in AVI; auto does not use it there")
    data = FOREIGN[kind]()
    assert probe_video(data, kind)["frames"] == 80
    wanted = [79, 3, 41, 3, 0, 24, 25, 26]
    assert numbers_of(decode_frames(data, wanted, kind, backend)) == wanted


@pytest.mark.skipif("decord" not in BACKENDS, reason="decord is not installed")
@pytest.mark.parametrize("kind", [k for k in FOREIGN if "avi" not in k])
def test_backends_agree_to_the_bit(kind: str) -> None:
    data = FOREIGN[kind]()
    one, other = (decode_frames(data, range(80), kind, b) for b in ("pyav", "decord"))
    np.testing.assert_array_equal(one, other)


def test_paths_and_bytes_are_read_equally(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, numbered(20), 15)
    assert probe_video(path, "a") == probe_video(path.read_bytes(), "a")
    np.testing.assert_array_equal(decode_frames(path, [5, 1], "a"), decode_frames(path.read_bytes(), [5, 1], "a"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_no_indices_give_no_frames() -> None:
    assert decode_frames(encode_video(numbered(3), 15), [], "x").shape == (0, 32, 64, 3)


def test_rejects_missing_frame_indices() -> None:
    data = encode_video(numbered(10), 15)
    for wanted in ([3, 10], [-1]):
        with pytest.raises(ValueError, match=f"walk: has no frame {wanted[-1]}, only 0 to 9"):
            decode_frames(data, wanted, "walk")


def test_hidden_frames_of_vp8_are_not_counted() -> None:
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k", "arnr-maxframes": "7"}
    data = encode(numbered(60), None, "webm", "libvpx", **options)
    assert probe_video(data, "x")["frames"] == 60


def quadrants(frame: NDArray[np.uint8]) -> str:
    """Name the colors of the four quadrants: top left, top right, bottom left, bottom right."""
    height, width, _ = frame.shape
    middles = [frame[y, x].astype(int) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return "".join("W" if color.min() > 200 else "RGB"[color.argmax()] for color in middles)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), "RGBW"), ((-1, 0, 0, 1), "GRWB"), ((1, 0, 0, -1), "BWRG"), ((-1, 0, 0, -1), "WBGR"),
        ((0, 1, -1, 0), "BRWG"), ((0, 1, 1, 0), "RBGW"), ((0, -1, -1, 0), "WGBR"),
    ],
)  # fmt: skip
def test_mirrored_and_turned_videos_are_upright(matrix: tuple[int, ...], shown: str) -> None:
    """``shown`` is what ffmpeg 5.1 shows; the display matrix is that of the file's track header."""
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:16, :32] = 255, 0, 0
    frame[:16, 32:] = 0, 255, 0
    frame[16:, :32] = 0, 0, 255
    frame[16:, 32:] = 255
    data = encode(np.stack([frame] * 4), crf="5")
    a, b, c, d = (number * 65536 for number in matrix)
    start = data.index(b"tkhd") + 44
    data = data[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[start + 36 :]
    decoded = decode_frames(data, [0], "a.mp4")[0]
    assert quadrants(decoded) == shown
    probed = probe_video(data, "a.mp4")
    assert decoded.shape == (probed["height"], probed["width"], 3)


@pytest.mark.skipif("libx265" not in av.codecs_available, reason="this PyAV has no x265")
def test_frames_shown_before_their_key_frame_are_read_as_numbered() -> None:
    """x265 writes open GOPs by default, after whose key frames decord's clips are shifted."""
    options = {"x265-params": "log-level=none:keyint=25:min-keyint=25:open-gop=1:bframes=4"}
    data = encode(numbered(120, 64, 64), codec="libx265", **options)
    for start in range(40, 60):
        shown = numbers_of(decode_frames(data, range(start, start + 6), "a.mp4"))
        assert shown == list(range(start, start + 6))


def test_of_two_tracks_the_default_one_is_read() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        streams = []
        for width, height in ((32, 32), (64, 48)):
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for number in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.zeros((stream.height, stream.width, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    assert (probe_video(file.getvalue(), "a.mp4")["height"], probe_video(file.getvalue(), "a.mp4")["width"]) == (32, 32)
    for backend in BACKENDS:
        if backend != "decord":  # it cannot choose, and is not used for two tracks
            assert decode_frames(file.getvalue(), [3], "a.mp4", backend).shape == (1, 32, 32, 3)
    assert decode_frames(file.getvalue(), [3], "a.mp4").shape == (1, 32, 32, 3)


def test_frames_cut_by_an_edit_list_are_not_counted() -> None:
    source, cut = io.BytesIO(encode(numbered(80), crf="10", bf="2", g="40")), io.BytesIO()
    with av.open(source) as old, av.open(cut, "w", format="mp4") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        shift = round(10 / 30 / old.streams.video[0].time_base)
        for packet in old.demux(video=0):
            if packet.pts is None:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift  # ten frames now lie before time 0
            packet.stream = stream
            new.mux(packet)
    data = cut.getvalue()
    count = probe_video(data, "x")["frames"]
    assert numbers_of(decode_frames(data, range(count), "x")) == list(range(80 - count, 80))


def test_rejects_files_without_a_video_stream_or_frames() -> None:
    sound, empty = io.BytesIO(), io.BytesIO()
    with av.open(sound, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(empty, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    for data, reason in ((b"no video at all", "cannot be opened"), (sound, "no video stream"), (empty, "no frames")):
        with pytest.raises(ValueError, match=f"walk: .*{reason}"):
            probe_video(data if isinstance(data, bytes) else data.getvalue(), "walk")


@pytest.mark.skipif("decord" not in BACKENDS, reason="decord is not installed")
def test_falls_back_to_pyav_when_decord_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "DECORD_TIMEOUT", 0.05)
    monkeypatch.setattr(video, "_read_decord", lambda *_: time.sleep(2))
    with pytest.warns(UserWarning, match="walk: decord hung"):
        frames = decode_frames(encode_video(numbered(10), 15), [7], "walk")
    assert numbers_of(frames) == [7]


def test_with_timeout_returns_values_and_raises_errors() -> None:
    assert call_with_timeout(lambda: 3, 5) == 3
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(lambda: 1 / 0, 5)


def test_a_long_video_that_is_being_read_does_not_time_out() -> None:
    progress = threading.Event()

    def count_slowly() -> int:
        for _ in range(8):
            probe_video(encode_video(numbered(3), 15), "walk", progress)
            threading.Event().wait(0.1)
        return 8

    assert call_with_timeout(count_slowly, 0.4, progress) == 8
    with pytest.raises(TimeoutError, match=r"no result within 0\.4 s"):
        call_with_timeout(count_slowly, 0.4)


def test_gifs_keep_frames_and_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "a.gif", numbered(5), 10)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 5  # type: ignore[attr-defined]
        assert image.size == (64, 32)
        assert image.info["duration"] == 100
    with pytest.raises(ValueError, match=r"name it \.mp4 or \.gif"):
        write_video(tmp_path / "a.webm", numbered(5), 10)
