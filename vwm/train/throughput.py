"""The speed of a training, as metrics: frames, tokens, steps and operations per second, and the use of the device."""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from vwm.nn.training_module import TrainingModule, batch_size
from vwm.train.operations import count_operations, find_peak_teraflops


class Throughput(L.Callback):
    """Logs the speed since it last logged; nothing of the first step, which initializes and compiles.

    ``train/frames_per_second``, ``train/tokens_per_second`` (of all ranks) and ``train/steps_per_second``;
    ``train/teraflops_per_second`` of each device, counted once on the first batch (see ``count_operations``; not where
    weights are sharded); ``train/mfu``, their share of what the device can do in dense bfloat16 products (model FLOP/s
    utilization), where that is known.
    """

    def __init__(self) -> None:
        self._last_logged = 0.0
        self._steps = 0
        self._batches = 0
        self._frames = 0
        self._tokens = 0
        self._operations: float | None = None
        self._peak: float | None = None
        self._speeds: dict[str, list[float]] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log at the trainer's interval."""
        if not self._last_logged:
            self._operations = _count_operations(trainer, pl_module, batch)
            self._peak = _find_peak(pl_module.device)
            self._restart()
            return
        assert isinstance(pl_module, TrainingModule)
        clips = batch.frames if batch.frames is not None else batch.latents
        self._frames += batch_size(batch) * clips.shape[1] * pl_module.clip_ranks
        self._tokens += pl_module.count_tokens(batch) * pl_module.clip_ranks
        self._batches += 1
        if trainer.fit_loop._should_accumulate():
            return
        self._steps += 1
        if trainer.global_step % trainer.log_every_n_steps == 0:
            for name, speed in self._measure().items():
                pl_module.log(f"train/{name}", speed)
                self._speeds.setdefault(name, []).append(speed)
            self._restart()

    def summary(self) -> str | None:
        """Return the median speed of the training in words; None where it was not measured."""
        if not self._speeds:
            return None
        median = {name: statistics.median(values) for name, values in self._speeds.items()}
        parts = [f"{median['tokens_per_second']:,.0f} tokens a second"]
        if "teraflops_per_second" in median:
            parts.append(f"{median['teraflops_per_second']:.3g} TFLOP/s a device")
        if "mfu" in median:
            parts.append(f"{median['mfu']:.1%} of its peak in bfloat16 (MFU)")
        return ", ".join(parts)

    def _measure(self) -> dict[str, float]:
        seconds = time.monotonic() - self._last_logged
        speeds = {
            "frames_per_second": self._frames / seconds,
            "tokens_per_second": self._tokens / seconds,
            "steps_per_second": self._steps / seconds,
        }
        if self._operations is not None:
            speeds["teraflops_per_second"] = self._operations * self._batches / seconds / 1e12
            if self._peak is not None:
                speeds["mfu"] = speeds["teraflops_per_second"] / self._peak
        return speeds

    def _restart(self) -> None:
        self._last_logged = time.monotonic()
        self._steps = 0
        self._batches = 0
        self._frames = 0
        self._tokens = 0


def _count_operations(trainer: L.Trainer, module: L.LightningModule, batch: Any) -> float | None:
    """Return the operations of a batch; None where the weights are sharded, or where its loss needs too much memory."""
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
        return None
    assert isinstance(module, TrainingModule)
    try:
        with trainer.precision_plugin.forward_context():
            return count_operations(module, batch)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _find_peak(device: torch.device) -> float | None:
    return find_peak_teraflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
