"""A run folder belongs to one process, and stays what it was started as."""

import subprocess
import sys
from pathlib import Path

import pytest

from vwm.runs.run_folder import RunFolder

HOLD = """
import os, sys, time
from vwm.runs.run_folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    if os.fork() == 0:  # a reading process, which outlives the one that forked it
        time.sleep(30)
        os._exit(0)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_one_process_writes_a_run_and_its_lock_ends_with_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None and other.stdout is not None
    number = other.stdout.readline().strip()
    with pytest.raises(ValueError, match=rf"another training writes there \(process {number} on"), run.lock():
        pass
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with run.lock(), pytest.raises(ValueError, match="this process"), RunFolder(run.path).lock():
        pass
    with run.lock():
        pass
