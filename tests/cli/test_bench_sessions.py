"""``vwm bench sessions``: its clients against a server, and what it says about their steps."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import factories
import pytest
from aiohttp.test_utils import TestServer

from vwm.cli import bench_sessions
from vwm.cli.bench_sessions import SessionStep, benchmark_sessions, describe_sessions, play_sessions
from vwm.play.app import make_app

HELLO = {"title": "w", "fps": 20.0, "frames_per_step": 2, "images": "image/webp", "starts": 1}


def steps_at(session: int, period: float, count: int) -> list[SessionStep]:
    header = {"worlds": 4, "model_ms": 30.0, "wait_ms": 8.0, "encode_ms": 1.0, "server_ms": 40.0}
    return [SessionStep(session, period * step, period * step + 0.05, header) for step in range(count)]


def test_the_description_counts_the_sessions_that_keep_the_recorded_rate() -> None:
    steps = steps_at(0, 0.1, 21) + steps_at(1, 0.2, 11) + steps_at(2, 0.101, 20)
    text = describe_sessions(HELLO, steps, 2.0)
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())
    assert lines["sessions"] == "3 of w, recorded at 10 steps a second; image/webp"
    assert lines["steps a second"] == "median 9.9 a session (5.0-10.0), 24.9 together"
    assert lines["recorded rate"] == "kept by 2 of 3 sessions"
    assert lines["worlds in a step"] == "mean 4.0"
    assert lines["round trip"].startswith("median 50.0 ms") and lines["- model"].startswith("median 30.0 ms")
    assert lines["- waiting"].startswith("median 8.0 ms") and lines["- transport"].startswith("median 10.0 ms")
    assert describe_sessions(HELLO, [], 2.0) == "no step was answered within 2 s"


@pytest.mark.parametrize("composite", [False, True])
def test_every_session_plays_on_a_server(composite: bool) -> None:
    world = factories.genie(labeled=True, composite=composite)

    async def play() -> tuple[dict[str, object], list[SessionStep]]:
        async with TestServer(make_app(world, max_sessions=3)) as server:
            return await play_sessions(str(server.make_url("/")), sessions=3, seconds=0.6)

    hello, steps = asyncio.run(play())
    assert hello["type"] == "hello" and {step.session for step in steps} == {0, 1, 2}
    for session in range(3):
        numbers = [step.header["step"] for step in steps if step.session == session]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert all(step.asked < step.answered and step.header["server_ms"] > 0 for step in steps)


def test_too_many_sessions_are_refused_with_the_servers_words() -> None:
    async def play() -> None:
        async with TestServer(make_app(factories.genie(labeled=True), max_sessions=1)) as server:
            await asyncio.wait_for(play_sessions(str(server.make_url("/")), sessions=2, seconds=0.1), 30)

    with pytest.raises(ValueError, match="refuses the session: all 1 sessions are in use"):
        asyncio.run(play())


def test_impossible_requests_and_servers_that_do_not_start_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sessions must lie in 1\.\.512, got 0"):
        benchmark_sessions(tmp_path, sessions=0)
    with pytest.raises(ValueError, match="seconds must be positive, got -1"):
        benchmark_sessions(tmp_path, seconds=-1)
    with (
        pytest.raises(ValueError, match="the server did not start"),
        bench_sessions._serve([str(tmp_path / "nothing")]),
    ):
        pass
