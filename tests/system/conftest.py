"""What holds for every command that a system test runs: it ends with what it wrote and with what comes next."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from vwm.cli import main as main_module
from vwm.cli.commands import COMMANDS
from vwm.cli.main import find_command, run_command
from vwm.cli.parser import make_command_parser
from vwm.cli.signatures import read_signature

OUTPUT = re.compile(r"output: (?P<path>.+?) \((?P<size>[\d.]+) (bytes|kB|MB|GB)\)(: .+)?")
WRITE_NOTHING = ("inspect", "bench play", "bench data")
"""Commands whose results are the lines that they print (inspect: without a sheet)."""
END_A_CHAIN = ("agent train", "probe")
"""Commands that may have nothing to come next: a training that evaluates itself, probes of all layers."""


class _Copy(io.StringIO):
    """Passes everything on, and keeps it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(text)
        return super().write(text)


def check_last_lines(command: str, output: str) -> None:
    """Check the last lines of a command: output, with a path that exists and its size, and a command that parses."""
    lines = output.splitlines()
    assert lines, f"vwm {command} printed nothing"
    following = lines.pop().removeprefix("next: ") if lines[-1].startswith("next: ") else None
    if following is None:
        assert command in END_A_CHAIN, f"vwm {command} does not say what comes next: {lines[-3:]}"
    else:
        words = shlex.split(following)
        assert words.pop(0) == "vwm"
        name = find_command(words)
        assert name is not None
        if not COMMANDS[name].parses_arguments:  # the keys of configs are checked against the config, not here
            parser = make_command_parser(f"vwm {name}", read_signature(COMMANDS[name].target), ())
            parser.parse_command(words[len(name.split()) :])
    if command not in WRITE_NOTHING:
        found = OUTPUT.fullmatch(lines[-1])
        assert found is not None, f"vwm {command} does not say what it wrote: {lines[-3:]}"
        assert Path(found["path"]).exists() and float(found["size"]) > 0, lines[-1]


@pytest.fixture(scope="package", autouse=True)
def every_command_ends_with_its_output() -> Iterator[None]:
    def run_and_check(name: str, argv: list[str]) -> None:
        copy = _Copy(sys.stdout)
        sys.stdout = copy
        try:
            run_command(name, argv)
        finally:
            sys.stdout = copy.stream
        # The patch may outlast this folder's tests, where others follow in the same process.
        if name != "play" and Path(__file__).parent.name in Path(os.environ["PYTEST_CURRENT_TEST"]).parts:
            check_last_lines(name, copy.getvalue())

    patch = pytest.MonkeyPatch()
    patch.setattr(main_module, "run_command", run_and_check)
    yield
    patch.undo()
