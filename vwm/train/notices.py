"""What ``vwm fit`` tells of a training before it begins, in place of Lightning's notices."""

from __future__ import annotations

import logging
import warnings

import lightning as L
from torch import nn

from vwm.train.context_parallel import ContextParallel
from vwm.train.global_batch import GlobalBatch


def silence_lightning() -> None:
    """Leave out Lightning's notices and advertisements, and its warnings that users can do nothing about."""
    for message, kind in (
        (r".*LeafSpec.* is deprecated", FutureWarning),  # Lightning's own use of torch
        (r"Found \d+ module\(s\) in eval mode", UserWarning),  # the frozen tokenizer
        (r"Total length of `list` across ranks is zero", UserWarning),  # no clips were held out for validation
        (r"You have overridden `on_before_batch_transfer`", UserWarning),  # V-JEPA draws its masks there
        (r"Precision .* is not supported by the model summary", UserWarning),
        (r"FSDP2-wrapped module .* returned a view tensor", UserWarning),  # nothing changes it in place
        (r"The number of training batches .* is smaller than the logging interval", UserWarning),  # steps are counted
    ):
        warnings.filterwarnings("ignore", message, kind)
    for package in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{package}").setLevel(logging.WARNING)


def describe_training(module: L.LightningModule, trainer: L.Trainer) -> str:
    """Return one line: the device, the precision, and the networks with their numbers of parameters."""
    sizes = {name: _count_parameters(child) for name, child in module.named_children()}
    learned = [f"{name} {trained:,}" for name, (trained, _) in sizes.items() if trained]
    fixed = [f"{name} {total:,}" for name, (trained, total) in sizes.items() if total and not trained]
    where = str(trainer.strategy.root_device)
    if trainer.world_size > 1:
        where += f" by {trainer.world_size} processes"
    sharing = next((callback.size for callback in trainer.callbacks if isinstance(callback, ContextParallel)), None)
    if sharing is not None:
        where += f", of which {sharing} share each clip"
    division = next((callback.division for callback in trainer.callbacks if isinstance(callback, GlobalBatch)), None)
    if division is not None:
        where += f", global batches of {division.global_batch} clips in {division.accumulation} micro-batches a rank"
    line = f"training on {where} in {trainer.precision}; parameters: {', '.join(learned)}"
    return f"{line}; not trained: {', '.join(fixed)}" if fixed else line


def _count_parameters(network: nn.Module) -> tuple[int, int]:
    """Numbers of the parameters that are trained, and of all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
