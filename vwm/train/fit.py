"""``vwm fit``: LightningCLI with this project's run folder, checkpoints and logs."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vwm.core.command_output import format_command, print_output
from vwm.runs.checkpoints import weight_mismatch_as_value_error
from vwm.runs.config_files import compose_config_arguments
from vwm.runs.metric_loggers import make_metric_loggers
from vwm.runs.options import add_logger_options, add_switch
from vwm.runs.run_folder import RunFolder
from vwm.runs.saved_config import check_fixed_settings, read_saved_config
from vwm.train.acceleration import accelerate_networks, add_acceleration_options, choose_precision
from vwm.train.checkpoints import ResumableCheckpoints, RunCheckpointIO
from vwm.train.context_parallel import share_clips
from vwm.train.ema import EMACallback
from vwm.train.encoding_ahead import encode_data_ahead, frozen_tokenizer_folder
from vwm.train.global_batch import divide_global_batch
from vwm.train.metric_logging import RunMetricsLogger
from vwm.train.notices import describe_training, silence_lightning
from vwm.train.resume_points import find_resume_point
from vwm.train.sample_videos import SampleVideos
from vwm.train.step_progress import StepProgressBar
from vwm.train.strategies import ShardedStrategy, first_process_builds, make_strategy
from vwm.train.throughput import Throughput
from vwm.train.watchdog import Watchdog, limit_messages


class FitCLI(LightningCLI):
    """The keys that every config has in addition to Lightning's ``trainer``, ``model`` and ``data``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the top-level keys."""
        parser.add_argument(
            "--run", type=Path, default=Path("runs/default"), help="folder of everything the run writes"
        )
        add_switch(parser, "resume", True, "continue from the run's last checkpoint, if it has one")
        parser.add_argument(
            "--global_batch",
            type=int | None,
            default=None,
            help="clips of a step of all ranks together: divided over whatever ranks there are, in micro-batches of at "
            "most data.batch_size clips; null: data.batch_size clips of every rank",
        )
        parser.add_argument(
            "--context_parallel",
            type=int,
            default=1,
            help="processes that share each clip, whose frames they divide (context parallelism): for clips that are "
            "too long for the memory of one",
        )
        parser.add_argument(
            "--tensor_parallel",
            type=int,
            default=1,
            help="processes that compute each layer together, whose heads and hidden units they divide (tensor "
            "parallelism): for layers that are too large for one; with trainer.strategy fsdp or hsdp",
        )
        parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 leaves torch's choice")
        add_acceleration_options(parser)
        add_switch(parser, "encode_ahead", False, "encode the data once, where a frozen tokenizer would in every step")
        add_logger_options(parser)
        parser.add_lightning_class_args(ResumableCheckpoints, "checkpoint")
        parser.add_lightning_class_args(EMACallback, "ema")
        parser.add_lightning_class_args(SampleVideos, "samples")
        parser.add_lightning_class_args(Watchdog, "watchdog")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the given arguments, without Lightning's warning about ``sys.argv``."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Set the trainer's run folder and precision, and the number of torch's threads."""
        config, run = self.config, Path(self.config["run"])
        config["trainer"]["default_root_dir"] = str(run)
        follow_torchrun(config["trainer"])
        check_trainer_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
        choose_precision(config["trainer"])
        if config["threads"]:
            torch.set_num_threads(config["threads"])

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Make the trainer with this project's metric tables, throughput meter and checkpoint files."""
        if self.config["trainer"]["logger"] is None:
            kwargs["logger"] = RunMetricsLogger(RunFolder(self.config["run"]))
        if self.config["trainer"]["enable_progress_bar"] is not False:
            kwargs["callbacks"] = [*(self.config_init["trainer"]["callbacks"] or []), StepProgressBar()]
        if self.config["trainer"]["enable_model_summary"] is None:
            kwargs["enable_model_summary"] = False  # one line says it: ``describe_training``
        strategy = self._make_strategy()
        if isinstance(strategy, ShardedStrategy):
            kwargs["strategy"] = strategy
            if self.config["trainer"]["precision"] == "64-true":  # Lightning refuses the name, not the plugin
                kwargs |= {"precision": None, "plugins": [DoublePrecision()]}
        with torch.device("cpu"):
            trainer = super().instantiate_trainer(**kwargs)
        limit_messages(trainer.strategy, self.config["watchdog"]["timeout"])
        self.throughput = Throughput()
        trainer.callbacks[:0] = [self.throughput, _ConfigWriter(self)]
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = RunCheckpointIO(trainer)
        return trainer

    def instantiate_classes(self) -> None:
        """Make the model, the data and the trainer; an error of theirs is not buried in the parser's."""
        is_sharded = isinstance(self._make_strategy(), ShardedStrategy)
        try:
            with first_process_builds() if is_sharded else nullcontext():
                super().instantiate_classes()
        except ValueError as error:
            raise ValueError(find_cause(str(error))) from error

    def _make_strategy(self) -> Any:
        tensor = int(self.config["tensor_parallel"])
        if tensor > 1 and self.config["float8"] != "none":
            raise ValueError(f"tensor_parallel={tensor} and float8={self.config['float8']} do not combine: set one")
        return make_strategy(self.config["trainer"]["strategy"], tensor)

    def open_metric_loggers(self) -> None:
        """Start the loggers that the config asks for; the CSV tables are always written."""
        logger = self.trainer.logger
        if isinstance(logger, RunMetricsLogger):
            config = self.config
            logger.loggers = make_metric_loggers(
                logger.run,
                wandb=config["wandb"],
                wandb_online=config["wandb_online"],
                tensorboard=config["tensorboard"],
                settings=yaml.safe_load(self.config_text),
            )

    @cached_property
    def config_text(self) -> str:
        """Every setting, as YAML."""
        return str(self.parser.dump(self.config, skip_unset=False))

    def check_same_run(self, run: RunFolder) -> None:
        """Raise ValueError where the run that is to be resumed was started with another model or seed."""
        if run.config.is_file():
            check_fixed_settings(run, self.parser, self.config_text, _is_fixed)


