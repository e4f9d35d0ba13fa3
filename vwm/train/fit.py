"""``vwm fit``: LightningCLI with this project's run folder, checkpoints and logs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from vwm.train.checkpoints import LAST_CHECKPOINT, ResumableCheckpoints
from vwm.train.ema import EMACallback
from vwm.train.sample_videos import SampleVideos
from vwm.train.throughput import Throughput

FIT_EXAMPLES = """examples:
  vwm fit -c configs/tokenizer/coinrun_small.yaml --data.path data/coinrun
  vwm fit -c configs/genie/coinrun_small.yaml --trainer.max_steps 2000 --run runs/try
  vwm fit -c configs/genie/coinrun_small.yaml --print_config        every key and its value
A run that stopped, for whatever reason, goes on when the same command is given again.
"""


class FitCLI(LightningCLI):
    """The keys that every config shares, beside Lightning's ``trainer``, ``model`` and ``data``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Top-level keys."""
        parser.add_argument(
            "--run", type=Path, default=Path("runs/default"), help="folder of everything the run writes"
        )
        parser.add_argument(
            "--resume", type=bool, default=True, help="go on from the run's last checkpoint, if it has one"
        )
        parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 leaves torch's choice")
        parser.add_argument("--compile", type=bool, default=False, help="torch.compile every transformer block")
        parser.add_argument(
            "--gradient_checkpointing", type=bool, default=False, help="recompute blocks to save memory"
        )
        parser.add_argument("--wandb", type=str | None, default=None, help="project to log to with Weights & Biases")
        parser.add_argument("--wandb_online", type=bool, default=False, help="sync while running (needs an account)")
        parser.add_lightning_class_args(ResumableCheckpoints, "checkpoint")
        parser.add_lightning_class_args(EMACallback, "ema")
        parser.add_lightning_class_args(SampleVideos, "samples")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without Lightning's warning that there is a command line too: the arguments are the end of it."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Give the trainer its run folder and loggers."""
        config, run = self.config, Path(self.config["run"])
        config["trainer"]["default_root_dir"] = str(run)
        if config["threads"]:
            torch.set_num_threads(config["threads"])

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """With this project's loggers and meter."""
        config, run = self.config, Path(self.config["run"])
        if config["trainer"]["logger"] is None:
            # A new folder of logs each time the run is taken up: a logger that starts again deletes its old file.
            loggers: list[Any] = [CSVLogger(save_dir=run, name="logs")]
            if config["wandb"] is not None:
                online = config["wandb_online"]
                loggers.append(WandbLogger(project=config["wandb"], name=run.name, save_dir=run, offline=not online))
            kwargs["logger"] = loggers
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.insert(0, Throughput())
        return trainer

    def prepare_networks(self) -> None:
        """Gradient checkpointing and compilation, as the config says."""
        for network in self.model.networks().values():
            for part in network.modules():
                if isinstance(getattr(part, "checkpointing", None), bool):
                    part.checkpointing = self.config["gradient_checkpointing"]
                    if self.config["compile"]:
                        for block in getattr(part, "blocks", ()):
                            block.compile()  # in place, which keeps the names of the weights

    def save_config(self) -> None:
        """Write the run's ``config.yaml``, whole or not at all."""
        run = Path(self.config["run"])
        run.mkdir(parents=True, exist_ok=True)
        aside = run / "config.yaml.tmp"
        aside.write_text(self.parser.dump(self.config, skip_unset=False))
        aside.rename(run / "config.yaml")


def parse_fit_config(argv: list[str]) -> FitCLI:
    """The run that the arguments of ``vwm fit`` describe: model, data and trainer, nothing started."""
    return FitCLI(
        args=argv,
        run=False,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={
            "prog": "vwm fit",
            "epilog": FIT_EXAMPLES,
            "description": "Train a model: tokenizer, latent actions and dynamics, ...",
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        },
    )


def fit_model(argv: list[str]) -> L.LightningModule:
    """Train what a config describes, from where the run stands.

    Args:
        argv: what follows ``vwm fit``.

    Returns:
        The trained module.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    sys.argv = [sys.argv[0], "fit", *argv]  # with it Lightning starts the other ranks of this machine
    _filter_warnings()
    cli = parse_fit_config(argv)
    cli.prepare_networks()
    start = find_last_checkpoint(cli.config["run"]) if cli.config["resume"] else None
    if cli.trainer.is_global_zero:
        cli.save_config()
        if start is not None:
            print(f"going on from {start} (--resume false starts anew)")
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=start, weights_only=True)
    return cli.model


def _filter_warnings() -> None:
    """Leave out what Lightning says that no user can act on."""
    for message, kind in (
        (r".*LeafSpec.* is deprecated", FutureWarning),  # Lightning's own use of torch
        (r"Found \d+ module\(s\) in eval mode", UserWarning),  # the frozen tokenizer
        (r"You have overridden `on_before_batch_transfer`", UserWarning),  # V-JEPA draws its masks there
        (r"Precision .* is not supported by the model summary", UserWarning),
    ):
        warnings.filterwarnings("ignore", message, kind)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "litlogger" not in record.getMessage())


def find_last_checkpoint(run: Path) -> Path | None:
    """Where the run would go on, or None."""
    path = Path(run) / "checkpoints" / LAST_CHECKPOINT
    return path if path.is_file() else None
