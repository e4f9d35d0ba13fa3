"""Collects the steps that sessions ask for at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from vwm.core.simulator import Simulator
from vwm.play.session import PlaySession, PlayStep
from vwm.play.stepping import Action, BatchStep, WorldStepper, can_step_together

GATHERING_SHARE = 0.05
"""Of the time of a step: how long the next one waits for the sessions of this one."""


class _Request(NamedTuple):
    session: PlaySession
    action: Action
    result: asyncio.Future[tuple[BatchStep, int]]


class StepBatcher:
    """Collects the steps that sessions ask for while the world is busy, and takes them together.

    A free world steps at once. Where sessions had to wait for a step, those whose step it was ask again a moment after
    them, and would have to wait for theirs in turn: two small batches after each other for ever, instead of a large one
    that takes hardly longer. So the world waits for them, ``GATHERING_SHARE`` of a step at most.

    Args:
        simulator: the world of all sessions.
        executor: one worker, in which the world runs.
    """

    def __init__(self, simulator: Simulator, executor: ThreadPoolExecutor) -> None:
        self.stepper = WorldStepper(simulator)
        self.executor = executor
        self._pending: list[_Request] = []
        self._task: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()

    async def step(self, session: PlaySession, action: Action) -> PlayStep:
        """Advance a session by one step. A session waits for its step before it asks for the next one.

        Raises:
            ValueError: the session was not reset yet.
        """
        session.require_current()
        request = _Request(session, action, asyncio.get_running_loop().create_future())
        self._pending.append(request)
        self._asked.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        batch, world = await request.result
        if not batch.copy.is_ready:  # the next step is computed meanwhile
            await asyncio.to_thread(batch.copy.wait_until_copied)
        return session.take_step(action, batch, world)

    async def _run(self) -> None:
        batch: list[_Request] = []
        try:
            while self._pending:
                state = self._pending[0].session.require_current().state
                batch = [r for r in self._pending if can_step_together(state, r.session.require_current().state)]
                batch = batch or self._pending[:1]  # a state that no other can join
                self._pending = [r for r in self._pending if all(r is not taken for taken in batch)]
                # in a fixed order, so that the batch of the same sessions can be used again
                began = time.perf_counter()
                await self._take(sorted(batch, key=lambda request: id(request.session)))
                if self._pending:
                    await self._gather(batch, GATHERING_SHARE * (time.perf_counter() - began))
        except asyncio.CancelledError:  # the server ends; its sessions would wait for their steps
            for request in (*batch, *self._pending):
                request.result.cancel()
            raise

    async def _gather(self, batch: Sequence[_Request], seconds: float) -> None:
        """Wait until the sessions of a batch have asked for their next steps, or for a time."""
        missing = {id(request.session) for request in batch}
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while missing := missing - {id(request.session) for request in self._pending}:
                    self._asked.clear()
                    await self._asked.wait()

    async def _take(self, batch: Sequence[_Request]) -> None:
        states = [request.session.require_current().state for request in batch]
        actions = [request.action for request in batch]
        try:
            step = await asyncio.get_running_loop().run_in_executor(self.executor, self.stepper.step, states, actions)
        except Exception as error:  # noqa: BLE001 (each session reports it to its page)
            if len(batch) == 1:
                if not batch[0].result.done():  # cancelled where its page has closed
                    batch[0].result.set_exception(error)
                return
            for request in batch:  # the fault of one must not be that of the others
                await self._take([request])
            return
        for world, request in enumerate(batch):
            if not request.result.done():
                request.result.set_result((step, world))
