"""The progress of commands and their last lines."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from vwm.core import command_output
from vwm.core.command_output import format_command, format_size, print_output, progress_bar, show_detail


def test_the_last_lines_have_path_size_contents_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my bundle"
    (folder / "part").mkdir(parents=True)
    (folder / "a").write_bytes(bytes(1500))
    (folder / "part" / "b").write_bytes(bytes(1_000_000))
    print_output(folder, "two files", format_command("play", folder))
    print_output(folder / "a")
    assert capsys.readouterr().out.splitlines() == [
        f"output: {folder} (1 MB): two files",
        f"next: vwm play '{folder}'",
        f"output: {folder / 'a'} (1.5 kB)",
    ]
    assert [format_size(size) for size in (7, 12_345, 5e9, 2e13)] == ["7 bytes", "12.3 kB", "5 GB", "20 TB"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_the_time_left_and_in_a_file_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress_bar(range(3), desc="count", unit="step")) == [0, 1, 2]
    shown = sys.stderr.getvalue()
    assert "count: 100%" in shown and "3/3 [00:00<00:00" in shown
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress_bar(range(3), desc="count", unit="step")) == [0, 1, 2]
    with progress_bar(total=3, desc="count", unit="step") as bar:
        show_detail(bar, "one at a time")
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(command_output, "LOG_SECONDS", 0)  # as if a minute had passed with every step
    assert list(progress_bar(range(3), desc="count", unit="step")) == [0, 1, 2]
    assert "3/3" in sys.stderr.getvalue()
