"""Checkpoints from which a run resumes as if it had never stopped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from vwm.core.process_group import is_distributed, rank_count
from vwm.runs.checkpoint_files import FolderFiles
from vwm.runs.checkpoint_folders import CheckpointFolders
from vwm.runs.checkpoints import write_checkpoint
from vwm.runs.rng_states import restore_rng_states, rng_states
from vwm.runs.run_folder import RunFolder
from vwm.runs.stop_signal import StopRequest, announce_stop, requeue_slurm_job
from vwm.train.resume_points import (
    describe_parts,
    find_shards,
    load_resume_point,
    remove_later_points,
    sharded_states,
)


class RunCheckpointIO(TorchCheckpointIO):
    """Writes checkpoint files in the run's own folder.

    Lightning's own class writes into the system's temporary folder and moves the file, which is a copy over the
    previous checkpoint where that is another file system.

    Args:
        trainer: of the training, which knows how weights are sharded.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__()
        self.trainer = trainer

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint file, atomically."""
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint file or folder, with checksums and without unpickling code.

        Raises:
            CheckpointError: it is damaged, or of another program.
        """
        find = find_shards(self.trainer)
        return load_resume_point(str(path), find, describe_parts(find))


class ResumableCheckpoints(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` at an interval, at the end, and when the process is asked to stop.

    In addition to what Lightning saves, it saves every rank's random generators; the loader saves its own position.
    A checkpoint is saved after its step's rows of the metric tables, those of a validation included: a run that is
    killed lacks none. A signal (Ctrl-C, or a scheduler's SIGTERM or SIGUSR1) sets a flag, on which all ranks agree at
    the end of a step: the run saves, finishes a validation that belongs to the step, and ends with the signal's exit
    code; the next ``vwm fit`` of the same run continues from there. A job of SLURM that got SIGUSR1 or SIGUSR2 is put
    into the queue again.

    Args:
        every: optimizer steps between checkpoints.
        keep_every_n_steps: steps between checkpoints that are never deleted; 0 keeps only the last checkpoint.
        notice: a file or an http address, looked at every 5 seconds: the run stops as by a signal once the file exists
            or the address answers with status 200, by which clouds announce that they take a machine away. Under
            torchrun, which would start processes again that fail, it ends with exit code 0.
        format: ``file`` gathers everything in the first process, which writes it while the others wait. ``folder``
            makes folders ``checkpoints/step-N``, of which every process writes its part while the training goes on; a
            damaged one is replaced by the one before it.
        keep: checkpoint folders that stay.
        url: where checkpoint folders are written: a folder that all machines see, or an address of fsspec, such as
            s3://bucket/run; by default in the run's folder.
    """

    def __init__(
        self,
        every: int = 500,
        keep_every_n_steps: int = 0,
        notice: str | None = None,
        format: Literal["file", "folder"] = "file",
        keep: int = 2,
        url: str | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"checkpoint.every={every} must be at least 1 step")
        if keep < 1:
            raise ValueError(f"checkpoint.keep={keep} must be at least 1 checkpoint folder")
        if url is not None and format == "file":
            raise ValueError(f"checkpoint.url={url} is for checkpoint folders: set checkpoint.format to folder")
        self.every = every
        self.format = format
        self.keep = keep
        self.url = url
        self._folders: CheckpointFolders | None = None
        self.keep_every_n_steps = keep_every_n_steps
        self._stop = StopRequest(notice)
        self._saved_rng_states: list[dict[str, Any]] | None = None
        self._rng_before_validation: dict[str, Any] = {}
        self._loop_after_step: dict[str, Any] = {}
        self._seen_step = -1
        self._last_saved_step = -1
        self._started_at: int | None = None
        self._awaiting_validation: list[Path] = []

    @property
    def is_stopping(self) -> bool:
        """Whether this process was asked to stop; it does so at the end of the step."""
        return bool(self._stop)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals, and restore this rank's random generators.

        Lightning's handlers are in place by now and are replaced until the training ends: they stop a run without
        saving it, and communicate inside the handler. Nothing draws random numbers between here and the first batch.
        """
        self._stop.__enter__()
        self._started_at = trainer.global_step
        if self.url is not None and trainer.is_global_zero:
            FolderFiles(self.url).check_writable()
        loop = trainer.fit_loop
        epochs = loop.epoch_progress.total
        if loop.restarted_mid_epoch and epochs.processed == epochs.ready:
            # Saved at the last batch of an epoch: a new one begins, and Lightning would forget to count it.
            loop.reset_restart_stage()
        if self._saved_rng_states is not None and len(self._saved_rng_states) == trainer.world_size:
            restore_rng_states(self._saved_rng_states[trainer.global_rank])
        elif trainer.global_rank > 0:
            # Every rank was seeded equally, and would draw the same noise and masks as the first.
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        self._saved_rng_states = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed validation, so that it draws the same numbers each time and does not affect training."""
        self._rng_before_validation = rng_states()
        torch.manual_seed(0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the generators of training, and save what waited for the rows of this validation."""
        restore_rng_states(self._rng_before_validation)
        self._save(trainer, self._awaiting_validation)
        self._awaiting_validation = []
        if self._stop and self._seen_step == trainer.global_step:
            self._exit(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the intervals, and stop the training if a signal requested it."""
        step = trainer.global_step
        if step == self._seen_step or trainer.fit_loop._should_accumulate():
            return
        self._seen_step = step
        self._loop_after_step = trainer.fit_loop.state_dict()
        self._stop.number, self._stop.was_noticed = self._agree(pl_module.device)
        run, due = RunFolder(trainer.default_root_dir), []
        if self.keep_every_n_steps and step % self.keep_every_n_steps == 0:
            due.append(run.checkpoints / f"step-{step:08d}.ckpt")
        if self._stop or step % self.every == 0:
            due.append(run.last_checkpoint)
        if not due:
            return
        trainer._logger_connector.update_train_step_metrics()  # Lightning does so only after this
        validates = _validation_follows(trainer)
        if validates and not self._stop:
            self._awaiting_validation = due
            return
        self._save(trainer, due)
        if self._stop and not validates:
            self._exit(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, if no interval ended with it."""
        self._stop.__exit__()
        if trainer.global_step != self._last_saved_step:
            self._save(trainer, [RunFolder(trainer.default_root_dir).last_checkpoint])
        self._finish_saving()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening for signals."""
        self._stop.__exit__()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add every rank's generators, and replace the counters of epochs and batches by those after the last step.

        At the end of training, Lightning has counted the current epoch as finished, wherever it was stopped: a run
        that is extended would begin with another one.
        """
        if trainer.global_step == self._seen_step and self._loop_after_step:
            checkpoint["loops"]["fit_loop"] = self._loop_after_step
            checkpoint["epoch"] = self._loop_after_step["epoch_progress"]["current"]["processed"]
        mine = rng_states()
        everyone: list[Any] = [mine]
        if is_distributed():
            everyone = [None] * rank_count()
            dist.all_gather_object(everyone, mine)
        checkpoint["generators"] = everyone

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the generators until training starts."""
        self._saved_rng_states = checkpoint.get("generators")
        self._seen_step = self._last_saved_step = int(checkpoint["global_step"])

    def _agree(self, device: torch.device) -> tuple[int, bool]:
        """Return the highest number of a signal on any rank, and whether some rank saw a notice."""
        number, was_noticed = self._stop.number, self._stop.was_noticed
        if not is_distributed():
            return number, was_noticed
        tensor = torch.tensor([number, was_noticed], device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor[0]), bool(tensor[1])

    def _exit(self, trainer: L.Trainer) -> NoReturn:
        self._finish_saving()
        saved = f"step {self._seen_step} is saved in {RunFolder(trainer.default_root_dir).path}"
        if self._stop.was_noticed and "TORCHELASTIC_RUN_ID" in os.environ:
            if trainer.is_global_zero:
                announce_stop(saved)
            raise SystemExit(0)
        if trainer.is_global_zero:
            queued = requeue_slurm_job(self._stop.number)
            self._stop.end(f"{saved}{f'; {queued}' if queued else ''}")
        raise SystemExit(128 + self._stop.number)

    def _save(self, trainer: L.Trainer, paths: Sequence[Path]) -> None:
        run = RunFolder(trainer.default_root_dir)
        if paths and self._started_at is not None:
            if trainer.is_global_zero:
                remove_later_points(run, self.url, self._started_at, replaces_file=self.format == "file")
            self._started_at = None
        if self.format == "folder" and paths:
            self._save_folder(trainer, self.url or str(run.checkpoints))
        else:
            for path in paths:
                trainer.save_checkpoint(path, weights_only=False)
        if run.last_checkpoint in paths:
            self._last_saved_step = trainer.global_step

    def _save_folder(self, trainer: L.Trainer, address: str) -> None:
        if self._folders is None:
            self._folders = CheckpointFolders(address, self.keep, self.keep_every_n_steps)
        with sharded_states(trainer):
            state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self._folders.save(trainer.global_step, state, describe_parts(find_shards(trainer)))

    def _finish_saving(self) -> None:
        """Wait for the checkpoint folder that is being written."""
        if self._folders is not None:
            self._folders.wait()


def _validation_follows(trainer: L.Trainer) -> bool:
    """Return whether a validation belongs to the step that just ended."""
    loop = trainer.fit_loop.epoch_loop
    return not loop.val_loop.skip and bool(loop._should_check_val_fx(trainer.fit_loop._data_fetcher))
