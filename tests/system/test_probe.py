"""`vwm probe` from the command line: a recorded environment with its state, and a shipped world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vwm.cli.main import main


def test_a_shipped_world_is_probed_for_the_state_of_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        [
            "record",
            "CartPole-v1",
            "data",
            "--frames",
            "120",
            "--max_episode_frames",
            "12",
            "--state",
            "--workers",
            "0",
        ]
    )
    main(
        [
            "probe",
            "coinrun",
            "data",
            "-o",
            "probe",
            "--layer",
            "1",
            "--clip_length",
            "2",
            "--state_names",
            "[cart_x, pole_angle]",
        ]
        + ["--clips", "16", "--test_clips", "8", "--probes", "[linear, ridge]", "--epochs", "2", "--random_seeds", "1"]
    )
    report = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert report["labels"]["names"] == ["cart_x", "pole_angle"]
    assert [row["name"] for row in report["rows"]] == [
        "coinrun, layer 1",
        "coinrun, layer 1, random init",
        "pixels 1×8×8",
    ]
    assert "Ridge on all tokens" in capsys.readouterr().out


def test_probing_a_folder_without_a_model_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        [
            "record",
            "CartPole-v1",
            "data",
            "--frames",
            "60",
            "--max_episode_frames",
            "6",
            "--state",
            "--workers",
            "0",
        ]
    )
    with pytest.raises(SystemExit) as stop:
        main(["probe", "nowhere", "data"])
    assert stop.value.code == 1 and "nowhere holds nothing to probe: neither" in capsys.readouterr().err
    assert not (tmp_path / "probe").exists()
