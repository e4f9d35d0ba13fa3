"""Exact resume: a run that was killed and restarted ends bit-equal to an uninterrupted one."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from vwm.core.components import save_component
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer
from vwm.train.fit import follow_torchrun

HELPERS = Path(__file__).parent / "helpers"
sys.path.insert(0, str(HELPERS))

from fit_runs import RunResult, Runs, batches, environment  # noqa: E402

EPOCH = 5
"""Steps per epoch of the data below: 21 clips of 4 frames in batches of 4."""
STEPS = 13


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train`` and ``val`` shards, a frozen tokenizer, and a config for each family."""
    root = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(0)
    for part, lengths in (("train", [[13, 17, 9], [22, 14], [15, 7]]), ("val", [[18, 18]])):
        for number, shard in enumerate(lengths):
            with ShardWriter(root / part / f"shard-{number:06d}.tar") as writer:
                for episode, length in enumerate(shard):
                    frames = rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
                    actions = rng.integers(0, 4, length)
                    recorded = Episode(frames, actions, (actions == 1).astype(np.float32), terminated=True)
                    writer.write(f"{part}-{number}-{episode}", recorded)
    torch.manual_seed(0)
    save_component(SpaceTimeTokenizer((8, 8), 4, [3, 3], width=8, depth=1, heads=1, window=4), root / "frozen")
    models = {"tokenizer": tokenizer_model(), "genie": genie_model(root / "frozen")}
    for name, model in (models | {"vae": vae_model(), "dit": dit_model(), "vjepa": vjepa_model()}).items():
        fit_config = config(root) | {"model": model, "checkpoint": CHECKPOINT[name]}
        if name not in ("tokenizer", "genie"):
            fit_config["data"]["init_args"]["workers"] = 0
        if name == "dit":
            fit_config["data"]["init_args"] |= {
                "fields": ["frames", "actions", "rewards", "terminated"],
                "labeled_fraction": 0.5,
            }
        (root / f"{name}.yaml").write_text(yaml.safe_dump(fit_config))
    return root


def config(root: Path) -> dict[str, Any]:
    """Enable everything that could affect training: validation, sample videos, EMA, data workers."""
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "gradient_clip_val": 1.0,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "fit_runs.KillAtStep"}, {"class_path": "fit_runs.RecordBatches"}],
        },
        "ema": {"decay": 0.9},
        "samples": {"every": 4, "clips": 1},
        "data": {
            "class_path": "vwm.data.datamodule.VideoDataModule",
            "init_args": {
                "path": str(root / "train"),
                "val_path": str(root / "val"),
                "clip_length": 4,
                "batch_size": 4,
                "workers": 1,
            },
        },
    }


CHECKPOINT = {"tokenizer": {"every": 1}, "genie": {"every": EPOCH}, "vae": {"every": 3}, "dit": {"every": 3}}
CHECKPOINT["vjepa"] = {"every": 3}
SMALL = {"width": 8, "depth": 1, "heads": 1, "window": 4}


def tokenizer_model() -> dict[str, Any]:
    """With a VQ codebook, which draws random numbers and is a buffer."""
    network = {"image_size": [8, 8], "patch_size": 4, "codebook": 12, "code_width": 4, **SMALL}
    return {
        "class_path": "vwm.tokenizers.module.TokenizerModule",
        "init_args": {
            "tokenizer": {"class_path": "vwm.tokenizers.space_time_tokenizer.SpaceTimeTokenizer", "init_args": network},
            "optimizer": {"name": "muon", "lr": 0.005, "warmup": 4, "schedule": "cosine"},
        },
    }


def genie_model(tokenizer: Path) -> dict[str, Any]:
    """With FSQ actions; the dynamics draws masks and corruption from the global generator."""
    action = {"image_size": [8, 8], "patch_size": 4, "codebook": [2, 2], **SMALL}
    dynamics = {"codebook_size": 9, "tokens_per_frame": 4, "num_actions": 4, "context_corruption": 0.2, **SMALL}
    return {
        "class_path": "vwm.models.genie.module.GenieModule",
        "init_args": {
            "tokenizer": str(tokenizer),
            "latent_action": {"class_path": "vwm.models.genie.latent_action.LatentActionModel", "init_args": action},
            "dynamics": {"class_path": "vwm.models.genie.dynamics.MaskGITDynamics", "init_args": dynamics},
            "optimizer": {"name": "adamw", "lr": 0.003, "warmup": 4, "schedule": "cosine"},
            "context_frames": 2,
            "sampling_steps": 2,
        },
    }


