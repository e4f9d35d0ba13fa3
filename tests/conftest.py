"""Test setup: make the modules of this folder importable, and use one thread so that two tests can run at once."""

import contextlib
import gc
import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub: a mistyped name is not looked for on the hub
torch.set_num_threads(1)

# Before decord, whose own zlib otherwise breaks the PNG files that pygame reads.
with contextlib.suppress(ImportError):
    import pygame  # noqa: F401


def pytest_collection_finish() -> None:
    """Leave what all tests have imported out of garbage collections, and in memory that is shared with forks."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip plotting learning curves after every evaluation of an agent, which takes half a second."""
    monkeypatch.setattr("vwm.rl.evaluation_log.plot_run_curves", lambda *arguments: None)


@pytest.fixture(scope="session")
def lamp_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recording of a game of keys and a pointer (data), and a tiny world of it (world)."""
    from vwm.cli.main import main

    folder = tmp_path_factory.mktemp("lamp")
    data, run, world = (str(folder / name) for name in ("data", "run", "world"))
    shards = ["--frames", "120", "--frames-per-shard", "40", "--workers", "0"]
    main(["record", "vwm/Lamp-v0", data, "--size", "32", *shards])
    network = "--model.init_args.dynamics.init_args"
    small = [f"{network}.width=32", f"{network}.depth=2", f"{network}.heads=2", f"{network}.kv_heads=1"]
    short = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_steps=2", "--threads=1"]
    short += ["--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1", "--samples.every=0"]
    few = [f"--data.init_args.path={data}", "--data.init_args.workers=0", "--data.init_args.batch_size=2"]
    main(["fit", "-c", "dit/lamp_pixels", "--run", run, *small, *short, *few, "--data.init_args.val_fraction=0.3"])
    main(["export", run, "-o", world, "--starts", "2", "--sampling-steps", "1"])
    return folder
