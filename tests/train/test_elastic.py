"""Runs with a global batch go on with any number of ranks: the same batches, losses and weights."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fit_runs import RunResult, Runs, batches
from safetensors.torch import load_file

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.train.global_batch import convert_progress
from vwm.train.lost_ranks import LostRanks
from vwm.train.watchdog import describe_hang

GLOBAL_BATCH = 6
EPOCH = 3
"""Steps per epoch of the data below: 21 clips of 4 frames in global batches of 6."""
STEPS = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train`` and ``val`` shards, and the config of a tokenizer in float64."""
    root = tmp_path_factory.mktemp("elastic")
    rng = np.random.default_rng(0)
    for part, lengths in (("train", [13, 17, 9, 22, 14, 15, 7]), ("val", [18, 10])):
        with ShardWriter(root / part / "shard-000000.tar") as writer:
            for episode, length in enumerate(lengths):
                frames = rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
                writer.write(f"{part}-{episode}", Episode(frames))
    network = {"image_size": [8, 8], "patch_size": 4, "codebook": [3, 3], "width": 8, "depth": 1, "heads": 1}
    config: dict[str, Any] = {
        "seed_everything": 1,
        "global_batch": GLOBAL_BATCH,
        "trainer": {
            "accelerator": "cpu",
            "precision": "64-true",
            "max_steps": STEPS,
            "gradient_clip_val": 0.1,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "fit_runs.KillAtStep"}, {"class_path": "fit_runs.RecordBatches"}],
        },
        "checkpoint": {"every": 2},
        "ema": {"decay": 0.9},
        "samples": {"every": 0},
        "model": {
            "class_path": "vwm.tokenizers.TokenizerModule",
            "init_args": {
                "tokenizer": {
                    "class_path": "vwm.tokenizers.SpaceTimeTokenizer",
                    "init_args": {**network, "window": 4},
                },
                "optimizer": {"name": "adamw", "lr": 0.003, "warmup": 4, "schedule": "cosine"},
            },
        },
        "data": {
            "class_path": "vwm.data.VideoDataModule",
            "init_args": {
                "path": str(root / "train"),
                "val_path": str(root / "val"),
                "clip_length": 4,
                "batch_size": 2,
                "fields": ["frames"],
                "workers": 0,
            },
        },
    }
    (root / "tokenizer.yaml").write_text(yaml.safe_dump(config))
    return root


def fit(
    runs: Runs, root: Path, run: str, *arguments: str, ranks: int = 1, strategy: str = "ddp", **environment: str
) -> RunResult:
    argv = ["fit", "-c", str(root / "tokenizer.yaml"), "--run", str(root / run), *arguments]
    if ranks > 1:
        argv += ["--trainer.strategy", strategy]
    return runs(argv, root / f"{run}.log", ranks, **environment)


