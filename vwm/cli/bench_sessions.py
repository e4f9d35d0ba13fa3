"""``vwm bench sessions``: how fast several pages play one world, measured at a real server as the pages see it."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from vwm.cli.bench_timing import format_timings
from vwm.core.command_output import format_command, print_next_command
from vwm.core.devices import Precision
from vwm.play.answers import unpack_frames

KEPT_RATE = 0.98
"""Share of the recorded rate at which a session counts as keeping it: a timer's error is no lost step."""
MAX_SESSIONS = 512


def benchmark_sessions(
    bundle: Path, sessions: int = 16, seconds: float = 10.0, device: str = "auto", precision: Precision = "auto"
) -> None:
    """Play a world with several sessions at once, each at the recorded rate, and time their steps.

    A server is started as `vwm play` does. This process is its clients: each asks for a step when one is due, and
    waits for the answer, as a page does. The first quarter of the time is not counted.

    Args:
        bundle: the bundle to play.
        sessions: number of sessions.
        seconds: time that is measured.
        device: where to compute; see ``resolve_device``.
        precision: of the dynamics; auto uses bfloat16 where the machine multiplies it natively, as play does.

    Raises:
        ValueError: a number out of range, or the server does not start.
    """
    if not 1 <= sessions <= MAX_SESSIONS:
        raise ValueError(f"sessions must lie in 1..{MAX_SESSIONS}, got {sessions}")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    arguments = [str(bundle), "--max-sessions", str(sessions), "--device", device, "--precision", precision]
    with _serve(arguments) as address:
        hello, steps = asyncio.run(play_sessions(address, sessions, seconds))
    print(describe_sessions(hello, steps, seconds))
    print_next_command(format_command("play", bundle, "--max-sessions", sessions))


class SessionStep(NamedTuple):
    """A step of a session.

    Attributes:
        session: index of the session.
        asked, answered: when the client sent the message and had its answer, in seconds.
        header: of the answer; see ``FrameHeader``.
    """

    session: int
    asked: float
    answered: float
    header: dict[str, Any]


async def play_sessions(address: str, sessions: int, seconds: float) -> tuple[dict[str, Any], list[SessionStep]]:
    """Play with several clients at the recorded rate; return the server's description of the world and the steps.

    Args:
        address: of the server, such as ``http://localhost:8000/``.
        sessions: number of clients. Their steps are due at evenly distributed times.
        seconds: time that is measured, after a third of it as warm-up. Only steps asked for in that time are returned.
    """
    steps: list[SessionStep] = []
    ready = asyncio.Barrier(sessions)
    async with aiohttp.ClientSession() as client:
        clients = (_play_session(client, address, index, ready, seconds, steps) for index in range(sessions))
        hellos = await asyncio.gather(*clients)
    return hellos[0], steps


async def _play_session(
    client: aiohttp.ClientSession,
    address: str,
    index: int,
    ready: asyncio.Barrier,
    seconds: float,
    steps: list[SessionStep],
) -> dict[str, Any]:
    async with client.ws_connect(f"{address}play", max_msg_size=0) as page:
        await page.send_json({"type": "hello", "images": ["webp", "jpeg", "png"]})
        hello: dict[str, Any] = await page.receive_json()
        if hello["type"] != "hello":
            raise ValueError(f"the server refuses the session: {hello.get('message', hello)}")
        await _ask(page, {"type": "reset", "start": index % max(1, hello["starts"]), "seed": index})
        await ready.wait()
        period = hello["frames_per_step"] / hello["fps"]
        began = time.perf_counter()
        due = began + period * index / ready.parties
        choose = random.Random(index)
        while (now := time.perf_counter()) < began + seconds * 4 / 3:
            if now < due:
                await asyncio.sleep(due - now)
            due = max(due + period, time.perf_counter() - period)
            asked = time.perf_counter()
            header = await _ask(page, {"type": "step", "action": _choose_action(hello["actions"], choose)})
            if asked >= began + seconds / 3:
                steps.append(SessionStep(index, asked, time.perf_counter(), header))
    return hello


async def _ask(page: aiohttp.ClientWebSocketResponse, message: dict[str, Any]) -> dict[str, Any]:
    await page.send_json(message)
    answer = await page.receive()
    if answer.type is not aiohttp.WSMsgType.BINARY:
        said = json.loads(answer.data)["message"] if answer.type is aiohttp.WSMsgType.TEXT else answer.type.name
        raise ValueError(f"the server did not answer a {message['type']}: {said}")
    return unpack_frames(answer.data)[0]


def _choose_action(actions: dict[str, Any], choose: random.Random) -> int | list[float]:
    if actions["kind"] == "discrete":
        return choose.randrange(actions["size"])
    return list(actions["rest"])


def describe_sessions(hello: dict[str, Any], steps: list[SessionStep], seconds: float) -> str:
    """Describe what ``play_sessions`` measured, line by line."""
    rate = hello["fps"] / hello["frames_per_step"]
    numbers = sorted({step.session for step in steps})
    if not numbers:
        return f"no step was answered within {seconds:g} s"
    rates = [_steps_a_second([step for step in steps if step.session == number], rate) for number in numbers]
    kept = sum(each >= KEPT_RATE * rate for each in rates)
    low, median, high = np.percentile(rates, (0, 50, 100))
    trips = [step.answered - step.asked for step in steps]
    lines = {
        "sessions": f"{len(numbers)} of {hello['title']}, recorded at {rate:g} steps a second; {hello['images']}",
        "steps a second": f"median {median:.1f} a session ({low:.1f}-{high:.1f}), {sum(rates):.1f} together",
        "recorded rate": f"kept by {kept} of {len(numbers)} sessions",
        "worlds in a step": f"mean {np.mean([step.header['worlds'] for step in steps]):.1f}",
        "round trip": format_timings(trips, 1e3, "ms"),
    }
    for name, key in (("- model", "model_ms"), ("- waiting", "wait_ms"), ("- encoding", "encode_ms")):
        lines[name] = format_timings([step.header[key] for step in steps], 1, "ms")
    transport = [trip - step.header["server_ms"] / 1e3 for trip, step in zip(trips, steps, strict=True)]
    lines["- transport"] = format_timings(transport, 1e3, "ms")
    return "\n".join(f"{name:18} {text}" for name, text in lines.items())


def _steps_a_second(steps: list[SessionStep], rate: float) -> float:
    """Return the rate of one session's steps; that of a single one, too."""
    between = steps[-1].asked - steps[0].asked
    return (len(steps) - 1) / between if len(steps) > 1 else min(rate, 1 / (steps[0].answered - steps[0].asked))


@contextmanager
def _serve(arguments: list[str]) -> Iterator[str]:
    """Run ``vwm play`` on a free port until the block ends; yield its address once it has taken its first steps."""
    command = [sys.executable, "-m", "vwm.cli.main", "play", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = None
            for line in server.stdout:
                print(line, end="")
                address = address or re.search(r"http://\S+", line)
                if address and "frames per second" in line:
                    break
            else:
                raise ValueError("the server did not start; its message stands above")
            yield address[0]
        finally:
            server.terminate()
