"""The player's web application: the page, and one session a websocket.

The model runs in a single worker thread, so that the event loop stays free and sessions take turns. A session lives
and dies with its page. Answers that carry bytes are one binary message: the length of a JSON header (uint32,
big-endian), the header, the bytes.
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
from vwm.data.video_encoding import write_video
from vwm.play import images
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

PAGE_FOLDER = Path(__file__).parent / "page"
IDLE_NAMES = {"noop", "no-op", "no op", "nothing", "none", "idle", "stay", "stop", "wait", "still", "·", ""}
IDLE_NAMES |= {"no visible change"}  # what vwm.eval calls a latent action that does nothing
logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def make_app(
    simulator: Simulator,
    host: str = "127.0.0.1",
    max_sessions: int = 4,
    max_upload_mb: float = 4.0,
    thread: ThreadPoolExecutor | None = None,
) -> web.Application:
    """The web application over a simulator.

    Args:
        simulator: the world; its ``starts`` and ``title`` are shown where it has them.
        host: the address that it will listen on, which a browser may name besides localhost.
        max_sessions: how many pages may play at the same time.
        max_upload_mb: largest uploaded picture, in megabytes.
        thread: the one worker in which the world runs, where it has run before; None makes one.
    """
    if max_sessions < 1:
        raise ValueError(f"max_sessions must be at least 1, got {max_sessions}")
    if max_upload_mb <= 0:
        raise ValueError(f"max_upload_mb must be positive, got {max_upload_mb}")
    player = PlayServer(simulator, max_sessions, int(max_upload_mb * 1e6), thread or ThreadPoolExecutor(max_workers=1))
    app = web.Application(middlewares=[origin_middleware(host)])
    app.router.add_get("/", _serve_file("index.html", "text/html"))
    app.router.add_get("/style.css", _serve_file("style.css", "text/css"))
    for name in ("player.js", "keys.js", "levers.js", "panel.js", "spark.js"):
        app.router.add_get(f"/{name}", _serve_file(name, "text/javascript"))
    app.router.add_get(r"/starts/{index:\d{1,6}}.png", player.start_image)
    app.router.add_get("/play", player.websocket)
    app.on_shutdown.append(player.close)
    return app


class PlayServer:
    """The sessions of one server, and the thread in which their world runs.

    Args:
        simulator: the world that all of them share.
        max_sessions: how many play at once.
        max_upload: bytes of an uploaded picture.
        thread: one worker; steps of several sessions side by side would only fight over the same cores or GPU.
    """

    def __init__(self, simulator: Simulator, max_sessions: int, max_upload: int, thread: ThreadPoolExecutor) -> None:
        self.simulator = simulator
        self.starts = simulator_starts(simulator)
        self.max_sessions = max_sessions
        self.max_upload = max_upload
        self.connections: set[web.WebSocketResponse] = set()
        self.thread = thread

    async def start_image(self, request: web.Request) -> web.Response:
        """The last frame of a shipped start, as the thumbnail that the page shows."""
        index = int(request.match_info["index"])
        if self.starts is None or index >= len(self.starts):
            raise web.HTTPNotFound(text=f"there is no start {index}")
        body = images.encode_png(self.starts[index, -1].cpu().numpy())
        return web.Response(body=body, content_type="image/png", headers=_SECURITY_HEADERS)

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        """One session, from the page's opening to its closing."""
        # twice the limit still gets a sentence as its answer; only what is larger is cut off unread
        connection = web.WebSocketResponse(heartbeat=30, max_msg_size=2 * max(self.max_upload, MAX_TEXT))
        await connection.prepare(request)
        if len(self.connections) >= self.max_sessions:
            text = f"all {self.max_sessions} places are taken; close another page of this world, or come back later"
            await connection.send_json({"type": "full", "message": text})
            await connection.close(code=WSCloseCode.TRY_AGAIN_LATER)
            return connection
        self.connections.add(connection)
        try:
            await connection.send_json(self.hello())
            await self._serve_messages(connection, PlaySession(self.simulator, self.starts))
        except ConnectionResetError:
            pass  # the page went away while its answer was being sent
        finally:
            self.connections.discard(connection)
        return connection

    async def close(self, _app: web.Application) -> None:
        """End every session and the thread."""
        for connection in list(self.connections):
            await connection.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends")
        self.thread.shutdown(wait=False, cancel_futures=True)

    def hello(self) -> dict[str, Any]:
        """What the page has to know of the world."""
        space = self.simulator.spec.actions
        names = space.names or tuple(str(index) for index in range(space.size))
        actions = {"kind": space.kind, "size": space.size, "names": names, "latent": space.latent}
        if space.kind == "continuous":
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
            "starts": 0 if self.starts is None else len(self.starts),
            "max_upload": self.max_upload,
        }

    async def _serve_messages(self, connection: web.WebSocketResponse, session: PlaySession) -> None:
        """Answer every message with exactly one, until the page closes."""
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
                # a world that fails (memory, a bug) costs this one message, not the server
                logger.exception("the world failed")
                answer = {"type": "error", "message": "the world failed on this; the server's terminal says why"}
            if isinstance(answer, bytes):
                await connection.send_bytes(answer)
            else:
                await connection.send_json(answer)

    async def _handle_text(self, session: PlaySession, text: str) -> bytes | dict[str, Any]:
        message = parse_message(text, self.simulator.spec.actions, 0 if self.starts is None else len(self.starts))
        if not isinstance(message, RecordMessage):
            return await self._run_in_thread(_apply_message, session, message)
        if message.command == "download":
            # beside the model's thread: encoding a long video must not hold up the other sessions
            return await asyncio.to_thread(
                _video_message, session.recorded_frames(), message.format, self.simulator.spec.fps
            )
        if message.command == "start":
            session.start_recording()
        else:
            session.stop_recording()
        return {"type": "recording", "recording": session.recording, "recorded": len(session.recorded)}

    async def _handle_upload(self, session: PlaySession, data: bytes) -> bytes:
        if len(data) > self.max_upload:
            raise ValueError(
                f"the picture has {len(data) / 1e6:.1f} MB; up to {self.max_upload / 1e6:g} MB are taken "
                "(--max_upload_mb changes that)"
            )
        session.upload = await asyncio.to_thread(images.decode_upload, data, self.simulator.spec.context.image_size)
        return pack_message({"type": "upload"}, images.encode_png(session.upload))

    async def _run_in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self.thread, lambda: function(*args, **kwargs))


