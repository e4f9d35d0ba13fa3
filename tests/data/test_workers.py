"""Jobs run here or elsewhere with the same results; a process that dies is reported."""

from __future__ import annotations

import os

import pytest

from vwm.data.workers import run_jobs


@pytest.mark.parametrize("workers", [0, 1])
def test_every_job_gives_its_result(workers: int) -> None:
    assert dict(run_jobs(abs, [-3, 2, -1], workers)) == {-3: 3, 2: 2, -1: 1}
    assert dict(run_jobs(abs, [], workers)) == {}


def test_a_dead_worker_is_reported() -> None:
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(run_jobs(os._exit, [3], 1))
