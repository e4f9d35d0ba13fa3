"""The entry of an episode in the index of its shard, made from the headers of its members."""

from __future__ import annotations

import io
import json
import math
import re
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from vwm.data.action_metadata import known_action_parts
from vwm.data.video_formats import VIDEO_EXTENSIONS


@dataclass(frozen=True)
class EpisodeIndexEntry:
    """The members of one episode and their byte offsets.

    Attributes:
        key: the WebDataset key.
        frames: number of frames.
        height, width: size of a frame, in pixels.
        fps: frames per second; 0 if unknown.
        members: extension (``"frames.npy"``, ``"mp4"``, ``"actions.npy"``, ...) to (byte offset in the tar, size).
        known_parts: of each part of composite actions, whether it is known; empty for other actions.
        frames_per_latent: k, frames of each row of ``latents.npy`` after the first, which holds one frame.
        terminated: whether the last action terminated the environment; None in indices that do not say it.
        scores: the numbers under ``scores`` in the metadata, such as the quality of a video.
    """

    key: str
    frames: int
    height: int
    width: int
    fps: float
    members: dict[str, tuple[int, int]]
    known_parts: tuple[bool, ...] = ()
    frames_per_latent: int = 1
    terminated: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def video_extension(self) -> str | None:
        """Extension of the video member; None if the episode has none."""
        return next((extension for extension in self.members if extension in VIDEO_EXTENSIONS), None)

    @property
    def has_frames(self) -> bool:
        """Whether the episode stores frames, raw or as a video."""
        return "frames.npy" in self.members or self.video_extension is not None


@dataclass(frozen=True)
class ShardIndex:
    """The table of contents of one tar.

    Attributes:
        tar: file name.
        size: of the tar in bytes.
        hash: of the names and bytes of its members.
        episodes: in the order of the tar.
        block_sums: checksums of the blocks of the tar, see ``checksum_blocks``; empty in indices that have none.
        tag: ETag of the object of a store when the index was loaded; not part of the stored index.
    """

    tar: str
    size: int
    hash: str
    episodes: tuple[EpisodeIndexEntry, ...]
    block_sums: str = ""
    tag: str = ""


def make_episode_entry(
    shard: str, key: str, members: dict[str, tuple[int, int]], headers: dict[tuple[str, str], bytes]
) -> EpisodeIndexEntry | None:
    """Make the entry of an episode from the headers of its members; None for a sample without frames or latents."""
    meta: dict[str, Any] = {}
    if "json" in members:
        try:
            meta = json.loads(headers[key, "json"])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shard}:{key}.json is not JSON ({error})") from error
        if not isinstance(meta, dict):
            raise ValueError(
                f'{shard}:{key}.json must hold an object, such as {{"fps": 15}}, not {type(meta).__name__}'
            )
    _check_metadata_names(shard, key, meta)
    per_latent = max(1, int(_metadata_number(shard, key, meta, "frames_per_latent")))
    video = next((e for e in members if e in VIDEO_EXTENSIONS), None)
    if "frames.npy" in members:
        shape, dtype = _npy_shape(shard, key, "frames.npy", headers, members["frames.npy"][1])
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
            raise ValueError(f"{shard}:{key}.frames.npy must be uint8 [T, H, W, 3], got {dtype} {list(shape)}")
        frames, height, width, _ = shape
    elif video is not None:
        probed = json.loads(headers[key, video])
        frames, height, width = probed["frames"], probed["height"], probed["width"]
        meta.setdefault("fps", probed["fps"])
    elif "latents.npy" in members:
        rows = _npy_shape(shard, key, "latents.npy", headers, members["latents.npy"][1])[0][0]
        last = 1 + per_latent * (rows - 1)  # the video may end with up to k - 1 frames that fill no latent
        frames = min(max(last, int(_metadata_number(shard, key, meta, "frames"))), last + per_latent - 1)
        height, width = (int(_metadata_number(shard, key, meta, name)) for name in ("height", "width"))
    else:
        return None
    known_parts: tuple[bool, ...] = ()
    if "actions.npy" in members:
        shape, dtype = _npy_shape(shard, key, "actions.npy", headers, members["actions.npy"][1])
        if (len(shape), dtype.kind) not in ((1, "i"), (1, "u"), (2, "f")):
            raise ValueError(
                f"{shard}:{key}.actions.npy must be whole numbers [T] or floating-point numbers [T, A], got {dtype} "
                f"{list(shape)}"
            )
        try:
            known_parts = known_action_parts(meta, shape)
        except ValueError as error:
            raise ValueError(f"{shard}:{key}.json: {error}") from error
    return EpisodeIndexEntry(
        key=key,
        frames=int(frames),
        height=int(height),
        width=int(width),
        fps=_metadata_number(shard, key, meta, "fps"),
        members=members,
        known_parts=known_parts,
        frames_per_latent=per_latent,
        terminated=bool(meta.get("terminated", False)),
        scores=_read_scores(shard, key, meta),
    )


