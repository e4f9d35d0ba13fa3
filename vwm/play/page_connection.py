"""One page: its messages, and the answers to them.

While the frames of a step are encoded and sent, the next message is read: a step that the page asked for ahead is
computed meanwhile. At most one answer is on its way, so a slow page slows its own steps down.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from aiohttp import WSMessage, WSMsgType, web
from numpy.typing import NDArray

from vwm.data.action_files import format_action_table
from vwm.data.video_encoding import write_video
from vwm.play import images
from vwm.play.answers import FrameHeader, pack_message
from vwm.play.messages import HelloMessage, RecordMessage, ResetMessage, StepMessage, UndoMessage, parse_message
from vwm.play.session import PlaySession, PlayStep
from vwm.play.world_description import describe_world

if TYPE_CHECKING:
    from vwm.play.app import PlayServer

MAX_GIF_FRAMES = 1000
"""A GIF of more frames takes minutes to encode."""
FAILURE = {"type": "error", "message": "the world failed; see the server's terminal for the reason"}
"""The answer to a message that fails by an error of the world (out of memory, a bug); the server goes on."""
logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Answer = bytes | dict[str, Any]


class PageConnection:
    """The session of one page.

    Args:
        server: what the sessions share.
        socket: to the page.
    """

    def __init__(self, server: PlayServer, socket: web.WebSocketResponse) -> None:
        self.server = server
        self.socket = socket
        self.session = PlaySession(server.simulator, server.starts, server.max_sessions)
        self.image_format = images.IMAGE_FORMATS["png"]
        self._sending: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Answer each message with exactly one message, in order, until the page closes."""
        try:
            async for message in self.socket:
                if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    return
                await self._answer(message, time.perf_counter())
        finally:
            if self._sending is not None:
                self._sending.cancel()
                await asyncio.gather(self._sending, return_exceptions=True)  # the page has closed

    async def _answer(self, message: WSMessage, received: float) -> None:
        try:
            if message.type is WSMsgType.BINARY:
                answer: Answer | PlayStep = await self._take_upload(message.data)
            else:
                answer = await self._handle_text(message.data)
        except ValueError as error:
            answer = {"type": "error", "message": str(error)}
        except Exception:
            logger.exception("the world failed")
            answer = FAILURE
        if isinstance(answer, PlayStep):
            # The header is made now: the next step may change the session while the frames are encoded.
            await self._send(answer.frames, FrameHeader.of(self.session, answer, received), received)
        else:
            await self._finish_sending()
            await self._send_answer(answer)

    async def _send(self, frames: NDArray[np.uint8], header: FrameHeader, received: float) -> None:
        """Begin to send frames, once the answer before is sent."""
        await self._finish_sending()
        self._sending = asyncio.create_task(self._send_frames(frames, header, received))

    async def _finish_sending(self) -> None:
        if self._sending is not None:
            await self._sending
            self._sending = None

    async def _send_frames(self, frames: NDArray[np.uint8], header: FrameHeader, received: float) -> None:
        try:
            answer: Answer = await asyncio.get_running_loop().run_in_executor(
                self.server.encoders, _encode_frames, frames, self.image_format, header, received
            )
        except Exception:
            logger.exception("a frame could not be encoded")
            answer = FAILURE
        await self._send_answer(answer)

    async def _send_answer(self, answer: Answer) -> None:
        if isinstance(answer, bytes):
            await self.socket.send_bytes(answer)
        else:
            await self.socket.send_json(answer)

    async def _handle_text(self, text: str) -> Answer | PlayStep:
        starts = 0 if self.server.starts is None else len(self.server.starts)
        match parse_message(text, self.server.simulator.spec.actions, starts):
            case HelloMessage(decodable):
                size = self.server.simulator.spec.context.image_size
                self.image_format = images.choose_format(self.server.image_format, decodable, size)
                return describe_world(self.server.simulator, self.server.max_upload, self.image_format.media_type)
            case StepMessage(action, ahead):
                current = self.session.current
                if ahead and current is not None and current.terminated:
                    return current
                return await self.server.batcher.step(self.session, action)
            case ResetMessage(start, seed):
                return await self._run_in_model_thread(self.session.reset, start, seed)
            case UndoMessage(steps):
                undone = self.session.undo(steps)
                return replace(undone, frames=undone.frames[-1:])
            case RecordMessage(command, suffix):
                return await self._record(command, suffix)

    async def _record(self, command: str, suffix: str) -> Answer:
        session = self.session
        if command == "download":
            if suffix == "gif" and len(session.recording_frames) > MAX_GIF_FRAMES:
                raise ValueError(
                    f"a GIF may have {MAX_GIF_FRAMES} frames, the recording has {len(session.recording_frames)}: "
                    "download it as MP4"
                )
            if suffix == "csv":
                return _actions_message(session)
            # in another thread than the model's, because encoding a long video must not block other sessions
            fps = self.server.simulator.spec.fps
            return await asyncio.to_thread(_video_message, session.recorded_frames(), suffix, fps)
        if command == "start":
            session.start_recording()
        else:
            session.stop_recording()
        return {"type": "recording", "recording": session.recording, "recorded": len(session.recording_frames)}

    async def _take_upload(self, data: bytes) -> bytes:
        limit = self.server.max_upload
        if len(data) > limit:
            raise ValueError(
                f"the image has {len(data) / 1e6:.1f} MB; the limit is {limit / 1e6:g} MB "
                "(change it with --max_upload_mb)"
            )
        # one at a time, so that several large images are never in memory together
        self.session.uploaded_image = await asyncio.get_running_loop().run_in_executor(
            self.server.upload_executor, images.decode_upload, data, self.server.simulator.spec.context.image_size
        )
        return pack_message({"type": "upload"}, images.encode_png(self.session.uploaded_image))

    async def _run_in_model_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self.server.executor, lambda: function(*args, **kwargs))


def _encode_frames(
    frames: NDArray[np.uint8], image_format: images.ImageFormat, header: FrameHeader, received: float
) -> bytes:
    """Encode and pack frames [k, h, w, 3]."""
    began = time.perf_counter()
    encoded = [images.encode_frame(frame, image_format) for frame in frames]
    now = time.perf_counter()
    return header.pack(encoded, encode_ms=(now - began) * 1000, server_ms=(now - received) * 1000)


def _video_message(frames: NDArray[np.uint8], suffix: str, fps: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"play.{suffix}"
        write_video(path, frames, fps)
        header = {"type": "video", "name": path.name, "format": suffix, "frames": len(frames)}
        return pack_message(header, path.read_bytes())


def _actions_message(session: PlaySession) -> bytes:
    """Pack the actions of the recording, as ``vwm ingest`` reads them next to its video."""
    actions = session.recorded_actions()
    header = {"type": "video", "name": "play.actions.csv", "format": "csv", "frames": len(actions)}
    return pack_message(header, format_action_table(session.simulator.spec.actions, actions).encode())
