"""Answers of the server to the page.

Text answers are JSON objects with a ``type``. Binary answers begin with one of two headers, which the first byte tells
apart; all numbers are big-endian:

- 0: the length of a JSON header (uint32, of which that is the first byte), the header, the bytes of a file;
- 1: a ``FrameHeader``, the size of each image in bytes (uint32), the images.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vwm.play.session import PlaySession, PlayStep

_FRAMES = 1
_HEADER = struct.Struct(">BBHIIHHfddffff")  # kind, flags, number of images, and:
_COUNTS = ("step", "recorded", "undo", "worlds", "fps", "reward", "total")
_TIMES = ("model_ms", "wait_ms", "encode_ms", "server_ms")


def pack_message(header: dict[str, Any], body: bytes) -> bytes:
    """Pack a file: the length of the header, the header as JSON, the body."""
    head = json.dumps(header).encode()
    return len(head).to_bytes(4, "big") + head + body


@dataclass(frozen=True)
class FrameHeader:
    """What the page shows in addition to the frames of a step.

    Attributes:
        step: number of steps since the reset.
        recorded: number of recorded frames.
        undo: number of steps that can be undone.
        worlds: number of sessions whose steps were computed together.
        fps: frames per second of the last steps; 0 while unknown.
        reward, total: of the step, and since the reset.
        model_ms: time that the model took.
        wait_ms: time between the message's arrival and the model's begin.
        terminated, recording: whether the world ended the episode, and whether frames are being recorded.
    """

    step: int
    recorded: int
    undo: int
    worlds: int
    fps: float
    reward: float
    total: float
    model_ms: float
    wait_ms: float
    terminated: bool
    recording: bool

    @classmethod
    def of(cls, session: PlaySession, step: PlayStep, received: float) -> FrameHeader:
        """Describe a session after a step.

        Args:
            session: of the page.
            step: its last one, or the one to which it went back.
            received: time of ``time.perf_counter`` at which the message arrived.
        """
        return cls(
            step=step.step,
            recorded=len(session.recording_frames),
            undo=len(session.history),
            worlds=step.worlds,
            fps=session.fps,
            reward=step.reward,
            total=step.episode_return,
            model_ms=step.latency_ms,
            wait_ms=max(0.0, step.began - received) * 1000,  # a step that is shown again was computed before
            terminated=step.terminated,
            recording=session.recording,
        )

    def pack(self, images: Sequence[bytes], encode_ms: float, server_ms: float) -> bytes:
        """Pack the images of a step.

        Args:
            images: one for each frame.
            encode_ms: time that their encoding took.
            server_ms: time between the message's arrival and this moment.
        """
        return b"".join(
            (
                _HEADER.pack(
                    _FRAMES,
                    self.terminated + 2 * self.recording,
                    len(images),
                    self.step,
                    self.recorded,
                    self.undo,
                    self.worlds,
                    self.fps,
                    self.reward,
                    self.total,
                    self.model_ms,
                    self.wait_ms,
                    encode_ms,
                    server_ms,
                ),
                struct.pack(f">{len(images)}I", *map(len, images)),
                *images,
            )
        )


def unpack_frames(answer: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return the numbers of a packed ``FrameHeader`` and the images; for clients in Python.

    Raises:
        ValueError: the answer has no frames.
    """
    if answer[:1] != bytes([_FRAMES]):
        raise ValueError(f"an answer with frames begins with {_FRAMES}, not with {answer[:1]!r}")
    _, flags, count, *numbers = _HEADER.unpack_from(answer)
    header = dict(zip(_COUNTS + _TIMES, numbers, strict=True))
    header |= {"terminated": bool(flags & 1), "recording": bool(flags & 2)}
    offset = _HEADER.size + 4 * count
    images = []
    for size in struct.unpack_from(f">{count}I", answer, _HEADER.size):
        images.append(answer[offset : offset + size])
        offset += size
    return header, images
