"""``vwm play``: load a world, warm it up where one can see it, serve it."""

from __future__ import annotations

import os
import socket
import statistics
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from aiohttp import web

from vwm.core.simulator import Simulator
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
    max_sessions: int = 4,
    max_upload_mb: float = 4.0,
) -> None:
    """Play a trained world in the browser.

    Args:
        bundle: folder of the simulator bundle, or the name of a world that comes with vwm: coinrun, carracing.
        host: address to listen on; 0.0.0.0 lets other machines of the network play.
        port: port to listen on; 0 takes any free one.
        open_browser: open the page when the world is warm.
        device: where the model runs: auto, cpu, cuda, cuda:1, ...
        max_sessions: how many pages may play at the same time; they share the model.
        max_upload_mb: largest picture that may be uploaded as a start, in megabytes.
    """
    # the port first: a model that took a minute to load should not end in "port taken"
    with open_listener(host, port) as listener, ThreadPoolExecutor(max_workers=1) as thread:
        simulator = load_simulator(bundle, device=device, dtype="auto")
        if simulator.spec.observation.is_latent:
            raise ValueError(
                f"{bundle} has no pictures to play in: it is a world of latents alone, made to be planned in. Train it "
                "with a decoder (model.decoder) to see it"
            )
        if simulator.spec.context.is_vector:
            raise ValueError(f"{bundle} is a world of vectors, which has nothing to be looked at: plan or train in it")
        height, width = simulator.spec.context.image_size
        print(f"loaded {bundle} ({width} x {height}, {simulator.spec.fps:g} fps)")
        # where it will run: threads have pools and caches of their own, so another one would stay cold
        thread.submit(warm_up_simulator, simulator).result()
        app = make_app(simulator, host, max_sessions, max_upload_mb, thread)
        address = page_url(host, listener.getsockname()[1])
        print(f"playing at {address}  (Ctrl-C ends)", flush=True)
        if open_browser:
            webbrowser.open(address)
        web.run_app(app, sock=listener, print=None, access_log=None)


def open_listener(host: str, port: int) -> socket.socket:
    """Open the server's socket, or say why that cannot be."""
    way_out = "Choose another with --port (0 takes any free one) or --host."
    if not 0 <= port <= 65535:
        raise ValueError(f"there is no port {port}: ports go from 0 to 65535. {way_out}")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        # a name that does not resolve has a code of its own, which os.strerror does not know
        code = error.errno or 0
        reason = os.strerror(code) if code > 0 else str(error.strerror)
        raise ValueError(f"cannot listen on {host} port {port}: {reason}. {way_out}") from error


def page_url(host: str, port: int) -> str:
    """The address to type into a browser on this machine."""
    shown = {"0.0.0.0": "localhost", "::": "localhost", "127.0.0.1": "localhost"}.get(host, host)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def warm_up_simulator(simulator: Simulator, steps: int = 4) -> None:
    """Take the first, slow steps (compilation, kernels, caches) before anybody waits for them, visibly."""
    session = PlaySession(simulator, simulator_starts(simulator))
    session.upload = np.zeros((*simulator.spec.context.image_size, 3), np.uint8)
    space = simulator.spec.actions
    action: int | tuple[float, ...] = 0 if space.kind == "discrete" else space.rest or (0.0,) * space.size
    print(f"warming up: reset {session.reset(0 if session.starts is not None else None, 0).ms:.0f} ms", end="")
    times = []
    for number in range(1, steps + 1):
        times.append(session.step(action).ms)
        print(f", step {number} {times[-1]:.0f} ms", end="", flush=True)
    steady = statistics.median(times[1:] or times)
    print(f"\nabout {1000 / max(steady, 1e-3):.0f} frames a second; the world was recorded at {simulator.spec.fps:g}")
