"""Cut videos into episodes: decode, resample by time stamps, resize and crop."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vwm.data.action_files import VideoActions, read_action_file
from vwm.data.curation.filters import CurationSettings
from vwm.data.curation.measures import ClipMeasures, preview_size
from vwm.data.curation.shots import make_shot_detector, number_shots
from vwm.data.episode import Episode
from vwm.data.ingest_manifest import IngestSettings, IngestShard
from vwm.data.source_frame import SourceFrame
from vwm.data.timeouts import call_with_timeout, iterate_with_timeout
from vwm.data.video import iterate_frames, open_video, probe_video, video_stream

MAX_EPISODE_BYTES = 512 * 2**20
"""Size of the frames at which an episode ends early: a thousand full HD frames would take six gigabytes of memory."""
RATE_TOLERANCE = 1e-3
"""Relative difference of frame rates that are taken as equal: 29.97 is also written as 30000/1001."""
MAX_FRAME_SECONDS = 60.0
"""Longest time that a frame is taken to be shown. More is a fault of the time stamps, or a pause of the recording."""
UNKNOWN_RATE = 15.0
"""Frames a second that measures of motion assume where a video does not state it."""
TIMESTAMP_TOLERANCE = 1e-3
"""Error of a time stamp in seconds: Matroska rounds them to milliseconds."""


class VideoClip(NamedTuple):
    """A clip of a video.

    Attributes:
        episode: what the shard holds of it.
        scores: measures of the clip, by name.
        middle_frame: index in the video of the frame in its middle.
    """

    episode: Episode
    scores: dict[str, float]
    middle_frame: int


class _ClipFrames:
    """The frames of the clip that is being cut, and its measures.

    Args:
        curation: which measures.
        rate: frames a second that the video is read with.
    """

    def __init__(self, curation: CurationSettings | None, rate: float) -> None:
        self._names = [] if curation is None else curation.measures
        self._rate = rate
        self.frames: list[SourceFrame] = []
        self._measures = ClipMeasures(self._names, rate)

    def add(self, frame: SourceFrame) -> None:
        """Append a frame; one that resampling repeats is measured once."""
        if self._names and not (self.frames and self.frames[-1].frame_index == frame.frame_index):
            assert frame.preview is not None
            self._measures.add(frame.preview)
        self.frames.append(frame._replace(preview=None))

    def take(self) -> tuple[list[SourceFrame], dict[str, float]]:
        """Return the frames and the measures, and begin the next clip."""
        frames, scores = self.frames, self._measures.scores()
        self.frames, self._measures = [], ClipMeasures(self._names, self._rate)
        return frames, scores


def iterate_video_clips(
    settings: IngestSettings, path: str, result: IngestShard, timeout: float
) -> Iterator[VideoClip]:
    """Yield the clips of a video, two frames or more each. Errors of the video are recorded in ``result``, not raised.

    Raises:
        ImportError: what the settings ask for needs a package that is not installed.
    """
    frames_yielded = 0
    cuts: list[int] = []
    problem = ""
    try:
        for frames, scores, stated, rate in _iterate_clips(settings, path, cuts, timeout):
            episode = _make_episode(settings, path, frames, stated, rate, scores)
            yield VideoClip(episode, scores, frames[len(frames) // 2].frame_index)
            frames_yielded += len(frames)
    except (ValueError, OSError, TimeoutError) as error:
        problem = str(error).removeprefix(f"{path}: ")
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 (a decoder's: one video must not end the whole ingest)
        problem = f"{type(error).__name__}: {error}"
    if frames_yielded == 0:
        result.skipped[path] = problem or "has fewer than 2 frames"
    elif problem:
        result.truncated[path] = f"{frames_yielded} frames kept: {problem}"
    elif cuts:
        result.truncated[path] = f"cut where its time stamps jump, at frame {', '.join(map(str, cuts[:8]))}"


_Clip = tuple[list[SourceFrame], dict[str, float], VideoActions | None, float]


def _iterate_clips(settings: IngestSettings, path: str, cuts: list[int], timeout: float) -> Iterator[_Clip]:
    """Yield (frames, measures, actions of the video, its frames a second) of the clips of a video, two frames or more.

    Args:
        settings: of the ingest.
        path: of the video.
        cuts: filled with the indices of the frames at which the time stamps jump.
        timeout: seconds without progress after which the video is given up.

    Raises:
        Exception: the video cannot be read further; the clips before are yielded first.
    """
    video = Path(settings.folder) / path
    stated, rate, expected_duration = _read_header(settings, video, path, timeout)
    clip = _ClipFrames(settings.curation, min(filter(None, (settings.fps, rate)), default=UNKNOWN_RATE))
    try:
        decoded = _iterate_resized_frames(settings, video, path, rate, expected_duration)
        for frame in iterate_with_timeout(decoded, timeout):
            last = clip.frames[-1] if clip.frames else frame
            if (frame.part, frame.shot) != (last.part, last.shot):
                if frame.part != last.part:
                    cuts.append(frame.frame_index)
                if len(clip.frames) >= 2:
                    yield *clip.take(), stated, rate
                else:
                    clip.take()
            elif frame.pixels.shape != last.pixels.shape:
                (h, w, _), (new_h, new_w, _) = last.pixels.shape, frame.pixels.shape
                raise ValueError(
                    f"its frames change from {w}x{h} to {new_w}x{new_h} pixels: give --size to resize them"
                )
            clip.add(frame)
            if len(clip.frames) == settings.clip_length or len(clip.frames) * frame.pixels.nbytes >= MAX_EPISODE_BYTES:
                yield *clip.take(), stated, rate
    except Exception:
        if len(clip.frames) >= 2:
            yield *clip.take(), stated, rate
        raise
    if len(clip.frames) >= 2:
        yield *clip.take(), stated, rate


def _read_header(
    settings: IngestSettings, video: Path, path: str, timeout: float
) -> tuple[VideoActions | None, float, float]:
    """Return the actions of a video, its mean frames per second and its duration in seconds; 0 for unknown values.

    Raises:
        ValueError: the actions do not match the frames, or the settings.
    """
    stated = read_action_file(video)
    actions = None if stated is None else stated.values
    progress = threading.Event() if actions is not None else None
    rate, expected_duration, count = call_with_timeout(
        lambda: _probe_rate_and_duration(video, path, progress), timeout, progress
    )
    if actions is not None and len(actions) != count:
        raise ValueError(f"{path}: has {len(actions)} actions for {count} frames; there must be one per frame")
    if actions is not None and settings.fps is not None and abs(settings.fps - rate) > RATE_TOLERANCE * rate:
        raise ValueError(
            f"{path}: --fps {settings.fps:g} would drop or repeat frames of its {rate:g} a second, so that an "
            "action would not lead to the next frame: ingest labeled videos without --fps"
        )
    return stated, rate, expected_duration


def _make_episode(
    settings: IngestSettings,
    path: str,
    frames: list[SourceFrame],
    stated: VideoActions | None,
    rate: float,
    scores: dict[str, float],
) -> Episode:
    indices = [frame.frame_index for frame in frames]
    meta: dict[str, Any] = {"source": path, "first_source_frame": indices[0]}
    if scores:
        meta["scores"] = scores
    if stated is not None:
        meta |= stated.meta
    if settings.fps or rate:
        meta["fps"] = settings.fps or rate
    return Episode(
        frames=np.stack([frame.pixels for frame in frames]),
        actions=None if stated is None else stated.values[indices],
        meta=meta,
    )


def _probe_rate_and_duration(video: Path, path: str, counting: threading.Event | None) -> tuple[float, float, int]:
    """Return mean frames per second, duration in seconds by the header, and the frame count; 0 for unknown values.

    The frames are counted where there is an event to set with every packet: reading a long video takes a while.
    """
    count = probe_video(video, path, counting)["frames"] if counting is not None else 0
    with open_video(video, path) as container:
        stream = video_stream(container)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if stream.duration is not None and stream.time_base is not None:
            return rate, float(stream.duration * stream.time_base), count
        return rate, (container.duration or 0) / 1e6, count


def _iterate_resized_frames(
    settings: IngestSettings, video: Path, path: str, rate: float, expected_duration: float
) -> Iterator[SourceFrame]:
    """Decode, resample and resize the frames of a video; each jump in its time stamps begins a new part.

    Raises:
        ValueError: a frame cannot be decoded, or the video is over a second shorter than its header says.
    """
    with open_video(video, path) as container:
        first_time: float | None = None
        last_time = 0.0

        def decoded() -> Iterator[SourceFrame]:
            nonlocal first_time, last_time
            origin, part = 0.0, 0
            for index, (stamp, pixels) in enumerate(iterate_frames(container, path)):
                if stamp is None and not rate and settings.fps is not None:
                    raise ValueError(f"{path}: has no time stamps and no frame rate, so --fps cannot resample it")
                time = stamp if stamp is not None else index / (rate or 1)
                if first_time is None:
                    first_time = origin = time
                elif not 0 <= time - last_time <= MAX_FRAME_SECONDS:
                    origin, part = time, part + 1
                last_time = time
                yield SourceFrame(time - origin, index, pixels, part)

        frames: Iterator[SourceFrame] = decoded()
        if settings.fps is not None:
            parts = groupby(decoded(), lambda frame: frame.part)
            frames = chain.from_iterable(resample_frames(part, settings.fps, rate) for _, part in parts)
        aspect = float(video_stream(container).sample_aspect_ratio or 1)
        resized = _resize_frames(frames, settings, aspect)
        shots = None if settings.curation is None else settings.curation.shots
        yield from resized if shots is None else number_shots(resized, partial(make_shot_detector, shots))
        duration = last_time - (first_time or 0) + 1 / rate if rate else 0.0
        if rate and duration + 1 < expected_duration:
            raise ValueError(f"{path}: ends after {duration:.1f} s, its header says {expected_duration:.1f} s")


def _resize_frames(
    frames: Iterable[SourceFrame], settings: IngestSettings, pixel_aspect: float
) -> Iterator[SourceFrame]:
    """Give frames the size of the shard's frames, and where clips are curated previews, all of one size."""
    height, width, curation = settings.height, settings.width, settings.curation
    has_previews = curation is not None and bool(curation.shots or curation.measures)
    size: tuple[int, int] | None = None
    for frame in frames:
        preview = None
        if has_previews:
            source_height, source_width = frame.pixels.shape[:2]
            size = size or preview_size((source_height, source_width), height or source_height, width or source_width)
            preview = resize_and_crop(frame.pixels, *size, 1.0 if height is None else pixel_aspect)
        yield frame._replace(pixels=resize_and_crop(frame.pixels, height, width, pixel_aspect), preview=preview)


