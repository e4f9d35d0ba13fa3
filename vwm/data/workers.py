"""Run independent jobs in this process or in worker processes. The results do not depend on which."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class JobRunner(Protocol):
    """Runs independent jobs somewhere, and yields (job, result) as they finish."""

    def __call__(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]: ...


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as jobs finish. The first error cancels the remaining jobs and is raised.

    Args:
        function: a function at the top level of a module, or a partial of one: worker processes are spawned.
        jobs: the arguments of ``function``.
        workers: number of processes; 0 runs the jobs in this one.

    Raises:
        ValueError: ``workers`` is negative.
        RuntimeError: a worker process died.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 (this process) or more, got {workers}")
    if workers == 0 or not jobs:
        for job in jobs:
            yield job, function(job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_exit_with_parent) as pool:
        running = {pool.submit(function, job): job for job in jobs}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died (killed, out of memory, or crashed in a library). Finished jobs are kept: "
                "run the command again, with --workers 0 to see where it crashes"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _exit_with_parent() -> None:
    """End this worker when its parent process ends, since a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
