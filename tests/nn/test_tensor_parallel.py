"""Weights divided over processes; tests/train/test_sharded_training.py compares trainings."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vwm.core.blocks import find_blocks
from vwm.models.vjepa.module import VJEPAModule
from vwm.nn.attention import RotaryEmbedding, SpaceTimeAttention
from vwm.nn.grouped_query_attention import AttentionGeometry, GroupedQueryAttention
from vwm.nn.space_time import SpaceTimeBlock
from vwm.nn.tensor_parallel import (
    ColumnParallelLinear,
    TensorGroup,
    WeightSplit,
    divide_blocks,
    gradient_split,
    named_splits,
    restore_splits,
    weight_split,
    whole_shape,
)
from vwm.nn.video_transformer import FeedForward
from vwm.train.strategies import make_strategy, mesh_sides


class Alone(TensorGroup):
    """A process that gets nothing from the others."""

    def all_reduce(self, x: Tensor) -> None:
        pass


def members(layer: nn.Module, size: int = 2) -> list[nn.Module]:
    """Return what each process of a group has of a layer."""
    parts = [copy.deepcopy(layer) for _ in range(size)]
    for rank, part in enumerate(parts):
        part.divide_weights(Alone(size, rank))
    return parts


def random_weights(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for weight in layer.parameters():
        nn.init.normal_(weight)
    return layer.double()


def test_every_process_has_the_rows_of_its_own_heads():
    """Two query heads of two rows, and one key and one value head of two rows each, for each of two processes."""
    splits = [WeightSplit(TensorGroup(2, rank), 0, (8, 4, 4)) for rank in range(2)]
    whole = torch.arange(16)[:, None]
    parts = [split.cut(whole) for split in splits]
    assert parts[0].flatten().tolist() == [0, 1, 2, 3, 8, 9, 12, 13]
    assert parts[1].flatten().tolist() == [4, 5, 6, 7, 10, 11, 14, 15]
    assert torch.equal(splits[0].join(parts), whole)
    assert list(splits[1].pieces()) == [(0, 4, 4), (4, 10, 2), (6, 14, 2)]
    assert splits[0].whole_shape(parts[0].shape) == whole.shape
    stack = torch.stack([whole, whole + 16])
    assert torch.equal(splits[0].join([splits[0].cut(stack, rank, 1) for rank in range(2)], 1), stack)


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_results_of_all_processes_add_up_to_that_of_the_whole_feed_forward(kind: str):
    whole = random_weights(FeedForward(8, kind))
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.allclose(sum(part(x) for part in members(whole)), whole(x), atol=1e-12)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_results_of_all_processes_add_up_to_that_of_the_whole_attention(kv_heads: int):
    whole = random_weights(GroupedQueryAttention(16, 4, kv_heads, "space", None))
    x = torch.randn(1, 2, 3, 16, dtype=torch.float64)
    rotation = RotaryEmbedding(torch.ones(3, 2), torch.zeros(3, 2))
    geometry = AttentionGeometry({"space": rotation}, torch.ones(2, 2, dtype=torch.bool), None, None)
    total = sum(part(x, geometry, None)[0] for part in members(whole))
    assert torch.allclose(total, whole(x, geometry, None)[0], atol=1e-12)


def test_results_of_all_processes_add_up_to_that_of_attention_in_space():
    whole = random_weights(SpaceTimeAttention(8, 2))
    x = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    total = sum(part.attend_space(x) for part in members(whole))
    assert torch.allclose(total, whole.attend_space(x), atol=1e-12)


def test_weights_know_how_they_are_divided_and_keep_their_names():
    whole = SpaceTimeBlock(8, 2)
    part = members(whole)[1]
    assert [name for name, _ in part.named_parameters()] == [name for name, _ in whole.named_parameters()]
    shapes = {name: weight.shape for name, weight in whole.named_parameters()}
    assert {name: whole_shape(weight) for name, weight in part.named_parameters()} == shapes
    assert torch.equal(part.mlp[0].bias, whole.mlp[0].bias[16:]) and weight_split(part.mlp[2].bias) is None
    norm = part.space.query_norm.weight
    assert weight_split(norm) is None and gradient_split(norm).group.rank == 1
    splits = named_splits(part)
    part.double()
    other = copy.deepcopy(part)
    for weight in other.parameters():
        weight.__dict__.clear()
    assert not named_splits(other)
    restore_splits(other, splits)
    assert named_splits(other) == splits


def test_what_cannot_be_divided_is_refused():
    group = TensorGroup(2, 0)
    with pytest.raises(ValueError, match=r"tensor_parallel=2 does not divide heads=1: .* whole attention heads"):
        SpaceTimeAttention(8, 1).divide_weights(group)
    with pytest.raises(ValueError, match="does not divide kv_heads=1"):
        GroupedQueryAttention(8, 2, 1, "time", None).divide_weights(group)
    with pytest.raises(ValueError, match="does not divide the 9 units of a layer"):
        ColumnParallelLinear(nn.Linear(4, 9), group)
    with pytest.raises(ValueError, match=r"one is a Bilinear: set .* float8 to none, or train without LoRA"):
        ColumnParallelLinear(nn.Bilinear(4, 4, 4), group)
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Linear(2, 2)])
    assert len(list(find_blocks(network))) == 1
    with pytest.raises(ValueError, match=r"a Linear of Module cannot be divided over .*strategy=fsdp"):
        divide_blocks((network,), group)
    with pytest.raises(ValueError, match="layers of VJEPAModule cannot be divided"):
        VJEPAModule.divide_weights(VJEPAModule.__new__(VJEPAModule), group)
    with pytest.raises(ValueError, match=r"as trainer\.strategy=fsdp or hsdp does, and it is ddp"):
        make_strategy("ddp", 2)
    assert mesh_sides(1, "auto", processes=8, machines=1, tensor=2) == (1, 4)
    with pytest.raises(ValueError, match=r"1 replicas of 0 shards of 4 processes .* there are 2"):
        mesh_sides(1, "auto", processes=2, machines=1, tensor=4)
