"""V-JEPA from the command line: sprite worlds, pretraining, probes, and surprise at impossible events."""

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
def place(tmp_path_factory) -> Path:
    """Clips to train on, and pairs."""
    place = tmp_path_factory.mktemp("sprites")
    for name, more in (("possible", ["--clips", "40", "--frames", "16"]), ("pairs", ["--pairs", "--clips", "12"])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["generate.py", str(place / name), *more])
            runpy.run_path(str(REPOSITORY / "datasets/sprites/generate.py"), run_name="__main__")
    return place


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    config = ["-c", str(REPOSITORY / "configs/vjepa/sprites_small.yaml"), "--run", str(place / "run")]
    main(["fit", *config, "--data.init_args.path", str(place / "possible"), "--trainer.max_steps", "4", *SMALL])
    main(["export", str(place / "run"), "-o", str(place / "bundle")])
    return place / "bundle"


def test_training_leaves_curves_pictures_and_the_health_of_the_representations(place, bundle):
    headers = {p.stem: p.read_text().splitlines()[0].split(",") for p in (place / "run/metrics").iterdir()}
    assert "rank" in headers["collapse"] and "prediction_loss" in headers["train"]
    assert sorted(p.name for p in (place / "run/videos").glob("*.png")) == ["step-0000002.png", "step-0000004.png"]
    assert {p.name for p in bundle.iterdir()} == {"encoder", "predictor"}


def test_an_exported_encoder_is_probed_for_the_clips_labels(place, bundle, capsys):
    out = place / "probe"
    more = ["--probes", "[ridge, knn]", "--random_seeds", "1", "--draws", "50"]
    main(["probe", str(bundle), str(place / "possible"), "--label", "shape", "--out", str(out), *more])
    assert "random init" in capsys.readouterr().out and json.loads((out / "probe.json").read_text())


def test_surprise_is_measured_on_pairs(place, bundle, capsys):
    main(["surprise", str(bundle), str(place / "pairs"), "--out", str(place / "surprise"), "--mask_token", "1"])
    found = json.loads((place / "surprise/surprise.json").read_text())
    assert "frame difference" in capsys.readouterr().out
    assert found["before_violation"] < 1e-5  # nobody looks ahead
    assert found["pairs"] == 6 and len(found["curves"]["permanence"]["possible"]["mean"]) > 2


def test_what_is_no_vjepa_model_is_named(place, bundle, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["surprise", str(bundle), str(place / "pairs"), "--context", "3", "--out", str(place / "no")])
    assert stop.value.code == 1 and "context=3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["surprise", str(place / "run"), str(place / "pairs"), "--out", str(place / "no")])
    assert "there is no config.json" in capsys.readouterr().err and not (place / "no").exists()
