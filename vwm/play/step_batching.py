"""Steps of several sessions at once: a step of a batch takes little longer than that of one world."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vwm.play.session import PlaySession, PlayStep, can_step_together, step_sessions

Action = int | tuple[float, ...]


class _Request(NamedTuple):
    session: PlaySession
    action: Action
    result: asyncio.Future[PlayStep]


class StepBatcher:
    """Collects the steps that sessions ask for while the world is busy, and takes them together.

    Args:
        executor: one worker, in which the world runs.
    """

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.executor = executor
        self._pending: list[_Request] = []
        self._task: asyncio.Task[None] | None = None

    async def step(self, session: PlaySession, action: Action) -> PlayStep:
        """Advance a session by one step. A session waits for its step before it asks for the next one."""
        request = _Request(session, action, asyncio.get_running_loop().create_future())
        self._pending.append(request)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await request.result

    async def _run(self) -> None:
        batch: list[_Request] = []
        try:
            while self._pending:
                first = self._pending[0]
                batch = [r for r in self._pending if r is first or can_step_together(first.session, r.session)]
                self._pending = [r for r in self._pending if all(r is not taken for taken in batch)]
                await self._take(batch)
        except asyncio.CancelledError:  # the server ends; its sessions would wait for their steps
            for request in (*batch, *self._pending):
                request.result.cancel()
            raise

    async def _take(self, batch: Sequence[_Request]) -> None:
        sessions = [request.session for request in batch]
        actions = [request.action for request in batch]
        try:
            steps = await asyncio.get_running_loop().run_in_executor(self.executor, step_sessions, sessions, actions)
        except Exception as error:  # noqa: BLE001 (each session reports it to its page)
            if len(batch) == 1:
                if not batch[0].result.done():  # cancelled where its page has closed
                    batch[0].result.set_exception(error)
                return
            for request in batch:  # the fault of one must not be that of the others
                await self._take([request])
            return
        for request, step in zip(batch, steps, strict=True):
            if not request.result.done():
                request.result.set_result(step)
