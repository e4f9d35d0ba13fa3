"""What the player does at the same time: steps of several sessions in one batch, and sending while it steps."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer

from vwm.play import page_connection, step_batching, stepping
from vwm.play.answers import FrameHeader, unpack_frames
from vwm.play.app import make_app
from vwm.play.host_copy import HostCopy
from vwm.play.session import PlaySession
from vwm.play.stepping import WorldStepper, can_step_together

RIGHT, NOOP = 1, 8
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def test_the_next_step_is_computed_while_the_frames_of_the_last_one_are_encoded(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder of the first step waits until the second step, which was asked for ahead, is computed."""
    began = threading.Event()
    encode, step = page_connection._encode_frames, type(world).step
    steps: list[int] = []

    def counted(self: Any, state: Any, action: Any, decode: bool = True) -> Any:
        steps.append(int(action))
        if len(steps) == 2:
            began.set()
        return step(self, state, action, decode)

    def waiting(frames: Any, image_format: Any, header: FrameHeader, received: float) -> bytes:
        if header.step == 1:
            assert began.wait(30), "the second step was not computed before the first one was sent"
        return encode(frames, image_format, header, received)

    monkeypatch.setattr(type(world), "step", counted)
    monkeypatch.setattr(page_connection, "_encode_frames", waiting)

    async def script() -> None:
        async with TestClient(TestServer(make_app(world))) as client:
            page = await client.ws_connect("/play")
            await page.send_json({"type": "hello", "images": ["png"]})
            await page.receive_json()
            await page.send_json({"type": "reset", "start": 0})
            await page.receive_bytes()
            await page.send_json({"type": "step", "action": RIGHT})
            await page.send_json({"type": "step", "action": NOOP, "ahead": True})
            await page.send_json({"type": "undo"})
            numbers = [unpack_frames(await page.receive_bytes())[0]["step"] for _ in range(3)]
            assert numbers == [1, 2, 1]  # each message has its answer, in order

    asyncio.run(script())
    assert steps == [RIGHT, NOOP]


def test_a_step_asked_for_ahead_is_not_taken_after_the_end_of_the_episode(world: Any) -> None:
    async def script() -> None:
        async with TestClient(TestServer(make_app(world))) as client:
            page = await client.ws_connect("/play")
            await page.send_json({"type": "hello", "images": ["png"]})
            await page.receive_json()

            async def ask(**message: Any) -> tuple[dict[str, Any], list[bytes]]:
                await page.send_json(message)
                return unpack_frames(await page.receive_bytes())

            await ask(type="reset", start=0)
            for _ in range(14):
                ended = await ask(type="step", action=RIGHT)
            assert ended[0]["terminated"]
            ahead = await ask(type="step", action=0, ahead=True)
            assert (ahead[0]["step"], ahead[0]["undo"], ahead[1]) == (14, 14, ended[1])
            assert (await ask(type="step", action=0))[0]["step"] == 15

    asyncio.run(script())


def test_worlds_that_step_on_together_are_not_concatenated_again(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []
    concatenate = stepping.concatenate_states
    monkeypatch.setattr(
        stepping, "concatenate_states", lambda states: (joined.append(len(states)), concatenate(states))[1]
    )
    stepper = WorldStepper(world)
    sessions = [PlaySession(world, world.starts) for _ in range(3)]
    alone = [PlaySession(world, world.starts) for _ in range(3)]
    for start, (player, other) in enumerate(zip(sessions, alone, strict=True)):
        player.reset(start, seed=start)
        other.reset(start, seed=start)

    def step(actions: list[int], *players: int) -> None:
        batch = stepper.step([sessions[p].require_current().state for p in players], actions)
        for index, (p, action) in enumerate(zip(players, actions, strict=True)):
            shown = sessions[p].take_step(action, batch, index)
            assert shown.worlds == len(players)
            assert np.array_equal(shown.frames, alone[p].step(action).frames)

    step([0, 1, 2], 0, 1, 2)
    step([1, 2, 3], 0, 1, 2)
    step([2, 2, 3], 0, 1, 2)
    assert joined == [3]
    for player in (sessions[1], alone[1]):
        player.undo(2)
    step([5, 6, 7], 0, 1, 2)  # one of them has another state
    assert joined == [3, 3]
    step([0, 1], 2, 1)
    step([4], 0)
    step([0, 1], 2, 1)
    assert joined == [3, 3, 2, 2]


@pytest.mark.parametrize(("share", "batches"), [(1e9, [1, 4, 4, 4]), (0, [1, 3, 1, 3])])
def test_sessions_that_wait_for_a_busy_world_end_in_one_batch(
    world: Any, monkeypatch: pytest.MonkeyPatch, share: float, batches: list[int]
) -> None:
    """The first session steps alone; after its step the others wait, and it asks again a moment later."""
    monkeypatch.setattr(step_batching, "GATHERING_SHARE", share)
    taken: list[int] = []
    all_asked = threading.Event()
    step = type(world).step

    def counted(self: Any, state: Any, action: Any, decode: bool = True) -> Any:
        taken.append(len(action))
        assert all_asked.wait(30)
        return step(self, state, action, decode)

    monkeypatch.setattr(type(world), "step", counted)

    async def play(batcher: step_batching.StepBatcher, player: PlaySession) -> None:
        while len(taken) < 4:
            await batcher.step(player, RIGHT)
            for _ in range(10):  # turns of the loop, in which a batch could begin without this session
                await asyncio.sleep(0)

    async def script() -> None:
        sessions = [PlaySession(world, world.starts) for _ in range(4)]
        for player in sessions:
            player.reset(0, seed=0)
        with ThreadPoolExecutor(max_workers=1) as executor:
            batcher = step_batching.StepBatcher(world, executor)
            first = asyncio.ensure_future(play(batcher, sessions[0]))
            while not taken:
                await asyncio.sleep(0.001)
            others = [asyncio.ensure_future(play(batcher, player)) for player in sessions[1:]]
            await asyncio.sleep(0)
            all_asked.set()
            await asyncio.wait([first, *others], timeout=60, return_when=asyncio.FIRST_COMPLETED)
            for player in (first, *others):
                player.cancel()
            await asyncio.gather(first, *others, return_exceptions=True)
            assert batcher._task is not None
            batcher._task.cancel()

    asyncio.run(script())
    assert taken[:4] == batches


def test_states_of_other_shapes_are_no_batch(world: Any) -> None:
    state, _ = world.reset(world.starts[:1], 0)
    assert can_step_together(state, world.reset(world.starts[1:2], 5)[0])
    assert not can_step_together(state, {**state, "seed": torch.zeros(1, 2)})
    assert not can_step_together({"seed": torch.tensor(0)}, {"seed": torch.tensor(0)})


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_arrive_in_host_memory_as_they_were_when_the_copy_began(device: str) -> None:
    numbers = torch.arange(6, device=device).view(2, 3)
    copy = HostCopy((numbers + 1, numbers % 2 == 0))
    copy.wait_until_computed()
    values, even = copy.arrays()
    assert copy.is_ready
    assert values.tolist() == [[1, 2, 3], [4, 5, 6]] and even.tolist() == [[True, False, True], [False, True, False]]
