"""A training stops at its next step after a signal or a notice, and SLURM starts it again."""

from __future__ import annotations

import http.server
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vwm.runs import stop_signal
from vwm.runs.stop_signal import StopRequest, is_announced, requeue_slurm_job


def test_signals_of_a_scheduler_may_repeat_and_a_second_ctrl_c_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with StopRequest() as stop:
        assert not stop
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
            assert stop and stop.number == number and not stop.was_noticed
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before and signal.getsignal(signal.SIGINT) == signal.default_int_handler
    with pytest.raises(SystemExit) as exit:
        stop.end("saved")
    assert exit.value.code == 128 + signal.SIGINT


@pytest.fixture
def cloud() -> Iterator[tuple[str, dict[str, int]]]:
    """A server of metadata, and the status with which it answers."""
    status = {"answer": 404}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status["answer"])
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/spot/instance-action", status
        server.shutdown()
        thread.join()


def test_a_notice_is_a_file_or_an_answer(tmp_path: Path, cloud: tuple[str, dict[str, int]]) -> None:
    address, status = cloud
    assert not is_announced(address) and not is_announced(str(tmp_path / "stop"))
    assert not is_announced("http://127.0.0.1:9/missing")
    status["answer"] = 200
    (tmp_path / "stop").touch()
    assert is_announced(address) and is_announced(str(tmp_path / "stop"))


def test_a_notice_requests_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signal, "NOTICE_INTERVAL", 0.01)
    looked = threading.Event()
    monkeypatch.setattr(stop_signal, "is_announced", lambda notice: looked.set() or Path(notice).exists())
    with StopRequest(str(tmp_path / "stop")) as stop:
        assert looked.wait(60) and not stop
        (tmp_path / "stop").touch()
        for thread in threading.enumerate():
            if thread.name == "notice":
                thread.join(60)
    assert stop.number == signal.SIGTERM and stop.was_noticed


def test_slurm_is_asked_to_start_the_job_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert requeue_slurm_job(signal.SIGUSR1) is None  # no job of SLURM
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert requeue_slurm_job(signal.SIGTERM) is None  # SLURM does so where it preempts
    assert "could not be put into SLURM's queue again" in str(requeue_slurm_job(signal.SIGUSR1))
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    assert requeue_slurm_job(signal.SIGUSR1) == "job 41 is in SLURM's queue again"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert requeue_slurm_job(signal.SIGUSR2) == "job 40_1 is in SLURM's queue again"
    assert (tmp_path / "asked").read_text() == "requeue 41\nrequeue 40_1\n"
