"""The Lightning hooks that all trained models share. A model's own module holds its loss and its samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from vwm.core.frames import video_to_uint8
from vwm.core.tokenizer import VideoTokenizer
from vwm.nn.clip_draws import clip_draws, draw_uniform, repeated_draws
from vwm.nn.context_parallel import ContextGroup
from vwm.nn.micro_batch import MicroBatch, StepMetrics
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.ranks import mean_logs_over_ranks
from vwm.nn.sharding import (
    all_finite,
    average_whole_gradients,
    clip_sharded_gradients,
    local_part,
    shard_blocks,
)
from vwm.nn.tensor_parallel import TensorGroup, WeightSplit, named_splits, restore_splits, sum_partial_gradients

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

REMEDY = "Lower the learning rate (optimizer.lr), or look for values that are not finite in the data"
"""What to do where a loss is not finite."""


class TrainingModule(L.LightningModule, ABC):
    """A model in training; ``forward`` computes the loss.

    Attributes:
        progress_bar: labels of the progress bar, and the names of their values: ``loss``, or a key of the logs.
        optimizer: learning rate and schedule; subclasses set it in their constructor.
        action_dropout: share of the actions that ``drop_actions`` hides.
        part_dropout: share of the parts of composite actions that it hides in the others.
        tokenizer: the tokenizer of a module that learns from latents.
        tokenizer_folder: the bundle or folder from which it was loaded; it is frozen then.
        reads_frames: whether frames are read where latents are there.
        mesh: the processes over which blocks are sharded; None where every process has all weights.
        micro_batch: the part of a global batch that is computed now; None where batches are no parts of one.
        context_group: the processes that share each clip; None where every process has clips of its own.
        tensor_group: the processes that compute each layer together; None where every process computes whole layers.
        weight_splits: how it divides their weights, by name.
        whole_clips: why the networks need whole clips, of those modules that cannot divide them.
    """

    progress_bar: ClassVar[Mapping[str, str]] = {"loss": "loss"}
    optimizer: OptimizerConfig
    action_dropout: float = 0.0
    part_dropout: float = 0.0
    tokenizer: VideoTokenizer
    tokenizer_folder: str | None = None
    reads_frames: bool = True
    mesh: DeviceMesh | None = None
    micro_batch: MicroBatch | None = None
    context_group: ContextGroup | None = None
    tensor_group: TensorGroup | None = None
    whole_clips: str = "its networks see whole clips at once"
    weight_splits: Mapping[str, WeightSplit] = MappingProxyType({})
    _step_metrics: StepMetrics | None = None
    _unchecked: tuple[int, dict[str, Tensor]] | None = None
    """Step and values of the last loss that was not checked yet."""
    _draw_seed: int = 0
    """Seed of the random numbers of losses, equal in all processes."""

    @abstractmethod
    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch (a ``ClipBatch``), and values to log."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """Return the networks to average (EMA), to compile and to export."""

    @abstractmethod
    def sample(self, batch: Any) -> Tensor:
        """Return a sample video for a batch, uint8 [b, t, H, W, 3]: its reconstruction or continuation."""

    @property
    def latent_tokenizer(self) -> VideoTokenizer | None:
        """The tokenizer whose latents the module learns from; None where there is none."""
        return getattr(self, "tokenizer", None)

    @property
    def frozen_tokenizer(self) -> VideoTokenizer | None:
        """The tokenizer that encodes frames in every step and was loaded from a folder; None where there is none."""
        return None if self.tokenizer_folder is None else self.tokenizer

    def merge(self) -> None:
        """Convert networks that were changed for the training, such as by LoRA, to those to export, in place."""

    def whole_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the weights of blocks that every process keeps whole where blocks are sharded."""
        return ()

    def share_clips(self, group: ContextGroup) -> None:
        """Divide the frames of clips over processes, which get the same batches (context parallelism).

        Raises:
            ValueError: the networks need whole clips.
        """
        raise ValueError(
            f"context_parallel={group.size}: {type(self).__name__} cannot divide clips over processes, because "
            f"{self.whole_clips}. Set context_parallel to 1; --gradient-checkpointing and trainer.strategy=fsdp save "
            "memory, too"
        )

    def divide_weights(self, group: TensorGroup) -> None:
        """Divide the weights of layers over processes that compute them together, on the same clips.

        Raises:
            ValueError: the networks cannot be divided.
        """
        raise ValueError(
            f"tensor_parallel={group.size}: the layers of {type(self).__name__} cannot be divided over processes. Set "
            "tensor_parallel to 1; trainer.strategy=fsdp shards their weights, too"
        )

    @property
    def processes_per_clip(self) -> int:
        """Number of processes that work on each clip together."""
        return math.prod(group.size for group in (self.context_group, self.tensor_group) if group is not None)

    @property
    def clip_ranks(self) -> int:
        """Number of processes, or of groups of them, that have clips of their own."""
        return int(self.trainer.world_size) // self.processes_per_clip

    @property
    def clip_rank(self) -> int:
        """Which of them this process is, or belongs to."""
        return int(self.trainer.global_rank) // self.processes_per_clip

    def configure_model(self) -> None:
        """Lightning's hook: let a strategy that shards blocks do so."""
        shard = getattr(self.trainer.strategy, "shard", None)
        if shard is not None and self.mesh is None:
            shard(self)

    def shard(self, mesh: DeviceMesh, compute_dtype: torch.dtype | None = None) -> None:
        """Shard the blocks of all networks in place; see ``shard_blocks``. They may be on the meta device."""
        from torch.distributed.fsdp import register_fsdp_forward_method

        self.weight_splits = named_splits(self)
        shard_blocks(self, self.networks().values(), mesh, compute_dtype, self.whole_weights())
        register_fsdp_forward_method(self, "sample")
        self.mesh = mesh

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """See ``nn.Module``, which puts other tensors in the place of weights."""
        super()._apply(fn, recurse)
        restore_splits(self, self.weight_splits)
        return self

    @torch.no_grad()
    def true_frames(self, batch: Any) -> Tensor:
        """Return the frames of a batch, uint8 [b, t, H, W, 3]; without them, the decoded latents."""
        if batch.frames is not None:
            frames: Tensor = batch.frames
            return frames
        return video_to_uint8(self.tokenizer.decode(batch.latents))

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """Return the networks that stay in evaluation mode."""
        return ()

    def validation_losses(self, batch: Any, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a validation batch, and values to log; by default as in training."""
        return self(batch)

    def losses_and_shuffle_ratio(
        self, batch: Any, index: int, name: str, reads_actions: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a validation batch, and what to log with how much higher it is with shuffled actions.

        Args:
            batch, index: see ``validation_losses``.
            name: of the logged loss that is compared, with equal noise for both.
            reads_actions: whether the network depends on actions; without them, or of one clip, nothing is compared.
        """
        with self.fixed_randomness(index):
            loss, logs = self(batch)
        if reads_actions and batch.actions is not None and len(batch.actions) > 1:
            with self.fixed_randomness(index):
                logs["shuffle_ratio"] = self(shuffle_actions(batch))[1][name] / logs[name]
        return loss, logs

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Lightning's hook. Raises FloatingPointError where the loss is not finite."""
        with self._draws_of(batch, self._draw_seed, self.global_step, index):
            loss, logs = self(batch)
        values = {"loss": loss, **logs}
        if self.micro_batch is not None:
            self._step_metrics = self._step_metrics or StepMetrics()
            values = self._step_metrics.add(values, self.micro_batch)
        values = mean_logs_over_ranks(values)
        self._check_loss(loss, values)
        self.log_dict({f"train/{k}": v for k, v in values.items()})
        for label, name in self.progress_bar.items():
            if name in values:
                self.log(label, values[name], prog_bar=True, logger=False)
        return loss if self.micro_batch is None else loss * self.micro_batch.weight

    def _draws_of(self, batch: Any, seed: int, step: int, index: int) -> AbstractContextManager[None]:
        """Draw random numbers of the clips of a batch; see ``clip_draws``."""
        clips = getattr(batch, "seed", None)
        if clips is None:
            if self.processes_per_clip > 1:
                raise ValueError(
                    "context_parallel and tensor_parallel require a seed for every clip (ClipBatch.seed), to draw "
                    "equal noise"
                )
            return nullcontext()
        if self.micro_batch is not None:
            return clip_draws(clips, seed, step, self.micro_batch.position)
        part = index % self.trainer.accumulate_grad_batches
        first = (part * self.clip_ranks + self.clip_rank) * len(clips)
        return clip_draws(clips, seed, step, first)

    def on_train_start(self) -> None:
        """Lightning's hook."""
        self._unchecked = None
        self._draw_seed = int(self.trainer.strategy.broadcast(torch.initial_seed() % 2**31))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: raise FloatingPointError instead of saving weights that are not finite."""
        self._check_last_loss()
        if not all_finite(p for network in self.networks().values() for p in network.parameters()):
            raise FloatingPointError(
                f"step {self.global_step}: some weights are not finite any more, and are not saved. {REMEDY}"
            )

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Lightning's hook: complete the gradients that sharding leaves alone."""
        if self.mesh is not None:
            sum_partial_gradients(self.parameters())
            average_whole_gradients(self.parameters())

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's hook: clip by the norm of all gradients, whichever process has them."""
        if self.mesh is None or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            parts = [local_part(p.grad) for p in self.parameters() if p.grad is not None]
            torch._foreach_clamp_min_(parts, -gradient_clip_val)
            torch._foreach_clamp_max_(parts, gradient_clip_val)
        else:
            clip_sharded_gradients(self.parameters(), gradient_clip_val)

    def _check_loss(self, loss: Tensor, logs: Mapping[str, Tensor]) -> None:
        """Check the loss before it changes any weight; on an accelerator a step later, so as not to wait for it."""
        self._check_last_loss()
        self._unchecked = (self.global_step, {name: value.detach() for name, value in logs.items()})
        if loss.device.type == "cpu":
            self._check_last_loss()

    def _check_last_loss(self) -> None:
        if self._unchecked is None:
            return
        step, values = self._unchecked
        self._unchecked = None
        if not math.isfinite(values["loss"]):
            broken = [name for name, value in values.items() if not torch.as_tensor(value).isfinite().all()]
            listed = ", ".join(f"{name} is {float(values[name]):g}" for name in broken)
            raise FloatingPointError(f"step {step}: {listed}; the last checkpoint is as it was. {REMEDY}")

    def validation_step(self, batch: Any, index: int) -> None:
        """Lightning's hook."""
        with self._draws_of(batch, 0, index, index):
            loss, logs = self.validation_losses(batch, index)
        values = {"val/loss": loss, **{f"val/{k}": v for k, v in logs.items()}}
        # A float, because Lightning averages the numbers of clips over ranks, and of whole numbers cuts off the mean.
        clips: Any = float(batch_size(batch) if self.micro_batch is None else self.micro_batch.clips)
        self.log_dict(values, sync_dist=True, batch_size=clips)

    def configure_optimizers(self) -> Any:
        """Lightning's hook."""
        timer = next((callback for callback in self.trainer.callbacks if isinstance(callback, Timer)), None)
        time_share = None if timer is None else lambda: self._time_share(timer)
        optimizer, schedule = self.optimizer.build(self, self.trainer.max_steps, time_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _time_share(self, timer: Timer) -> float:
        """Return the share of ``max_time`` that has passed, equal on all ranks."""
        passed, left = timer.time_elapsed(), timer.time_remaining() or 0.0
        return float(self.trainer.strategy.broadcast(passed / max(passed + left, 1e-9)))

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, except for the frozen networks."""
        super().train(mode)
        for network in self.frozen_networks():
            network.eval()
        return self

    @property
    def frames_per_latent(self) -> int:
        """Frames that a latent holds; 1 for a module without a tokenizer."""
        tokenizer = self.latent_tokenizer
        return 1 if tokenizer is None else tokenizer.time_compression

    @property
    def tokens_per_latent(self) -> int:
        """Tokens of a latent, by which the speed of a training is measured; 1 for a module without a tokenizer."""
        tokenizer = self.latent_tokenizer
        return 1 if tokenizer is None else tokenizer.tokens_per_frame

    def count_tokens(self, batch: Any) -> int:
        """Return the number of tokens of a batch."""
        if batch.frames is None:
            return batch_size(batch) * int(batch.latents.shape[1]) * self.tokens_per_latent
        latents = 1 + (batch.frames.shape[1] - 1) // self.frames_per_latent
        return batch_size(batch) * latents * self.tokens_per_latent

    def checks_values(self, data: Tensor) -> bool:
        """Whether to check all values of a batch: always on a CPU, and in the first step on an accelerator.

        A check synchronizes with an accelerator, and costs little compared with a step on a CPU. Tensors on the meta
        device have no values.
        """
        return data.device.type == "cpu" or (self.global_step == 0 and not data.is_meta)

    def drop_actions(self, known: Tensor, parts: int = 0) -> Tensor:
        """Hide actions in training: a share ``action_dropout`` of them, and ``part_dropout`` of the others' parts.

        Args:
            known: bool [b, t], True where an action is known; [b, t, parts] where that differs between parts.
            parts: number of parts of composite actions; 0 for other actions.

        Returns:
            bool like ``known``, or [b, t, parts] where parts are hidden: True where an action, or part, is shown.
        """
        if not self.training:
            return known
        if self.action_dropout:
            whole = known if known.ndim == 2 else known[..., :1]
            known = known & (draw_uniform(whole.shape, known.device) >= self.action_dropout)
        if self.part_dropout and parts:
            shown = known if known.ndim == 3 else known[..., None].expand(*known.shape, parts)
            known = shown & (draw_uniform(shown.shape, known.device) >= self.part_dropout)
        return known

    @contextmanager
    def fixed_randomness(self, seed: int) -> Iterator[None]:
        """Draw the same random numbers in every such block of a loss, and restore torch's random state after it."""
        with repeated_draws(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def batch_size(batch: Any) -> int:
    """Return the number of clips in a batch."""
    values = (getattr(batch, name) for name in ("latents", "frames", "actions"))
    return len(next(value for value in values if value is not None))


def known_actions(batch: Any, steps: int) -> Tensor | None:
    """Return which of the first ``steps`` actions of a batch's clips were recorded.

    Returns:
        bool [b, steps]; [b, steps, p] where some parts of composite actions are unknown; None where all are known.
    """
    known: Tensor | None = None
    if batch.labeled is not None:
        known = batch.labeled[:, None].expand(-1, steps)
    if batch.known_parts is not None:
        parts = batch.known_parts[:, None].expand(-1, steps, -1)
        known = parts if known is None else parts & known[..., None]
    return known


def shuffle_actions(batch: Any) -> Any:
    """Return a batch (a dataclass) in which each clip has the actions of the previous clip."""
    return type(batch)(**{**vars(batch), "actions": batch.actions.roll(1, dims=0)})
