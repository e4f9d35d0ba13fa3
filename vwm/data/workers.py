"""Do independent jobs in this process or in a few others; the results do not depend on which."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as the jobs end; the first error stops everything and is raised here.

    Args:
        function: what to do; a module's function or a partial of one, since processes are started afresh (spawn).
        jobs: its arguments.
        workers: number of processes; 0 works in this one.

    Raises:
        ValueError: a negative number of workers.
        RuntimeError: a process died.
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
                "a worker process died (killed, out of memory, or crashed in a library). What was finished is kept: "
                "run the command again, with --workers 0 to see where it dies"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _exit_with_parent() -> None:
    """End this process when the one that started it is gone: one that was killed has no time to say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
