"""`vwm plan` from the command line, with saved bundles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories import diffusion_world, genie, jepa_world

from vwm.cli.main import main
from vwm.worlds.bundle import save_simulator

SMALL = ["--episodes", "3", "--max_steps", "4", "--horizon", "3", "--samples", "4", "--planner_options", "{elites: 2}"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "world"
    save_simulator(jepa_world(decoder=False, action_dims=2), path)
    return path


def test_plan_writes_results_and_figures(bundle: Path, tmp_path: Path, capsys):
    out = tmp_path / "result"
    main(["plan", str(bundle), "vwm/TwoRooms-v0", "-o", str(out), *SMALL, "--env_options", "{random_wall: true}"])
    result = json.loads((out / "plan.json").read_text())
    assert result["results"]["all"]["cem"]["success"]["n"] == 3 and result["settings"]["env_options"] == {
        "random_wall": True
    }
    assert {p.name for p in out.iterdir()} == {"plan.json", "paths.png", "strip.png", "episodes.mp4"}
    assert "within 4 pixels" in capsys.readouterr().out


def test_mppi_plans_for_pendulum(tmp_path: Path):
    save_simulator(diffusion_world(action_dims=1), tmp_path / "world")
    out = tmp_path / "result"
    main(["plan", str(tmp_path / "world"), "Pendulum-v1", "-o", str(out), "--planner", "mppi", *SMALL])
    result = json.loads((out / "plan.json").read_text())
    assert result["unit"] == "rad" and list(result["results"]["all"]) == ["mppi", "random"]


def test_errors_are_one_line_without_a_traceback(bundle: Path, tmp_path: Path, capsys):
    save_simulator(genie(), tmp_path / "tokens")
    for arguments, message in (
        ([str(bundle), "Pendulum-v1"], "was it trained on this environment?"),
        ([str(tmp_path / "tokens"), "vwm/TwoRooms-v0"], "4 discrete"),
        ([str(bundle), "Pong"], "no task"),
    ):
        with pytest.raises(SystemExit):
            main(["plan", *arguments, "-o", str(tmp_path / "result")])
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not (tmp_path / "result").exists()
