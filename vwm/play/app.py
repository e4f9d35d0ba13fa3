"""The player's web application: the page, and one session per websocket.

The model runs in a single worker thread, so that the event loop stays free and sessions take turns. A session ends when
its page closes. Answers with bytes are one binary message: the length of a JSON header (uint32, big-endian), the
header, the bytes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.typedefs import Handler
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.simulator import Simulator
from vwm.data.action_files import format_action_table
from vwm.data.video_encoding import write_video
from vwm.play import images
from vwm.play.access_token import token_middleware
from vwm.play.messages import (
    MAX_TEXT,
    ClientMessage,
    RecordMessage,
    ResetMessage,
    StepMessage,
    UndoMessage,
    parse_message,
)
from vwm.play.origin_check import origin_middleware
from vwm.play.session import PlaySession, PlayStep
from vwm.play.step_batching import StepBatcher

PAGE_FOLDER = Path(__file__).parent / "page"
IDLE_NAMES = {"noop", "no-op", "no op", "nothing", "none", "idle", "stay", "stop", "wait", "still", "·", ""}
IDLE_NAMES |= {"no visible change"}  # the description of a latent action without effect in vwm.eval
MAX_GIF_FRAMES = 1000
"""A GIF of more frames takes minutes to encode."""
logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def make_app(
    simulator: Simulator,
    host: str = "127.0.0.1",
    max_sessions: int = 4,
    max_upload_mb: float = 4.0,
    executor: ThreadPoolExecutor | None = None,
    token: str | None = None,
) -> web.Application:
    """Make the web application for a simulator.

    Args:
        simulator: the world; its starts and title are shown where it has them.
        host: the listening address, which is accepted as the host name of requests, like localhost.
        max_sessions: largest number of pages that play at the same time.
        max_upload_mb: largest uploaded image, in megabytes.
        executor: one worker that runs the world, for example the one that warmed it up; None makes one.
        token: serve only pages that are opened with ``?token=``; None serves all.

    Raises:
        ValueError: a limit is not positive.
    """
    if max_sessions < 1:
        raise ValueError(f"max_sessions must be at least 1, got {max_sessions}")
    if max_upload_mb <= 0:
        raise ValueError(f"max_upload_mb must be positive, got {max_upload_mb}")
    player = PlayServer(
        simulator=simulator,
        max_sessions=max_sessions,
        max_upload=int(max_upload_mb * 1e6),
        executor=executor or ThreadPoolExecutor(max_workers=1),
    )
    middlewares = [origin_middleware(host)] + ([] if token is None else [token_middleware(token)])
    app = web.Application(middlewares=middlewares)
    app.router.add_get("/", _serve_file("index.html", "text/html"))
    app.router.add_get("/style.css", _serve_file("style.css", "text/css"))
    for name in ("player.js", "keys.js", "levers.js", "panel.js", "parts.js", "spark.js"):
        app.router.add_get(f"/{name}", _serve_file(name, "text/javascript"))
    app.router.add_get(r"/starts/{index:\d{1,6}}.png", player.start_image)
    app.router.add_get("/play", player.websocket)
    app.on_shutdown.append(player.close)
    return app


class PlayServer:
    """The sessions of one server, and the thread that runs their world.

    Args:
        simulator: the world that all sessions share.
        max_sessions: largest number of simultaneous sessions.
        max_upload: largest size of an uploaded image, in bytes.
        executor: one worker; parallel steps of several sessions would compete for the same cores or GPU.
    """

    def __init__(self, simulator: Simulator, max_sessions: int, max_upload: int, executor: ThreadPoolExecutor) -> None:
        self.simulator = simulator
        self.starts = simulator_starts(simulator)
        self.max_sessions = max_sessions
        self.max_upload = max_upload
        self.connections: set[web.WebSocketResponse] = set()
        self.executor = executor
        self.batcher = StepBatcher(executor)
        self.image_executor = ThreadPoolExecutor(max_workers=1)

    async def start_image(self, request: web.Request) -> web.Response:
        """Return the last frame of a start as PNG, which the page shows as a thumbnail."""
        index = int(request.match_info["index"])
        if self.starts is None or index >= len(self.starts):
            raise web.HTTPNotFound(text=f"there is no start {index}")
        body = images.encode_png(self.starts[index, -1].cpu().numpy())
        return web.Response(body=body, content_type="image/png", headers=_SECURITY_HEADERS)

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one session, until the page closes."""
        # Uploads up to twice the limit get an error message as the answer; larger ones close the connection.
        connection = web.WebSocketResponse(heartbeat=30, max_msg_size=2 * max(self.max_upload, MAX_TEXT))
        await connection.prepare(request)
        if len(self.connections) >= self.max_sessions:
            text = f"all {self.max_sessions} sessions are in use; close another page of this world, or try again later"
            await connection.send_json({"type": "full", "message": text})
            await connection.close(code=WSCloseCode.TRY_AGAIN_LATER)
            return connection
        self.connections.add(connection)
        try:
            await connection.send_json(self.hello_message())
            await self._serve_messages(connection, PlaySession(self.simulator, self.starts, self.max_sessions))
        except ConnectionResetError:
            pass  # the page closed while its answer was being sent
        finally:
            self.connections.discard(connection)
        return connection

    async def close(self, _app: web.Application) -> None:
        """Close all sessions and stop the worker thread."""
        for connection in list(self.connections):
            await connection.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends")
        for executor in (self.executor, self.image_executor):
            executor.shutdown(wait=False, cancel_futures=True)

    def hello_message(self) -> dict[str, Any]:
        """Describe the world for the page."""
        space = self.simulator.spec.actions
        names = space.names or tuple(str(index) for index in range(space.size))
        actions = {"kind": space.kind, "size": space.size, "names": names, "latent": space.latent}
        if space.is_composite:
            actions["parts"] = [part.to_json() for part in space.parts]
        if not space.is_discrete:
            actions["rest"] = space.rest or (0.0,) * space.size
        height, width = self.simulator.spec.context.image_size
        return {
            "type": "hello",
            "title": self.simulator.spec.title,
            "actions": actions,
            "idle": find_idle_action(names) if space.kind == "discrete" else None,
            "width": width,
            "height": height,
            "fps": self.simulator.spec.fps,
            "frames_per_step": self.simulator.spec.frames_per_step,
            "starts": 0 if self.starts is None else len(self.starts),
            "max_upload": self.max_upload,
        }

    async def _serve_messages(self, connection: web.WebSocketResponse, session: PlaySession) -> None:
        """Answer each message with exactly one message, until the page closes."""
        async for message in connection:
            try:
                if message.type is WSMsgType.TEXT:
                    answer = await self._handle_text(session, message.data)
                elif message.type is WSMsgType.BINARY:
                    answer = await self._handle_upload(session, message.data)
                else:
                    return
            except ValueError as error:
                answer = {"type": "error", "message": str(error)}
            except Exception:
                # An error of the world (out of memory, a bug) fails this message only, not the server.
                logger.exception("the world failed")
                answer = {"type": "error", "message": "the world failed; see the server's terminal for the reason"}
            if isinstance(answer, bytes):
                await connection.send_bytes(answer)
            else:
                await connection.send_json(answer)

    async def _handle_text(self, session: PlaySession, text: str) -> bytes | dict[str, Any]:
        message = parse_message(text, self.simulator.spec.actions, 0 if self.starts is None else len(self.starts))
        if isinstance(message, StepMessage):
            play_step = await self.batcher.step(session, message.action)
            return await asyncio.to_thread(_step_message, session, play_step)
        if not isinstance(message, RecordMessage):
            return await self._run_in_thread(_apply_message, session, message)
        if message.command == "download":
            if message.format == "gif" and len(session.recording_frames) > MAX_GIF_FRAMES:
                raise ValueError(
                    f"a GIF may have {MAX_GIF_FRAMES} frames, the recording has {len(session.recording_frames)}: "
                    "download it as MP4"
                )
            if message.format == "csv":
                return _actions_message(session)
            # in another thread than the model's, because encoding a long video must not block other sessions
            return await asyncio.to_thread(
                _video_message, session.recorded_frames(), message.format, self.simulator.spec.fps
            )
        if message.command == "start":
            session.start_recording()
        else:
            session.stop_recording()
        return {"type": "recording", "recording": session.recording, "recorded": len(session.recording_frames)}

    async def _handle_upload(self, session: PlaySession, data: bytes) -> bytes:
        if len(data) > self.max_upload:
            raise ValueError(
                f"the image has {len(data) / 1e6:.1f} MB; the limit is {self.max_upload / 1e6:g} MB "
                "(change it with --max_upload_mb)"
            )
        image_size = self.simulator.spec.context.image_size
        # one at a time, so that several large images are never in memory together
        session.uploaded_image = await asyncio.get_running_loop().run_in_executor(
            self.image_executor, images.decode_upload, data, image_size
        )
        return pack_message({"type": "upload"}, images.encode_png(session.uploaded_image))

    async def _run_in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self.executor, lambda: function(*args, **kwargs))


