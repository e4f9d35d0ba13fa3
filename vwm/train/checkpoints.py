"""Checkpoints from which a run goes on as if it had never stopped."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint

LAST_CHECKPOINT = "last.ckpt"


class ResumableCheckpoints(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` every so often, at the end, and when the run is asked to stop.

    Beyond what Lightning saves it keeps every rank's random generators; the loader keeps its own place. A SIGTERM or
    SIGUSR1 (a cluster's warning) sets a flag, on which all ranks agree at the end of a step: the run saves and ends
    with exit code 143, and the next ``vwm fit`` of the same run goes on from there.

    Args:
        every: optimizer steps between checkpoints.
        keep_every_n_steps: steps between checkpoints that are kept for good; 0 keeps the last alone.
    """

    def __init__(self, every: int = 500, keep_every_n_steps: int = 0) -> None:
        if every < 1:
            raise ValueError(f"checkpoint.every={every} must be at least 1 step")
        self.every, self.keep_every_n_steps = every, keep_every_n_steps
        self._stop_requested = False
        self._generators: list[dict[str, Any]] | None = None
        self._saved_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals, and put this rank's generators where they were.

        Lightning's handlers are in place by now and are replaced (it puts back the ones from before it): they stop a
        run without saving it, and communicate inside the handler. Nothing draws numbers between here and the first
        batch.
        """

        def ask(number: int, frame: FrameType | None) -> None:
            self._stop_requested = True

        for name in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(name, ask)
        loop = trainer.fit_loop
        epochs = loop.epoch_progress.total
        if loop.restarted_mid_epoch and epochs.processed == epochs.ready:
            # Saved at the last batch of an epoch: a new one begins, and Lightning would forget to count it.
            loop.reset_restart_stage()
        if self._generators is not None and len(self._generators) == trainer.world_size:
            _restore_rng_states(self._generators[trainer.global_rank])
        elif trainer.global_rank > 0:
            # Every rank was seeded alike, and would draw the same noise and masks as the first.
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        self._generators = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation draws the same numbers each time, and leaves no trace in the training's generators."""
        self._rng_before_validation = _rng_states()
        torch.manual_seed(0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See ``on_validation_start``."""
        _restore_rng_states(self._rng_before_validation)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to, and stop where somebody asked for it."""
        step = trainer.global_step
        if step == self._saved_step or trainer.fit_loop._should_accumulate():
            return
        if self.keep_every_n_steps and step % self.keep_every_n_steps == 0:
            self._save(trainer, f"step-{step:08d}.ckpt")
        stop = _any_rank(self._stop_requested, pl_module.device)
        if stop or step % self.every == 0:
            self._save(trainer, LAST_CHECKPOINT)
        if stop:
            raise SystemExit(143)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step."""
        if trainer.global_step != self._saved_step:
            self._save(trainer, LAST_CHECKPOINT)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add every rank's generators."""
        mine = _rng_states()
        everyone: list[Any] = [mine]
        if dist.is_available() and dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
        checkpoint["generators"] = everyone

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the generators until training starts."""
        self._generators = checkpoint.get("generators")
        self._saved_step = int(checkpoint["global_step"])

    def _save(self, trainer: L.Trainer, name: str) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / name, weights_only=False)


def _any_rank(flag: bool, device: torch.device) -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    tensor = torch.tensor(int(flag), device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor)


def _rng_states() -> dict[str, Any]:
    """The state of every generator of this process, in types that load without unpickling code."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, float(gauss)),
        "python": (version, list(numbers), gauss_next),
    }


def _restore_rng_states(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
