"""A complete report on a small world."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import diffusion_world
from PIL import Image

from vwm.core.family import WorldFamily
from vwm.core.network_simulator import VideoSimulator
from vwm.data.video import probe_video
from vwm.eval.world_report import evaluate_world
from vwm.worlds.bundle import save_simulator


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a report with its path."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{name}.{key}")
    elif isinstance(value, list):
        for child in value:
            yield from leaves(child, f"{name}[]")
    else:
        yield name, value


@pytest.fixture
def run_report(
    write_bundle: Callable[..., Path],
    write_shards: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:
    """A function that evaluates a small world into ``tmp_path / "report"``, with a low machine load."""
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.5, 0.5))

    def run(labeled: bool = False, shards: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        chosen = {"out": tmp_path / "report", "horizon": 3, "clips": 8, "batch_size": 3, "videos": 2, "device": "cpu"}
        chosen |= {"drift_seconds": 1, "drift_starts": 2}
        return evaluate_world(write_bundle(labeled), str(write_shards(**shards or {})), **{**chosen, **settings})

    return run


def test_a_report_is_complete(run_report: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    report, out = run_report(), tmp_path / "report"
    assert json.loads((out / "report.json").read_text()) == report
    assert set(report) == {
        "tokenizer", "codebook", "rollout", "control", "latent_action", "play", "data", "notes", "provenance",
        "action_following", "hallucination", "drift", "revisit", "comparison",
    }  # fmt: skip
    # No two of these latent actions undo each other, 20 pairs of frames are too few for a probe, and the horizon cannot
    # rank errors at one horizon; such small pictures do not shift.
    unknown = (
        "gpu",
        "revisit",
        "action_following.probe",
        "hallucination.horizon.last",
        "flow_instability.last",
        "drift_encoder",
        "comparison",
    )
    missing = [name for name, value in leaves(report) if value is None and not name.endswith(unknown)]
    assert missing == []
    assert all(math.isfinite(value) for _, value in leaves(report) if isinstance(value, float))
    for name in ("", "_copy_last", "_tokenizer", "_random_actions"):
        assert len(report["rollout"][f"psnr{name}"]) == len(report["rollout"][f"ssim{name}"]) == 3
    assert report["control"]["delta_psnr"] == {**report["control"]["delta_psnr_by_horizon"][2], "horizon": 3}
    assert sum(map(sum, report["control"]["action_table"])) == 8 * 5
    assert report["control"]["action_names"] == ["STAY", "RIGHT", "DOWN", "LEFT"]
    assert sum(report["codebook"]["counts"]) == 8 * 6 * 4
    assert report["control"]["shuffle_cost"]["loss"] == "cross-entropy"
    assert report["data"]["clips"] == 8
    assert report["provenance"]["settings"]["context"] == 3
    assert set(report["provenance"]["parts"]) == {"tokenizer", "dynamics", "latent_action"}
    assert report["provenance"]["parts"]["tokenizer"]["precision"] == "float32"
    assert len(report["notes"]) == 2  # LPIPS and FVD have no weights
    assert not out.with_name("report.tmp").exists()


def test_the_images_and_videos_of_the_page_are_in_the_report_folder(
    run_report: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run_report()
    out = tmp_path / "report"
    page = (out / "index.html").read_text()
    files = sorted(file.name for file in out.iterdir() if file.suffix in (".png", ".mp4"))
    assert len(files) == 6 + 2 + 2
    assert all(f'src="{name}"' in page for name in files)
    assert "http" not in page.partition("<h2>How it was made")[0].replace("pytorch.org", "")
    assert probe_video(out / "rollout_00.mp4", "video")["frames"] == 6
    with Image.open(out / "rollouts.png") as sheet:
        assert sheet.width > 4 * 64


def test_equal_seeds_give_equal_reports(run_report: Callable[..., dict[str, Any]]) -> None:
    def without_times(report: dict[str, Any]) -> dict[str, Any]:
        report = copy.deepcopy(report)
        del report["play"], report["provenance"]["environment"]["date"]
        return report

    first = without_times(run_report())
    assert without_times(run_report()) == first  # also over the earlier report
    assert without_times(run_report(seed=1))["rollout"] != first["rollout"]


def test_labeled_worlds_have_no_latent_actions(run_report: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    tokenizer = str(tmp_path / "bundle" / "tokenizer")
    report = run_report(labeled=True, videos=0, drift_encoder=tokenizer)
    assert report["latent_action"] is None
    assert report["drift"]["features"] == tokenizer and report["drift"]["mean_by_second"][0] > 0
    assert report["control"]["action_mi_bits"] is None
    assert report["control"]["shuffle_ratio"] > 0


def test_reports_support_continuous_latents_and_actions(
    brightness_world: VideoSimulator,
    write_shards: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vwm.eval.world_report.load_simulator", lambda *_: brightness_world)
    monkeypatch.setattr("vwm.eval.world_report.find_family", lambda _: WorldFamily())
    data = str(write_shards(continuous=True))
    report = evaluate_world(tmp_path / "bundle", data, tmp_path / "report", horizon=16, clips=6, batch_size=4, videos=1)
    assert report["codebook"] is None and report["latent_action"] is None
    assert report["tokenizer"]["psnr"] is None  # infinite: pixels are exact
    assert len(report["rollout"]["psnr"]) == len(report["control"]["delta_psnr_by_horizon"]) == 16
    assert report["control"]["delta_psnr"]["mean"] is not None
    assert report["control"]["shuffle_cost"] is report["control"]["shuffle_ratio"] is None
    assert any("shuffled actions is not defined for a BrightnessWorld" in note for note in report["notes"])
    assert report["provenance"]["parts"]["tokenizer"] == {"parameters": 0, "precision": None}
    page = (tmp_path / "report" / "index.html").read_text()
    assert "codebook" not in page.partition("<h2>How it was made")[0]
    assert not (tmp_path / "report" / "codebook.png").exists()
    assert "Codes used" not in capsys.readouterr().out


def test_a_world_without_actions_has_a_report_without_control(
    write_shards: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_simulator(diffusion_world(size=16, num_actions=0), tmp_path / "bundle")
    settings = {"horizon": 5, "clips": 4, "videos": 1, "drift_seconds": 1, "drift_starts": 1, "device": "cpu"}
    data = str(write_shards(size=16, actions=False))
    report = evaluate_world(tmp_path / "bundle", data, tmp_path / "report", **settings)
    assert report["control"] is None and report["action_following"] == {"flow": None, "probe": None}
    assert len(report["rollout"]["psnr"]) == 5 and report["drift"] is not None and report["play"]["fps"] > 0
    assert report["rollout"]["psnr"] == report["rollout"]["psnr_random_actions"]
    assert any("takes no actions" in note for note in report["notes"])
    shown = (tmp_path / "report" / "index.html").read_text() + capsys.readouterr().out
    assert "Rollout PSNR" in shown and "ΔPSNR at horizon" not in shown and "delta_psnr.png" not in shown


def test_reports_support_few_still_and_unlabeled_clips(run_report: Callable[..., dict[str, Any]]) -> None:
    report = run_report(shards={"actions": False, "moving": False, "episodes": 1}, clips=100, horizon=1, context=1)
    assert report["control"]["action_mi_bits"] is None
    assert report["rollout"]["psnr_copy_last"] == [None]  # infinite
    assert report["data"]["still_fraction"] == 1.0
    assert any("only 12 clips" in note for note in report["notes"])
    assert any("nothing moves" in note for note in report["notes"])


def test_a_report_compares_with_another_world_on_the_same_clips(
    write_shards: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against itself a world gains nothing at any horizon; worlds of other frames are refused."""
    save_simulator(diffusion_world(size=16), tmp_path / "bundle")
    settings = {"horizon": 5, "clips": 4, "videos": 0, "drift_seconds": 0, "device": "cpu", "context": 2}
    bundle, data = tmp_path / "bundle", str(write_shards(size=16))
    report = evaluate_world(bundle, data, tmp_path / "report", compare=bundle, **settings)
    comparison = report["comparison"]
    assert comparison["psnr"] == report["rollout"]["psnr"] and comparison["frame_ms"] > 0
    assert comparison["gain_by_horizon"] == [{"mean": 0.0, "stderr": 0.0, "n": 4, "excluded": 0}] * 5
    shown, page = capsys.readouterr().out, (tmp_path / "report" / "index.html").read_text()
    assert "Speed against it" in shown and "gain over it" in shown and page.count("<td>0.00 ± 0.00</td></tr>") == 5
    save_simulator(diffusion_world(size=32), tmp_path / "larger")
    with pytest.raises(ValueError, match="frames of 32x32 pixels, and this world of 16x16"):
        evaluate_world(bundle, data, tmp_path / "report", compare=tmp_path / "larger", **settings)


def test_a_busy_machine_is_noted_in_the_report(
    run_report: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1e6, 0.0, 0.0))
    report = run_report(horizon=1, videos=0)
    assert report["provenance"]["environment"]["hardware"]["load"] == 1e6
    assert any("busy" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": {"size": 32}}, "world has frames of 16x16 pixels, but episode '.*' of .* has 32x32"),
        ({"horizon": 50}, "no episode is long enough"),
        ({"horizon": 0}, "horizon must be 1 or more, got 0"),
        ({"labeled": True, "shards": {"actions": False}}, "was trained on recorded actions"),
    ],
)
def test_rejects_data_and_settings_that_do_not_fit(
    run_report: Callable[..., dict[str, Any]], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_report(**settings)
    assert not (tmp_path / "report").exists()


def test_foreign_folders_are_not_overwritten(run_report: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no report"):
        run_report()
    assert (tmp_path / "report" / "thesis.txt").read_text() == "mine"