def pack_message(header: dict[str, Any], body: bytes) -> bytes:
    """Pack one binary message: the length of the header, the header as JSON, the body."""
    head = json.dumps(header).encode()
    return len(head).to_bytes(4, "big") + head + body


def _apply_message(session: PlaySession, message: ClientMessage) -> bytes:
    """Apply a message to the world, and return the resulting frame as an answer."""
    match message:
        case ResetMessage(start, seed):
            play_step = session.reset(start, seed)
        case UndoMessage(steps):
            play_step = session.undo(steps)
        case _:
            raise AssertionError(f"{message} does not change the world")
    return _frame_message(session, play_step, play_step.frames[-1:])


def _step_message(session: PlaySession, play_step: PlayStep) -> bytes:
    return _frame_message(session, play_step, play_step.frames)


def _frame_message(session: PlaySession, play_step: PlayStep, frames: NDArray[np.uint8]) -> bytes:
    """Pack frames [k, h, w, 3] of a step, one PNG after the other; the header has their sizes in bytes."""
    pngs = [images.encode_png(frame) for frame in frames]
    header = _frame_header(session, play_step) | {"sizes": [len(png) for png in pngs]}
    return pack_message(header, b"".join(pngs))


def _frame_header(session: PlaySession, play_step: PlayStep) -> dict[str, Any]:
    return {
        "type": "frame",
        "step": play_step.step,
        "ms": round(play_step.latency_ms, 2),
        "fps": round(session.fps, 2),
        "reward": play_step.reward,
        "total": play_step.episode_return,
        "terminated": play_step.terminated,
        "undo": len(session.history),
        "recording": session.recording,
        "recorded": len(session.recording_frames),
    }


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


_SECURITY_HEADERS = {
    # the same port may serve another world later
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
}


def _serve_file(name: str, kind: str) -> Handler:
    # The type is given here: the tables of some systems map .js to text/plain, which browsers do not run.
    headers = {**_SECURITY_HEADERS, "Content-Type": f"{kind}; charset=utf-8"}

    async def send(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE_FOLDER / name, headers=headers)

    return send


def simulator_starts(simulator: Simulator) -> Tensor | None:
    """Return the starting contexts of a world, uint8 [n, t, h, w, 3]; None where there are none."""
    starts = simulator.starts
    return starts if starts is not None and len(starts) > 0 else None


def find_idle_action(names: tuple[str, ...]) -> int | None:
    """Find the index of the no-op action by its name; None where there is none."""
    # the name of a latent action includes its share: "noop 92%"
    bare = [re.sub(r"\s*\d+%$", "", name).strip().lower() for name in names]
    return next((index for index, name in enumerate(bare) if name in IDLE_NAMES), None)
