"""``vwm play``: load a world, warm it up, and serve the player."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import statistics
import webbrowser
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from aiohttp import web

from vwm.core.devices import Precision, resolve_device, resolve_precision
from vwm.core.simulator import Simulator
from vwm.play.access_token import is_loopback
from vwm.play.app import make_app
from vwm.play.images import ImageFormatName
from vwm.play.session import PlaySession
from vwm.play.stepping import Action
from vwm.play.world_description import simulator_starts
from vwm.worlds.bundle import load_simulator

__all__ = ["make_app", "play_world"]
logger = logging.getLogger(__name__)


def play_world(
    bundle: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    open_browser: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    max_sessions: int = 4,
    max_upload_mb: float = 4.0,
    open: bool = False,
    image_format: ImageFormatName = "auto",
) -> None:
    """Play a trained world in the browser.

    Args:
        bundle: folder of the world, as `vwm export` writes it, or the name of one that comes with vwm: coinrun,
            carracing, boxing or freeway.
        host: address to listen on; 0.0.0.0 lets other machines of the network play, with the printed link.
        port: port to listen on; 0 takes any free one.
        open_browser: open the page after the warm-up.
        device: where to compute; see ``resolve_device``.
        precision: of the dynamics; auto uses bfloat16 where the machine multiplies it natively.
        max_sessions: largest number of pages that play at the same time; they share the model.
        max_upload_mb: largest image that may be uploaded as a start, in megabytes.
        open: let everybody play who reaches the address. Without it, an address that other machines reach has a token,
            which is part of the printed link.
        image_format: how frames are sent; webp and png are exact, jpeg is smaller and faster for large frames. auto
            takes webp for frames of up to 128 x 128 pixels and jpeg for larger ones; a browser that does not decode the
            format gets png. Recordings are made of the exact frames.

    Raises:
        ValueError: the address cannot be used, or the world does not show frames.
    """
    # The port comes first, because loading a model may take a minute.
    with open_listener(host, port) as listener, ThreadPoolExecutor(max_workers=1) as executor:
        dtype = resolve_precision(precision, resolve_device(device), bfloat16_on_cpu=True)
        simulator = load_simulator(bundle, device, dtype)
        if simulator.spec.observation.is_latent:
            raise ValueError(
                f"{bundle} cannot be played: it predicts latents without frames, for planning. Train it with a decoder "
                "(model.decoder) to get frames"
            )
        if simulator.spec.context.is_vector:
            raise ValueError(f"{bundle} cannot be played: its observations are vectors. Plan or train agents in it")
        height, width = simulator.spec.context.image_size
        print(f"loaded {bundle} ({width} x {height}, {simulator.spec.fps:g} fps)")
        # Warm up in the thread that serves: thread pools and caches belong to a thread. The steps are taken while the
        # browser opens the page.
        session = executor.submit(warm_up_reset, simulator).result()
        token = None if open or is_loopback(host) else secrets.token_urlsafe(16)
        app = make_app(simulator, host, max_sessions, max_upload_mb, executor, token, image_format)
        address = page_url(host, listener.getsockname()[1]) + ("" if token is None else f"?token={token}")
        print(f"playing at {address}  (stop with Ctrl-C)", flush=True)
        executor.submit(warm_up_steps, session).add_done_callback(_report_failed_warm_up)
        if open_browser:
            webbrowser.open(address)
        web.run_app(app, sock=listener, print=None, access_log=None)


def open_listener(host: str, port: int) -> socket.socket:
    """Open the server's socket.

    Raises:
        ValueError: the address cannot be used; the message gives the reason and a remedy.
    """
    remedy = "Choose another with --port (0 takes any free one) or --host."
    if not 0 <= port <= 65535:
        raise ValueError(f"there is no port {port}: ports go from 0 to 65535. {remedy}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        # os.strerror does not know the negative codes of names that do not resolve
        code = error.errno or 0
        reason = os.strerror(code) if code > 0 else str(error.strerror)
        raise ValueError(f"cannot listen on {host} port {port}: {reason}. {remedy}") from error


def page_url(host: str, port: int) -> str:
    """Return the address to open in a browser on this machine."""
    shown = {"0.0.0.0": "localhost", "::": "localhost", "127.0.0.1": "localhost"}.get(host, host)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def warm_up_reset(simulator: Simulator) -> PlaySession:
    """Show a first frame, which is slow (kernels, caches), and return the session that did."""
    session = PlaySession(simulator, simulator_starts(simulator))
    session.uploaded_image = np.zeros((*simulator.spec.context.image_size, 3), np.uint8)
    session.reset(0 if session.starts is not None else None, 0)
    return session


def warm_up_steps(session: PlaySession, steps: int = 4) -> None:
    """Take the first steps of a session, which are slow (compilation, kernels, caches), and print their speed."""
    spec = session.simulator.spec
    action: Action = 0 if spec.actions.kind == "discrete" else spec.actions.rest or (0.0,) * spec.actions.size
    reset_ms = session.require_current().latency_ms
    times = [session.step(action).latency_ms for _ in range(steps)]
    fps = 1000 * spec.frames_per_step / max(statistics.median(times[1:] or times), 1e-3)
    print(
        f"about {fps:.0f} frames per second; the world was recorded at {spec.fps:g} "
        f"(reset {reset_ms:.0f} ms, first steps {', '.join(f'{ms:.0f}' for ms in times)} ms)",
        flush=True,
    )


def _report_failed_warm_up(warm_up: Future[None]) -> None:
    if not warm_up.cancelled() and (error := warm_up.exception()) is not None:
        logger.error("the world failed in its first steps", exc_info=error)
