"""The page in a real browser: the effects of keys, buttons, sliders and files on the shown frame."""

from __future__ import annotations

import asyncio
import io
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from aiohttp import web
from diamond_worlds import csgo_world, diamond_world
from factories import composite_space
from PIL import Image
from published_worlds import dreamer4_world, oasis_world, waypoint_world

from vwm.core.action_parts import ActionPart, read_action_parts
from vwm.core.simulator import Simulator
from vwm.core.spaces import ActionSpace
from vwm.data.action_files import read_action_file
from vwm.play.server import make_app, open_listener
from vwm.worlds.bundle import load_simulator

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
if CHROMIUM is None:
    pytest.skip("Chromium is not installed: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import Browser, Page, expect  # noqa: E402  (after the skip)

expect.set_options(timeout=30_000)  # milliseconds, enough for a busy machine

SLOW_CLOCK = """() => {
    const now = performance.now.bind(performance), began = now();
    performance.now = () => began + (now() - began) / 10;
}"""
WATCH_FRAMES = """() => {
    const screen = document.getElementById("screen");
    window.seen = [];
    new MutationObserver(() => {
        const row = screen.getContext("2d").getImageData(0, 15, screen.width, 1).data;
        let column = 0;
        while (column < screen.width && row[4 * column] < 255) column++;
        window.seen.push([performance.now(), column]);
    }).observe(screen, { attributes: true, attributeFilter: ["data-frames"] });
}"""
"""Keep the time of every drawn frame and the column of the square in it."""
PIXELS = """() => {
    const { width, height } = document.getElementById("screen");
    return [...document.getElementById("screen").getContext("2d").getImageData(0, 0, width, height).data];
}"""


@contextmanager
def serve_world(world: Simulator, **settings: Any) -> Iterator[str]:
    """Serve a world on a free port from another thread; yield its address."""
    listener = open_listener("127.0.0.1", 0)
    # playwright runs an event loop in this thread, so the server gets another thread
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner = web.AppRunner(make_app(world, **settings))

    async def start() -> None:
        await runner.setup()
        await web.SockSite(runner, listener).start()

    asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://localhost:{listener.getsockname()[1]}/"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def open_world(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that serves a world, opens its page and waits for the first frame; page errors fail the test."""
    errors: list[str] = []
    with ExitStack() as stack:

        def opened(world: Simulator, ready: str = "[data-step='0']", **context: Any) -> Page:
            address = stack.enter_context(serve_world(world))
            page = browser.new_page(**context)
            stack.callback(page.close)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
            page.goto(address)
            page.wait_for_selector(ready)
            return page

        yield opened
    assert errors == []


def pixels(page: Page) -> np.ndarray[Any, np.dtype[np.uint8]]:
    data = np.array(page.evaluate(PIXELS), np.uint8)
    side = page.evaluate("document.getElementById('screen').height")
    return data.reshape(side, -1, 4)[..., :3]


def frames_of_noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def mode(page: Page) -> str:
    return str(page.evaluate("document.body.dataset.mode"))


def step_of(page: Page) -> int:
    return int(page.evaluate("document.getElementById('screen').dataset.step"))


def wait_for_step(page: Page, step: int) -> None:
    expect(page.locator("#screen")).to_have_attribute("data-step", str(step))


def wait_past_step(page: Page, step: int) -> None:
    wait_until(page, f"Number(document.getElementById('screen').dataset.step) > {step}")


def wait_until(page: Page, condition: str) -> None:
    """Wait for a condition; playwright's own function uses ``eval``, which the page's content policy forbids."""
    page.evaluate(
        f"""async () => {{
            const end = performance.now() + 20_000;
            while (!({condition})) {{
                if (performance.now() > end) throw new Error("the condition was not met within 20 s");
                await new Promise(requestAnimationFrame);
            }}
        }}"""
    )


def pause(page: Page) -> None:
    """Pause and wait until no answer is pending, so that the next step is the one a test requests."""
    page.keyboard.press("p")
    expect(page.locator("body")).to_have_attribute("data-mode", "paused")
    step = -1
    while step != step_of(page):  # on a busy machine the last answer may arrive late
        step = step_of(page)
        page.wait_for_timeout(300)


def test_the_first_frame_is_that_of_the_start(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    assert np.array_equal(pixels(page), world.starts[0, -1].numpy())
    assert page.title() == "square world"
    box = page.locator("#screen").bounding_box()
    assert box is not None and box["width"] % 32 == 0 and box["width"] == box["height"]


def test_play_continues_after_a_key_until_paused(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    page.keyboard.down("ArrowUp")
    wait_past_step(page, 6)
    page.keyboard.up("ArrowUp")
    assert mode(page) == "playing"
    frame = pixels(page)
    assert (frame[:8, 14:18] == 255).any() and not (frame[17, 14:18] == 255).any()
    wait_past_step(page, step_of(page) + 2)  # without a key the world continues with the idle action
    pause(page)
    step, frame = step_of(page), pixels(page)
    page.wait_for_timeout(500)  # ten frames of the world
    assert step_of(page) == step and np.array_equal(pixels(page), frame)
    page.keyboard.press("p")
    wait_past_step(page, step)


def test_model_and_transport_are_shown_apart(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    assert page.locator("#model, #transport").all_inner_texts() == ["–", "–"]
    page.keyboard.press("p")
    wait_past_step(page, 5)
    pause(page)
    for name in ("model", "transport"):
        assert float(page.locator(f"#{name}").inner_text()) >= 0
    tiles = page.locator(".stats div:has(#model), .stats div:has(#transport)")
    model, transport = (tiles.nth(index).get_attribute("title") or "" for index in range(2))
    assert "waiting for the model" in model and "encoding" in transport


def test_every_frame_of_a_step_is_shown_at_the_recorded_rate(open_world: Callable[..., Page], fast_world: Any) -> None:
    """Four frames per step, of 50 ms each; in play the next step follows without a gap or a lost frame."""
    page = open_world(fast_world)
    page.keyboard.press("p")
    pause(page)
    page.wait_for_timeout(500)  # the frames of the last step
    base, before = step_of(page), pixels(page)
    page.evaluate(WATCH_FRAMES)
    page.keyboard.press("ArrowRight")
    wait_until(page, "window.seen.length === 4")
    times, columns = zip(*page.evaluate("window.seen"), strict=True)
    assert columns == (15, 16, 17, 18) and step_of(page) == base + 1
    assert np.diff(times).min() > 20 and times[-1] - times[0] > 120
    page.keyboard.press("z")
    wait_for_step(page, base)
    assert np.array_equal(pixels(page), before)
    page.evaluate("window.seen.length = 0")
    page.keyboard.down("ArrowLeft")  # a step in the pause
    page.keyboard.press("p")
    wait_past_step(page, base + 2)
    page.keyboard.up("ArrowLeft")
    pause(page)
    page.wait_for_timeout(500)
    columns = [column for _, column in page.evaluate("window.seen")]
    assert columns[0] == 13 and set(np.diff(columns)) <= {-1, 0} and columns[-1] < 8


def test_each_key_press_while_paused_is_one_step_and_undo_is_exact(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    page.keyboard.press("p")
    pause(page)
    base, frames = step_of(page), [pixels(page)]
    for number, key in enumerate(["ArrowLeft", "d", "ArrowDown", "Space", "."], start=1):
        page.keyboard.press(key)
        wait_for_step(page, base + number)
        frames.append(pixels(page))
        assert not np.array_equal(frames[-1], frames[-2])
    for number in range(4, -1, -1):
        page.keyboard.press("z" if number % 2 else "Backspace")
        wait_for_step(page, base + number)
        assert np.array_equal(pixels(page), frames[number])


def test_the_keys_of_up_jump_where_no_action_goes_up(open_world: Callable[..., Page], world: Any) -> None:
    choose = """([names, held]) => import(new URL("keys.js", document.querySelector("script[src]").src))
        .then(({ bind, chosen }) => chosen(bind(names, names.indexOf("none")), new Set(held))?.name)"""
    page = open_world(world)
    runner = ["left", "left jump", "none", "jump", "right", "right jump"]
    for held, action in (
        (["Space"], "jump"),
        (["ArrowUp"], "jump"),
        (["KeyA", "KeyW"], "left jump"),
        (["ArrowRight"], "right"),
    ):
        assert page.evaluate(choose, [runner, held]) == action
    assert page.evaluate(choose, [["up", "jump", "none"], ["ArrowUp"]]) == "up"
    assert page.evaluate(choose, [["up", "jump", "none"], ["Space"]]) == "jump"
    walker = ["forward", "back", "jump", "fire"]
    pressed = {key: page.evaluate(choose, [walker, [key]]) for key in ("KeyW", "KeyS", "Space", "KeyF", "ArrowUp")}
    assert pressed == {"KeyW": "forward", "KeyS": "back", "Space": "jump", "KeyF": "fire", "ArrowUp": "forward"}
    assert page.evaluate(choose, [["fire", "none"], ["Space"]]) == "fire"
    taken = ["jump", "fire", "F"]  # both keys of fire belong to others
    pressed = {key: page.evaluate(choose, [taken, [key]]) for key in ("Space", "KeyF", "Digit1")}
    assert pressed == {"Space": "jump", "KeyF": "F", "Digit1": "fire"}


def test_two_keys_combine_to_a_diagonal_action(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    page.keyboard.down("ArrowLeft")
    page.keyboard.down("w")
    expect(page.locator(".act.on")).to_have_attribute("title", "LEFT+UP (← ↑)")
    page.keyboard.up("w")
    expect(page.locator(".act.on")).to_have_attribute("title", "LEFT (←)")
    page.keyboard.up("ArrowLeft")
    expect(page.locator(".act.on")).to_have_count(0)


def test_legend_buttons_take_their_action(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    page.keyboard.press("p")
    pause(page)
    step = step_of(page)
    page.click("[data-action='1']")
    wait_for_step(page, step + 1)
    assert (pixels(page)[15, 15:19] == 255).all()
    page.click("#undo")
    wait_for_step(page, step)
    assert (pixels(page)[15, 14:18] == 255).all()


def test_a_termination_is_shown_and_r_resets(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    page.keyboard.down("ArrowRight")
    expect(page.locator("#veil-title")).to_have_text("The world ended")
    page.keyboard.up("ArrowRight")
    expect(page.locator("#total")).to_have_text("1")
    page.keyboard.press("r")
    wait_for_step(page, 0)
    assert mode(page) == "ready"


def test_starts_and_seeds_can_be_selected(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    page.click("[data-start='2']")
    wait_until(page, f"({PIXELS})()[0] === 100")
    page.fill("#seed", "11")
    page.keyboard.press("Enter")
    page.keyboard.press("p")
    pause(page)
    step = step_of(page) + 1
    page.keyboard.press(".")
    wait_for_step(page, step)
    assert pixels(page)[0, 0, 0] == (11 * 7919 + step * 104729) % 256
    page.fill("#seed", "1.5")
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_contain_text("The seed must be an integer")


def test_an_uploaded_image_becomes_the_start(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    buffer = io.BytesIO()
    Image.new("RGB", (90, 50), (0, 120, 130)).save(buffer, "PNG")
    page.set_input_files("#file", {"name": "teal.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    page.wait_for_selector("[data-start='upload'].on")
    wait_until(page, f"({PIXELS})()[1] === 120")
    assert np.array_equal(pixels(page), np.full((32, 32, 3), (0, 120, 130)))
    page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator("#toast")).to_contain_text("not an image")
    page.set_input_files("#file", {"name": "big.png", "mimeType": "image/png", "buffer": bytes(4_000_001)})
    expect(page.locator("#toast")).to_contain_text("the limit is 4 MB")


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_recordings_can_be_downloaded(open_world: Callable[..., Page], world: Any, tmp_path: Path, suffix: str) -> None:
    page = open_world(world)
    page.keyboard.press("p")
    pause(page)
    step = step_of(page)
    page.keyboard.press("v")
    expect(page.locator("#rec-badge")).to_be_visible()
    for number in range(1, 6):
        page.keyboard.press("ArrowUp")
        wait_for_step(page, step + number)
    page.click("#record")
    expect(page.locator("#rec-badge")).to_be_hidden()
    with page.expect_download() as download:
        page.click("#video" if suffix == "mp4" else "#gif")
    assert download.value.suggested_filename == f"play.{suffix}"
    path = tmp_path / f"play.{suffix}"
    download.value.save_as(path)
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 6


def test_an_error_of_the_world_pauses_with_a_message(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    world.broken = True
    page.keyboard.press("p")
    expect(page.locator("#toast")).to_contain_text("the world failed")
    assert mode(page) == "paused"


def test_holding_undo_rewinds_and_a_short_press_is_one_step(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world)
    page.keyboard.press("p")
    pause(page)
    base = step_of(page)
    for number in range(1, 13):
        page.keyboard.press("ArrowUp")
        wait_for_step(page, base + number)
    page.locator("#undo").hover()
    page.mouse.down()
    page.wait_for_timeout(150)
    page.mouse.up()
    page.wait_for_timeout(150)
    assert step_of(page) == base + 11
    page.focus("#undo")
    page.keyboard.press("Enter")
    wait_for_step(page, base + 10)
    page.mouse.down()
    wait_until(page, f"Number(document.getElementById('screen').dataset.step) <= {base + 6}")
    page.mouse.up()
    page.wait_for_timeout(100)
    step = step_of(page)
    page.wait_for_timeout(200)
    assert step_of(page) == step


def wait_for_action(page: Page, world: Any, condition: Callable[[list[float]], bool]) -> list[float]:
    """Wait until the world receives an action that meets a condition; return the action."""
    for _ in range(200):
        action_found = next((action for action in list(world.received) if condition(action)), None)
        if action_found is not None:
            return list(action_found)
        page.wait_for_timeout(50)
    raise AssertionError(f"no such action was received; the last ones were {world.received[-5:]}")


REST = [0, -1, -1]


def test_keys_move_continuous_actions_gradually_and_back(open_world: Callable[..., Page], car: Any) -> None:
    page = open_world(car)
    expect(page.locator("#keys-hint")).to_have_text("← → steer · ↑ gas · ↓ brake or  W A S D")
    page.select_option("#speed", "0")  # unlimited frame rate, so that some frames show intermediate actions
    page.evaluate(SLOW_CLOCK)  # for busy machines
    page.keyboard.down("ArrowLeft")
    page.keyboard.down("w")
    assert wait_for_action(page, car, lambda action: action[:2] == [-1, 1]) == [-1, 1, -1]
    steer_values, gas_values, brake_values = zip(*car.received, strict=True)
    # There were intermediate values.
    assert any(-1 < steer < 0 for steer in steer_values) and any(-1 < gas < 1 for gas in gas_values)
    assert (
        list(steer_values) == sorted(steer_values, reverse=True)
        and list(gas_values) == sorted(gas_values)
        and set(brake_values) == {-1}
    )
    page.keyboard.up("ArrowLeft")
    page.keyboard.up("w")
    car.received.clear()
    wait_for_action(page, car, lambda action: action == REST)
    page.keyboard.down("d")
    page.keyboard.down("ArrowDown")
    assert wait_for_action(page, car, lambda action: action[0] == 1 and action[2] == 1) == [1, -1, 1]
    pause(page)  # while paused, a press is one step with the full action
    page.keyboard.up("d")
    page.keyboard.up("ArrowDown")
    step, count = step_of(page), len(car.received)
    page.keyboard.press("a")
    wait_for_step(page, step + 1)
    page.click("#single")
    wait_for_step(page, step + 2)
    assert car.received[count:] == [[-1, -1, -1], REST]
    page.click("#undo")
    wait_for_step(page, step + 1)


def test_dragging_the_stick_sets_continuous_actions(open_world: Callable[..., Page], car: Any) -> None:
    page = open_world(car)
    box = page.locator("#stick").bounding_box()
    assert box is not None
    x, y, radius = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.4 * radius, y - radius)  # 4/5 of the radius is the full action
    right, gas, brake = wait_for_action(page, car, lambda action: action[1] == 1)
    assert right == pytest.approx(0.5, abs=0.03) and (gas, brake) == (1, -1)
    page.mouse.move(x - 2 * radius, y + 0.4 * radius)
    left, gas, brake = wait_for_action(page, car, lambda action: action[0] == -1)
    assert (left, gas) == (-1, -1) and brake == pytest.approx(0, abs=0.06)
    expect(page.get_by_label("steer")).to_have_value("-1")
    page.mouse.up()
    car.received.clear()
    wait_for_action(page, car, lambda action: action == REST)
    page.select_option("#release", "stay")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + radius, y)
    page.mouse.up()
    page.wait_for_timeout(300)
    car.received.clear()
    assert wait_for_action(page, car, bool) == [1, -1, -1]


def test_sliders_return_to_rest_while_playing_and_stay_while_paused(open_world: Callable[..., Page], car: Any) -> None:
    page = open_world(car)
    page.keyboard.press("p")
    box = page.get_by_label("gas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] / 2)
    assert wait_for_action(page, car, lambda action: action[1] == 1) == [0, 1, -1]
    page.mouse.up()
    car.received.clear()
    wait_for_action(page, car, lambda action: action == REST)
    pause(page)
    page.get_by_label("steer").fill("0.5")
    for _ in range(2):
        step = step_of(page)
        page.click("#single")
        wait_for_step(page, step + 1)
        assert car.received[-1] == [0.5, -1, -1]
    page.keyboard.press("r")
    wait_for_step(page, 0)
    page.keyboard.press("p")
    car.received.clear()
    wait_for_action(page, car, lambda action: action == REST)


def test_one_dimension_has_no_stick_and_two_without_a_brake_move_in_both_directions(
    open_world: Callable[..., Page], make_car: Callable[..., Any]
) -> None:
    one = make_car(torque=0.5)
    page = open_world(one)
    expect(page.locator("#stick")).to_be_hidden()
    expect(page.locator("#keys-hint")).to_have_text("← → torque or A D")
    page.keyboard.press("ArrowUp")  # no action dimension of this world
    page.keyboard.press("p")
    assert wait_for_action(page, one, bool) == [0.5]
    page.keyboard.down("a")
    wait_for_action(page, one, lambda action: action == [-1])
    two = make_car(wheel=0.0, lift=0.0)
    page = open_world(two)
    page.keyboard.down("s")
    assert wait_for_action(page, two, lambda action: action[1] == -1) == [0, -1]


GAMEPAD = """() => {
    const pad = { connected: true, axes: [0.5, 0.05, 0, 0], buttons: Array.from({ length: 8 }, () => ({ value: 0 })) };
    pad.buttons[7].value = 0.75;
    navigator.getGamepads = () => [null, pad];
}"""


def test_a_gamepad_sets_continuous_actions(open_world: Callable[..., Page], car: Any) -> None:
    page = open_world(car)
    page.evaluate(GAMEPAD)
    assert wait_for_action(page, car, bool) == [0.5, 0.5, -1]  # 3/4 of the trigger; play has started
    page.evaluate("() => { navigator.getGamepads = () => []; }")
    car.received.clear()
    wait_for_action(page, car, lambda action: action == REST)


def test_touch_sets_continuous_actions_on_a_phone(open_world: Callable[..., Page], car: Any) -> None:
    page = open_world(car, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator("#stick").bounding_box()
    assert box is not None and box["y"] + box["height"] <= 844 and box["width"] >= 150
    touch = page.context.new_cdp_session(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": box["y"]}]})
    assert wait_for_action(page, car, lambda action: action[1] == 1)[2] == -1
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    car.received.clear()
    wait_for_action(page, car, lambda action: action == REST)


def test_sliders_set_continuous_actions(open_world: Callable[..., Page], make_world: Callable[..., Any]) -> None:
    page = open_world(make_world("continuous"))
    page.get_by_label("vertical").fill("-1")
    page.click("#single")
    wait_for_step(page, 1)
    assert (pixels(page)[13, 14:18] == 255).all()


# ---- composite actions ---------------------------------------------------------------------------------------

COLUMNS = ["color", "left", "right", "up", "down", "x", "y"]


def column(name: str) -> int:
    return COLUMNS.index(name)


def picture_center(page: Page) -> tuple[float, float, float]:
    """The center of the picture and its width, in CSS pixels."""
    box = page.locator("#screen").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"]


def test_several_keys_are_held_at_once(open_world: Callable[..., Page], make_parts: Callable[..., Any]) -> None:
    world = make_parts()
    page = open_world(world)
    assert page.locator("#legend .act").all_inner_texts() == ["left\n←", "right\n→", "up\n↑", "down\n↓"]
    for key in ("ArrowLeft", "w", "ArrowDown"):
        page.keyboard.down(key)
    assert wait_for_action(page, world, lambda row: sum(row[1:5]) == 3) == [0, 1, 0, 1, 1, 0, 0]
    expect(page.locator("#legend .act.on")).to_have_count(3)
    page.keyboard.up("w")
    world.received.clear()
    assert wait_for_action(page, world, lambda row: not row[column("up")])[1:5] == [1, 0, 0, 1]
    page.keyboard.up("ArrowLeft")
    page.keyboard.up("ArrowDown")
    pause(page)
    step, count = step_of(page), len(world.received)
    page.keyboard.press("d")  # while paused, a press is one step
    wait_for_step(page, step + 1)
    assert world.received[count:] == [[0, 0, 1, 0, 0, 0, 0]]


def test_choices_stay_and_follow_keys_buttons_and_the_wheel(
    open_world: Callable[..., Page], make_parts: Callable[..., Any]
) -> None:
    world = make_parts()
    page = open_world(world)
    page.keyboard.press("3")
    wait_for_action(page, world, lambda row: row[0] == 2)
    page.click("[data-choice=green]")
    wait_for_action(page, world, lambda row: row[0] == 1)
    expect(page.locator(".choice .act.on")).to_have_text("green2")
    page.mouse.move(*picture_center(page)[:2])
    page.mouse.wheel(0, -120)
    wait_for_action(page, world, lambda row: row[0] == 0)
    page.mouse.wheel(0, -120)  # around to the last one
    wait_for_action(page, world, lambda row: row[0] == 2)
    assert all(set(row[1:]) == {0} for row in world.received)


def test_the_pointer_moves_by_a_drag_and_rests_without_one(
    open_world: Callable[..., Page], make_parts: Callable[..., Any]
) -> None:
    world = make_parts()
    page = open_world(world)
    page.evaluate("() => { document.getElementById('screen').requestPointerLock = undefined; }")
    page.keyboard.press("p")
    pause(page)
    x, y, width = picture_center(page)
    page.mouse.move(x, y)
    page.mouse.move(x + 9, y)  # no button is held: nothing
    page.mouse.down()
    page.mouse.move(x + 9 + width * 0.05, y - width * 0.02)
    page.mouse.up()
    step, count = step_of(page), len(world.received)
    for number in range(2):
        page.click("#single")
        wait_for_step(page, step + number + 1)
    moved, rested = world.received[count:]
    assert moved == [0, 0, 0, 0, 0, pytest.approx(0.5, abs=0.02), pytest.approx(-0.2, abs=0.02)] and rested == [0] * 7
    page.mouse.move(x - width * 0.2, y)
    page.mouse.down()
    page.mouse.move(x - width * 0.2 + width * 0.15, y)  # a flick is taken by two steps
    page.mouse.up()
    for number in range(3):
        page.click("#single")
        wait_for_step(page, step + number + 3)
    assert [row[column("x")] for row in world.received[-3:]] == [1, pytest.approx(0.5, abs=0.02), 0]


def test_a_click_locks_the_mouse_to_the_picture(
    open_world: Callable[..., Page], make_parts: Callable[..., Any]
) -> None:
    world = make_parts()
    page = open_world(world)
    x, y, width = picture_center(page)
    page.mouse.click(x, y)  # begins to play
    wait_until(page, "document.pointerLockElement === document.getElementById('screen')")
    page.mouse.move(x + width * 0.04, y + width * 0.02)
    moved = wait_for_action(page, world, lambda row: row[column("x")] > 0)
    assert 0 < moved[column("x")] <= 1 and moved[1:5] == [0, 0, 0, 0]
    page.keyboard.down("ArrowUp")
    page.mouse.move(x - width * 0.04, y)
    wait_for_action(page, world, lambda row: row[column("x")] < 0 and row[column("up")] == 1)
    page.keyboard.up("ArrowUp")
    page.evaluate("document.exitPointerLock()")


PARTS_GAMEPAD = """() => {
    const buttons = Array.from({ length: 16 }, () => ({ value: 0 }));
    const pad = { connected: true, axes: [-1, -1, 0.5, 0.25], buttons };
    navigator.getGamepads = () => [null, pad];
}"""


def test_a_gamepad_holds_keys_and_moves_the_pointer(
    open_world: Callable[..., Page], make_parts: Callable[..., Any]
) -> None:
    world = make_parts()
    page = open_world(world)
    page.evaluate(PARTS_GAMEPAD)
    assert wait_for_action(page, world, bool) == [0, 1, 0, 1, 0, 0.5, 0.25]  # play has started
    page.evaluate("() => { navigator.getGamepads = () => []; }")
    world.received.clear()
    wait_for_action(page, world, lambda row: row == [0] * 7)


def test_fingers_hold_several_buttons_and_move_the_pointer(
    open_world: Callable[..., Page], make_parts: Callable[..., Any]
) -> None:
    world = make_parts()
    page = open_world(world, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    points = []
    for name in ("left", "up"):
        box = page.locator(f"[data-key={name}]").bounding_box()
        assert box is not None and box["y"] + box["height"] <= 844
        points.append({"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "id": len(points)})
    touch = page.context.new_cdp_session(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points[:1]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points})
    wait_for_action(page, world, lambda row: row[1:5] == [1, 0, 1, 0])
    x, y, width = picture_center(page)
    drag = [*points, {"x": x, "y": y, "id": 2}]
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": drag})
    drag[2] = {"x": x + width * 0.05, "y": y, "id": 2}
    touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": drag})
    assert wait_for_action(page, world, lambda row: row[column("x")] > 0)[1:5] == [1, 0, 1, 0]
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    world.received.clear()
    wait_for_action(page, world, lambda row: row == [0] * 7)


def test_axes_of_a_composite_action_have_sliders_and_the_recording_keeps_the_actions(
    open_world: Callable[..., Page], make_parts: Callable[..., Any], tmp_path: Path
) -> None:
    space = ActionSpace.composite(*composite_space().parts, ActionPart("axes", 1, "throttle", ("gas",), (-1.0,)))
    world = make_parts(space)
    page = open_world(world)
    page.keyboard.press("p")
    pause(page)
    page.keyboard.press("v")
    expect(page.locator("#rec-badge")).to_be_visible()
    step = step_of(page)
    page.get_by_label("gas").fill("0.5")
    page.keyboard.press("d")  # the arrow keys would move the slider
    wait_for_step(page, step + 1)
    page.keyboard.press("2")
    wait_for_step(page, step + 2)
    page.click("#record")
    expect(page.locator("#rec-badge")).to_be_hidden()
    for name in ("video", "csv"):
        with page.expect_download() as download:
            page.click(f"#{name}")
        download.value.save_as(tmp_path / download.value.suggested_filename)
    stated = read_action_file(tmp_path / "play.mp4")
    assert stated is not None
    assert ActionSpace.composite(*read_action_parts(stated.meta["action_parts"])).names == space.names
    assert stated.values.tolist() == [*world.received[-2:], [0] * 7 + [-1]]
    assert world.received[-2:] == [[0, 0, 1, 0, 0, 0, 0, 0.5], [1, 0, 0, 0, 0, 0, 0, 0.5]]


def test_a_trained_world_of_keys_and_pointer_is_played(open_world: Callable[..., Page], lamp_world: Path) -> None:
    world = load_simulator(lamp_world / "world", "cpu")
    received: list[list[float]] = []
    step = world.step
    world.step = lambda state, action, *rest: (received.extend(action.tolist()), step(state, action, *rest))[1]  # type: ignore[method-assign,func-returns-value]
    page = open_world(world)
    first = pixels(page)
    assert page.locator("#legend .act span").all_inner_texts() == ["left", "right", "up", "down"]
    x, y, width = picture_center(page)
    page.mouse.click(x, y)
    page.keyboard.down("ArrowLeft")
    page.keyboard.down("ArrowUp")
    page.keyboard.press("2")
    wait_past_step(page, 3)
    page.mouse.move(x + width * 0.05, y + width * 0.02)
    wait_past_step(page, step_of(page) + 4)
    assert any(row[:5] == [1, 1, 0, 1, 0] and row[5] > 0 for row in received)  # all at once
    assert not np.array_equal(pixels(page), first)


def test_a_published_world_of_minecraft_is_played_by_keys_and_mouse(open_world: Callable[..., Page]) -> None:
    """Oasis, with random weights."""
    world = oasis_world()
    world.starts = frames_of_noise(2, *world.spec.observation.shape)[None]
    received: list[list[float]] = []
    step = world.step
    world.step = lambda state, action, *rest: (received.extend(action.tolist()), step(state, action, *rest))[1]  # type: ignore[method-assign,func-returns-value]
    page = open_world(world)
    first = pixels(page)
    labels = dict(text.split("\n") for text in page.locator("#legend .act").all_inner_texts())
    expected = {"forward": "W", "left": "←", "hotbar.9": "9", "jump": "space", "sneak": "shift", "inventory": "E"}
    assert {name: labels[name] for name in expected} == expected and len(set(labels.values())) == 23
    x, y, width = picture_center(page)
    page.mouse.click(x, y)
    for key in ("w", "a", "Space", "Shift"):
        page.keyboard.down(key)
    wait_past_step(page, 1)
    page.mouse.move(x + width * 0.05, y - width * 0.02)
    wait_past_step(page, step_of(page) + 3)
    names, held = world.spec.actions.names, {"keys.forward", "keys.left", "keys.jump", "keys.sneak"}
    turned = [row for row in received if row[-2] > 0 > row[-1]]  # to the right and up
    assert turned and all({n for n, v in zip(names[:23], row[:23], strict=True) if v} == held for row in turned)
    assert not np.array_equal(pixels(page), first)


def test_published_worlds_of_diffusion_in_pixels_are_played(open_world: Callable[..., Page]) -> None:
    """DIAMOND's Atari and Counter-Strike, with random weights."""
    worlds = (diamond_world(outcomes=False), "ArrowRight", "→"), (csgo_world(), "w", "forward")
    for world, key, name in worlds:  # the first without its terminations, which are random
        world.starts = frames_of_noise(4, *world.spec.observation.shape)[None]
        page = open_world(world)
        first = pixels(page)
        assert np.array_equal(first, world.starts[0, -1].numpy())  # shown as it was given
        page.keyboard.down(key)
        wait_past_step(page, 2)
        expect(page.locator(".act.on")).to_contain_text(name)
        assert not np.array_equal(pixels(page), first)


@pytest.mark.parametrize(("make", "key"), [(waypoint_world, "w"), (lambda: dreamer4_world(rotary=True), "ArrowUp")])
def test_other_published_worlds_are_played(open_world: Callable[..., Page], make: Callable[[], Any], key: str) -> None:
    """Waypoint and mmbench2, with random weights."""
    world = make()
    world.starts = frames_of_noise(2, *world.spec.observation.shape)[None]
    received: list[list[float]] = []
    step = world.step
    world.step = lambda state, action, *rest: (received.extend(action.tolist()), step(state, action, *rest))[1]
    page = open_world(world)
    first = pixels(page)
    page.keyboard.down(key)
    wait_past_step(page, 2)
    assert any(any(row) for row in received) and not np.array_equal(pixels(page), first)


def test_a_world_without_starts_asks_for_an_image(
    open_world: Callable[..., Page], make_world: Callable[..., Any]
) -> None:
    page = open_world(make_world(starts=0), ready="body[data-mode='ready']")
    expect(page.locator("#veil-title")).to_have_text("Upload an image")
    with page.expect_file_chooser() as chooser:
        page.click("#veil")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 99, 199)).save(buffer, "PNG")
    chooser.value.set_files({"name": "blue.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    wait_for_step(page, 0)
    assert np.array_equal(pixels(page), np.full((32, 32, 3), (9, 99, 199)))


def test_a_page_over_the_session_limit_can_try_again(browser: Browser, world: Any) -> None:
    with serve_world(world, max_sessions=1) as address:
        first, second = browser.new_page(), browser.new_page()
        first.goto(address)
        wait_for_step(first, 0)
        second.goto(address)
        expect(second.locator("#veil-text")).to_contain_text("all 1 sessions are in use")
        first.close()
        second.click("#veil")
        wait_for_step(second, 0)
        second.close()


def test_a_phone_shows_world_and_pad_without_scrolling(open_world: Callable[..., Page], world: Any) -> None:
    page = open_world(world, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator("[data-action='3']").bounding_box()
    assert box is not None and box["y"] + box["height"] <= 844 and min(box["width"], box["height"]) >= 44
    page.tap("#veil")
    wait_past_step(page, 0)
    assert mode(page) == "playing"
