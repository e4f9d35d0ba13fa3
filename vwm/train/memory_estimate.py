"""The memory that a training needs in each process, by what it is for, from a module on the meta device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vwm.nn.recomputation import Recomputation
from vwm.nn.training_module import TrainingModule
from vwm.train.live_memory import LiveMemory, storage_bytes
from vwm.train.meta_step import StepMemory, measure_step_memory, sharded_blocks

StrategyName = Literal["single", "ddp", "fsdp", "hsdp"]


@dataclass(frozen=True)
class ProcessMesh:
    """How many processes train, and which of them share weights.

    Attributes:
        strategy: ``single`` or ``ddp``: all weights in every process; ``fsdp``: shared by all; ``hsdp``: by groups.
        replicas: copies of the weights.
        shards: processes that share a copy.
        context_parallel: processes that divide the frames of a clip.
        tensor_parallel: processes in the place of each of these, which compute each layer together.
    """

    strategy: StrategyName
    replicas: int
    shards: int
    context_parallel: int = 1
    tensor_parallel: int = 1

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return self.replicas * self.shards * self.tensor_parallel

    @property
    def processes_per_clip(self) -> int:
        """Number of processes that work on each clip together."""
        return self.context_parallel * self.tensor_parallel

    @property
    def clip_ranks(self) -> int:
        """Number of processes, or groups of them, that have clips of their own."""
        return self.ranks // self.processes_per_clip

    def __str__(self) -> str:
        sides = f" {self.replicas}x{self.shards}" if self.strategy == "hsdp" else ""
        context = f", context {self.context_parallel}" if self.context_parallel > 1 else ""
        tensor = f", tensor {self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        return f"{self.strategy}{sides}{context}{tensor}"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in one process.

    Attributes:
        weights: trained weights.
        frozen: weights that are not trained, and buffers.
        gradients: of the trained weights.
        optimizer: state of the optimizer.
        average: the moving average of the weights (EMA).
        buckets: DDP's copies of the gradients, in which it sums them.
        batch: two batches, of which one is on its way.
        activations: what the forward pass keeps for the backward pass.
        temporary: what is needed beyond that for moments, gathered blocks included.
        total: most bytes at any moment.
    """

    weights: int
    frozen: int
    gradients: int
    optimizer: int
    average: int
    buckets: int
    batch: int
    activations: int
    temporary: int
    total: int

    def as_dict(self) -> dict[str, int]:
        """Return the numbers by name."""
        return asdict(self)


def estimate_memory(
    module: TrainingModule,
    batch: Any,
    mesh: ProcessMesh,
    recomputation: Recomputation = "none",
    compute_dtype: torch.dtype | None = None,
    averages: bool = True,
    step: StepMemory | None = None,
) -> MemoryEstimate:
    """Estimate the memory of the process that needs the most.

    Args:
        module: the module on the meta device; where processes share clips or layers, with its share of them.
        batch: the batch of one process.
        mesh: the processes.
        recomputation: what blocks recompute.
        compute_dtype: the lower precision of autocast; None without.
        averages: whether the weights are averaged (``ema.decay`` above 0).
        step: the memory of a step, where it was measured before.
    """
    sharded = mesh.strategy in ("fsdp", "hsdp")
    if step is None:
        step = measure_step_memory(module, batch, recomputation, compute_dtype, sharded)
    blocks = [w for weights in sharded_blocks(module).values() for w in weights] if sharded else []
    part = _Parts(set(blocks), mesh.shards)
    trained = [w for w in module.parameters() if w.requires_grad]
    frozen = [w for w in module.parameters() if not w.requires_grad]
    networks = [w for network in module.networks().values() for w in network.parameters()]
    state, optimizer_peak = _optimizer_memory(module, part)
    gradients = part.bytes(trained)
    # Lightning frees the gradients of a step after the next forward pass.
    passes = max(
        step.forward_peak + gradients,
        step.backward_peak + gradients if sharded else step.backward_peak_with_gradients,
    )
    most = max(passes, optimizer_peak + gradients)
    constant = {
        "weights": part.bytes(trained),
        "frozen": part.bytes(frozen) + storage_bytes(module.buffers()),
        "optimizer": state,
        "average": part.bytes(networks) if averages else 0,
        "buckets": gradients if mesh.strategy == "ddp" else 0,
        "batch": 2 * storage_bytes(x for x in vars(batch).values() if isinstance(x, Tensor)),
    }
    total = sum(constant.values()) + most
    return MemoryEstimate(
        **constant,
        gradients=gradients,
        activations=step.kept,
        temporary=most - step.kept - gradients,
        total=total,
    )


class _Parts:
    """Sizes of the parts of weights in the first process: FSDP2 divides rows, rounded up.

    Args:
        sharded: the weights that are divided.
        shards: among how many processes.
    """

    def __init__(self, sharded: set[nn.Parameter], shards: int) -> None:
        self.sharded = sharded
        self.shards = shards

    def bytes(self, weights: Iterable[Tensor]) -> int:
        """Return the bytes of the parts of weights, or of tensors with one entry a weight."""
        return sum(self.share(w, w.numel()) * w.element_size() for w in dict.fromkeys(weights))

    def share(self, weight: Tensor, size: int) -> int:
        """Return the part of ``size`` numbers that belong to a weight."""
        if weight not in self.sharded or not weight.ndim:
            return size
        return math.ceil(weight.shape[0] / self.shards) * (size // weight.shape[0])


def _optimizer_memory(module: TrainingModule, part: _Parts) -> tuple[int, int]:
    """Take an optimizer step on the meta device; return the bytes of its state, and those it needs for a moment."""
    trained = [w for w in module.parameters() if w.requires_grad]
    optimizer, _ = module.optimizer.build(module, max_steps=10**6)
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    memory = LiveMemory()
    with memory:
        optimizer.step()
    states = {weight: [x for x in optimizer.state[weight].values() if isinstance(x, Tensor)] for weight in trained}
    whole = sum(x.numel() * x.element_size() for tensors in states.values() for x in tensors)
    state = sum(
        part.share(w, x.numel()) * x.element_size() if x.ndim else x.element_size()
        for w, xs in states.items()
        for x in xs
    )
    module.zero_grad(set_to_none=True)
    return state, (memory.peak - whole) * state // max(whole, 1)


def count_sharded(module: TrainingModule) -> tuple[int, int]:
    """Return the numbers of trained weights in blocks, which can be sharded, and of all others."""
    blocks = {w for weights in sharded_blocks(module).values() for w in weights if w.requires_grad}
    trained = [w for w in module.parameters() if w.requires_grad]
    inside = sum(w.numel() for w in blocks)
    return inside, sum(w.numel() for w in trained) - inside