def find_cause(message: str) -> str:
    """What a class said about its arguments, out of jsonargparse's message about a union of types."""
    items = re.split(r"\n\s*- ", "\n" + message.partition("Errors:\n")[2])
    errors = [re.split(r"\n\s*(?:Subtypes|Errors|Given value)\b", item)[0] for item in items]
    found = [error for error in errors if error.strip() and not re.match("Expected a |Does not validate", error)]
    return "; ".join(found) or message


def follow_torchrun(trainer: Any) -> None:
    """Set ``devices`` and ``num_nodes`` to the processes that torchrun has started; a list of GPUs stays.

    Lightning would use every GPU of a machine and one CPU process, whatever torchrun started, and one machine. With the
    number of a config for one process, every process would be a training of its own in the same run.

    Raises:
        ValueError: torchrun restarted the processes, but not the store in which they look for each other.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    _check_store_of_torchrun()
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if not isinstance(trainer["devices"], list):
        trainer["devices"] = processes
    trainer["num_nodes"] = int(os.environ["WORLD_SIZE"]) // processes


def _check_store_of_torchrun() -> None:
    """Refuse what would hang: in a store that torchrun keeps, restarted processes find the addresses of ended ones."""
    keeps_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not keeps_store or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return
    reason = (
        "torchrun keeps its store when it restarts processes, and they would wait for the ended ones; before torchrun, "
        "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, and use --rdzv_backend c10d"
    )
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        raise ValueError(f"cannot continue after a restart by torchrun: {reason}")
    if os.environ["RANK"] == "0":
        print(f"note: a restart would fail: {reason}")


def check_trainer_devices(accelerator: Any, devices: Any) -> None:
    """Raise ValueError for an accelerator that this machine lacks, and for more devices than it has.

    Args:
        accelerator: ``trainer.accelerator``; objects of Lightning are not checked.
        devices: ``trainer.devices``: a number, a list of indices, or a text.
    """
    if not isinstance(accelerator, str):
        return
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not gpus and not torch.backends.mps.is_available():
        raise ValueError(f"trainer.accelerator={accelerator}, and this machine has no GPU: give cpu or auto")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    available = gpus if on_gpu else os.cpu_count() or 1
    number = int(devices) if isinstance(devices, str) and devices.lstrip("-").isdigit() else devices
    if not on_gpu and "TORCHELASTIC_RUN_ID" in os.environ:
        return  # torchrun has started that many processes, which may share cores
    if isinstance(number, int) and not (1 <= number <= available or (on_gpu and number == -1)):
        raise ValueError(
            f"trainer.devices={devices}: this machine has {available} {'GPUs' if on_gpu else 'CPU cores'}; give a "
            f"number from 1 to {available}, or auto"
        )


class _ConfigWriter(L.Callback):
    """Writes ``config.yaml`` when training starts: a command that fails before that changes nothing."""

    def __init__(self, cli: FitCLI) -> None:
        self.cli = cli

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).write_config(self.cli.config_text)


FIXED_SETTINGS = {
    "seed_everything",
    "trainer.accumulate_grad_batches",
    *(f"data.init_args.{name}" for name in ("clip_length", "stride", "fields", "seed", "val_fraction")),
    "data.init_args.labeled_fraction",
}
"""Settings that make a run what it is, in addition to its model. The loader compares the shards and the batch size."""


def _is_fixed(name: str) -> bool:
    return name in FIXED_SETTINGS or name.startswith("model.")


def parse_fit_config(argv: list[str]) -> FitCLI:
    """Make model, data and trainer from the arguments of ``vwm fit``, without starting or writing anything."""
    return _make_fit_cli(compose_config_arguments(argv))


def load_run_config(run: RunFolder, allow_packages: Sequence[str] = ()) -> FitCLI:
    """Make the model and the data of a run, without its trainer: it may have been trained on another machine.

    Raises:
        FileNotFoundError, ConfigFileError, UntrustedConfigError: see ``read_saved_config``.
    """
    config = read_saved_config(run, allow_packages)
    if "model" not in config:
        raise ValueError(f"{run.path}: is no run of vwm fit (its config has no model); see vwm agent export")
    parts = {key: value for key, value in config.items() if key in ("seed_everything", "model", "data")}
    parts["run"] = str(run.path)
    return _make_fit_cli(["-c", yaml.safe_dump(parts, sort_keys=False)])


def _make_fit_cli(args: list[str]) -> FitCLI:
    silence_lightning()
    return FitCLI(
        args=args,
        run=False,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={
            "prog": "vwm fit",
            "usage": "vwm fit -c CONFIG [--KEY VALUE ...]   (vwm fit --help lists the keys)",
            "description": "Train a model: tokenizer, latent actions and dynamics, ...",
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        },
    )


def fit_model(argv: list[str]) -> L.LightningModule:
    """Train the model of a config, continuing from the run's last checkpoint.

    Args:
        argv: what follows ``vwm fit``.

    Returns:
        The trained module.
    """
    with _name_wrong_settings():
        return _fit_model(argv)


@contextmanager
def _name_wrong_settings() -> Iterator[None]:
    """Turn what Lightning raises for settings of the trainer into ValueErrors, which commands print as a sentence."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def _fit_model(argv: list[str]) -> L.LightningModule:
    sys.argv = [sys.argv[0], "fit", *argv]  # with it Lightning starts the other ranks of this machine
    cli = parse_fit_config(argv)
    device = cli.trainer.strategy.root_device
    share_clips(cli.trainer, cli.datamodule, cli.config["context_parallel"], cli.config["tensor_parallel"])
    divide_global_batch(cli.trainer, cli.datamodule, cli.config["global_batch"])
    if cli.config["encode_ahead"]:
        encode_data_ahead(cli.model, cli.datamodule, cli.config["data"]["init_args"], Path(cli.config["run"]))
    elif cli.trainer.is_global_zero and frozen_tokenizer_folder(cli.model, cli.datamodule):
        print("note: the frozen tokenizer encodes frames in every step; --encode-ahead does so once, before")
    options = {name: cli.config[name] for name in ("compile", "gradient_checkpointing", "float8")}
    accelerate_networks(cli.model, device, **options)
    if isinstance(cli.trainer.precision_plugin, DoublePrecision):
        cli.model.double()  # Lightning does so after it has loaded a checkpoint, which it would round
    run = RunFolder(cli.config["run"])
    with run.lock() if cli.trainer.is_global_zero else nullcontext():
        start = find_resume_point(run, cli.config["checkpoint"]["url"]) if cli.config["resume"] else None
        if start is not None:
            cli.check_same_run(run)
        if cli.trainer.is_global_zero:
            if start is not None:
                print(f"continuing from {start} (--no-resume starts again)")
            print(describe_training(cli.model, cli.trainer), flush=True)
            cli.open_metric_loggers()
        with weight_mismatch_as_value_error(start, "model"):
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=start, weights_only=True)
    if cli.trainer.is_global_zero:
        speed = cli.throughput.summary()
        if speed is not None:
            print(f"speed: {speed}")
        contents = f"the run after {cli.trainer.global_step} steps"
        written = run.last_checkpoint if cli.config["checkpoint"]["format"] == "file" else run.path
        print_output(written, contents, format_command("export", run.path, "-o", run.path / "bundle"))
    return cli.model