def vae_model() -> dict[str, Any]:
    """With posterior noise, and a discriminator that starts at the fourth step, between two checkpoints."""
    network = {"image_size": [8, 8], "latent_channels": 4, "time_compression": 1, "patch_size": 2}
    return {
        "class_path": "vwm.tokenizers.module.TokenizerModule",
        "init_args": {
            "tokenizer": {
                "class_path": "vwm.tokenizers.causal_vae.CausalVAE",
                "init_args": network | {"widths": [8, 8], "depths": [1, 1]},
            },
            "adversarial": {"weight": 0.1, "start_step": 4, "width": 4, "layers": 2},
            "optimizer": {"name": "muon", "lr": 0.005, "warmup": 4, "schedule": "cosine"},
        },
    }


def dit_model() -> dict[str, Any]:
    """With everything that draws random numbers (levels, noise, dropped actions), and loss normalizers with a state."""
    dynamics = {"grid": [4, 4], "channels": 12, "num_actions": 4, "prediction": "clean", "num_step_sizes": 3}
    return {
        "class_path": "vwm.models.dit.module.DiTModule",
        "init_args": {
            "tokenizer": {
                "class_path": "vwm.tokenizers.pixel_tokenizer.PixelTokenizer",
                "init_args": {"image_size": [8, 8], "patch_size": 2},
            },
            "dynamics": {
                "class_path": "vwm.models.dit.network.DiT",
                "init_args": {**dynamics, **SMALL, "depth": 2, "registers": 1},
            },
            "objective": {
                "class_path": "vwm.models.dit.objectives.ShortcutForcing",
                "init_args": {"finest": 4, "bootstrap": 0.5},
            },
            "outcomes": {"class_path": "vwm.nn.RewardTerminationHeads", "init_args": {"width": 8, "hidden": 8}},
            "optimizer": {"name": "muon", "lr": 0.005, "warmup": 4, "schedule": "cosine"},
            "action_dropout": 0.3,
            "context_frames": 2,
            "sampling_steps": 2,
        },
    }


def vjepa_model() -> dict[str, Any]:
    """With an EMA target, a regularizer that draws directions, crops, flow, and a scheduled weight decay."""
    sizes = {"image_size": [8, 8], "frames": 4, "tubelet": 2, "patch_size": 4, "width": 12, "depth": 1, "heads": 1}
    return {
        "class_path": "vwm.models.vjepa.module.VJEPAModule",
        "init_args": {
            "encoder": {"class_path": "vwm.models.vjepa.video_encoder.VideoEncoder", "init_args": sizes},
            "predictor": {
                "class_path": "vwm.models.vjepa.masked_predictor.MaskedPredictor",
                "init_args": {"encoder_width": 12, **sizes},
            },
            "mask_samplers": [
                {
                    "class_path": "vwm.models.vjepa.masking.MultiBlockMaskSampler",
                    "init_args": {"num_blocks": 1, "spatial_scale": [0.3, 0.5]},
                }
            ],
            "momentum": {"start": 0.9, "end": 0.99},
            "regularizer": {"class_path": "vwm.models.vjepa.SIGReg", "init_args": {"num_slices": 8}},
            "motion": {
                "class_path": "vwm.models.vjepa.motion_branch.MotionBranch",
                "init_args": {"width": 12, "radius": 1},
            },
            "augmentation": {"class_path": "vwm.models.vjepa.augmentation.RandomResizedCrop"},
            "monitor": {
                "class_path": "vwm.models.vjepa.collapse_monitor.CollapseMonitor",
                "init_args": {"every_n_steps": 2, "num_clips": 2},
            },
            "optimizer": {"lr": 0.003, "warmup": 4, "schedule": "cosine", "final_weight_decay": 0.4, "stretch": 1.25},
        },
    }


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
    assert "vwm fit: cannot resume in the same order: batch size x ranks differ" in result.output
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
