"""The page's connection: when it asks for the next step, with a server and a clock made by the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vwm.play import app

SETUP = """async () => {
    window.now = 0;
    performance.now = () => window.now;
    window.WebSocket = class {
        static OPEN = 1;
        readyState = 1;
        sent = [];
        send(text) { this.sent.push(JSON.parse(text)); }
    };
    const { Connection } = await import("/connection.js");
    window.received = [];
    const receive = (header, body, message) => window.received.push([message.action, header.step, header.transport_ms]);
    const socket = new WebSocket("");
    window.connection = new Connection(socket, { type: "hello" }, { receive, ready: () => {}, closed: () => {} });
    const answer = (data) => { connection.socket.onmessage({ data }); return new Promise(setTimeout); };
    window.hello = () => { connection.socket.onopen(); return answer('{"type": "hello"}'); };
    window.frame = (at, step, server) => {
        window.now = at;
        const view = new DataView(new ArrayBuffer(56));
        view.setUint8(0, 1);
        view.setUint16(2, 1);
        view.setUint32(4, step);
        view.setFloat32(48, server);
        return answer(view.buffer);
    };
    window.step = (at, action) => { window.now = at; connection.step(action); };
}"""
SIXTEEN_STEPS = """async () => {
    await hello();
    for (let index = 0; index < 16; index++) {
        step(100 * index, index);
        await frame(100 * index + 90, index + 1, index === 7 ? 40 : 30);
    }
}"""


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    files: dict[str, Any] = {"content_type": "text/javascript", "path": Path(app.PAGE_FOLDER) / "connection.js"}
    page.route("**/*", lambda route: route.fulfill(content_type="text/html", body=""))
    page.route("**/connection.js", lambda route: route.fulfill(**files))
    page.goto("http://localhost/")
    page.evaluate(SETUP)
    yield page
    page.close()


def test_the_next_step_waits_until_the_server_has_finished_the_last_one(page: Any) -> None:
    """Answers take 90 ms, of which the server takes 30, and once 40; so steps may follow each other after 40 ms."""
    page.evaluate(SIXTEEN_STEPS)
    assert page.evaluate("received.at(-1)") == [15, 16, 60] and page.evaluate("received[8][2]") == 50
    assert page.evaluate("[connection.nextStepAt, connection.busy, connection.stepsAhead]") == [0, False, 0]
    page.evaluate("step(2000, 1)")
    assert page.evaluate("[connection.nextStepAt, connection.busy, connection.stepsAhead]") == [2040, True, 1]
    page.evaluate("step(2040, 2)")
    assert page.evaluate("[connection.nextStepAt, connection.stepsAhead]") == [2080, 2]
    assert page.evaluate("connection.socket.sent.slice(-2)") == [
        {"type": "step", "action": 1},
        {"type": "step", "action": 2, "ahead": True},
    ]
    page.evaluate("frame(2090, 17, 30)")
    assert page.evaluate("received.at(-1)") == [1, 17, 60]
    page.evaluate("frame(2130, 18, 30)")
    assert page.evaluate("received.at(-1)") == [2, 18, 60]  # of the message that it answers
    assert page.evaluate("connection.busy") is False


def test_other_messages_wait_for_all_answers_and_steps_wait_for_them(page: Any) -> None:
    page.evaluate(SIXTEEN_STEPS)
    page.evaluate("step(2000, 1)")
    page.evaluate("step(2040, 2)")
    page.evaluate("connection.send({ type: 'undo', steps: 3 })")
    assert page.evaluate("connection.nextStepAt === Infinity")
    page.evaluate("frame(2090, 17, 30)")
    assert page.evaluate("connection.socket.sent.at(-1).type") == "step"
    page.evaluate("frame(2130, 18, 30)")
    assert page.evaluate("connection.socket.sent.at(-1)") == {"type": "undo", "steps": 3}
    assert page.evaluate("[connection.nextStepAt === Infinity, connection.waitingFor]") == [True, "undo"]
    page.evaluate("frame(2200, 15, 5)")
    assert page.evaluate("connection.nextStepAt") == 0


def test_no_step_is_asked_for_ahead_before_the_servers_times_are_known_and_few_are(page: Any) -> None:
    page.evaluate("hello()")
    page.evaluate("step(0, 0)")
    assert page.evaluate("connection.nextStepAt === Infinity")
    page.evaluate("frame(90, 1, 30)")
    page.evaluate(SIXTEEN_STEPS.replace("await hello();", ""))
    for number in range(8):
        assert page.evaluate("connection.nextStepAt < Infinity")
        page.evaluate(f"step({2000 + 40 * number}, 0)")
    assert page.evaluate("[connection.nextStepAt === Infinity, connection.stepsAhead]") == [True, 8]
