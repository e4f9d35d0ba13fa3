"""Exact resume: a run that was killed and restarted ends bit-equal to an uninterrupted one."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_runs import RunResult, Runs, batches, environment
from tiny_trainings import CHECKPOINT, EPOCH, STEPS, write_tiny_trainings

from vwm.train.fit import follow_torchrun


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    write_tiny_trainings(root)
    return root


def fit(
    runs: Runs, root: Path, family: str, run: str, *arguments: str, ranks: int = 1, **environment: str
) -> RunResult:
    argv = ["fit", "-c", str(root / f"{family}.yaml"), "--run", str(root / run), *arguments]
    if ranks > 1:
        size = 4 // ranks
        argv += ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp", "--data.init_args.batch_size", str(size)]
    return runs(argv, root / f"{run}.log", ranks, **environment)


def load_state(run: Path) -> dict[str, Any]:
    """Everything in the run's last checkpoint."""
    return torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two nested values differ in any bit."""
    if type(a) is not type(b):
        return [f"{where}: {a!r} and {b!r}"]
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if list(a) != list(b):
            return [f"{where}: keys {list(a)} and {list(b)}"]
        return [difference for key in a for difference in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        return [
            difference
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for difference in differences(x, y, f"{where}/{i}")
        ]
    return [] if a == b else [f"{where}: {a!r} and {b!r}"]


@pytest.fixture(scope="module")
def uninterrupted(runs: Runs, root: Path) -> Callable[[str, int], dict[str, Any]]:
    """The last checkpoint of an uninterrupted run of a family, on 1 or 2 ranks; run only once."""
    states: dict[tuple[str, int], dict[str, Any]] = {}

    def state_of(family: str, ranks: int) -> dict[str, Any]:
        if (family, ranks) not in states:
            run = f"{family}-uninterrupted-{ranks}"
            result = fit(runs, root, family, run, ranks=ranks)
            assert result.codes == [0] * ranks, result.output
            states[family, ranks] = load_state(root / run)
            assert states[family, ranks]["global_step"] == STEPS
        return states[family, ranks]

    return state_of


Uninterrupted = Callable[[str, int], dict[str, Any]]


@pytest.mark.parametrize(
    ("family", "kill_steps"),
    [
        # Within an epoch, after its last batch, and in a later epoch: each with a checkpoint of that step.
        ("tokenizer", (2, EPOCH, EPOCH + 3)),
        # Before the first checkpoint; then twice with lost steps that are repeated from the end of an epoch.
        ("genie", (EPOCH - 1, EPOCH + 2, 2 * EPOCH + 1)),
        # Two steps after a checkpoint: before and after the discriminator starts.
        ("vae", (5, EPOCH + 6)),
        ("dit", (EPOCH + 6,)),
        ("vjepa", (EPOCH + 6,)),
    ],
)
def test_resumed_runs_equal_uninterrupted_runs_bitwise(
    runs: Runs, root: Path, uninterrupted: Uninterrupted, family: str, kill_steps: tuple[int, ...]
) -> None:
    run = f"{family}-killed"
    for at in kill_steps:
        result = fit(runs, root, family, run, KILL_AT=str(at))
        assert result.codes == [-9], result.output
        if CHECKPOINT[family]["every"] == 3:  # as often as validations: killed after it was saved, no row is missing
            rows, checkpoint = (root / run / name for name in ("metrics/val.csv", "checkpoints/last.ckpt"))
            assert rows.stat().st_mtime_ns <= checkpoint.stat().st_mtime_ns
    result = fit(runs, root, family, run)
    assert result.codes == [0], result.output
    assert not differences(uninterrupted(family, 1), load_state(root / run))
    assert batches(root / run) == batches(root / f"{family}-uninterrupted-1")
    assert tables(root / run) == tables(root / f"{family}-uninterrupted-1")


@pytest.mark.parametrize("family", ["tokenizer", "genie"])
def test_validation_samples_checkpoints_and_workers_do_not_change_training(
    runs: Runs, root: Path, uninterrupted: Uninterrupted, family: str
) -> None:
    """Compared with a run without validation, sample videos, checkpoints and data workers."""
    disabled = ["--trainer.limit_val_batches", "0", "--samples.every", "0", "--checkpoint.every", "100"]
    result = fit(runs, root, family, f"{family}-plain", *disabled, "--data.init_args.workers", "0")
    assert result.codes == [0], result.output
    enabled, plain = uninterrupted(family, 1), load_state(root / f"{family}-plain")
    assert (root / f"{family}-uninterrupted-1" / "videos" / "step-0000012.mp4").is_file()
    assert not (root / f"{family}-plain" / "videos").exists()
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "generators", "callbacks"):
        assert not differences(enabled[key], plain[key])


def test_resumed_runs_with_gradient_accumulation_equal_uninterrupted_runs_bitwise(runs: Runs, root: Path) -> None:
    """Steps of two batches, the last of an epoch of one: 3 steps per epoch of 5 batches."""
    steps = ["--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "7"]
    result = fit(runs, root, "tokenizer", "accumulated", *steps)
    assert result.codes == [0], result.output
    for at in (2, 3):
        result = fit(runs, root, "tokenizer", "accumulated-killed", *steps, KILL_AT=str(at))
        assert result.codes == [-9], result.output
    result = fit(runs, root, "tokenizer", "accumulated-killed", *steps)
    assert result.codes == [0], result.output
    assert not differences(load_state(root / "accumulated"), load_state(root / "accumulated-killed"))


def test_extended_runs_equal_uninterrupted_runs_bitwise_and_in_their_metrics(runs: Runs, root: Path) -> None:
    """Training ends with an epoch, then within one, each time without a checkpoint of that step by the interval."""
    constant = ["--model.init_args.optimizer.schedule", "constant", "--checkpoint.every", "100", "--trainer.max_steps"]
    for run, lengths in (("whole", (STEPS,)), ("extended", (EPOCH, EPOCH + 2, STEPS))):
        for length in lengths:
            result = fit(runs, root, "tokenizer", run, *constant, str(length))
            assert result.codes == [0], result.output
    assert not differences(load_state(root / "whole"), load_state(root / "extended"))
    for table in ("train", "val"):
        rows, expected = (metric_rows(root / run / "metrics" / f"{table}.csv") for run in ("extended", "whole"))
        assert rows and rows == expected
        assert [row["epoch"] for row in rows] == [str(int(row["step"]) // EPOCH) for row in rows]


def tables(run: Path) -> list[list[dict[str, str]]]:
    """The rows of all tables, without times."""
    return [metric_rows(path) for path in sorted((run / "metrics").glob("*.csv"))]


def metric_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a table, without the columns that measure time."""
    with table.open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if "per_second" not in name} for row in rows]


