"""Jobs give the same results in this process and in workers; a worker that dies is reported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vwm.data.workers import run_jobs


@pytest.mark.parametrize("workers", [0, 1])
def test_every_job_returns_its_result(workers: int) -> None:
    assert dict(run_jobs(abs, [-3, 2, -1], workers)) == {-3: 3, 2: 2, -1: 1}
    assert dict(run_jobs(abs, [], workers)) == {}


def test_a_dead_worker_is_reported() -> None:
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(run_jobs(os._exit, [3], 1))


def test_workers_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    """A pipe that the worker alone holds open is at its end when the worker is."""
    pipe, script = tmp_path / "pipe", tmp_path / "script.py"
    os.mkfifo(pipe)
    script.write_text(
        "import sys, threading\n"
        "from vwm.data.workers import run_jobs\n"
        "def work(path):\n"
        "    with open(path, 'w') as file:\n"
        "        print('at work', file=file, flush=True)\n"
        "        threading.Event().wait()\n"
        "if __name__ == '__main__':\n"
        "    list(run_jobs(work, [sys.argv[1]], 1))\n"
    )
    process = subprocess.Popen([sys.executable, str(script), str(pipe)], stderr=subprocess.DEVNULL)
    with pipe.open() as file:
        assert file.readline() == "at work\n"
        process.kill()
        process.wait()
        assert file.read() == ""  # returns only when nobody can write any more
