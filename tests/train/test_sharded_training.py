"""Trainings whose weights are sharded over processes equal those in which every process has all weights."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vwm.train.strategies import ShardedStrategy, make_strategy, mesh_sides

HELPERS = Path(__file__).parent / "helpers"
sys.path.insert(0, str(HELPERS))

from fit_runs import Runs  # noqa: E402
from tiny_trainings import write_tiny_trainings  # noqa: E402

STEPS = 6
BATCH = 4
"""Clips of a global batch."""


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sharded")
    write_tiny_trainings(root)
    return root


Fit = Callable[..., Path]


@pytest.fixture(scope="module")
def fit(runs: Runs, root: Path) -> Fit:
    """Train a family in float64, by default in one process; return the run's folder."""

    def train(family: str, run: str, ranks: int = 1, strategy: str = "ddp", steps: int = STEPS, *more: str) -> Path:
        argv = ["fit", "-c", str(root / f"{family}.yaml"), "--run", str(root / run)]
        argv += ["--trainer.max_steps", str(steps), "--trainer.precision", "64-true"]
        argv += ["--model.init_args.optimizer.schedule", "constant"]  # so that a run can be extended
        if ranks > 1:
            argv += ["--trainer.strategy", strategy, "--data.init_args.batch_size", str(BATCH // ranks)]
        result = runs([*argv, *more], root / f"{run}.log", ranks)
        assert result.codes == [0] * ranks, result.output
        assert "Warning" not in result.output, result.output
        return root / run

    return train


def load_state(run: Path) -> dict[str, Any]:
    """Everything in the run's last checkpoint."""
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    return state


def largest_difference(a: Any, b: Any) -> float:
    """Largest absolute difference of the tensors and numbers of two nested values with the same structure."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((largest_difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return max((largest_difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    return abs(a - b) if isinstance(a, float) else float(a != b)


def compare(run: Path, expected: Path) -> float:
    """Largest difference of weights, optimizer states and averages of two runs."""
    states = load_state(run), load_state(expected)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks")
    return max(largest_difference(states[0][part], states[1][part]) for part in parts)


def losses(run: Path) -> list[float]:
    with (run / "metrics" / "train.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_sharded_runs_continue_plain_ones_and_back(fit: Fit, runs: Runs, root: Path) -> None:
    """On 2, 1, 4 and 2 processes, with Muon, an average, clipping and sample videos."""
    whole = fit("dit", "whole", 2)
    run = fit("dit", "moved", 2, "fsdp", 2)
    fit("dit", "moved", 2, "ddp", 3)
    fit("dit", "moved", 2, "fsdp", STEPS)
    assert compare(run, whole) < 1e-10
    assert losses(run) == pytest.approx(losses(whole), abs=1e-10)
    result = runs(
        ["export", str(run), "-o", str(root / "bundle"), "--data", "none", "--allow-packages", "fit_runs"],
        root / "export.log",
    )
    assert result.codes == [0], result.output
    assert (root / "bundle" / "dynamics" / "diffusion_pytorch_model.safetensors").is_file()


def test_names_of_strategies_and_sizes_of_meshes() -> None:
    assert make_strategy("ddp") == "ddp" and make_strategy("auto") == "auto"
    fsdp, hsdp, sized = (make_strategy(name) for name in ("fsdp", "hsdp", "hsdp:2x4"))
    assert all(isinstance(strategy, ShardedStrategy) for strategy in (fsdp, hsdp, sized))
    assert mesh_sides(fsdp.replicas, fsdp.shards, processes=8, machines=2) == (1, 8)
    assert mesh_sides(hsdp.replicas, hsdp.shards, processes=8, machines=2) == (2, 4)
    assert mesh_sides(sized.replicas, sized.shards, processes=8, machines=1) == (2, 4)
    with pytest.raises(ValueError, match="8 processes, and there are 6: set"):
        mesh_sides(2, 4, processes=6, machines=1)
    for wrong in ("hsdp:2", "hsdp:0x4", "fsdp:2x2"):
        with pytest.raises(ValueError, match="REPLICASxSHARDS"):
            make_strategy(wrong)
