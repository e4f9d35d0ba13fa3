"""Strategies of ``vwm fit`` by their short names: ``ddp``, ``fsdp``, ``hsdp`` and ``hsdp-REPLICASxSHARDS``.

``fsdp`` shards blocks over all processes (FSDP2). ``hsdp`` keeps several replicas, each sharded over the processes of
one machine, so that weights are gathered inside a machine and only gradients are averaged between machines (HSDP).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import Optimizer

from vwm.nn.sharding import materialize_from_first_rank, named_tensors, start_sharding
from vwm.nn.tensor_parallel import TensorGroup
from vwm.nn.training_module import TrainingModule
from vwm.train.sharded_states import (
    load_whole_module_state,
    load_whole_optimizer_state,
    whole_module_state,
    whole_optimizer_state,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class ShardedStrategy(ModelParallelStrategy):
    """Train with sharded blocks. Every process reads its own clips; checkpoints are those of a training in one process.

    Args:
        replicas: copies of the weights, each sharded over ``shards`` processes; ``auto`` for one on each machine.
        shards: processes that share a copy; ``auto`` for all that are left.
        tensor: processes in the place of each of these, which compute each layer together (tensor parallelism).
        **kwargs: further arguments of Lightning's ``ModelParallelStrategy``.

    Attributes:
        gathers_state: whether states for checkpoints are whole, in the first process, or sharded (``DTensor``), in all.

    Raises:
        ValueError: when the processes are started, if their number is not replicas x shards x tensor.
    """

    def __init__(self, replicas: int | str = 1, shards: int | str = "auto", tensor: int = 1, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=tensor, save_distributed_checkpoint=False, **kwargs)
        self.gathers_state = True
        self.replicas = replicas
        self.shards = shards
        self.tensor = tensor

    def setup_environment(self) -> None:
        """See ``Strategy``; also make the mesh of the processes."""
        from torch.distributed.device_mesh import init_device_mesh

        self._setup_distributed()
        replicas, shards = mesh_sides(self.replicas, self.shards, self.world_size, self.num_nodes, self.tensor)
        sides = {"replicas": replicas, "shards": shards, "tensor": self.tensor}
        sides = {name: size for name, size in sides.items() if size > 1 or name == "shards"}
        self._device_mesh = init_device_mesh(self.root_device.type, tuple(sides.values()), mesh_dim_names=tuple(sides))

    @property
    def weight_mesh(self) -> DeviceMesh:
        """The processes with the same part of each layer: its replicas, and the shards of a replica."""
        names = tuple(name for name in self.device_mesh.mesh_dim_names or () if name != "tensor")
        return self.device_mesh if self.tensor == 1 else self.device_mesh[names]

    def tensor_group(self) -> TensorGroup:
        """Return the processes that compute each layer together with this one."""
        mesh = self.device_mesh["tensor"]
        copy = self.device_mesh["shards", "tensor"]._flatten("copy")
        return TensorGroup(mesh.size(), mesh.get_local_rank(), mesh.get_group(), copy.get_group())

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
        if self.tensor > 1:
            module.divide_weights(self.tensor_group())
        module.shard(self.weight_mesh, compute_dtype)
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


def make_strategy(name: Any, tensor: int = 1) -> Any:
    """Return the strategy of a short name of this project; anything else is left to Lightning.

    Args:
        name: ``trainer.strategy``.
        tensor: processes that compute each layer together.

    Raises:
        ValueError: sizes that cannot be read, or tensor parallelism with a strategy of Lightning.
    """
    if not isinstance(name, str) or not re.match(r"(fsdp|hsdp)\b", name):
        if tensor > 1:
            raise ValueError(
                f"tensor_parallel={tensor} divides weights as trainer.strategy=fsdp or hsdp does, and it is {name}: "
                "set one of these"
            )
        return name
    sizes = re.fullmatch(r"hsdp-(\d+)x(\d+)", name)
    if sizes is not None:
        replicas, shards = int(sizes[1]), int(sizes[2])
        if replicas and shards:
            return ShardedStrategy(replicas, shards, tensor)
    elif name in ("fsdp", "hsdp"):
        return ShardedStrategy(1 if name == "fsdp" else "auto", tensor=tensor)
    raise ValueError(
        f"trainer.strategy={name}: give fsdp, hsdp (a replica on each machine), or hsdp-REPLICASxSHARDS, such as "
        "hsdp-2x4 for 8 processes"
    )


def mesh_sides(
    replicas: int | str, shards: int | str, processes: int, machines: int, tensor: int = 1
) -> tuple[int, int]:
    """Return the numbers of replicas and of shards for a number of processes; see ``ShardedStrategy``."""
    copies = machines if replicas == "auto" else int(replicas)
    parts = processes // (copies * tensor) if shards == "auto" else int(shards)
    if copies * parts * tensor != processes or not parts:
        each = f" of {tensor} processes (tensor_parallel)" if tensor > 1 else ""
        raise ValueError(
            f"{copies} replicas of {parts} shards{each} need {copies * parts * tensor} processes, and there are "
            f"{processes}: set trainer.devices and trainer.num_nodes, or the sizes of trainer.strategy"
        )
    return copies, parts


@contextmanager
def first_process_builds() -> Iterator[None]:
    """Build networks on the meta device inside the with-statement, in all processes but the first."""
    device = "meta" if _get_rank() else "cpu"
    with torch.device(device):
        yield
