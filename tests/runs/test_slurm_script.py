"""The batch script of SLURM: a signal before the limit becomes a notice to the run, and the job is queued again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "slurm" / "fit.sbatch"
SRUN = """#!/bin/bash
echo "$@" > arguments
{signal}
until [ -e run/stop ]; do sleep 0.05; done
exit {code}
"""


@pytest.mark.parametrize(
    ("signal", "preempted", "queued"),
    [
        ("USR1", "None", ["requeue 7"]),
        ("TERM", "None", []),  # scancel
        ("TERM", "2026-11-29T02:21:25", ["requeue 7"]),
        ("TERM", "2026-11-29T01:59:59", []),  # a job that was queued again since
    ],
)
def test_the_run_is_noticed_and_the_job_queued_once(
    tmp_path: Path, signal: str, preempted: str, queued: list[str]
) -> None:
    """SLURM counts a preempted job that ends in time as failed; the script ends with the training's exit code."""
    times = f"   StartTime=2026-11-29T02:00:00 EndTime=Unknown\n   PreemptEligibleTime=Unknown PreemptTime={preempted}"
    programs = {
        "srun": SRUN.format(signal=f"kill -{signal} $PPID", code=3),
        "scontrol": f'#!/bin/sh\nif [ $1 = show ]; then echo "{times}"; else echo $* >> queued; fi\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()  # of the job before, to be removed
    job = {"SLURM_NNODES": "4", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8", "RUN": "run"}
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), "-c", "dit/dreamer4_1b", "--global-batch", "256"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | job | path, timeout=120)
    assert done.returncode == 3
    arguments = (tmp_path / "arguments").read_text()
    assert "torchrun --nnodes=1:4 --nproc_per_node=8" in arguments
    assert "--checkpoint.notice run/stop" in arguments
    assert arguments.endswith("-c dit/dreamer4_1b --global-batch 256\n")
    made = tmp_path / "queued"
    assert (made.read_text().splitlines() if made.exists() else []) == queued
