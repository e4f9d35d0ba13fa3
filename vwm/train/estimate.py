"""``vwm estimate``: memory, speed and cost of a training on many devices, computed from its config on this machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from vwm.nn.context_parallel import ContextGroup
from vwm.nn.kernel_device import kernels_of
from vwm.nn.recomputation import Recomputation
from vwm.nn.tensor_parallel import TensorGroup
from vwm.runs.config_files import compose_config_arguments
from vwm.train.live_memory import storage_bytes
from vwm.train.memory_estimate import MemoryEstimate, ProcessMesh, StrategyName, count_sharded, estimate_memory
from vwm.train.meta_kernels import MetaKernels
from vwm.train.meta_module import MetaCLI, make_meta_batch
from vwm.train.meta_step import StepMemory, measure_step_memory
from vwm.train.notices import silence_lightning
from vwm.train.operations import count_operations
from vwm.train.scale_estimate import Cluster, CorpusCost, StepTime, Workload, estimate_corpus, estimate_step_time
from vwm.train.strategies import make_strategy, mesh_sides


class MetaContextGroup(ContextGroup):
    """Processes that share clips in an estimate, of which this is the one with the largest part; counts what it sends.

    Attributes:
        sent: bytes that it sent to the others.
    """

    sent: float = 0.0

    def exchange(self, received: Tensor, sent: Tensor, received_sizes: list[int], sent_sizes: list[int]) -> None:
        """See ``ContextGroup``."""
        self.sent += (sent.numel() - sent_sizes[self.rank]) * sent.element_size()

    def all_reduce(self, x: Tensor) -> None:
        """See ``ContextGroup``: single numbers."""


class MetaTensorGroup(TensorGroup):
    """Processes that compute layers together in an estimate, of which this is one; counts what it sends, in rings.

    Attributes:
        sent: bytes that it sent to the others.
    """

    sent: float = 0.0

    def all_reduce(self, x: Tensor) -> None:
        """See ``TensorGroup``."""
        self.sent += 2 * (self.size - 1) / self.size * x.numel() * x.element_size()

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """See ``TensorGroup``."""
        self.sent += (self.size - 1) * x.numel() * x.element_size()
        return [torch.empty_like(x) for _ in range(self.size)]


class EstimateCLI(MetaCLI):
    """The keys of ``vwm estimate``: those of ``vwm fit``, and the cluster."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--ranks", type=str, default="1,8,64,512", help="numbers of processes, one a device")
        if "--global_batch" not in parser._option_string_actions:
            parser.add_argument(
                "--global_batch", type=int | None, default=None, help="clips of a step of all processes"
            )
        parser.add_argument("--hours", type=float, default=1e6, help="hours of video of the corpus")
        parser.add_argument("--fps", type=float, default=20.0, help="frames of a clip a second")
        parser.add_argument("--stored_bytes", type=int | None, default=None, help="bytes of a clip in the shards")
        parser.add_argument("--kernels", type=Literal["cuda", "cpu"], default="cuda", help="device of the training")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_class_arguments(Cluster, "cluster")


@dataclass(frozen=True)
class Estimate:
    """All numbers of a training with one number of processes."""

    mesh: ProcessMesh
    clips: int
    """Clips that a process computes at once."""
    global_batch: int
    stored_bytes: int
    """Bytes of a global batch in the shards."""
    memory: MemoryEstimate
    time: StepTime
    corpus: CorpusCost

    def as_dict(self) -> dict[str, Any]:
        """Return nested plain values."""
        time = asdict(self.time) | {"seconds": self.time.seconds, "bottleneck": self.time.bottleneck}
        return asdict(self) | {"ranks": self.mesh.ranks, "time": time}


def parse_estimate_config(argv: list[str]) -> EstimateCLI:
    """Make the module of a config on the meta device from the arguments of ``vwm estimate``."""
    silence_lightning()
    return EstimateCLI(
        args=compose_config_arguments(argv),
        run=False,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "vwm estimate", "formatter_class": argparse.RawDescriptionHelpFormatter},
    )


def estimate_training(argv: list[str]) -> None:
    """Print the memory, the speed and the cost of a training; see ``TrainingEstimates``.

    Args:
        argv: what follows ``vwm estimate``.
    """
    from vwm.train.estimate_report import format_estimates

    estimates = TrainingEstimates(parse_estimate_config(argv))
    rows = [estimates.estimate(ranks) for ranks in _read_ranks(str(estimates.config["ranks"]))]
    if estimates.config["json"]:
        summary = estimates.summary() | {"estimates": [row.as_dict() for row in rows]}
        print(json.dumps(summary, indent=2))
    else:
        print(format_estimates(estimates, rows))


