"""Predicted memory, computed on the meta device, equals what a training on this machine allocates."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from factories import dit
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from vwm.cli.main import main
from vwm.data.clips import ClipBatch
from vwm.models.dit.module import DiTModule
from vwm.models.dit.objectives import DiffusionForcing
from vwm.nn.kernel_device import kernels_of
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.recomputation import Recomputation, recompute_blocks
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.train.estimate import MetaContextGroup, MetaTensorGroup
from vwm.train.memory_estimate import MemoryEstimate, ProcessMesh, estimate_memory
from vwm.train.meta_step import measure_step_memory
from vwm.train.scale_estimate import Cluster, StepTime, Workload, estimate_corpus, estimate_step_time

CLIPS, FRAMES, SIDE = 4, 6, 8
ONE_PROCESS = ProcessMesh("single", 1, 1)


def module(optimizer: str = "adamw", **settings: Any) -> DiTModule:
    torch.manual_seed(0)
    network = dit(grid=(SIDE, SIDE), channels=3, width=32, depth=4, heads=2, window=FRAMES, **settings)
    return DiTModule(
        PixelTokenizer((SIDE, SIDE)), network, DiffusionForcing(), OptimizerConfig(optimizer), context="noisy"
    ).train()


def clips() -> ClipBatch:
    frames = torch.zeros(CLIPS, FRAMES, SIDE, SIDE, 3, dtype=torch.uint8)
    return ClipBatch(frames=frames, actions=torch.zeros(CLIPS, FRAMES, dtype=torch.int64), seed=torch.arange(CLIPS))


def test_processes_that_share_clips_divide_the_activations():
    whole, halved = on_meta(module(), clips()), on_meta(module(), clips())
    halved[0].share_clips(MetaContextGroup(2, 1))
    with kernels_of("cpu"):
        expected, measured = (measure_step_memory(*arguments, sharded=True) for arguments in (whole, halved))
    assert measured.kept == pytest.approx(expected.kept / 2, rel=0.15)
    layer = CLIPS * FRAMES * (SIDE**2 + whole[0].dynamics.registers) * 32 * 4
    exchanges = 2 * 2 * 2  # of two layers of attention in time: there and back, forward and backward
    assert halved[0].context_group.sent == pytest.approx(exchanges * layer / 4, rel=0.1)


def test_processes_that_share_layers_divide_the_weights_of_blocks():
    whole, halved = on_meta(module(), clips()), on_meta(module(), clips())
    group = MetaTensorGroup(2, 0)
    halved[0].divide_weights(group)
    with kernels_of("cpu"):
        measure_step_memory(*halved, sharded=True)
    frames = CLIPS * FRAMES * 4
    tokens, layers = SIDE**2 + whole[0].dynamics.registers, 4
    # Sums of two branches forward and of their gradients backward; six vectors of modulation, and one's gradient.
    assert group.sent == layers * frames * 32 * (4 * tokens + 6 / 2 + 1)
    mesh = ProcessMesh("fsdp", 1, 1, tensor_parallel=2)
    assert mesh.ranks == 2 and mesh.clip_ranks == 1 and str(mesh) == "fsdp, tensor 2"
    expected, divided = estimate_memory(*whole, ProcessMesh("fsdp", 1, 2)), estimate_memory(*halved, mesh)
    assert divided.weights == pytest.approx(expected.weights, rel=0.01)
    assert divided.optimizer == pytest.approx(expected.optimizer, rel=0.01)
    assert divided.activations < expected.activations


def on_meta(network: nn.Module, batch: ClipBatch) -> tuple[Any, ClipBatch]:
    return network.to("meta"), ClipBatch(**{n: x.to("meta") for n, x in vars(batch).items() if x is not None})


def allocated(run: Any) -> tuple[int, int]:
    """Bytes that a function leaves allocated, and the most at any time, as torch's allocator reports them.

    The profiler misses releases of what was allocated before it began, so that a function must be a whole step.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del kept
    return live, peak


