"""Strategies of ``vwm fit`` by their short names: ``ddp``, ``fsdp``, ``hsdp`` and ``hsdp-REPLICASxSHARDS``.

``fsdp`` shards blocks over all processes (FSDP2). ``hsdp`` keeps several replicas, each sharded over the processes of
one machine, so that weights are gathered inside a machine and only gradients are averaged between machines (HSDP).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import Optimizer

from vwm.nn.sharding import materialize_from_first_rank, named_tensors, start_sharding
from vwm.nn.training_module import TrainingModule
from vwm.train.sharded_states import (
    load_whole_module_state,
    load_whole_optimizer_state,
    whole_module_state,
    whole_optimizer_state,
)


class ShardedStrategy(ModelParallelStrategy):
    """Train with sharded blocks. Every process reads its own clips; checkpoints are those of a training in one process.

    Args:
        replicas: copies of the weights, each sharded over ``shards`` processes; ``auto`` for one on each machine.
        shards: processes that share a copy; ``auto`` for all that are left.
        **kwargs: further arguments of Lightning's ``ModelParallelStrategy``.

    Attributes:
        gathers_state: whether states for checkpoints are whole, in the first process, or sharded (``DTensor``), in all.

    Raises:
        ValueError: when the processes are started, if their number is not replicas x shards.
    """

    def __init__(self, replicas: int | str = 1, shards: int | str = "auto", **kwargs: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **kwargs)
        self.gathers_state = True
        self.replicas = replicas
        self.shards = shards

    def setup_environment(self) -> None:
        """See ``Strategy``; also make the mesh of the processes."""
        from torch.distributed.device_mesh import init_device_mesh

        self._setup_distributed()
        replicas, shards = mesh_sides(self.replicas, self.shards, self.world_size, self.num_nodes)
        shape, names = ((replicas, shards), ("replicas", "shards")) if replicas > 1 else ((shards,), ("shards",))
        self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """See ``Strategy``: every process has clips of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def shard(self, module: TrainingModule) -> None:
        """Shard a module, which is on the meta device in all processes but the first, and fill it with its values."""
        values = dict(named_tensors(module)) if self.global_rank == 0 else None
        module.to("meta")
        mixed = isinstance(self.precision_plugin, MixedPrecision)
        compute_dtype = torch.bfloat16 if mixed and self.precision_plugin.precision == "bf16-mixed" else None
        module.shard(self.device_mesh, compute_dtype)
        materialize_from_first_rank(module, values, self.root_device)
        start_sharding(module)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """See ``Strategy``."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """See ``Strategy``: the state of a module that is not sharded, in the first process; none in the others."""
        assert self.lightning_module is not None
        if not self.gathers_state:
            return self.lightning_module.state_dict()
        return whole_module_state(self.lightning_module, keep=self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """See ``Strategy``: shard what ``lightning_module_state_dict`` returned."""
        assert self.lightning_module is not None
        load_whole_module_state(self.lightning_module, checkpoint["state_dict"], strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """See ``Strategy``: the state of an optimizer of whole weights, in the first process; none in the others."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        if not self.gathers_state:
            return optimizer.state_dict()
        return whole_optimizer_state(optimizer, keep=self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """See ``Strategy``: shard what ``optimizer_state`` returned."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_whole_optimizer_state(optimizer, state)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """See ``Strategy``: read the file in every process."""
        torch.cuda.empty_cache()
        return dict(self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path)))


def make_strategy(name: Any) -> Any:
    """Return the strategy of a short name of this project; anything else is left to Lightning.

    Raises:
        ValueError: sizes that cannot be read.
    """
    if not isinstance(name, str) or not re.match(r"(fsdp|hsdp)\b", name):
        return name
    sizes = re.fullmatch(r"hsdp-(\d+)x(\d+)", name)
    if sizes is not None:
        replicas, shards = int(sizes[1]), int(sizes[2])
        if replicas and shards:
            return ShardedStrategy(replicas, shards)
    elif name in ("fsdp", "hsdp"):
        return ShardedStrategy(1 if name == "fsdp" else "auto")
    raise ValueError(
        f"trainer.strategy={name}: give fsdp, hsdp (a replica on each machine), or hsdp-REPLICASxSHARDS, such as "
        "hsdp-2x4 for 8 processes"
    )


def mesh_sides(replicas: int | str, shards: int | str, processes: int, machines: int) -> tuple[int, int]:
    """Return the numbers of replicas and of shards for a number of processes; see ``ShardedStrategy``."""
    copies = machines if replicas == "auto" else int(replicas)
    parts = processes // copies if shards == "auto" else int(shards)
    if copies * parts != processes:
        raise ValueError(
            f"{copies} replicas of {parts} shards need {copies * parts} processes, and there are {processes}: set "
            "trainer.devices and trainer.num_nodes, or the sizes of trainer.strategy"
        )
    return copies, parts


@contextmanager
def first_process_builds() -> Iterator[None]:
    """Build networks on the meta device inside the with-statement, in all processes but the first."""
    device = "meta" if _get_rank() else "cpu"
    with torch.device(device):
        yield
