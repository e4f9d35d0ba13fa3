"""The player's server, tested with the messages of the page."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestClient, TestServer
from numpy.typing import NDArray
from PIL import Image

from vwm.core.simulator import Simulator
from vwm.data.action_files import read_action_file
from vwm.play import server, session
from vwm.play.answers import unpack_frames
from vwm.play.server import make_app, open_listener, page_url, play_world, warm_up_reset, warm_up_steps
from vwm.play.step_batching import StepBatcher
from vwm.play.world_description import find_idle_action

RIGHT, NOOP = 1, 8


class Page:
    """A client that sends one message at a time and waits for its answer."""

    def __init__(self, connection: ClientWebSocketResponse, hello: dict[str, Any]) -> None:
        self.connection, self.hello = connection, hello

    async def ask(self, message: Any = None, **fields: Any) -> tuple[dict[str, Any], bytes]:
        """Send bytes, text, or a JSON object of the given fields; return header and body of the answer."""
        if isinstance(message, bytes):
            await self.connection.send_bytes(message)
        else:
            await self.connection.send_str(message if message is not None else json.dumps(fields))
        answer = await self.connection.receive()
        if answer.type is WSMsgType.TEXT:
            return json.loads(answer.data), b""
        assert answer.type is WSMsgType.BINARY, answer
        if answer.data[0] == 1:
            header, images = unpack_frames(answer.data)
            return {"type": "frame", **header}, b"".join(images)
        length = int.from_bytes(answer.data[:4], "big")
        return json.loads(answer.data[4 : 4 + length]), answer.data[4 + length :]

    async def frame(self, **fields: Any) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        header, body = await self.ask(**fields)
        assert header["type"] == "frame", header
        return header, pixels(body)

    async def error(self, message: Any = None, **fields: Any) -> str:
        header, _ = await self.ask(message, **fields)
        assert header["type"] == "error", header
        return header["message"]


def pixels(data: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(data)))


def png(size: tuple[int, int], color: tuple[int, int, int] = (200, 10, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


async def open_page(client: TestClient[Any, Any], images: Sequence[str] = ("webp", "jpeg", "png")) -> Page:
    connection = await client.ws_connect("/play", max_msg_size=0)
    await connection.send_json({"type": "hello", "images": images})
    return Page(connection, await connection.receive_json())


def run_page(world: Simulator, script: Callable[[Page], Awaitable[None]], **settings: Any) -> None:
    """Serve a world and run a script with one page."""

    async def with_page(client: TestClient[Any, Any]) -> None:
        await script(await open_page(client))

    run_client(world, with_page, **settings)


def run_client(world: Simulator, script: Callable[[TestClient[Any, Any]], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with TestClient(TestServer(make_app(world, **settings))) as client:
            await script(client)

    asyncio.run(run())


def test_the_server_serves_the_page_and_its_files(world: Simulator) -> None:
    async def script(client: TestClient[Any, Any]) -> None:
        for path, kind in [("/", "text/html"), ("/style.css", "text/css"), ("/player.js", "text/javascript")]:
            answer = await client.get(path)
            assert (answer.status, answer.content_type) == (200, kind)
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        for name in ("connection.js", "keys.js", "levers.js", "panel.js", "spark.js"):
            assert (await client.get(f"/{name}")).status == 200
        response = await client.get("/starts/2.png")
        assert np.array_equal(pixels(await response.read()), world.starts[2, -1].numpy())
        for missing in ("/starts/3.png", "/starts/x.png", "/server.py", "/../server.py"):
            assert (await client.get(missing)).status == 404

    run_client(world, script)


def test_the_hello_message_describes_the_world(world: Simulator) -> None:
    async def script(page: Page) -> None:
        assert page.hello == {
            "type": "hello",
            "title": "square world",
            "actions": {"kind": "discrete", "size": 10, "names": list(world.spec.actions.names), "latent": False},
            "idle": NOOP,
            "width": 32,
            "height": 32,
            "fps": 20.0,
            "frames_per_step": 1,
            "starts": 3,
            "max_upload": 4_000_000,
            "images": "image/webp",
        }

    run_page(world, script)


@pytest.mark.parametrize(
    ("names", "idle"),
    [
        (("LEFT", "NOOP"), 1),
        (("LEFT", ""), 1),
        (("·", "LEFT"), 0),
        (("LEFT 70%", "RIGHT 60%", "noop 92%"), 2),
        (("view moves right 2.0 px", "no visible change"), 1),
        (("LEFT", "NOOPS"), None),
    ],
)
def test_the_idle_action_is_found_by_its_name(names: tuple[str, ...], idle: int | None) -> None:
    assert find_idle_action(names) == idle


def test_frames_and_rewards_equal_the_simulator(world: Simulator) -> None:
    async def script(page: Page) -> None:
        state, first = world.reset(world.starts[1:2], 7)
        header, frame = await page.frame(type="reset", start=1, seed=7)
        assert np.array_equal(frame, first[0].numpy())
        assert (header["step"], header["undo"], header["terminated"]) == (0, 0, False)
        total = 0.0
        for number, action in enumerate([RIGHT] * 14 + [NOOP], start=1):
            state, output = world.step(state, torch.tensor([action]))
            header, frame = await page.frame(type="step", action=action)
            total += float(output.reward)
            assert np.array_equal(frame, output.frame[0].numpy())
            assert (header["step"], header["undo"]) == (number, number)
            assert (header["reward"], header["total"]) == (float(output.reward), total)
            assert header["terminated"] == bool(output.terminated)
            assert header["model_ms"] > 0 and header["server_ms"] > header["encode_ms"] > 0
        assert total == 2 and header["fps"] > 0

    run_page(world, script)


def test_frames_are_a_function_of_the_seed(world: Simulator) -> None:
    async def script(page: Page) -> None:
        runs = []
        for seed in (5, 5, 6):
            await page.frame(type="reset", start=0, seed=seed)
            runs.append(np.stack([(await page.frame(type="step", action=index % 9))[1] for index in range(6)]))
        assert np.array_equal(runs[0], runs[1])
        assert not np.array_equal(runs[0], runs[2])

    run_page(world, script)


def test_undo_restores_earlier_frames_exactly(world: Simulator) -> None:
    async def script(page: Page) -> None:
        _, first = await page.frame(type="reset", start=0, seed=3)
        frames = [first] + [(await page.frame(type="step", action=index))[1] for index in (0, 2, 5, 9, 1)]
        header, frame = await page.frame(type="undo")
        assert (header["step"], header["undo"]) == (4, 4) and np.array_equal(frame, frames[4])
        header, frame = await page.frame(type="undo", steps=3)
        assert header["step"] == 1 and np.array_equal(frame, frames[1])
        _, repeated = await page.frame(type="step", action=2)
        assert np.array_equal(repeated, frames[2])
        header, frame = await page.frame(type="undo", steps=256)
        assert header["step"] == 0 and np.array_equal(frame, first)
        assert "nothing to undo" in await page.error(type="undo")

    run_page(world, script)


def test_undo_restores_the_return(world: Simulator) -> None:
    async def script(page: Page) -> None:
        await page.frame(type="reset", start=0)
        for _ in range(14):
            header, _ = await page.frame(type="step", action=RIGHT)
        assert header["total"] == 1 and header["terminated"]
        header, _ = await page.frame(type="undo")
        assert header["total"] == 0 and not header["terminated"]

    run_page(world, script)


def test_history_is_limited_in_steps_and_memory(world: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    play_session = session.PlaySession(world, world.starts)
    play_session.reset(0, 0)
    for _ in range(300):
        play_session.step(NOOP)
    assert len(play_session.history) == 256
    state_bytes = session.state_bytes(play_session.current.state)
    assert state_bytes == 32 * 32 * 3 + 2 * 4 + 8 + 8
    monkeypatch.setattr(session, "MAX_UNDO_BYTES", 5 * state_bytes)
    play_session.step(NOOP)
    assert len(play_session.history) == 5
    assert play_session.undo(256).step == 296
    monkeypatch.setattr(session, "MAX_UNDO_BYTES", 1)
    play_session.step(NOOP)
    assert len(play_session.history) == 1


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("{", "must be JSON"),
        ("[" * 30_000, "must be JSON"),
        ("1" * 70_000, "70000"),
        ("[]", "must be a JSON object, got a list"),
        ("{}", "'type' must be one of hello, reset, step, undo, record, got nothing"),
        ('{"type": []}', "'type' must be one of"),
        ('{"type": "eval"}', 'got "eval"'),
        ('{"type": "step"}', "'action' must be an integer from 0 to 9, got nothing"),
        ('{"type": "step", "action": 10}', "got 10"),
        ('{"type": "step", "action": -1}', "got -1"),
        ('{"type": "step", "action": true}', "got true"),
        ('{"type": "step", "action": 1.0}', "got 1.0"),
        ('{"type": "step", "action": "1"}', "'action' must be an integer"),
        ('{"type": "step", "action": 1, "speed": 2}', 'no field "speed"'),
        ('{"type": "step", "action": 1, "ahead": 1}', "'ahead' must be true or false, got 1"),
        ('{"type": "hello"}', "'images' must be a list of at most 16 names, got nothing"),
        ('{"type": "hello", "images": [1]}', "'images'"),
        ('{"type": "reset"}', "'start' must be an integer from 0 to 2, got nothing"),
        ('{"type": "reset", "start": 3}', "got 3"),
        ('{"type": "reset", "start": 0, "seed": -1}', "'seed' must be an integer from 0 to 4294967295, got -1"),
        ('{"type": "reset", "start": 0, "seed": 4294967296}', "'seed'"),
        ('{"type": "reset", "start": 0, "seed": null}', "'seed'"),
        ('{"type": "reset", "start": "upload"}', "no image is uploaded yet"),
        ('{"type": "undo", "steps": 0}', "'steps' must be an integer from 1 to 256"),
        ('{"type": "undo", "steps": 257}', "got 257"),
        ('{"type": "record"}', "'command' must be one of start, stop, download"),
        ('{"type": "record", "command": "download", "format": "exe"}', "'format' must be one of mp4, gif"),
        ('{"type": "record", "command": "download"}', "nothing is recorded yet"),
    ],
)
def test_invalid_messages_get_an_error_and_change_nothing(world: Simulator, message: str, expected: str) -> None:
    async def script(page: Page) -> None:
        await page.frame(type="reset", start=0)
        assert expected in await page.error(message)
        header, _ = await page.frame(type="step", action=NOOP)
        assert header["step"] == 1

    run_page(world, script)


@pytest.mark.parametrize(
    "fields", [{"type": "step", "action": 0}, {"type": "undo"}, {"type": "record", "command": "start"}]
)
def test_messages_before_a_reset_get_an_error(world: Simulator, fields: dict[str, Any]) -> None:
    async def script(page: Page) -> None:
        assert "reset first" in await page.error(**fields)

    run_page(world, script)


def test_continuous_actions_are_applied_and_validated(make_world: Callable[..., Any]) -> None:
    world = make_world("continuous")

    async def script(page: Page) -> None:
        assert page.hello["idle"] is None and page.hello["actions"]["names"] == ["vertical", "horizontal"]
        await page.frame(type="reset", start=0)
        _, frame = await page.frame(type="step", action=[-1, 0.6])
        assert frame[13, 15].tolist() == [255, 255, 255] and frame[17, 15].tolist() != [255, 255, 255]
        for bad in ([0.0], [0, 0, 0], 1, None, [0, 1.1], [0, "1"], [True, 0], [float("nan"), 0], [1e999, 0]):
            assert "'action'" in await page.error(json.dumps({"type": "step", "action": bad}))

    run_page(world, script)


def test_the_hello_message_contains_the_rest_values_of_continuous_actions(
    make_world: Callable[..., Any], car: Any
) -> None:
    async def script(page: Page) -> None:
        assert page.hello["actions"]["names"] == ["steer", "gas", "brake"]
        assert page.hello["actions"]["rest"] == [0, -1, -1]
        await page.frame(type="reset", start=0)
        await page.frame(type="step", action=[0.25, 1, -1])
        assert car.received == [[0.25, 1, -1]]

    run_page(car, script)

    async def script_without_rest_values(page: Page) -> None:
        assert page.hello["actions"]["rest"] == [0, 0]

    run_page(make_world("continuous"), script_without_rest_values)


def test_warm_up_uses_rest_actions(car: Any) -> None:
    warm_up_steps(warm_up_reset(car), steps=2)
    assert car.received == [[0, -1, -1]] * 2


def test_composite_actions_are_described_applied_and_validated(make_parts: Callable[..., Any]) -> None:
    world = make_parts()

    async def script(page: Page) -> None:
        assert [part["name"] for part in page.hello["actions"]["parts"]] == ["color", "keys", "mouse"]
        assert page.hello["actions"]["rest"] == [0] * 7
        await page.frame(type="reset", start=0)
        await page.frame(type="step", action=[2, 1, 0, 1, 0, 0.5, -1])
        for action, said in (
            ([3, 0, 0, 0, 0, 0, 0], "'color' must be a whole number in 0..2, got 3"),
            ([0, 0.5, 0, 0, 0, 0, 0], "'keys.left' must be a whole number"),
            ([0, True, 0, 0, 0, 0, 0], "must hold numbers"),
            ([0, 0, 0, 0, 0, 0, 1e999], "'mouse.y' must be a number in -1..1, got inf"),
            ([0, 0, 0, 0, 0, 0, 10**400], "'action'"),
            ([0], "must be a list of 7 numbers"),
        ):
            header, _ = await page.ask(type="step", action=action)
            assert header["type"] == "error" and said in header["message"]

    run_page(world, script)
    assert world.received == [[2, 1, 0, 1, 0, 0.5, -1]]


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_recorded_actions_can_be_downloaded(make_world: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    actions = [RIGHT, 2, 0] if kind == "discrete" else [[0.5, -1], [0, 0.25], [1, 1]]

    async def script(page: Page) -> None:
        await page.frame(type="reset", start=0)
        await page.ask(type="record", command="start")
        for action in (*actions, actions[0]):
            await page.frame(type="step", action=action)
        await page.frame(type="undo")
        header, table = await page.ask(type="record", command="download", format="csv")
        assert (header["name"], header["frames"]) == ("play.actions.csv", 4)
        (tmp_path / header["name"]).write_bytes(table)

    run_page(make_world(kind), script)
    stated = read_action_file(tmp_path / "play.mp4")
    assert stated is not None and stated.meta == {}
    assert stated.values.tolist() == [*actions, 0 if kind == "discrete" else [0, 0]]


def test_an_error_of_the_world_affects_one_message_only(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def script(page: Page) -> None:
        await page.frame(type="reset", start=0)
        world.broken = True
        assert "terminal" in await page.error(type="step", action=0)
        world.broken = False
        header, _ = await page.frame(type="step", action=0)
        assert header["step"] == 1

    run_page(world, script)
    assert "out of memory" in caplog.text


def test_uploads_are_cropped_and_resized(world: Simulator) -> None:
    exact = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = (0, 200, 0)

    async def script(page: Page) -> None:
        for image, expected in [(exact, exact), (wide, np.full((32, 32, 3), (0, 200, 0)))]:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            header, preview = await page.ask(buffer.getvalue())
            assert header == {"type": "upload"}
            assert np.array_equal(pixels(preview), expected)
            _, frame = await page.frame(type="reset", start="upload", seed=1)
            assert np.array_equal(frame, expected)

    run_page(world, script)


def test_rejects_invalid_uploads(world: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vwm.play.images.MAX_PIXELS", 10_000)
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"

    async def script(page: Page) -> None:
        for data in (b"", b"hello", svg, png((40, 40))[:60]):
            assert "not an image in a supported format (PNG, JPEG" in await page.error(data)
        assert "200 x 100 pixels" in await page.error(png((200, 100)))
        # Pillow's own limits, a warning and an error
        for limit in (19_000, 9_000):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            assert "more than" in await page.error(png((200, 100)))
        monkeypatch.undo()
        assert "0.2 MB; the limit is 0.1 MB" in await page.error(b"x" * 199_999)
        assert "no image is uploaded" in await page.error(type="reset", start="upload")

    run_page(world, script, max_upload_mb=0.1)


def test_an_upload_far_over_the_limit_closes_its_connection_only(world: Simulator) -> None:
    async def script(client: TestClient[Any, Any]) -> None:
        page = await open_page(client)
        await page.connection.send_bytes(bytes(500_000))
        assert (await page.connection.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        await (await open_page(client)).frame(type="reset", start=0)

    run_client(world, script, max_upload_mb=0.1, max_sessions=1)


def test_a_world_without_starts_plays_from_an_upload(make_world: Callable[..., Any]) -> None:
    async def script(page: Page) -> None:
        assert page.hello["starts"] == 0
        assert "has no starts" in await page.error(type="reset", start=0)
        await page.ask(png((50, 80)))
        _, frame = await page.frame(type="reset", start="upload")
        assert np.array_equal(frame, np.full((32, 32, 3), (200, 10, 60)))

    run_page(make_world(starts=0), script)


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_recordings_contain_the_shown_frames(world: Simulator, suffix: str) -> None:
    async def script(page: Page) -> None:
        await page.frame(type="reset", start=0)
        await page.frame(type="step", action=RIGHT)
        header, _ = await page.ask(type="record", command="start")
        assert header == {"type": "recording", "recording": True, "recorded": 1}
        for action in (RIGHT, 2, 2, RIGHT, 0, RIGHT):
            header, _ = await page.frame(type="step", action=action)
        assert (header["recording"], header["recorded"]) == (True, 7)
        header, last = await page.frame(type="undo", steps=2)
        assert header["recorded"] == 5
        header, _ = await page.ask(type="record", command="stop")
        assert header == {"type": "recording", "recording": False, "recorded": 5}
        await page.frame(type="step", action=RIGHT)
        header, video = await page.ask(type="record", command="download", format=suffix)
        assert header == {"type": "video", "name": f"play.{suffix}", "format": suffix, "frames": 5}
        with av.open(io.BytesIO(video)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 5
        assert frames[0].shape == (32, 32, 3)
        assert np.abs(frames[-1].astype(int) - last).mean() < 8

    run_page(world, script)


def test_lossy_pictures_do_not_touch_the_recording(world: Simulator) -> None:
    async def script(client: TestClient[Any, Any]) -> None:
        page = await open_page(client)
        assert page.hello["images"] == "image/jpeg"
        await page.frame(type="reset", start=0)
        await page.ask(type="record", command="start")
        _, lossy = await page.frame(type="step", action=RIGHT)
        _, gif = await page.ask(type="record", command="download", format="gif")
        with av.open(io.BytesIO(gif)) as container:
            last = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][-1]
        exact = session.PlaySession(world, world.starts)
        exact.reset(0, 0)
        shown = exact.step(RIGHT).frame
        assert np.array_equal(last, shown) and not np.array_equal(lossy, shown)
        assert np.abs(lossy.astype(int) - shown).mean() < 4
        other = await open_page(client, images=["webp"])
        assert other.hello["images"] == "image/png"

    run_client(world, script, image_format="jpeg")


def test_undo_before_the_start_of_a_recording_restarts_it(world: Simulator) -> None:
    play_session = session.PlaySession(world, world.starts)
    play_session.reset(0, 0)
    for _ in range(4):
        play_session.step(NOOP)
    play_session.start_recording()
    play_session.step(NOOP)
    undone = play_session.undo(4)
    assert np.array_equal(play_session.recorded_frames(), undone.frame[None])


def test_the_size_of_recordings_is_limited(world: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_RECORDING_BYTES", 3 * 32 * 32 * 3)
    play_session = session.PlaySession(world, world.starts)
    play_session.reset(0, 0)
    play_session.start_recording()
    for _ in range(5):
        play_session.step(NOOP)
    assert not play_session.recording and len(play_session.recording_frames) == 3


def test_the_session_limit_is_reported_and_closing_a_page_frees_a_session(world: Simulator) -> None:
    async def script(client: TestClient[Any, Any]) -> None:
        first, _second = await open_page(client), await open_page(client)
        rejected = await open_page(client)
        assert rejected.hello["type"] == "full" and "all 2 sessions are in use" in rejected.hello["message"]
        assert (await rejected.connection.receive()).type is WSMsgType.CLOSE
        assert rejected.connection.close_code == 1013
        await first.connection.close()
        await (await open_page(client)).frame(type="reset", start=0)

    run_client(world, script, max_sessions=2)


def test_sessions_are_independent(world: Simulator) -> None:
    async def script(client: TestClient[Any, Any]) -> None:
        first, second = await open_page(client), await open_page(client)
        await asyncio.gather(first.frame(type="reset", start=0), second.frame(type="reset", start=1))
        for _ in range(3):
            await asyncio.gather(first.frame(type="step", action=0), second.frame(type="step", action=RIGHT))
        (_, left), (_, right) = await asyncio.gather(
            first.frame(type="step", action=0), second.frame(type="step", action=RIGHT)
        )
        white = [255, 255, 255]
        assert left[14, 10].tolist() == white and right[14, 21].tolist() == white
        assert left[20, 20].tolist() != right[20, 20].tolist()

    run_client(world, script)


def test_steps_of_several_sessions_are_one_step_of_the_world(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    step = type(world).step

    def counted(self: Any, state: Any, action: Any, decode: bool = True) -> Any:
        batches.append(len(action))
        time.sleep(0.02)  # while it runs, the other sessions ask for their steps
        return step(self, state, action, decode)

    monkeypatch.setattr(type(world), "step", counted)

    async def script(client: TestClient[Any, Any]) -> None:
        pages = [await open_page(client) for _ in range(4)]
        for index, page in enumerate(pages):
            await page.frame(type="reset", start=index % 3)
        for number in range(5):
            answers = await asyncio.gather(*(page.frame(type="step", action=RIGHT) for page in pages))
            assert [header["step"] for header, _ in answers] == [number + 1] * 4
        alone = session.PlaySession(world, world.starts)
        alone.reset(1, 0)
        for _ in range(5):
            last = alone.step(RIGHT)
        assert np.array_equal(answers[1][1], last.frame)

    run_client(world, script)
    assert max(batches) > 1 and sum(batches) == 4 * 5 + 5


def test_a_step_that_the_end_of_the_server_cancels_does_not_wait_for_ever(world: Any) -> None:
    sessions = [session.PlaySession(world, world.starts, 2) for _ in range(2)]
    for player in sessions:
        player.reset(0, 0)

    async def script() -> None:
        release = threading.Event()
        executor = ThreadPoolExecutor(max_workers=1)
        executor.submit(release.wait, 30)
        batcher = StepBatcher(world, executor)
        steps = [asyncio.ensure_future(batcher.step(player, RIGHT)) for player in sessions]
        await asyncio.sleep(0.01)
        executor.shutdown(wait=False, cancel_futures=True)
        release.set()
        done, pending = await asyncio.wait(steps, timeout=20)
        assert not pending and all(step.cancelled() for step in done)

    asyncio.run(script())


def test_a_step_that_fails_in_a_batch_fails_for_its_session_only(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = type(world).step

    def fragile(self: Any, state: Any, action: Any, decode: bool = True) -> Any:
        if (action == NOOP).any():
            raise RuntimeError("broken")
        time.sleep(0.02)
        return step(self, state, action, decode)

    monkeypatch.setattr(type(world), "step", fragile)

    async def script(client: TestClient[Any, Any]) -> None:
        pages = [await open_page(client) for _ in range(3)]
        for page in pages:
            await page.frame(type="reset", start=0)
        actions = (RIGHT, NOOP, RIGHT)
        answers = await asyncio.gather(
            *(page.ask(type="step", action=action) for page, action in zip(pages, actions, strict=True))
        )
        assert [header["type"] for header, _ in answers] == ["frame", "error", "frame"]

    run_client(world, script)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
)
def test_rejects_requests_of_other_origins(world: Simulator, headers: dict[str, str]) -> None:
    async def script(client: TestClient[Any, Any]) -> None:
        with pytest.raises(WSServerHandshakeError) as error:
            await client.ws_connect("/play", headers=headers)
        assert error.value.status == 403
        assert (await client.get("/", headers=headers)).status == 403

    run_client(world, script)


@pytest.mark.parametrize("host", ["[::1", "a b", "[]:80", "http://x"])
def test_a_broken_host_header_is_the_clients_error(world: Simulator, host: str) -> None:
    async def script(client: TestClient[Any, Any]) -> None:
        assert 400 <= (await client.get("/", headers={"Host": host})).status < 500

    run_client(world, script)


def test_an_address_that_others_reach_requires_its_token(world: Simulator) -> None:
    async def script(client: TestClient[Any, Any]) -> None:
        for path in ("/", "/?token=wrong", "/player.js", "/play?token=secret", "/starts/0.png"):
            assert (await client.get(path)).status == 403
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/play")
        assert (await client.get("/?token=secret")).status == 200
        assert (await client.get("/player.js")).status == 200  # the cookie is enough from here on
        await (await open_page(client)).frame(type="reset", start=0)

    run_client(world, script, token="secret")


@pytest.mark.parametrize(
    ("host", "settings", "has_token"),
    [("127.0.0.1", {}, False), ("0.0.0.0", {}, True), ("0.0.0.0", {"open": True}, False)],
)
def test_the_printed_address_has_a_token_where_others_reach_it(
    world: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host, settings, has_token
) -> None:
    monkeypatch.setattr("vwm.play.server.load_simulator", lambda *arguments: world)
    monkeypatch.setattr(server.web, "run_app", lambda app, **more: None)
    play_world(Path("somewhere"), host=host, port=0, **settings)
    assert ("/?token=" in capsys.readouterr().out) == has_token


def test_accepts_requests_of_its_own_origin(world: Simulator) -> None:
    async def script(client: TestClient[Any, Any]) -> None:
        for name in ("127.0.0.1", "localhost"):
            headers = {"Host": f"{name}:{client.port}", "Origin": f"http://{name}:{client.port}"}
            async with client.ws_connect("/play", headers=headers) as connection:
                await connection.send_json({"type": "hello", "images": []})
                assert (await connection.receive_json())["type"] == "hello"

    run_client(world, script)


def test_rejects_limits_out_of_range(world: Simulator) -> None:
    with pytest.raises(ValueError, match="max_sessions must be at least 1, got 0"):
        make_app(world, max_sessions=0)
    with pytest.raises(ValueError, match="max_upload_mb must be positive"):
        make_app(world, max_upload_mb=0)


def test_a_port_in_use_is_an_error_before_the_bundle_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1 port {port}.*--port"):
            play_world(tmp_path / "no bundle", port=port)
    with pytest.raises(ValueError, match="--port"):
        open_listener("127.0.0.1", 70_000)


def test_play_warms_up_prints_the_address_and_serves(
    world: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: dict[str, Any] = {}
    monkeypatch.setattr("vwm.play.server.load_simulator", lambda *arguments: world)
    monkeypatch.setattr(server.web, "run_app", lambda app, **settings: arguments.update(app=app, **settings))
    monkeypatch.setattr(server.webbrowser, "open", lambda address: arguments.update(address=address))
    play_world(Path("somewhere"), port=0, open_browser=True)
    printed = capsys.readouterr().out
    assert "frames per second" in printed and "recorded at 20" in printed
    assert arguments["address"].startswith("http://localhost:") and arguments["address"] in printed


def test_page_urls_replace_wildcard_and_bracket_ipv6_addresses() -> None:
    assert page_url("0.0.0.0", 80) == "http://localhost:80/"
    assert page_url("::1", 80) == "http://[::1]:80/"
    assert page_url("10.0.0.7", 81) == "http://10.0.0.7:81/"


def test_warm_up_supports_continuous_actions_and_worlds_without_starts(make_world: Callable[..., Any]) -> None:
    warm_up_steps(warm_up_reset(make_world("continuous", starts=0)), steps=1)
