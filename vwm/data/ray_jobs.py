"""Run independent jobs on Ray Data: on this machine, or on a cluster. The results do not depend on which."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

ATTEMPTS = 4
"""How often a job is begun before it is given up: Ray would begin a job that kills its worker for ever."""
STARTS = 3
"""How often it is tried to start Ray on this machine."""
REACH_SECONDS = 10.0
"""Time that a cluster has to answer."""
OBJECT_STORE_BYTES = 200 * 2**20
"""Memory that Ray started here takes for passing results on; frames are never passed."""


def run_ray_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    address: str | None = None,
    workers: int = 2,
    keeps_state: bool = False,
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as jobs finish. A job whose worker was killed or lost is run again by Ray.

    Args:
        function: a function at the top level of a module, or a partial of one. It must give the same outcome when it
            is run again, also after it was interrupted.
        jobs: the arguments of ``function``.
        address: of a running cluster, such as ``"auto"`` or ``"ray://host:10001"``; None starts Ray on this machine.
        workers: number of processes, if Ray is started here; on a cluster as many run as it has free cores.
        keeps_state: run the jobs in actors, whose processes stay, so that models are loaded once; where there are GPUs,
            each has one of them.

    Raises:
        ImportError: Ray is not installed.
        ValueError: ``workers`` is below 1.
        ConnectionError: there is no cluster at the address.
        RuntimeError: the workers of a job died again and again, on whatever machine; all other jobs have finished.
    """
    if not jobs:
        return
    ray = connect_ray(address, workers)
    attempts = _start_counting(ray)
    rows = [{"number": number, "job": pickle.dumps(job)} for number, job in enumerate(jobs)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if keeps_state:
        gpus, cores = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=gpus or max(1, cores))
        resources = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        finished = dataset.map(_JobActor, fn_constructor_args=(function, attempts), compute=pool, **resources)
    else:
        finished = dataset.map(_run_job, fn_args=(function, attempts), num_cpus=1)
    lost: list[Job] = []
    for row in finished.iter_rows():
        job = jobs[int(row["number"])]
        if row["result"] is None:
            lost.append(job)
            continue
        result, error = pickle.loads(row["result"])
        if error is not None:
            raise error
        yield job, result
    if lost:
        named = ", ".join(str(getattr(job, "name", job)) for job in lost[:5])
        raise RuntimeError(
            f"{len(lost)} of {len(jobs)} jobs were given up: their workers died {ATTEMPTS} times ({named}). "
            "Finished jobs are kept: run the command again with --engine local --workers 0 to see where it crashes"
        )


def _start_counting(ray: Any) -> Any:
    """Return an actor that counts attempts, on the machine of this command: one that fails must not end all jobs."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(**options)(_Attempts).remote()


class _Attempts:
    """An actor that counts how often each job was begun."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def begin(self, number: int) -> int:
        self._counts[number] = self._counts.get(number, 0) + 1
        return self._counts[number]


class _JobActor:
    """Runs jobs in a process that stays."""

    def __init__(self, function: Callable[[Any], Any], attempts: Any) -> None:
        self._function = function
        self._attempts = attempts

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _run_job(row, self._function, self._attempts)


def _run_job(row: dict[str, Any], function: Callable[[Any], Any], attempts: Any) -> dict[str, Any]:
    """Run a job in a worker of Ray; return its result and error, pickled, or None where it is given up."""
    import ray

    if ray.get(attempts.begin.remote(int(row["number"]))) > ATTEMPTS:
        return {"number": row["number"], "result": None}
    result: tuple[Any, Exception | None]
    try:
        result = (function(pickle.loads(row["job"])), None)
    except Exception as error:  # noqa: BLE001 (raised again in the driver)
        result = (None, error)
    return {"number": row["number"], "result": pickle.dumps(result)}


def connect_ray(address: str | None, workers: int) -> Any:
    """Connect to a Ray cluster, or start one on this machine, once in a process; return the module ``ray``.

    Raises:
        ImportError: Ray is not installed.
        ValueError: ``workers`` is below 1, or the address is none.
        ConnectionError: there is no cluster at the address.
    """
    if workers < 1 and address is None:
        raise ValueError(f"--engine ray needs 1 worker or more, got {workers}")
    if address is not None:
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Errors of tasks that nobody waits for are Ray's own, such as those of its statistics where a machine fails.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray ({error}): pip install 'vwm[ray]'") from error
    if not ray.is_initialized():
        if address is None:
            options = {"num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
            # "local": without an address, Ray would look for a cluster that happens to run on this machine.
            _start(ray, {"address": "local", **options}, attempts=STARTS)
        else:
            _start(ray, {"address": address}, attempts=1)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _check_reachable(address: str) -> None:
    """Raise an error at once where nothing answers: Ray itself would try for a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not (host and colon and port.isdigit() and int(port) < 2**16):
        raise ValueError(f"--ray-address must be HOST:PORT, ray://HOST:PORT or auto, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"--ray-address {address}: nothing answers there ({error}). Start a cluster (ray start --head), or leave "
            "the address out to start Ray on this machine"
        ) from error


def _start(ray: Any, options: dict[str, Any], attempts: int) -> None:
    """Start or find Ray. It gives its own processes 30 s to start, which a busy machine may exceed."""
    for attempt in range(attempts):
        try:
            ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
            return
        except Exception as error:
            ray.shutdown()
            if attempt + 1 == attempts or (not isinstance(error, ConnectionError) and "timed out" not in str(error)):
                if options["address"] == "local":
                    raise ConnectionError(f"Ray could not be started on this machine: {error}") from error
                raise ConnectionError(
                    f"--ray-address {options['address']}: {error}. All machines of a cluster need the same versions of "
                    "Ray and Python; where it checks tokens, this command needs its token, too (RAY_AUTH_MODE=token)"
                ) from error
