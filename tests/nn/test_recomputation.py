"""What is recomputed, and what stays as it is. Networks' own tests compare gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vwm.core.blocks import find_blocks
from vwm.nn.recomputation import recompute_blocks, without_recomputation
from vwm.nn.space_time import SpaceTimeTransformer


class ProductCounter(TorchDispatchMode):
    """Counts matrix products and exponential functions of softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.softmaxes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.products += operator.name() in ("aten::mm", "aten::bmm")
        self.softmaxes += operator.name() == "aten::_softmax"
        return operator(*args, **(kwargs or {}))


def make_network() -> SpaceTimeTransformer:
    torch.manual_seed(0)
    network = SpaceTimeTransformer(width=16, depth=2, heads=2, window=4).double().train()
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.2)
    return network


def clip() -> Tensor:
    return torch.randn(2, 4, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


def saved_bytes(network: nn.Module) -> int:
    """Bytes of the distinct tensors that the forward pass keeps for the backward pass."""
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        network(clip())
    weights = {p.data_ptr() for p in network.parameters()}
    return sum(x.nbytes for pointer, x in kept.items() if pointer not in weights)


def backward_counts(network: nn.Module) -> tuple[int, int]:
    loss = network(clip()).square().mean()
    with ProductCounter() as counter:
        loss.backward()
    return counter.products, counter.softmaxes


def test_selective_recomputation_repeats_no_product():
    counts = {}
    for recomputation in ("none", "selective", "full"):
        network = make_network()
        recompute_blocks(network, recomputation)
        counts[recomputation] = backward_counts(network)
    (products, softmaxes), attentions = counts["none"], 2 * 2
    assert softmaxes == 0 and counts["selective"] == (products, attentions)
    assert counts["full"][0] > products and counts["full"][1] == attentions


def test_full_recomputation_keeps_only_the_inputs_of_blocks():
    network = make_network()
    plain = saved_bytes(network)
    recompute_blocks(network, "full")
    assert saved_bytes(network) < plain / 4


def test_recomputation_changes_neither_names_nor_copies_nor_evaluation():
    network = make_network()
    names = list(network.state_dict())
    recompute_blocks(network, "selective")
    assert list(network.state_dict()) == names
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    loss = copied(clip()).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in copied.parameters())
    assert all(p.grad is None for p in network.parameters())
    copied.eval()
    assert backward_counts(copied)[1] == 0
    recompute_blocks(copied.train(), "none")
    assert backward_counts(copied)[1] == 0


def test_recomputation_is_off_inside_the_context():
    network = make_network()
    recompute_blocks(network, "full")
    with without_recomputation(network):
        assert backward_counts(network)[1] == 0
    assert backward_counts(network)[1] == 4


@pytest.mark.parametrize("part", [nn.Linear(2, 2), nn.Module()])
def test_only_sequences_of_modules_are_blocks(part):
    part.blocks = 8  # as a number of blocks in a decoder's settings
    assert not list(find_blocks(part))