def pack_message(header: dict[str, Any], body: bytes) -> bytes:
    """One binary message: the header's length, the header as JSON, the body."""
    head = json.dumps(header).encode()
    return len(head).to_bytes(4, "big") + head + body


def _apply_message(session: PlaySession, message: ClientMessage) -> bytes:
    """Do what a message asks of the world, and answer with the frame it led to."""
    match message:
        case ResetMessage(start, seed):
            moment = session.reset(start, seed)
        case StepMessage(action):
            moment = session.step(action)
        case UndoMessage(steps):
            moment = session.undo(steps)
        case _:
            raise AssertionError(f"{message} does not move the world")
    return pack_message(_frame_header(session, moment), images.encode_png(moment.frame))


def _frame_header(session: PlaySession, moment: PlayStep) -> dict[str, Any]:
    return {
        "type": "frame",
        "step": moment.step,
        "ms": round(moment.ms, 2),
        "fps": round(session.fps, 2),
        "reward": moment.reward,
        "total": moment.total,
        "terminated": moment.terminated,
        "undo": len(session.past),
        "recording": session.recording,
        "recorded": len(session.recorded),
    }


def _video_message(frames: NDArray[np.uint8], suffix: str, fps: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"play.{suffix}"
        write_video(path, frames, fps)
        header = {"type": "video", "name": path.name, "format": suffix, "frames": len(frames)}
        return pack_message(header, path.read_bytes())


_SECURITY_HEADERS = {
    # the same port serves another world tomorrow
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
}


def _serve_file(name: str, kind: str) -> Handler:
    # the kind is named here: some machines' own tables call JavaScript text/plain, which browsers then refuse to run
    headers = {**_SECURITY_HEADERS, "Content-Type": f"{kind}; charset=utf-8"}

    async def send(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE_FOLDER / name, headers=headers)

    return send


def simulator_starts(simulator: Simulator) -> Tensor | None:
    """The starting contexts that ship with a world, uint8 [n, t, h, w, 3]; None where there are none."""
    starts = simulator.starts
    return starts if starts is not None and len(starts) > 0 else None


def find_idle_action(names: tuple[str, ...]) -> int | None:
    """The action that does nothing, known by its name; None where none is."""
    # a latent action is named with its share: "noop 92%"
    bare = [re.sub(r"\s*\d+%$", "", name).strip().lower() for name in names]
    return next((index for index, name in enumerate(bare) if name in IDLE_NAMES), None)
