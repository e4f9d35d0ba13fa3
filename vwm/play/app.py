"""The player's web application: the page, and one session per websocket.

The model runs in a single worker thread, and frames are encoded in others, so that the event loop stays free: while the
frames of one step are encoded and sent, the next step is computed. A session ends when its page closes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import WSCloseCode, web
from aiohttp.typedefs import Handler

from vwm.core.simulator import Simulator
from vwm.play import images
from vwm.play.access_token import token_middleware
from vwm.play.messages import MAX_TEXT
from vwm.play.origin_check import origin_middleware
from vwm.play.page_connection import PageConnection
from vwm.play.step_batching import StepBatcher
from vwm.play.world_description import simulator_starts

PAGE_FOLDER = Path(__file__).parent / "page"
ENCODING_THREADS = 2
"""A frame takes less than a millisecond; the threads are there for the steps of many sessions, which end together."""


def make_app(
    simulator: Simulator,
    host: str = "127.0.0.1",
    max_sessions: int = 4,
    max_upload_mb: float = 4.0,
    executor: ThreadPoolExecutor | None = None,
    token: str | None = None,
    image_format: images.ImageFormatName = "auto",
) -> web.Application:
    """Make the web application for a simulator.

    Args:
        simulator: the world; its starts and title are shown where it has them.
        host: the listening address, which is accepted as the host name of requests, like localhost.
        max_sessions: largest number of pages that play at the same time.
        max_upload_mb: largest uploaded image, in megabytes.
        executor: one worker that runs the world, for example the one that warmed it up; None makes one.
        token: serve only pages that are opened with ``?token=``; None serves all.
        image_format: of the frames; see ``choose_format``.

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
        image_format=image_format,
    )
    middlewares = [origin_middleware(host)] + ([] if token is None else [token_middleware(token)])
    app = web.Application(middlewares=middlewares)
    app.router.add_get("/", _serve_file("index.html", "text/html"))
    app.router.add_get("/style.css", _serve_file("style.css", "text/css"))
    for name in ("player.js", "connection.js", "keys.js", "levers.js", "panel.js", "parts.js", "spark.js"):
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
        image_format: of the frames; see ``choose_format``.
    """

    def __init__(
        self,
        simulator: Simulator,
        max_sessions: int,
        max_upload: int,
        executor: ThreadPoolExecutor,
        image_format: images.ImageFormatName,
    ) -> None:
        self.simulator = simulator
        self.starts = simulator_starts(simulator)
        self.max_sessions = max_sessions
        self.max_upload = max_upload
        self.connections: set[web.WebSocketResponse] = set()
        self.executor = executor
        self.image_format: images.ImageFormatName = image_format
        self.batcher = StepBatcher(simulator, executor)
        self.encoders = ThreadPoolExecutor(max_workers=ENCODING_THREADS)
        self.upload_executor = ThreadPoolExecutor(max_workers=1)

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
        most = 2 * max(self.max_upload, MAX_TEXT)
        connection = web.WebSocketResponse(heartbeat=30, max_msg_size=most, compress=False)  # images are compressed
        await connection.prepare(request)
        if len(self.connections) >= self.max_sessions:
            text = f"all {self.max_sessions} sessions are in use; close another page of this world, or try again later"
            await connection.send_json({"type": "full", "message": text})
            await connection.close(code=WSCloseCode.TRY_AGAIN_LATER)
            return connection
        self.connections.add(connection)
        try:
            await PageConnection(self, connection).serve()
        except ConnectionResetError:
            pass  # the page closed while its answer was being sent
        finally:
            self.connections.discard(connection)
        return connection

    async def close(self, _app: web.Application) -> None:
        """Close all sessions and stop the worker threads."""
        for connection in list(self.connections):
            await connection.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends")
        for executor in (self.executor, self.encoders, self.upload_executor):
            executor.shutdown(wait=False, cancel_futures=True)


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
