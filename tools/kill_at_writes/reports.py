"""``vwm eval`` over an older report, whose bytes hold measured times: its files must be there at all times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from killing import Command
from trainings import prepare_export

from vwm.cli.main import main as vwm_main


def eval_argv(home: Path, seed: int) -> list[str]:
    numbers = {"horizon": 4, "clips": 2, "videos": 1, "drift-seconds": 0, "seed": seed}
    options = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    return ["eval", str(home / "dit" / "out"), str(home / "data"), "-o", str(home / "report"), *options]


def prepare_report(home: Path) -> None:
    prepare_export("dit", home)
    vwm_main(eval_argv(home, seed=0))


def file_names(home: Path) -> dict[str, Any]:
    """Return the names of all files, the temporary ones included."""
    return dict.fromkeys((str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()), "")


def check_report(home: Path) -> None:
    """Raise an error where a file of the report is missing or empty."""
    json.loads((home / "report" / "report.json").read_text())
    for name in ("index.html", "rollouts.png"):
        if not (home / "report" / name).stat().st_size:
            raise ValueError(f"{name} is empty")


COMMANDS = {"eval": Command(prepare_report, lambda home: eval_argv(home, seed=1), file_names, check_report)}
