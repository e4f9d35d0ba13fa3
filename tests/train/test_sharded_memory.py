"""The large configs are built and sharded on the meta device, and each process keeps its share of their weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from vwm.nn.sharding import is_sharded, local_part
from vwm.train.fit import parse_fit_config

CONFIGS = {
    "dit/dreamer4_1b": ([16, 16], 32, 0.9e9),
    "dit/oasis_600m": ([18, 32], 16, 0.6e9),
    "vjepa/vjepa2_vitg16": (None, None, 2.0e9),
}
"""Grid and channels of the latents, and least number of weights, of both encoders for V-JEPA."""


@pytest.fixture(params=[8, 512])
def ranks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A number of processes of which this one pretends to be the second: messages are not sent."""
    monkeypatch.setenv("RANK", "1")
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_process_keeps_its_share_of_the_weights(config: str, ranks: int, tmp_path: object) -> None:
    grid, channels, least = CONFIGS[config]
    argv = ["-c", f"configs/{config}.yaml", "--run", str(tmp_path), "--trainer.strategy", "fsdp"]
    argv += ["--trainer.devices", "1", "--trainer.precision", "bf16-mixed"]
    if grid is not None:  # a tokenizer in place of a folder that is not here
        sizes = f"image_size: {[16 * side for side in grid]}, patch_size: 16, latent_grid: {grid}"
        sizes += f", latent_channels: {channels}, width: 16, depth: 4, heads: 1"
        tokenizer = f"{{class_path: vwm.tokenizers.MaskedAutoencoderTokenizer, init_args: {{{sizes}}}}}"
        argv += ["--model.init_args.tokenizer", tokenizer]
    module = parse_fit_config(argv).model
    weights = [weight for network in module.networks().values() for weight in network.parameters()]
    total = sum(weight.numel() for weight in weights)
    assert total > least and all(weight.is_meta for weight in weights)
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("shards",))
    module.shard(mesh, torch.bfloat16)
    weights = [weight for network in module.networks().values() for weight in network.parameters()]
    assert sum(weight.numel() for weight in weights) == total and all(local_part(weight).is_meta for weight in weights)
    whole = sum(weight.numel() for weight in weights if not is_sharded(weight))
    part = sum(local_part(weight).numel() for weight in weights if is_sharded(weight))
    assert whole < 0.02 * total
    # Rows of a matrix are not divided: of 1,536 rows each of 512 processes has 3, of 1,408 the first 470 have 3.
    assert (total - whole) / ranks <= part <= 1.1 * (total - whole) / ranks
