"""A synthetic corpus of short videos, made of ffmpeg's sources: every kind that a curated ingest must tell apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

HEIGHT, WIDTH, RATE, FRAMES = 72, 96, 12, 10
KINDS = (
    *["moving"] * 9, "two shots", "three shots", "frozen", "black", "text", "smaller copy", "worse copy", "same file",
    "broken header", "cut off", "empty",
)  # fmt: skip
"""The kinds in turn; 20 in all, so that 20 files hold each of them."""
SUFFIXES = ("mp4", "mkv", "mp4", "avi", "mp4", "webm")
CONVERTER = VideoReformatter()
CODECS = {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "webm": "libvpx"}


def make_corpus(folder: Path, count: int) -> dict[str, str]:
    """Write ``count`` files; return the kind of each, by its path relative to the folder."""
    kinds: dict[str, str] = {}
    moving: list[str] = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        name = f"{number // 1000:03d}/{number:06d}.{SUFFIXES[number % len(SUFFIXES)]}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind in ("smaller copy", "worse copy", "same file"):
            original = folder / moving[number % len(moving)]
            path = path.with_suffix(original.suffix)
            copy_video(original, path, kind)
        elif kind in ("broken header", "cut off", "empty"):
            spoil_video(folder / moving[-1], path, kind)
        else:
            write_video(path, make_frames(kind, number))
        kinds[path.relative_to(folder).as_posix()] = kind
        if kind == "moving":
            moving.append(path.relative_to(folder).as_posix())
    (folder / "kinds.json").write_text(json.dumps(kinds, indent=1))
    return kinds


def make_frames(kind: str, seed: int) -> NDArray[np.uint8]:
    """Frames of a kind, uint8 [T, H, W, 3]; other seeds show something else."""
    if kind == "two shots":
        return np.concatenate([moving_frames(seed), moving_frames(seed + 10_000_019)])
    if kind == "three shots":
        return np.concatenate([moving_frames(seed + k * 10_000_019) for k in range(3)])
    if kind == "black":
        return np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    frames = moving_frames(seed)
    if kind == "frozen":
        return np.repeat(frames[:1], FRAMES, axis=0)
    return draw_text(frames) if kind == "text" else frames


def moving_frames(seed: int) -> NDArray[np.uint8]:
    """Nearly a second of a picture that moves: colonies of cells drift before flowing colors."""
    waves = f"kx={seed % 41 - 20}:ky={seed // 3 % 37 - 18}:kt={1 + seed % 5}:kx2={seed // 7 % 11}:ky2={seed // 5 % 13}"
    back = read_source(f"zoneplate=s={WIDTH}x{HEIGHT}:r={RATE}:{waves}:ku={seed % 97}:kv={seed % 89}")
    life = read_source(f"life=s={WIDTH // 8}x{HEIGHT // 8}:r={RATE}:seed={seed}:ratio=0.2")
    cells = life[seed % 8] if life[seed % 8].max() > 128 else life[0]  # some colonies die out
    large = cells.repeat(8, axis=0).repeat(8, axis=1) > 128
    drift = (1 + seed % 3, (-1) ** seed * (1 + seed % 2))  # pixels a frame, across and down
    drifting = [np.roll(large, (drift[1] * k, drift[0] * k), axis=(0, 1)) for k in range(FRAMES)]
    return np.where(np.stack(drifting), 255 - back, back)


def read_source(description: str) -> NDArray[np.uint8]:
    """The first frames of one of ffmpeg's sources, uint8 [T, H, W, 3]."""
    with av.open(description, format="lavfi") as container:
        return np.stack([to_pixels(frame) for frame, _ in zip(container.decode(video=0), range(FRAMES), strict=False)])


def to_pixels(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A decoded frame as uint8 [H, W, 3]."""
    return CONVERTER.reformat(frame, format="rgb24", threads=1).to_ndarray()


def draw_text(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A line of white text with a black edge over every frame."""
    from PIL import Image, ImageDraw

    def drawn(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = Image.fromarray(frame)
        ImageDraw.Draw(image).text((6, 54), "a line of text", fill="white", stroke_width=1, stroke_fill="black")
        return np.asarray(image)

    return np.stack([drawn(frame) for frame in frames])


def write_video(path: Path, frames: NDArray[np.uint8], quality: int = 20) -> None:
    """Encode frames; ``quality`` is x264's constant rate factor."""
    options = {"crf": str(quality), "preset": "ultrafast"} if CODECS[path.suffix[1:]] == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix[1:]], rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.bit_rate = 600_000
        stream.codec_context.thread_count = 1
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(CONVERTER.reformat(frame, format="yuv420p", threads=1)))
        container.mux(stream.encode(None))


def copy_video(original: Path, path: Path, kind: str) -> None:
    """The same file, or the same pictures encoded again: smaller, or worse."""
    if kind == "same file":
        shutil.copyfile(original, path)
        return
    with av.open(str(original)) as container:
        frames = np.stack([to_pixels(frame) for frame in container.decode(video=0)])
    if kind == "smaller copy":
        frames = np.stack(list(_shrink(frames)))
    write_video(path, frames, quality=34 if kind == "worse copy" else 22)


def _shrink(frames: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    from PIL import Image

    for frame in frames:
        yield np.asarray(Image.fromarray(frame).resize((WIDTH * 3 // 4, HEIGHT * 3 // 4), Image.Resampling.BICUBIC))


def spoil_video(original: Path, path: Path, kind: str) -> None:
    """A file that cannot be read, or only in part."""
    data = original.read_bytes()
    if kind == "broken header":
        data = bytes(64) + data[64:]
    path.write_bytes(b"" if kind == "empty" else data[: len(data) // 2] if kind == "cut off" else data)