def _read_scores(shard: str, key: str, meta: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers under ``scores`` in the metadata of an episode."""
    scores = meta.get("scores") or {}
    if not isinstance(scores, dict):
        raise ValueError(
            f'{shard}:{key}.json: scores must be an object, such as {{"quality": 0.7}}, got {scores!r:.80}'
        )
    numbers = {str(k): v for k, v in scores.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    if len(numbers) < len(scores) or not all(map(math.isfinite, numbers.values())):
        raise ValueError(f"{shard}:{key}.json: scores must be finite numbers, got {str(scores)[:100]}")
    return {name: float(value) for name, value in numbers.items()}


def _check_metadata_names(shard: str, key: str, meta: Mapping[str, Any]) -> None:
    """Raise ValueError where names of the metadata are no list of texts."""
    for name in ("action_names", "state_names"):
        value = meta.get(name) or []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{shard}:{key}.json: {name} must be a list of texts, got {str(value)[:100]}")


def _metadata_number(shard: str, key: str, meta: Mapping[str, Any], name: str) -> float:
    """Return a number of the metadata; 0 where it is missing."""
    value = meta.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{shard}:{key}.json: {name} must be a number of 0 or more, got {str(value)[:80]}")
    return float(value)


def _npy_shape(
    shard: str, key: str, extension: str, headers: dict[tuple[str, str], bytes], size: int
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        shape, dtype, header_bytes = parse_npy_header(headers[key, extension])
        expected = header_bytes + math.prod(shape) * dtype.itemsize
        if size != expected:
            raise ValueError(f"its header describes {expected} bytes, it has {size}")
        return shape, dtype
    except ValueError as error:
        raise ValueError(f"{shard}:{key}.{extension} cannot be read ({error})") from error


_USUAL_HEADER = re.compile(
    rb"..\{'descr': '(?P<dtype>[<|][a-zA-NP-Z]\d+)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>\d{1,15}(?:, \d{1,15})*),?\), \} *\n",
    re.DOTALL,
)
"""The header that numpy writes. numpy reads it through Python's parser, which fails at times where several threads use
it (SystemError: AST constructor recursion depth mismatch)."""


def parse_npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return (shape, dtype, size of the header in bytes) of an ``.npy`` file, from its first bytes.

    Raises:
        ValueError: not an npy file, an array in Fortran order, or an array of objects (which would need unpickling).
    """
    file: IO[bytes] = io.BytesIO(data)
    npy = np.lib.format
    try:
        version = npy.read_magic(file)
        usual = _USUAL_HEADER.match(data, file.tell()) if version == (1, 0) else None
        if usual is not None:
            shape = tuple(int(size) for size in usual["shape"].decode().split(",") if size.strip())
            return shape, np.dtype(usual["dtype"].decode()), usual.end()
        read: Callable[..., Any] = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except (SyntaxError, tokenize.TokenError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"the npy header is damaged ({error})") from error
    if fortran_order or dtype.hasobject:
        raise ValueError("npy members must be C-ordered arrays of numbers")
    return shape, dtype, file.tell()
