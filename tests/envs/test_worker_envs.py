"""Environments in worker processes equal those in this process, whatever their number, also after a checkpoint."""

from __future__ import annotations

import os
import signal
from multiprocessing.shared_memory import SharedMemory

import pytest
import torch

from vwm.envs.batched_envs import BatchedEnv, GymnasiumEnvSpec
from vwm.envs.time_step import TimeStep
from vwm.envs.worker_envs import WorkerEnvs

VECTORS = GymnasiumEnvSpec("Pendulum-v1", time_limit=3)
IMAGES = GymnasiumEnvSpec("vwm/TwoRooms-v0", size=32, time_limit=4)


def play(envs: BatchedEnv, steps: int, first: TimeStep | None = None) -> list[TimeStep]:
    """Take random actions; between beginning and end of a step, this process may do something else."""
    generator = torch.Generator().manual_seed(len(str(first)))
    shown = [envs.reset() if first is None else first]
    actions = envs.spaces.actions
    for _ in range(steps):
        action = torch.rand((envs.count, *actions.shape), generator=generator) * 2 - 1
        if actions.is_discrete:
            action = torch.randint(actions.size, (envs.count,), generator=generator)
        envs.begin_step(action)
        shown.append(envs.end_step())
    return shown


def assert_equal(ours: list[TimeStep], theirs: list[TimeStep]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("spec", [VECTORS, IMAGES], ids=["vectors", "images"])
def test_workers_show_what_this_process_would_and_resume_it(spec: GymnasiumEnvSpec) -> None:
    plain, workers = spec.open(3, seed=5), WorkerEnvs(spec, 3, 5, workers=2)
    assert workers.spaces == plain.spaces
    shown = play(workers, 9)
    assert_equal(shown, play(plain, 9))
    assert any(step.is_last.any() for step in shown) and not torch.equal(
        shown[0].observation[0], shown[0].observation[2]
    )
    state, again = workers.state_dict(), WorkerEnvs(spec, 3, 5, workers=1)
    resumed = again.load_state_dict(state)
    assert_equal([resumed], [plain.load_state_dict(state)])
    assert_equal(play(again, 5, resumed), play(plain, 5, resumed))
    workers.close()
    again.close()


def test_errors_of_workers_arrive_and_nothing_is_left() -> None:
    with pytest.raises(ValueError, match="no-such-env"):
        WorkerEnvs(GymnasiumEnvSpec("no-such-env-v0"), 1, 0, workers=1)
    envs = WorkerEnvs(VECTORS, 1, 0, workers=1)
    envs.reset()
    with pytest.raises(ValueError, match="environment 0, episode 0, step 1: the reward is nan"):
        envs.step(torch.full((1, 1), torch.nan))
    with pytest.raises(ValueError, match="the state is of 2 environments, these are 1"):
        envs.load_state_dict({"copies": [{}, {}]})
    envs.reset()
    assert envs.step(torch.zeros(1, 1)).observation.isfinite().all()  # the worker goes on
    processes, memory = envs._end.peek()[2][1:]
    name = memory[0].name
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].join()
    with pytest.raises(RuntimeError, match="environments 0 to 0 has died; with env_workers=0"):
        envs.step(torch.zeros(1, 1))
    envs.close()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