@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
def test_activations_are_those_that_the_allocator_counts(recomputation: Recomputation):
    real = module()
    recompute_blocks(real, recomputation)
    batch = clips()
    real(batch)[0].backward()  # gradients and caches exist from now on
    real.zero_grad(set_to_none=False)
    kept, forward_peak = allocated(lambda: real(batch)[0])
    _, step_peak = allocated(lambda: real(batch)[0].backward())
    with kernels_of("cpu"):
        predicted = measure_step_memory(*on_meta(module(), clips()), recomputation)
    assert predicted.kept == pytest.approx(kept, rel=0.02)
    assert predicted.forward_peak == pytest.approx(forward_peak, rel=0.02)
    assert max(predicted.forward_peak, predicted.backward_peak) == pytest.approx(step_peak, rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_gradients_and_optimizer_state_are_exact(optimizer: str):
    real = module(optimizer)
    real(clips())[0].backward()
    algorithm, _ = real.optimizer.build(real, max_steps=10)
    algorithm.step()
    state = [x for states in algorithm.state.values() for x in states.values() if isinstance(x, Tensor)]
    predicted = predict(optimizer)
    trained = [p for p in real.parameters() if p.grad is not None]
    assert predicted.weights == sum(p.nbytes for p in real.parameters() if p.requires_grad)
    assert predicted.gradients == predicted.weights >= sum(p.grad.nbytes for p in trained)
    assert predicted.optimizer == pytest.approx(sum(x.nbytes for x in state), rel=0.01)
    assert predicted.average == sum(p.nbytes for p in real.dynamics.parameters())


def predict(optimizer: str = "adamw", mesh: ProcessMesh = ONE_PROCESS) -> MemoryEstimate:
    return estimate_memory(*on_meta(module(optimizer), clips()), mesh)


def test_sharded_blocks_are_divided_and_all_else_is_whole():
    whole, halved = predict(), predict(mesh=ProcessMesh("fsdp", 1, 2))
    blocks = sum(p.nbytes for block in module().dynamics.transformer.blocks for p in block.parameters())
    assert whole.weights - halved.weights == pytest.approx(blocks / 2, rel=0.01)
    assert whole.optimizer - halved.optimizer == pytest.approx(blocks, rel=0.01)
    replicated = predict(mesh=ProcessMesh("hsdp", 8, 2))
    assert replicated == halved
    assert predict(mesh=ProcessMesh("ddp", 2, 1)).buckets == whole.gradients


WORK = Workload(operations=1e12, clip_bytes=10**6, stored_bytes=10**5, clips=64, sharded_weights=10**9, whole_weights=0)


FAST_LINKS = Cluster(teraflops=1000, mfu=0.5, link_gigabytes=1e6, host_gigabytes=1e6)


def step_time(ranks: int, cluster: Cluster | None = None, batch: int = 1) -> StepTime:
    return estimate_step_time(WORK, ProcessMesh("ddp", ranks, 1), cluster or Cluster(), batch)


def test_a_step_is_as_long_as_its_longest_part():
    time = step_time(8, FAST_LINKS)
    assert time.compute == pytest.approx(8 * 1e12 / 500e12) and time.bottleneck == "compute"
    assert time.accumulation == 8 and step_time(8, batch=8).accumulation == 1
    slow = step_time(16, Cluster(network_gigabytes=1, host_gigabytes=1e6))
    assert slow.bottleneck == "network" and slow.network == pytest.approx(2 * 4 * 15 / 16)  # an all-reduce of 4 GB
    assert step_time(8, Cluster(link_gigabytes=1e6, host_gigabytes=1e6, storage_gigabytes=1e-3)).bottleneck == "storage"
    assert step_time(8, Cluster(link_gigabytes=1e6, host_gigabytes=1e-3)).bottleneck == "reading on hosts"
    assert step_time(128, Cluster(network_gigabytes=1e6, host_gigabytes=1e6)).bottleneck == "global batch"


def test_the_cost_of_a_corpus_is_counted_in_clips():
    time = step_time(8, FAST_LINKS)
    cost = estimate_corpus(WORK, time, 8, Cluster(device_hour=2), hours=1, clip_seconds=2)
    assert cost.clips == 1800 and cost.operations == 1800e12
    assert cost.device_hours == pytest.approx(1800 / 64 * time.seconds / 3600 * 8)
    assert cost.price == pytest.approx(2 * cost.device_hours)


@pytest.mark.parametrize(
    "config", ["dit/dreamer4_1b", "dit/oasis_600m", "vjepa/vjepa2_vitg16", "tokenizer/coinrun_small"]
)
def test_the_command_estimates_large_configs(config: str, capsys: pytest.CaptureFixture[str]):
    main(["estimate", "-c", config, "--strategy", "fsdp", "--ranks", "8,512", "--json"])
    printed = json.loads(capsys.readouterr().out)
    few, many = (row["memory"] for row in printed["estimates"])
    trained = printed["trained_in_blocks"] + printed["trained_elsewhere"]
    assert few["weights"] * 8 >= 4 * trained > few["weights"] and many["weights"] < few["weights"]
    assert printed["operations_per_clip"] > 0 and few["total"] > many["total"] > many["activations"]