class TrainingEstimates:
    """Estimates of one training for different numbers of processes.

    Args:
        cli: the parsed config.
    """

    def __init__(self, cli: EstimateCLI) -> None:
        self.config = cli.config
        self.module = cli.module
        self.data = cli.datamodule
        self.notes = cli.notes
        self.cluster = Cluster(**vars(cli.config["cluster"]))
        recomputation = cli.config["gradient_checkpointing"]
        self.recomputation: Recomputation = {True: "full", False: "none"}.get(recomputation, recomputation)
        precision = cli.config["trainer"]["precision"] or (
            "bf16-mixed" if cli.config["kernels"] == "cuda" else "32-true"
        )
        self.precision = str(precision)
        self.compute_dtype = torch.bfloat16 if self.precision.startswith("bf16") else None
        self._steps: dict[tuple[int, bool], tuple[StepMemory, float, float]] = {}
        clip = make_meta_batch(self.module, self.data, 1)
        self.clip_bytes = storage_bytes(x for x in vars(clip).values() if isinstance(x, Tensor))
        self.operations = self._count_operations(clip)
        self.stored_bytes = cli.config["stored_bytes"] or _stored_bytes(clip)
        counts = {name: sum(w.numel() for w in part.parameters()) for name, part in self.module.named_children()}
        self.parameters = {name: count for name, count in counts.items() if count}
        self.trained = count_sharded(self.module)
        context, tensor = cli.config["context_parallel"], cli.config["tensor_parallel"]
        self.context_group = MetaContextGroup(context, context - 1)
        self.tensor_group = MetaTensorGroup(tensor, 0)
        if context > 1:
            self.module.share_clips(self.context_group)
        if tensor > 1:
            self.module.divide_weights(self.tensor_group)

    def mesh(self, ranks: int) -> ProcessMesh:
        """Return the mesh of a number of processes.

        Raises:
            ValueError: they cannot be divided as the config says.
        """
        name = str(self.config["trainer"]["strategy"])
        kind, _, sizes = name.partition("-")
        context, tensor = self.config["context_parallel"], self.config["tensor_parallel"]
        if ranks % (context * tensor):
            raise ValueError(f"context_parallel={context} x tensor_parallel={tensor} does not divide {ranks} ranks")
        if kind not in ("fsdp", "hsdp"):
            make_strategy(name, tensor)
            strategy: StrategyName = "single" if ranks == 1 else "ddp"
            return ProcessMesh(strategy, ranks, 1, context)
        hosts = max(1, ranks // self.cluster.devices_per_host)
        given = [int(size) for size in sizes.split("x")] if sizes else [1 if kind == "fsdp" else hosts, ranks]
        replicas, shards = mesh_sides(given[0], given[1] if sizes else "auto", ranks, hosts, tensor)
        return ProcessMesh("fsdp" if kind == "fsdp" else "hsdp", replicas, shards, context, tensor)

    def estimate(self, ranks: int) -> Estimate:
        """Estimate everything for a number of processes."""
        mesh, cluster = self.mesh(ranks), self.cluster
        clips = int(self.data.batch_size)
        total = self.config["global_batch"] or clips * mesh.clip_ranks
        clips = min(clips, -(-total // mesh.clip_ranks))
        sharded = mesh.strategy in ("fsdp", "hsdp")
        batch = make_meta_batch(self.module, self.data, clips)
        step, sent, of_layers = self._measure_step(batch, clips, sharded)
        averages = self.config["ema"]["decay"] > 0
        memory = estimate_memory(self.module, batch, mesh, self.recomputation, self.compute_dtype, averages, step)
        inside, outside = count_sharded(self.module)
        gathered = 4 if self.compute_dtype is None else 2
        work = Workload(
            operations=self.operations,
            clip_bytes=self.clip_bytes,
            stored_bytes=self.stored_bytes,
            clips=total,
            sharded_weights=inside,
            whole_weights=outside,
            gathered_bytes=gathered,
            activation_bytes=int(sent / clips * mesh.context_parallel),
            layer_bytes=int(of_layers / clips),
        )
        time = estimate_step_time(work, mesh, cluster, clips)
        seconds = self.data.clip_length * self.data.stride / self.config["fps"]
        corpus = estimate_corpus(work, time, ranks, cluster, self.config["hours"], seconds)
        return Estimate(mesh, clips, total, total * self.stored_bytes, memory, time, corpus)

    def _measure_step(self, batch: Any, clips: int, sharded: bool) -> tuple[StepMemory, float, float]:
        """Return the memory of a step, and the bytes that a process sends to those that share clips, and layers."""
        if (clips, sharded) not in self._steps:
            self.context_group.sent = self.tensor_group.sent = 0.0
            with kernels_of(self.config["kernels"]):
                step = measure_step_memory(self.module, batch, self.recomputation, self.compute_dtype, sharded)
            self._steps[clips, sharded] = step, self.context_group.sent, self.tensor_group.sent
        return self._steps[clips, sharded]

    def summary(self) -> dict[str, Any]:
        """Return what does not depend on the number of processes."""
        return {
            "parameters": self.parameters,
            "trained_in_blocks": self.trained[0],
            "trained_elsewhere": self.trained[1],
            "operations_per_clip": self.operations,
            "clip_frames": self.data.clip_length,
            "clip_bytes": self.clip_bytes,
            "stored_bytes_per_clip": self.stored_bytes,
            "precision": self.precision,
            "recomputation": self.recomputation,
            "cluster": asdict(self.cluster),
            "notes": self.notes,
        }

    def _count_operations(self, clip: Any) -> float:
        kernels = MetaKernels()
        with kernels, kernels.as_autocast():
            return count_operations(self.module, clip)


def _read_ranks(text: str) -> list[int]:
    """Read ``8,64,512``."""
    words = [word.strip() for word in text.strip("[]").split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise ValueError(f"--ranks {text}: give numbers of processes, such as 8,64,512")
    return [int(word) for word in words]


def _stored_bytes(clip: Any) -> int:
    """Estimate a clip's bytes in shards: latents in half precision, video at 0.2 bits a pixel, all else as it is."""
    sizes = {name: storage_bytes([x]) for name, x in vars(clip).items() if isinstance(x, Tensor)}
    if "latents" in sizes:
        sizes["latents"] = clip.latents.numel() * (4 if clip.latents.dtype == torch.int64 else 2)
    if "frames" in sizes:
        sizes["frames"] = clip.frames.numel() // 3 // 40
    return sum(sizes.values())