def test_training_prints_no_warnings(runs: Runs, root: Path, uninterrupted: Uninterrupted) -> None:
    for family in ("tokenizer", "genie"):
        uninterrupted(family, 1)
        output = (root / f"{family}-uninterrupted-1.log").read_text()
        assert not [word for word in ("Warning", "warning", "deprecated", "weights_only", "Tip") if word in output]


@pytest.mark.parametrize(("family", "rank", "at"), [("tokenizer", 1, 3), ("genie", 0, EPOCH)])
def test_a_killed_rank_stops_the_run_which_then_resumes(
    runs: Runs, root: Path, uninterrupted: Uninterrupted, family: str, rank: int, at: int
) -> None:
    run = f"{family}-rank-killed"
    result = fit(runs, root, family, run, ranks=2, KILL_AT=str(at), KILL_RANK=str(rank))
    assert result.codes[rank] == -9 and 0 not in result.codes, result.output
    result = fit(runs, root, family, run, ranks=2)
    assert result.codes == [0, 0], result.output
    assert not differences(uninterrupted(family, 2), load_state(root / run))
    assert batches(root / run, ranks=2) == batches(root / f"{family}-uninterrupted-2", ranks=2)


def test_global_batches_do_not_depend_on_the_number_of_ranks(
    runs: Runs, root: Path, uninterrupted: Uninterrupted
) -> None:
    uninterrupted("tokenizer", 1), uninterrupted("tokenizer", 2)
    expected = batches(root / "tokenizer-uninterrupted-1")
    assert sorted(expected) == list(range(1, STEPS + 1)) and {len(clips) for clips in expected.values()} == {4}
    assert len({clip for step in range(1, EPOCH + 1) for clip in expected[step]}) == 4 * EPOCH
    assert batches(root / "tokenizer-uninterrupted-2", ranks=2) == expected
    # The same holds if a run resumes with another number of ranks within an epoch.
    result = fit(runs, root, "tokenizer", "moved", KILL_AT=str(EPOCH + 2))
    assert result.codes == [-9], result.output
    (root / "moved" / "batches-0.jsonl").unlink()
    result = fit(runs, root, "tokenizer", "moved", ranks=2)
    assert result.codes == [0, 0], result.output
    assert batches(root / "moved", ranks=2) == {step: expected[step] for step in range(EPOCH + 3, STEPS + 1)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_saves_a_checkpoint_from_which_the_run_resumes(
    runs: Runs, root: Path, uninterrupted: Uninterrupted, ranks: int
) -> None:
    """The signal is sent to one rank and its data workers, as by a scheduler; all ranks stop at the same step.

    It is one with a validation, whose row is written, too.
    """
    run, rarely = f"sigterm-{ranks}", ["--checkpoint.every", "100"]
    result = fit(runs, root, "genie", run, *rarely, ranks=ranks, KILL_AT="5", KILL_BY="TERM", KILL_RANK=str(ranks - 1))
    assert result.codes == [143] * ranks, result.output
    assert load_state(root / run)["global_step"] == 6
    result = fit(runs, root, "genie", run, *rarely, ranks=ranks)
    assert result.codes == [0] * ranks, result.output
    assert not differences(uninterrupted("genie", ranks), load_state(root / run))
    assert tables(root / run) == tables(root / f"genie-uninterrupted-{ranks}")


def executable(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_vwm_fit_launches_its_own_ranks(root: Path, uninterrupted: Uninterrupted) -> None:
    argv = ["-c", str(root / "tokenizer.yaml"), "--run", str(root / "typed"), "--data.init_args.batch_size", "2"]
    argv += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    subprocess.run([executable("vwm"), "fit", *argv], env=environment(), check=True, capture_output=True)
    assert not differences(uninterrupted("tokenizer", 2), load_state(root / "typed"))


def test_a_run_restarted_by_torchrun_resumes(root: Path, uninterrupted: Uninterrupted) -> None:
    """The number of processes is torchrun's, without another option."""
    argv = ["-c", str(root / "tokenizer.yaml"), "--run", str(root / "torchrun"), "--data.init_args.batch_size", "2"]
    argv += ["--trainer.devices", "1"]  # as the small configs have it
    launch = ["--standalone", "--nproc_per_node", "2", "--max_restarts", "2"]
    launch += ["-m", "--", "vwm.cli.main", "fit"]  # without the --, torchrun takes --run for its own --run_path
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "KILL_AT": str(EPOCH + 2), "KILL_RANK": "1"}
    log = root / "torchrun.log"  # a file: processes that outlive torchrun would hold a pipe open
    with log.open("w") as output:
        command = [executable("torchrun"), *launch, *argv]
        code = subprocess.run(command, env=environment() | variables, stdout=output, stderr=output).returncode
    assert code == 0, log.read_text()
    assert "(exitcode: -9) local_rank: 1" in log.read_text()
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in log.read_text()
    assert not differences(uninterrupted("tokenizer", 2), load_state(root / "torchrun"))
    assert len((root / "torchrun" / "batches-1.jsonl").read_text().splitlines()) == STEPS


def test_torchrun_that_keeps_its_store_is_refused_instead_of_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Restarted processes would wait for half an hour for the addresses of the ended ones."""
    torchrun = {"RUN_ID": "a", "USE_AGENT_STORE": "True", "MAX_RESTARTS": "3", "RESTART_COUNT": "0"}
    for name, value in torchrun.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    for name, value in {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for devices, expected in (("auto", 2), (1, 2), ("1", 2), ([0, 1], [0, 1])):  # 1: of configs for one CPU
        trainer = {"devices": devices, "num_nodes": 1}
        follow_torchrun(trainer)
        assert trainer == {"devices": expected, "num_nodes": 3}
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().out
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ValueError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        follow_torchrun(trainer)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    follow_torchrun(trainer)
    assert not capsys.readouterr().out


def test_rejects_resuming_with_another_global_batch_size(runs: Runs, root: Path, uninterrupted: Uninterrupted) -> None:
    uninterrupted("tokenizer", 1)
    result = fit(runs, root, "tokenizer", "tokenizer-uninterrupted-1", "--data.init_args.batch_size", "2")
    assert result.codes == [1]
    assert "vwm fit: cannot resume in the same order: clips of a global batch" in result.output
    assert "Traceback" not in result.output


def test_unknown_config_keys_are_errors_without_a_traceback(runs: Runs, root: Path) -> None:
    text = (root / "tokenizer.yaml").read_text()
    (root / "typo.yaml").write_text(text.replace("patch_size", "patchsize"))
    result = fit(runs, root, "typo", "typo")
    assert result.codes == [2] and "patchsize" in result.output and "Traceback" not in result.output
    result = fit(runs, root, "tokenizer", "typo", "--trainer.max_stepz", "3")
    assert result.codes == [2] and "max_stepz" in result.output and "Traceback" not in result.output


def test_missing_data_is_an_error_without_a_traceback(runs: Runs, root: Path) -> None:
    result = fit(runs, root, "tokenizer", "nowhere", "--data.init_args.path", str(root / "no_such_folder"))
    assert result.codes == [1] and "Traceback" not in result.output
    line = next(line for line in result.output.splitlines() if "no_such_folder" in line)
    assert line.startswith("vwm fit: no shards at")