def resample_frames(frames: Iterable[SourceFrame], fps: float, rate: float) -> Iterator[SourceFrame]:
    """Yield the frame that a player shows at the times 0, 1/fps, 2/fps, ..., dropping and repeating frames.

    Args:
        frames: frames in order of time, not necessarily equally spaced.
        fps: frames per second to yield.
        rate: mean frames per second of the input, which gives the duration of its last frame; 0 if unknown.
    """
    k = 0
    current: SourceFrame | None = None
    for upcoming in frames:
        while current is not None and k / fps < upcoming.time - TIMESTAMP_TOLERANCE:
            yield current
            k += 1
        current = upcoming
    while current is not None and k / fps < current.time + 1 / (rate or fps) - TIMESTAMP_TOLERANCE:
        yield current
        k += 1


def resize_and_crop(
    frame: NDArray[np.uint8], height: int | None, width: int | None, pixel_aspect: float = 1.0
) -> NDArray[np.uint8]:
    """Resize a frame to cover height x width, then crop around the center.

    Args:
        frame: uint8 [H, W, 3].
        height, width: of the result; None leaves the frame unchanged.
        pixel_aspect: width of a pixel divided by its height.
    """
    from PIL import Image

    if height is None or width is None or (frame.shape[:2] == (height, width) and pixel_aspect == 1):
        return frame
    full_height, full_width = frame.shape[:2]
    scale = max(height / full_height, width / (full_width * pixel_aspect))
    top = max(0.0, (full_height - height / scale) / 2)  # rounding may put it below 0
    left = max(0.0, (full_width - width / scale / pixel_aspect) / 2)
    box = (left, top, full_width - left, full_height - top)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX, box=box))
