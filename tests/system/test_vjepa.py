"""V-JEPA from the command line: sprite clips, pretraining, probes, and surprise at impossible events."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from vwm.cli.main import main

REPOSITORY = Path(__file__).parents[2]
MODEL = "--model.init_args"
SMALL = [
    *("--threads", "1", "--trainer.precision", "32-true", "--trainer.log_every_n_steps", "1", "--samples.every", "2"),
    *(f"{MODEL}.encoder.init_args.depth", "1", f"{MODEL}.encoder.init_args.width", "24"),
    *(f"{MODEL}.predictor.init_args.depth", "1", f"{MODEL}.predictor.init_args.encoder_width", "24"),
    *("--data.init_args.workers", "0", "--data.init_args.batch_size", "4", "--data.init_args.val_fraction", "0.2"),
]


@pytest.fixture(scope="module")
def sprites_folder(tmp_path_factory) -> Path:
    """A folder with training clips and pairs of possible and impossible clips."""
    sprites_folder = tmp_path_factory.mktemp("sprites")
    for name, extra in (("possible", ["--clips", "40", "--frames", "16"]), ("pairs", ["--pairs", "--clips", "12"])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["generate.py", str(sprites_folder / name), *extra])
            runpy.run_path(str(REPOSITORY / "datasets/sprites/generate.py"), run_name="__main__")
    return sprites_folder


@pytest.fixture(scope="module")
def bundle(sprites_folder: Path) -> Path:
    config = ["-c", str(REPOSITORY / "configs/vjepa/sprites_small.yaml"), "--run", str(sprites_folder / "run")]
    main(
        ["fit", *config, "--data.init_args.path", str(sprites_folder / "possible"), "--trainer.max_steps", "4", *SMALL]
    )
    main(["export", str(sprites_folder / "run"), "-o", str(sprites_folder / "bundle")])
    return sprites_folder / "bundle"


def test_training_writes_metrics_images_and_collapse_measures(sprites_folder, bundle):
    headers = {p.stem: p.read_text().splitlines()[0].split(",") for p in (sprites_folder / "run/metrics").iterdir()}
    assert "rank" in headers["collapse"] and "prediction_loss" in headers["train"]
    assert sorted(p.name for p in (sprites_folder / "run/videos").glob("*.png")) == [
        "step-0000002.png",
        "step-0000004.png",
    ]
    assert {p.name for p in bundle.iterdir()} == {"encoder", "predictor"}


def test_an_exported_encoder_is_probed_for_clip_labels(sprites_folder, bundle, capsys):
    out = sprites_folder / "probe"
    extra = ["--probes", "[ridge, knn]", "--random_seeds", "1", "--draws", "50"]
    main(["probe", str(bundle), str(sprites_folder / "possible"), "--label", "shape", "--out", str(out), *extra])
    assert "random init" in capsys.readouterr().out and json.loads((out / "probe.json").read_text())


def test_surprise_is_measured_on_pairs(sprites_folder, bundle, capsys):
    main(
        [
            "surprise",
            str(bundle),
            str(sprites_folder / "pairs"),
            "--out",
            str(sprites_folder / "surprise"),
            "--mask_token",
            "1",
        ]
    )
    report = json.loads((sprites_folder / "surprise/surprise.json").read_text())
    assert "frame difference" in capsys.readouterr().out
    assert report["before_violation"] < 1e-5  # the predictor does not use later frames
    assert report["pairs"] == 6 and len(report["curves"]["permanence"]["possible"]["mean"]) > 2


def test_surprise_rejects_invalid_contexts_and_folders_without_a_model(sprites_folder, bundle, capsys):
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "surprise",
                str(bundle),
                str(sprites_folder / "pairs"),
                "--context",
                "3",
                "--out",
                str(sprites_folder / "no"),
            ]
        )
    assert stop.value.code == 1 and "context=3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(
            [
                "surprise",
                str(sprites_folder / "run"),
                str(sprites_folder / "pairs"),
                "--out",
                str(sprites_folder / "no"),
            ]
        )
    assert "there is no config.json" in capsys.readouterr().err and not (sprites_folder / "no").exists()
