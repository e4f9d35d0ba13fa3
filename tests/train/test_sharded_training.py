"""Trainings whose weights are sharded over processes equal those in which every process has all weights."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_runs import Runs
from tiny_trainings import write_tiny_trainings

from vwm.train.strategies import ShardedStrategy, make_strategy, mesh_sides

STEPS = 6
BATCH = 4
"""Clips of a global batch."""


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


@pytest.fixture(scope="module")
def plain(fit: Fit) -> Callable[[str], Path]:
    """The run of a family in one process, trained once."""
    return lru_cache(lambda family: fit(family, f"{family}-plain"))


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


TOLERANCE = 1e-10
"""Of float64 weights, optimizer states and losses: sums over processes are rounded in another order."""


@pytest.mark.parametrize(
    ("family", "ranks", "strategy", "context", "tensor"),
    [
        ("dit", 2, "ddp", 2, 1),
        ("dit", 2, "fsdp", 1, 2),
        ("dit", 4, "fsdp", 2, 2),
        ("genie", 2, "fsdp", 2, 1),
        ("genie", 4, "hsdp-2x1", 1, 2),
        ("genie", 2, "ddp", 1, 1),
        ("vae", 4, "hsdp-2x2", 1, 1),
        ("vjepa", 2, "ddp", 1, 1),
        ("vjepa", 2, "fsdp", 1, 1),  # its monitor compares the two clips of a process
    ],
)
def test_any_number_of_processes_and_any_strategy_train_alike(
    fit: Fit, plain: Callable[[str], Path], family: str, ranks: int, strategy: str, context: int, tensor: int
) -> None:
    """With all that draws random numbers, batch statistics, frozen networks, a discriminator, averages and clipping.

    ``context`` processes share each clip, in each of whose places ``tensor`` processes share each layer.
    """
    sharing = ["--context_parallel", str(context), "--tensor_parallel", str(tensor)]
    batch = ["--data.init_args.batch_size", str(BATCH * context * tensor // ranks)]
    run = fit(family, f"{family}-{ranks}-{strategy}-{context}-{tensor}", ranks, strategy, STEPS, *sharing, *batch)
    assert compare(run, plain(family)) < TOLERANCE
    assert losses(run) == pytest.approx(losses(plain(family)), abs=TOLERANCE)


def test_gradient_accumulation_trains_alike_under_sharding(fit: Fit) -> None:
    """Until its discriminator starts, the loss of a batch is the mean of those of its halves."""
    later = ["--model.init_args.adversarial.start_step", "100"]
    whole = fit("vae", "vae-whole", 1, "ddp", 3, *later)
    halves = ["--trainer.accumulate_grad_batches", "2", "--data.init_args.batch_size", "1"]
    run = fit("vae", "vae-halves", 2, "fsdp", 3, *later, *halves)
    assert compare(run, whole) < TOLERANCE


def test_processes_that_share_clips_and_layers_divide_global_batches(fit: Fit) -> None:
    """In four micro-batches; without outcomes, whose losses are divided by their size in each micro-batch."""
    alone = ["--model.init_args.outcomes", "null", "--model.init_args.optimizer.name", "adamw"]
    whole = fit("dit", "dit-whole", 1, "ddp", 3, *alone)
    parts = ["--context_parallel", "2", "--tensor_parallel", "2", "--global_batch", str(BATCH)]
    run = fit("dit", "dit-parts", 4, "fsdp", 3, *alone, *parts, "--data.init_args.batch_size", "1")
    assert compare(run, whole) < TOLERANCE
    assert losses(run) == pytest.approx(losses(whole), abs=TOLERANCE)


def test_sharded_runs_continue_plain_ones_and_back(
    fit: Fit, plain: Callable[[str], Path], runs: Runs, root: Path
) -> None:
    """On 2, 1 and 4 processes, with Muon, from files and folders of parts; then it is exported."""
    shared = ["--tensor_parallel", "2", "--checkpoint.format", "folder"]
    run = fit("dit", "moved", 2, "fsdp", 2, *shared, "--data.init_args.batch_size", str(BATCH))
    fit("dit", "moved", 1, "ddp", 3)
    fit("dit", "moved", 4, "fsdp", 4, *shared, "--data.init_args.batch_size", str(BATCH // 2))
    fit("dit", "moved", 4, "hsdp-2x2", STEPS)
    assert compare(run, plain("dit")) < TOLERANCE
    assert losses(run) == pytest.approx(losses(plain("dit")), abs=TOLERANCE)
    result = runs(
        ["export", str(run), "-o", str(root / "bundle"), "--data", "none", "--allow-packages", "fit_runs"],
        root / "export.log",
    )
    assert result.codes == [0], result.output
    assert (root / "bundle" / "dynamics" / "diffusion_pytorch_model.safetensors").is_file()


def test_names_of_strategies_and_sizes_of_meshes() -> None:
    assert make_strategy("ddp") == "ddp" and make_strategy("auto") == "auto"
    fsdp, hsdp, sized = (make_strategy(name) for name in ("fsdp", "hsdp", "hsdp-2x4"))
    assert all(isinstance(strategy, ShardedStrategy) for strategy in (fsdp, hsdp, sized))
    assert mesh_sides(fsdp.replicas, fsdp.shards, processes=8, machines=2) == (1, 8)
    assert mesh_sides(hsdp.replicas, hsdp.shards, processes=8, machines=2) == (2, 4)
    assert mesh_sides(sized.replicas, sized.shards, processes=8, machines=1) == (2, 4)
    with pytest.raises(ValueError, match="8 processes, and there are 6: set"):
        mesh_sides(2, 4, processes=6, machines=1)
    for wrong in ("hsdp-2", "hsdp-0x4", "fsdp:2x2"):
        with pytest.raises(ValueError, match="REPLICASxSHARDS"):
            make_strategy(wrong)
