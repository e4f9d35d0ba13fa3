"""``vwm play``: load a world, warm it up, and serve the player."""

from __future__ import annotations

import os
import secrets
import socket
import statistics
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from aiohttp import web

from vwm.core.devices import Precision, resolve_device, resolve_precision
from vwm.core.simulator import Simulator
from vwm.play.access_token import is_loopback
from vwm.play.app import make_app, simulator_starts
from vwm.play.session import PlaySession
from vwm.worlds.bundle import load_simulator

__all__ = ["make_app", "play_world"]


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
) -> None:
    """Play a trained world in the browser.

    Args:
        bundle: folder of the world, as `vwm export` writes it, or the name of one that comes with vwm: coinrun,
            carracing or boxing.
        host: address to listen on; 0.0.0.0 lets other machines of the network play, with the printed link.
        port: port to listen on; 0 takes any free one.
        open_browser: open the page after the warm-up.
        device: where to compute; see ``resolve_device``.
        precision: of the dynamics; auto uses bfloat16 where the machine multiplies it natively.
        max_sessions: largest number of pages that play at the same time; they share the model.
        max_upload_mb: largest image that may be uploaded as a start, in megabytes.
        open: let everybody play who reaches the address. Without it, an address that other machines reach has a token,
            which is part of the printed link.

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
        # Warm up in the thread that serves: thread pools and caches belong to a thread.
        executor.submit(warm_up_simulator, simulator).result()
        token = None if open or is_loopback(host) else secrets.token_urlsafe(16)
        app = make_app(simulator, host, max_sessions, max_upload_mb, executor, token)
        address = page_url(host, listener.getsockname()[1]) + ("" if token is None else f"?token={token}")
        print(f"playing at {address}  (stop with Ctrl-C)", flush=True)
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


def warm_up_simulator(simulator: Simulator, steps: int = 4) -> None:
    """Take the first steps, which are slow (compilation, kernels, caches), and print their duration."""
    session = PlaySession(simulator, simulator_starts(simulator))
    session.uploaded_image = np.zeros((*simulator.spec.context.image_size, 3), np.uint8)
    space = simulator.spec.actions
    action: int | tuple[float, ...] = 0 if space.kind == "discrete" else space.rest or (0.0,) * space.size
    print(f"warming up: reset {session.reset(0 if session.starts is not None else None, 0).latency_ms:.0f} ms", end="")
    times = []
    for number in range(1, steps + 1):
        times.append(session.step(action).latency_ms)
        print(f", step {number} {times[-1]:.0f} ms", end="", flush=True)
    steady = statistics.median(times[1:] or times)
    fps = 1000 * simulator.spec.frames_per_step / max(steady, 1e-3)
    print(f"\nabout {fps:.0f} frames per second; the world was recorded at {simulator.spec.fps:g}")
