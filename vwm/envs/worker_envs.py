"""Copies of a Gymnasium environment in processes of their own, which step while this process learns.

Time steps come back through shared memory; pipes carry actions and a word when a step is done. Every copy has the
episodes that it would have in this process, so that neither the number of workers nor their speed changes a result.
"""

from __future__ import annotations

import signal
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.envs.batched_envs import BatchedEnv, GymnasiumBatchedEnv, GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep

Parts = Mapping[str, NDArray[Any]]
"""The arrays of a ``TimeStep``, by its fields."""


class WorkerEnvs(BatchedEnv):
    """See the module.

    Args:
        spec: the environment.
        count: number of copies.
        seed: of all their episodes, as in ``GymnasiumEnvSpec.open``.
        workers: number of processes, at most one for each copy.

    Raises:
        ImportError, ValueError: as ``GymnasiumEnvSpec.open``.
    """

    def __init__(self, spec: GymnasiumEnvSpec, count: int, seed: int, workers: int) -> None:
        self.count = count
        bounds = [count * i // workers for i in range(workers + 1)]
        self.shares = [slice(start, stop) for start, stop in pairwise(bounds)]
        context = get_context("spawn")  # a fork would copy the locks of this process's threads
        self.pipes: list[Connection] = []
        processes: list[BaseProcess] = []
        for share in self.shares:
            pipe, theirs = context.Pipe()
            arguments = (theirs, spec, share, seed)
            processes.append(context.Process(target=_serve, args=arguments, daemon=True, name="vwm environments"))
            processes[-1].start()
            theirs.close()
            self.pipes.append(pipe)
        self._end = weakref.finalize(self, _end_workers, self.pipes, processes, memory := [])
        self.spaces: EnvSpaces = self._receive()[0]
        memory.append(SharedMemory(create=True, size=_memory_size(self.spaces, count)))
        self.parts = _divide(memory[0], self.spaces, count)
        self._ask("attach", [(memory[0].name, count)] * workers)

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        self._ask("reset")
        return self._time_step()

    def begin_step(self, action: Tensor) -> None:
        """See ``BatchedEnv.begin_step``."""
        actions = action.cpu().numpy()
        self._send("step", [actions[share] for share in self.shares])

    def end_step(self) -> TimeStep:
        """See ``BatchedEnv.end_step``."""
        self._receive()
        return self._time_step()

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        self.begin_step(action)
        return self.end_step()

    def state_dict(self) -> dict[str, Any]:
        """Return what ``GymnasiumBatchedEnv`` returns; either loads the other's."""
        return {"copies": [copy for state in self._ask("state_dict") for copy in state["copies"]]}

    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """See ``BatchedEnv.load_state_dict``."""
        if len(state["copies"]) != self.count:
            raise ValueError(f"the state is of {len(state['copies'])} environments, these are {self.count}")
        self._ask("load_state_dict", [{"copies": state["copies"][share]} for share in self.shares])
        return self._time_step()

    def close(self) -> None:
        """See ``BatchedEnv.close``."""
        self._end()

    def _time_step(self) -> TimeStep:
        """Copy the time step out of shared memory, which the next step overwrites."""
        return TimeStep(**{name: torch.from_numpy(part.copy()) for name, part in self.parts.items()})

    def _ask(self, request: str, arguments: Sequence[Any] | None = None) -> list[Any]:
        self._send(request, arguments)
        return self._receive()

    def _send(self, request: str, arguments: Sequence[Any] | None = None) -> None:
        for i, pipe in enumerate(self.pipes):
            with _death_noticed(self.shares[i]):
                pipe.send((request, None if arguments is None else arguments[i]))

    def _receive(self) -> list[Any]:
        """Return the answers of all workers; raise what one of them raised."""
        answers = []
        for pipe, share in zip(self.pipes, self.shares, strict=True):
            with _death_noticed(share):
                answers.append(pipe.recv())
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


@contextmanager
def _death_noticed(share: slice) -> Iterator[None]:
    """Turn the errors of a pipe that a worker has left into one that says so."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise RuntimeError(
            f"the process of environments {share.start} to {share.stop - 1} has died; with env_workers=0 they run in "
            "this process, which shows why"
        ) from error


def _end_workers(pipes: list[Connection], processes: list[BaseProcess], memory: list[SharedMemory]) -> None:
    """End the processes, and free the memory."""
    for pipe in pipes:
        pipe.close()  # a worker that waits for a request ends
    for process in processes:
        process.join(timeout=5)
        if process.is_alive():
            process.terminate()
            process.join()
    for block in memory:
        block.unlink()


def _serve(pipe: Connection, spec: GymnasiumEnvSpec, share: slice, seed: int) -> None:
    """Answer requests in a process of its own, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the training, which ends its workers
    torch.set_num_threads(1)
    try:
        envs = GymnasiumBatchedEnv(spec, share.stop - share.start, seed, first=share.start)
    except Exception as error:  # noqa: BLE001 - raised in the other process
        pipe.send(_sendable(error))
        return
    pipe.send(envs.spaces)
    parts: dict[str, NDArray[Any]] = {}
    memory: SharedMemory | None = None
    while True:
        try:
            request, argument = pipe.recv()
        except EOFError:
            break
        answer: Any = None
        try:
            if request == "attach":
                name, count = argument
                memory = SharedMemory(name)
                parts = {name: part[share] for name, part in _divide(memory, envs.spaces, count).items()}
            elif request == "state_dict":
                answer = envs.state_dict()
            else:
                _write(parts, _time_step_of(envs, request, argument))
        except Exception as error:  # noqa: BLE001 - raised in the other process
            answer = _sendable(error)
        pipe.send(answer)
    envs.close()
    parts.clear()
    if memory is not None:
        memory.close()


def _time_step_of(envs: GymnasiumBatchedEnv, request: str, argument: Any) -> TimeStep:
    if request == "reset":
        return envs.reset()
    if request == "step":
        return envs.step(torch.from_numpy(argument))
    assert request == "load_state_dict", request
    return envs.load_state_dict(argument)


def _write(parts: Parts, time_step: TimeStep) -> None:
    for name, part in parts.items():
        part[:] = getattr(time_step, name).numpy()


def _sendable(error: Exception) -> Exception:
    """Return an error that can be sent to another process: of a class that every process knows."""
    for kind in (ValueError, ImportError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


def _fields(spaces: EnvSpaces) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of each field of a time step of one copy, the largest types first."""
    observation = spaces.observation
    kind = torch.zeros((), dtype=observation.dtype).numpy().dtype
    flags = dict.fromkeys(("is_first", "is_last", "is_terminal"), ((), np.dtype(np.bool_)))
    fields = {"observation": (tuple(observation.shape), kind), "reward": ((), np.dtype(np.float32)), **flags}
    return dict(sorted(fields.items(), key=lambda field: -field[1][1].itemsize))


def _memory_size(spaces: EnvSpaces, count: int) -> int:
    return sum(count * int(np.prod(shape)) * kind.itemsize for shape, kind in _fields(spaces).values())


def _divide(memory: SharedMemory, spaces: EnvSpaces, count: int) -> dict[str, NDArray[Any]]:
    """Return the arrays [count, ...] of a time step in shared memory."""
    parts: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, (shape, kind) in _fields(spaces).items():
        parts[name] = np.ndarray((count, *shape), kind, memory.buf, offset)
        offset += parts[name].nbytes
    return parts
