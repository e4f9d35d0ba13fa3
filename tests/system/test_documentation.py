"""The documentation is correct: its Python code runs, and the parsers accept its commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vwm.cli.agent_commands import make_agent_parser, parse_agent_config
from vwm.cli.commands import COMMANDS
from vwm.cli.config_arguments import expand_arguments
from vwm.cli.main import find_command
from vwm.cli.parser import UsageError, make_command_parser
from vwm.cli.signatures import read_signature
from vwm.train.estimate import parse_estimate_config
from vwm.train.fit import parse_fit_config

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "MODEL_CARD.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "datasets").glob("*/README.md")),
]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
CHECKED_COMMANDS: set[tuple[str, bool]] = set()
"""Accepted commands, so that those on several pages are checked once."""
PAGES_WITH_PYTHON = [page for page in PAGES if PYTHON_BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    for package in ("torchrl", "stable_baselines3"):
        if package in text:
            pytest.importorskip(package)
    names: dict[str, object] = {"__name__": "page"}
    for block in PYTHON_BLOCK.findall(text):
        exec(compile(block, str(page), "exec"), names)


def test_the_environments_page_names_every_environment_class():
    text = (ROOT / "docs" / "environments.md").read_text()
    for name in ("SimulatorEnv", "SimulatorVectorEnv", "SimulatorTorchRLEnv", "StableBaselinesVecEnv"):
        assert name in text


def commands_in(text):
    """Yield (command, shortened): commands of code blocks, and those in backticks, which may be shortened."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if re.match(r"(#? {3,})?(\.venv/bin/)?(vwm|python|torchrun) ", line):
            command = line.strip("# ").removeprefix(".venv/bin/")
            if command.startswith("torchrun "):
                command = "vwm " + command.partition("vwm.cli.main ")[2]
            yield command, False
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for command in re.findall(r"`((?:vwm|python) [^`]+)`", " ".join(prose.split())):
        yield command, True


def check_command(command, shortened, capsys):
    """Raise an error if the parser rejects a command line; shortened ones may lack required arguments."""
    words = shlex.split(command, comments=True)
    if words[0] == "python":
        assert words[1] == "-m" or (ROOT / words[1]).exists(), f"{words[1]} is not there"
        return
    words = [word for word in words[1:] if word not in ("...", "…")]
    if words[0].startswith("-") or re.search(r"\b(COMMAND|CONFIG|NAME)\b", command):  # `vwm --help`, placeholders
        return
    name = find_command(words)
    if name is None or "--help" in words:
        return
    argv = words[len(name.split()) :]
    if not COMMANDS[name].parses_arguments:
        try:
            make_command_parser(f"vwm {name}", read_signature(COMMANDS[name].target), ()).parse_command(argv)
        except UsageError as error:
            assert shortened and "arguments are required" in str(error), str(error)
    elif not shortened or "-c" in argv:
        with pytest.raises(SystemExit) as stop:
            argv = [*expand_arguments(name, argv), "--print_config"]
            parsers = {"fit": parse_fit_config, "estimate": parse_estimate_config}
            parse_agent_config(make_agent_parser(), argv) if name == "agent train" else parsers[name](argv)
        assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_parsers_accept_the_commands_of_a_page(page, capsys, tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text((ROOT / "configs/tokenizer/coinrun_small.yaml").read_text())
    monkeypatch.chdir(tmp_path)  # configs are found by name; no other file of the checkout is found
    for command, shortened in sorted(set(commands_in(page.read_text())) - CHECKED_COMMANDS):
        try:
            check_command(command, shortened, capsys)
            CHECKED_COMMANDS.add((command, shortened))
        except (AssertionError, SystemExit, OSError, ValueError) as error:
            pytest.fail(f"{page.relative_to(ROOT)}: {command}\n{error}")
