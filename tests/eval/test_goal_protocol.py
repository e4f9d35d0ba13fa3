"""The protocol of stable-worldmodel: rows, parts that are not played again, and its settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from factories import genie
from rooms_world import ExactRooms

from vwm.envs.recording import record_dataset
from vwm.eval import goal_protocol
from vwm.eval.goal_protocol import PROTOCOL_TASKS, ProtocolSettings, format_protocol_results, run_goal_protocol

ROOMS = PROTOCOL_TASKS["two_rooms"]
SETTINGS = ProtocolSettings(
    episodes=8, samples=48, iterations=5, elites=6, true_samples=48, true_iterations=5, part_size=4
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rooms") / "data"
    record_dataset(
        ROOMS.env, out, frames=160, policy="sticky", workers=0, frame_skip=5, state=True, env_options=ROOMS.env_options
    )
    return out


@pytest.fixture
def exact_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """The true dynamics of a block, loaded in place of every bundle."""
    monkeypatch.setattr(goal_protocol, "load_simulator", lambda bundle, device: ExactRooms(step_size=6.0))


def test_the_published_settings_are_the_defaults() -> None:
    settings = ProtocolSettings()
    planner = settings.planner(settings.samples, settings.iterations)
    assert (settings.episodes, settings.seed, settings.horizon) == (50, 42, 5)
    assert (planner.horizon, planner.samples, planner.iterations, planner.elites) == (5, 300, 30, 30)
    assert (planner.momentum, planner.min_std, planner.noise_exponent, planner.keep_elites) == (0, 0, 0, 0)
    assert planner.selection == "mean"
    steps = {name: (5 * task.frame_skip, 10 * task.frame_skip) for name, task in PROTOCOL_TASKS.items()}
    assert steps == {"two_rooms": (25, 50), "push_t": (25, 50), "reacher": (50, 100)}


def test_a_result_has_every_row_and_an_interrupted_one_continues_to_the_same_figures(
    exact_world: None, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run_goal_protocol(Path("exact"), data, out, ROOMS, SETTINGS)
    assert json.loads((out / "result.json").read_text()) == result
    rates = {row: found["success"]["solved"] for row, found in result["results"].items()}
    assert list(rates) == ["world", "true_dynamics", "random", "still"]
    assert rates["world"] >= 7 and rates["true_dynamics"] >= 7 and rates["still"] <= 4
    assert all(found["success"]["n"] == 8 for found in result["results"].values())
    kept = (out / "world-00000.json").stat().st_mtime_ns
    first = {path.name: path.read_text() for path in out.glob("*-0*.json")}
    for name in ("world-00004.json", "true_dynamics-00000.json", "random-00004.json"):
        (out / name).unlink()
    assert run_goal_protocol(Path("exact"), data, out, ROOMS, SETTINGS) == result
    assert {path.name: path.read_text() for path in out.glob("*-0*.json")} == first
    assert (out / "world-00000.json").stat().st_mtime_ns == kept
    assert f"({100 * result['results']['still']['success']['low']:.1f} to" in format_protocol_results(result)
    with pytest.raises(ValueError, match="seed was 42 and is now 43"):
        run_goal_protocol(Path("exact"), data, out, ROOMS, replace(SETTINGS, seed=43))


def test_without_a_world_the_other_rows_are_the_same(exact_world: None, data: Path, tmp_path: Path) -> None:
    few = replace(SETTINGS, episodes=4, samples=4, elites=2, true_samples=0)
    alone = run_goal_protocol(None, data, tmp_path / "alone", ROOMS, few)["results"]
    assert list(alone) == ["random", "still"]
    beside = run_goal_protocol(Path("exact"), data, tmp_path / "beside", ROOMS, few)["results"]
    assert list(beside) == ["world", "random", "still"] and {row: beside[row] for row in alone} == alone


def test_worlds_and_settings_that_do_not_fit_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goal_protocol, "load_simulator", lambda bundle, device: genie())
    with pytest.raises(ValueError, match="4 discrete"):
        run_goal_protocol(Path("genie"), data, tmp_path / "out", ROOMS, SETTINGS)
    with pytest.raises(ValueError, match="horizon must be 1 or more"):
        ProtocolSettings(horizon=0)