def load_state(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    return state


def read_table(run: Path, name: str) -> list[dict[str, float]]:
    """The rows of a metric table without the measured speeds and what is no mean over clips."""
    with (run / "metrics" / f"{name}.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if "second" not in k and k not in ("psnr", "perplexity")} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(runs: Runs, root: Path) -> Path:
    """One rank that computes every global batch at once."""
    result = fit(runs, root, "uninterrupted", "--data.init_args.batch_size", str(GLOBAL_BATCH))
    assert result.codes == [0], result.output
    assert "global batches of 6 clips in 1 micro-batches" in result.output
    return root / "uninterrupted"


def assert_equal_runs(run: Path, expected: Path) -> None:
    """Weights and metrics agree to the rounding of the loss, which is float32, as it accumulates over the steps."""
    for table in ("train", "val"):
        rows, others = read_table(run, table), read_table(expected, table)
        assert [row.keys() for row in rows] == [row.keys() for row in others]
        for row, other in zip(rows, others, strict=True):
            assert row == pytest.approx(other, rel=1e-6), table
    state, other_state = load_state(run), load_state(expected)
    for name, weight in other_state["state_dict"].items():
        torch.testing.assert_close(state["state_dict"][name], weight, rtol=1e-4, atol=1e-5)
    assert state["global_step"] == other_state["global_step"] == STEPS
    assert state["epoch"] == other_state["epoch"]


def test_a_run_goes_on_with_any_number_of_killed_ranks(runs: Runs, root: Path, uninterrupted: Path) -> None:
    """4, 2, 3, 1 and 4 ranks, one killed each time: in an epoch, at its end, with and without lost steps."""
    for ranks, rank, step in ((4, 3, 3), (2, 0, EPOCH + 1), (3, 1, 2 * EPOCH), (1, 0, 8)):
        result = fit(runs, root, "elastic", ranks=ranks, KILL_AT=str(step), KILL_RANK=str(rank))
        assert result.codes[rank] == -9 and not {1, 2} & set(result.codes), result.output
    result = fit(runs, root, "elastic", ranks=4)
    assert result.codes == [0] * 4, result.output
    assert batches(root / "elastic", ranks=4) == batches(uninterrupted)
    assert {len(clips) for clips in batches(uninterrupted).values()} == {GLOBAL_BATCH}
    assert_equal_runs(root / "elastic", uninterrupted)


def test_a_stopped_run_moves_to_parts_of_another_size(runs: Runs, root: Path, uninterrupted: Path) -> None:
    """SIGTERM between two micro-batches ends the run after their step; the rest has one clip or none in each part."""
    result = fit(runs, root, "moved", KILL_AT="4", KILL_BY="TERM")
    assert result.codes == [143], result.output
    assert load_state(root / "moved")["global_step"] == 5
    result = fit(runs, root, "moved", "--data.init_args.batch_size", "1", ranks=4)
    assert result.codes == [0] * 4, result.output
    assert batches(root / "moved", ranks=4) == batches(uninterrupted)
    assert_equal_runs(root / "moved", uninterrupted)


def test_checkpoint_folders_move_between_meshes_and_one_process(runs: Runs, root: Path, uninterrupted: Path) -> None:
    """3 processes that share the weights, 2 that do, 2 that have all of them each, and one; the last writes a file."""
    folder, run = ["--checkpoint.format", "folder", "--ema.decay", "0.9"], root / "folders"
    for ranks, strategy, step in ((3, "fsdp", 5), (2, "fsdp", 7), (2, "ddp", 9)):
        killed = {"KILL_AT": str(step), "KILL_RANK": str(ranks - 1)}
        result = fit(runs, root, "folders", *folder, ranks=ranks, strategy=strategy, **killed)
        assert result.codes[-1] == -9 and not {1, 2} & set(result.codes), result.output
        saved = {path.parent.name for path in run.glob("checkpoints/*/index.json")}
        assert saved and len(saved) <= 3 and not (run / "checkpoints" / "last.ckpt").exists()
    # The last complete one is cut off: the one before it is used.
    newest = run / "checkpoints" / max(saved)
    (newest / "trainer.ckpt").write_bytes(b"")
    result = fit(runs, root, "folders")
    assert result.codes == [0], result.output
    assert f"{newest.name}/trainer.ckpt: is cut off" in result.output and "Continuing from" in result.output
    assert batches(run, ranks=3) == batches(uninterrupted)
    assert_equal_runs(run, uninterrupted)


def test_a_run_that_starts_again_forgets_its_later_checkpoints(runs: Runs, root: Path) -> None:
    """Otherwise it would resume from them, and remove its own as older ones."""
    arguments = ["--checkpoint.format", "folder", "--trainer.val_check_interval", "20"]
    result = fit(runs, root, "again", *arguments, "--trainer.max_steps", "4")
    assert result.codes == [0], result.output
    result = fit(runs, root, "again", *arguments, "--trainer.max_steps", "2", "--no-resume")
    assert result.codes == [0] and "removed checkpoints of steps [2, 4]" in result.output, result.output
    assert [path.parent.name for path in (root / "again").glob("checkpoints/*/index.json")] == ["step-00000002"]


def test_a_run_with_checkpoint_folders_is_exported_without_processes(
    runs: Runs, root: Path, uninterrupted: Path
) -> None:
    result = fit(runs, root, "exported", "--checkpoint.format", "folder", ranks=2, strategy="fsdp")
    assert result.codes == [0, 0], result.output
    words = ["export", str(root / "exported"), "-o", str(root / "bundle"), "--allow-packages", "fit_runs"]
    result = runs(words, root / "export.log")
    assert result.codes == [0], result.output
    names = {path.name for path in (root / "exported" / "checkpoints").iterdir()}
    assert names == {"step-00000008", "step-00000010"}
    average = load_state(uninterrupted)["callbacks"]["EMACallback"]["average"]["shadow_params"]
    exported = load_file(root / "bundle" / "tokenizer" / "diffusion_pytorch_model.safetensors")
    assert sum(map(torch.numel, exported.values())) == sum(map(torch.numel, average))
    for weight in average:
        assert any(w.shape == weight.shape and torch.allclose(w.double(), weight, atol=1e-5) for w in exported.values())


def test_a_hanging_rank_is_named_and_all_ranks_end(runs: Runs, root: Path) -> None:
    arguments = ["--watchdog.timeout", "10", "--trainer.callbacks", "fit_runs.HangAtStep"]
    result = fit(runs, root, "hanging", *arguments, ranks=3, HANG_AT="2", HANG_RANK="1")
    assert set(result.codes) <= {75, -9} and 75 in result.codes, result.output  # the first that ends may end the others
    said = next(line for line in result.output.splitlines() if line.startswith("rank 1 "))
    assert re.match(
        r"rank 1 \(process \d+ on .+\) hangs at step 2, computing the loss, in .*fit_runs.py, line \d+, in on_b",
        said,
    )
    assert "signal.pause()" in result.output and "the same command continues" in result.output
    for rank in (0, 2):
        assert re.search(rf"rank {rank} waits at step 2, computing gradients, in .+", result.output)


def test_a_rank_that_writes_no_more_is_lost(tmp_path: Path) -> None:
    """Clocks of other hosts do not matter, nor do files of earlier trainings and of ranks that never wrote."""

    def write(rank: int, time: float, training: str = "this") -> None:
        (tmp_path / f"{rank}.json").write_text(json.dumps({"written": time, "training": training}))

    write(1, 7.0, "earlier")
    write(2, 9e9)  # it was faster to begin than this one, and never wrote again
    lost = LostRanks(tmp_path, 5, lost_after=100, training="this")
    for rank, time in ((0, 1.0), (2, 9e9), (3, 5.0)):
        write(rank, time)
    assert lost.find(45) == lost.find(55) == []
    write(3, 6.0)
    assert lost.find(100) == []
    write(0, 2.0)
    assert lost.find(106) == [2]
    assert lost.find(110) == []
    write(2, 9e9 + 1)  # it was only slow
    write(3, 7.0)
    assert lost.find(160) == [0]
    assert lost.find(20) == lost.find(60) == lost.find(70) == []  # a step was made


@pytest.mark.parametrize("kind", ["behind", "silent", "equal"])
def test_the_watchdog_names_who_is_waited_for(kind: str) -> None:
    common = {"host": "node-7", "process": 12, "step": 40, "doing": "computing the loss"}
    stack = ['  File "reader.py", line 3, in read\n    take()\n']
    everyone: dict[int, dict[str, Any]] = {
        rank: {"rank": rank, "notes": 9, "stack": stack, **common} for rank in range(3)
    }
    everyone[2]["notes"] = 9 if kind == "equal" else 8
    text = describe_hang(everyone, [0, 1] if kind == "silent" else [0, 1, 2], 60)
    where = "at step 40, computing the loss, in reader.py, line 3, in read"
    expected = {
        "behind": f"rank 2 (process 12 on node-7) hangs {where}",
        "silent": f"rank 2 (process 12 on node-7) does not answer; it was last seen {where}",
        "equal": "all ranks are equally far: the network between them, or what all of them call, hangs",
    }
    assert expected[kind] in text
    assert text.count(f"waits {where}") == (0 if kind == "equal" else 2)
    assert "look at the network" not in text
    everyone[1]["host"] = "node-8"
    assert "look at the network of the 2 hosts" in describe_hang(everyone, [0, 1, 2], 60)


def test_what_contradicts_the_global_batch_is_refused(runs: Runs, root: Path, uninterrupted: Path) -> None:
    result = fit(runs, root, "uninterrupted", "--global_batch", "4")
    assert (
        result.codes == [1]
        and "global_batch_size was 6, is 4). Use the same data and --global_batch 6" in result.output
    )
    result = fit(runs, root, "refused", "--trainer.accumulate_grad_batches", "2")
    assert result.codes == [1] and "leave out the second" in result.output and "Traceback" not in result.output
    result = fit(runs, root, "refused", "--global_batch", "60")
    assert result.codes == [1] and "fewer than one global batch of 60: set a smaller --global_batch" in result.output


def test_counters_of_batches_are_converted_at_the_end_of_a_step() -> None:
    stopped = {"ready": 12, "started": 12, "processed": 12, "completed": 11}
    assert convert_progress(stopped, 3, 1) == {"ready": 4, "started": 4, "processed": 4, "completed": 3}
    ended = dict.fromkeys(stopped, 12)
    assert convert_progress(ended, 3, 2) == dict.fromkeys(stopped, 8)
