"""A complete probe report on a small data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import randomize
from PIL import Image

from vwm.core.components import save_component
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.eval.bootstrap import ConfidenceInterval
from vwm.eval.labeled_clips import LabeledClipsConfig
from vwm.eval.probe_report import ProbeConfig, difference_verdict, probe_features
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer

pytestmark = pytest.mark.usefixtures("narrow_heads")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def moving_square_data(tmp_path: Path) -> str:
    """30 episodes of 16 frames: a bright square moving over noise, its column as state, and an unrelated number."""
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "moving" / "shard-000000.tar") as writer:
        for i in range(30):
            frames = rng.integers(0, 60, (16, 16, 16, 3)).astype(np.uint8)
            row, speed = 6, rng.integers(1, 4)  # a fixed row, so that the position is linear in the pixels
            column = (rng.integers(0, 12) + speed * np.arange(16)) % 12
            for t in range(16):
                frames[t, row : row + 4, column[t] : column[t] + 4] = 255
            state = np.stack([column, rng.normal(size=16), np.zeros(16)], axis=1).astype(np.float32)
            meta = {"fps": 10, "state_names": ["column", "luck", "nothing"], "side": "left" if i % 2 else "right"}
            writer.write(f"{i:03d}", Episode(frames, state=state, meta=meta))
    return str(tmp_path / "moving")


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[str, str]:
    """An untrained V-JEPA encoder, and a tokenizer that is the identity."""
    torch.manual_seed(0)
    encoder = VideoEncoder((16, 16), frames=4, tubelet=2, patch_size=4, width=24, depth=2, heads=2)
    save_component(randomize(encoder), tmp_path / "vjepa" / "encoder")
    save_component(PixelTokenizer((16, 16)), tmp_path / "pixels")
    return str(tmp_path / "vjepa"), str(tmp_path / "pixels")


@pytest.fixture
def run_probe(moving_square_data: str, bundles: tuple[str, str], tmp_path: Path) -> Run:
    def run(bundle: str = bundles[0], **changes: Any) -> dict[str, Any]:
        sizes = {"clips": 24, "test_clips": 12, "epochs": 2, "draws": 100}
        sweep = {"learning_rates": [3e-3, 1e-3], "weight_decays": [0.1]}
        settings = {"out": tmp_path / "probe", "device": "cpu", **sizes, **sweep, **changes}
        clips, probing = (
            kind(**{field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings})
            for kind in (LabeledClipsConfig, ProbeConfig)
        )
        return probe_features(bundle, moving_square_data, clips=clips, probing=probing, **settings)

    return run


def test_a_report_is_complete_and_consistent(run_probe: Run, tmp_path: Path) -> None:
    report, out = run_probe(), tmp_path / "probe"
    assert json.loads((out / "probe.json").read_text()) == report
    assert {p.name for p in out.iterdir()} == {"probe.json", "probe.md", "probes.png", "numbers.png", "sweep.png"}
    assert [row["role"] for row in report["rows"]] == ["model", "random init", "pixels"]
    model, untrained, pixels = report["rows"]
    assert (model["tokens"], model["width"]) == (untrained["tokens"], untrained["width"]) == (32, 24)
    assert pixels["tokens"] == 32 and pixels["tokens"] * pixels["width"] == 4 * 16 * 16 * 3
    assert report["labels"]["names"] == ["column", "luck"] and report["labels"]["excluded"].keys() == {"nothing"}
    for row in report["rows"]:
        assert list(row["probes"]) == ["attentive", "linear", "knn", "ridge"]
        for result in row["probes"].values():
            score, by_output = result["score"], result["by_output"]
            assert score["low"] <= score["high"] and len(by_output) == 2
            assert score["value"] == pytest.approx((by_output[0]["value"] + by_output[1]["value"]) / 2)
    assert len(untrained["probes"]["ridge"]["selected"]) == 2 and len(model["probes"]["ridge"]["selected"]) == 1
    assert np.array(model["probes"]["linear"]["selected"][0]["val_losses"]).shape == (2, 2)
    for control, control_row in (("random init", untrained), ("pixels", pixels)):
        for name, difference in model["against"][control].items():
            expected = model["probes"][name]["score"]["value"] - control_row["probes"][name]["score"]["value"]
            assert difference["value"] == pytest.approx(expected)
            interval = ConfidenceInterval(difference["value"], difference["low"], difference["high"])
            assert difference["verdict"] == difference_verdict(interval)
    table = (out / "probe.md").read_text()
    assert "| vjepa | 32 × 24 |" in table and "minus random init" in table and "Excluded: nothing" in table
    assert str(tmp_path) not in table
    for name in ("probes.png", "numbers.png", "sweep.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 200


def test_equal_settings_give_equal_scores(run_probe: Run) -> None:
    first, second = run_probe(), run_probe(batch_size=5)
    assert first["rows"][2] == second["rows"][2]
    scores = [[row["probes"]["ridge"]["score"]["value"] for row in report["rows"]] for report in (first, second)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_models_are_compared_in_one_report_and_share_the_pixel_baseline(
    run_probe: Run, bundles: tuple[str, str]
) -> None:
    report = run_probe(",".join(bundles), probes=["ridge"], layer=None, random_seeds=1)
    assert [row["name"] for row in report["rows"]][::2][:2] == ["vjepa", "pixels"]
    assert [row["role"] for row in report["rows"]] == ["model", "random init"] * 2 + ["pixels"] * 2
    all_layers = run_probe(layer="all", probes=["ridge"], random_seeds=1)
    assert [row["name"] for row in all_layers["rows"] if row["role"] == "model"] == ["vjepa, layer 0", "vjepa, layer 1"]
    assert sum(row["role"] == "pixels" for row in all_layers["rows"]) == 1


def test_identical_features_do_not_differ(run_probe: Run, bundles: tuple[str, str]) -> None:
    """A tokenizer without weights equals its reinitialized copy: the difference is 0 in every resample."""
    report = run_probe(bundles[1], probes=["ridge", "knn"], random_seeds=1)
    for difference in report["rows"][0]["against"]["random init"].values():
        assert difference == {"value": 0.0, "low": 0.0, "high": 0.0, "verdict": "open"}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.3, "better"),
        (-0.3, -0.001, "worse"),
        (-0.1, 0.2, "open"),
        (0.0001, 0.0004, "open"),
        (-2e-9, -1e-9, "open"),
    ],
)
def test_the_verdict_of_a_difference_needs_an_interval_without_zero_after_rounding(
    low: float, high: float, verdict: str
) -> None:
    assert difference_verdict(ConfidenceInterval((low + high) / 2, low, high)) == verdict


def test_classes_are_scored_by_accuracy(run_probe: Run, tmp_path: Path) -> None:
    report = run_probe(label="side", probes=["linear", "knn"])
    assert report["labels"] == {
        "kind": "classes",
        "score": "accuracy",
        "names": ["left", "right"],
        "excluded": {},
        "chance": report["labels"]["chance"],
    }
    assert 0 <= report["labels"]["chance"] <= 1
    assert all(0 <= f["score"]["value"] <= 1 for row in report["rows"] for f in row["probes"].values())
    assert {p.name for p in (tmp_path / "probe").iterdir()} == {"probe.json", "probe.md", "probes.png", "sweep.png"}


def test_probes_find_only_information_that_is_present(run_probe: Run) -> None:
    report = run_probe(probes=["ridge"], clips=64, test_clips=64)
    for row in report["rows"]:
        column, noise = row["probes"]["ridge"]["by_output"]
        assert column["value"] > 0.6 and column["low"] > 0 and noise["value"] < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": ["quadratic"]}, "some of attentive"),
        ({"clips": 0}, "clips must be 1 or more"),
        ({"bundle": " , "}, "bundle is empty"),
        ({"layer": 7}, r"layers 0\.\.1"),
        ({"clip_length": 3}, "multiple of tubelet"),
        ({"memory": 1e-6}, "--memory"),
    ],
)
def test_an_invalid_setting_keeps_an_earlier_report(
    run_probe: Run, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "probe.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        run_probe(**settings)
    assert [p.name for p in (tmp_path / "probe").iterdir()] == ["probe.json"]
    assert (tmp_path / "probe" / "probe.json").read_text() == "{}"


def test_foreign_folders_are_not_overwritten(run_probe: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="no report of probes"):
        run_probe(out=tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"
