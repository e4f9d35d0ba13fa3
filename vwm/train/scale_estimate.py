"""How fast a training is on a cluster, what limits it first, and what a corpus costs: arithmetic on stated rates."""

from __future__ import annotations

from dataclasses import dataclass

from vwm.train.memory_estimate import ProcessMesh


@dataclass
class Cluster:
    """Rates of the machines of a training. The defaults are those of data sheets for 8 H100s a machine.

    Attributes:
        teraflops: dense bfloat16 TFLOP/s of a device.
        mfu: share of it that a training reaches, counting useful operations only.
        device_gigabytes: memory of a device.
        devices_per_host: devices of a machine.
        link_gigabytes: GB/s that a device sends to others of its machine.
        network_gigabytes: GB/s that a device sends to other machines.
        host_gigabytes: GB/s of clips that a machine reads, decodes and copies to its devices (see ``vwm bench data``).
        storage_gigabytes: GB/s that the store of the data gives to all machines together.
        device_hour: price of a device for an hour.
    """

    teraflops: float = 989.0
    mfu: float = 0.3
    device_gigabytes: float = 80.0
    devices_per_host: int = 8
    link_gigabytes: float = 450.0
    network_gigabytes: float = 50.0
    host_gigabytes: float = 2.0
    storage_gigabytes: float = 100.0
    device_hour: float = 2.5


@dataclass(frozen=True)
class Workload:
    """What a step computes and moves.

    Attributes:
        operations: floating point operations of a clip, forward and backward.
        clip_bytes: bytes of a clip as the loader gives it.
        stored_bytes: bytes of a clip in the shards.
        clips: clips of a global batch.
        sharded_weights: weights of blocks.
        whole_weights: all other trained weights.
        gathered_bytes: bytes of a number of a gathered weight.
        activation_bytes: bytes that context parallelism moves between its processes, of a clip.
        layer_bytes: bytes that each process sends for tensor parallelism, of a clip.
    """

    operations: float
    clip_bytes: int
    stored_bytes: int
    clips: int
    sharded_weights: int
    whole_weights: int
    gathered_bytes: int = 4
    activation_bytes: int = 0
    layer_bytes: int = 0


@dataclass(frozen=True)
class StepTime:
    """Seconds of each part of a step; all of them overlap, so that the longest is that of the step.

    Attributes:
        compute: matrix products and all else that the devices compute.
        network: gathering weights, summing gradients.
        host: reading and decoding clips.
        storage: the store of the data.
        sent: bytes that a device sends in a step.
        accumulation: passes that a device makes for a step.
        idle: share of the devices without a clip.
    """

    compute: float
    network: float
    host: float
    storage: float
    sent: float
    accumulation: int
    idle: float

    @property
    def seconds(self) -> float:
        """Length of the step."""
        return max(self.compute, self.network, self.host, self.storage)

    @property
    def bottleneck(self) -> str:
        """What the step waits for; ``global batch`` where devices are idle because there are fewer clips."""
        if self.seconds > self.compute:
            names = {self.network: "network", self.host: "reading on hosts", self.storage: "storage"}
            return names[self.seconds]
        return "global batch" if self.idle > 0.05 else "compute"


def estimate_step_time(work: Workload, mesh: ProcessMesh, cluster: Cluster, batch: int) -> StepTime:
    """Estimate the time of an optimizer step.

    Args:
        work: what it computes and moves.
        mesh: the processes, one a device.
        cluster: their rates.
        batch: clips that a process computes at once.
    """
    passes = max(1, -(-work.clips // (mesh.clip_ranks * batch)))
    share = -(-work.clips // mesh.clip_ranks)  # the process with the most clips
    compute = share * work.operations / mesh.processes_per_clip / (cluster.teraflops * 1e12 * cluster.mfu)
    inside, between = _sent_bytes(work, mesh, cluster, passes)
    sent = share * work.activation_bytes / mesh.context_parallel
    if mesh.processes_per_clip <= cluster.devices_per_host:
        inside += sent
    else:
        between += sent
    if mesh.tensor_parallel <= cluster.devices_per_host:
        inside += share * work.layer_bytes
    else:
        between += share * work.layer_bytes
    hosts = max(1, mesh.ranks // cluster.devices_per_host)
    return StepTime(
        compute=compute,
        network=inside / cluster.link_gigabytes / 1e9 + between / cluster.network_gigabytes / 1e9,
        host=work.clips * work.clip_bytes / hosts / cluster.host_gigabytes / 1e9,
        storage=work.clips * work.stored_bytes / cluster.storage_gigabytes / 1e9,
        sent=inside + between,
        accumulation=passes,
        idle=max(0.0, 1 - work.clips / (share * mesh.clip_ranks)),
    )


def _sent_bytes(work: Workload, mesh: ProcessMesh, cluster: Cluster, passes: int) -> tuple[float, float]:
    """Return the bytes that a device sends inside its machine and between machines, by ring algorithms."""
    inside = between = 0.0

    def send(size: float, ranks: int, crosses: bool) -> None:
        nonlocal inside, between
        moved = size * (ranks - 1) / max(ranks, 1)
        if crosses:
            between += moved
        else:
            inside += moved

    crosses_hosts = mesh.ranks > cluster.devices_per_host
    if mesh.strategy in ("fsdp", "hsdp"):
        shards_cross = mesh.shards * mesh.tensor_parallel > cluster.devices_per_host
        gathered = 2 * work.gathered_bytes * work.sharded_weights
        send(passes * (gathered + 4 * work.sharded_weights), mesh.shards, shards_cross)  # twice gathered, once summed
        send(passes * 2 * 4 * work.sharded_weights / mesh.shards, mesh.replicas, crosses_hosts)
        send(2 * 4 * work.whole_weights, mesh.ranks, crosses_hosts)
    else:
        send(2 * 4 * (work.sharded_weights + work.whole_weights), mesh.ranks, crosses_hosts)
    return inside, between


@dataclass(frozen=True)
class CorpusCost:
    """One pass over a corpus.

    Attributes:
        clips: its clips.
        steps: optimizer steps.
        operations: floating point operations.
        days: at the step time of the cluster.
        device_hours: of all devices.
        price: in the currency of ``Cluster.device_hour``.
        stored_terabytes: of the clips.
    """

    clips: float
    steps: float
    operations: float
    days: float
    device_hours: float
    price: float
    stored_terabytes: float


def estimate_corpus(
    work: Workload, time: StepTime, ranks: int, cluster: Cluster, hours: float, clip_seconds: float
) -> CorpusCost:
    """Estimate one pass over ``hours`` of video, cut into clips of ``clip_seconds`` that do not overlap."""
    clips = hours * 3600 / clip_seconds
    steps = clips / work.clips
    days = steps * time.seconds / 86400
    return CorpusCost(
        clips=clips,
        steps=steps,
        operations=clips * work.operations,
        days=days,
        device_hours=days * 24 * ranks,
        price=days * 24 * ranks * cluster.device_hour,
        stored_terabytes=clips * work.stored_bytes / 1e12,
    )
