"""Muon on stacks of matrices equals timm's Muon, which takes one matrix after another."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from vwm.nn import muon
from vwm.nn.muon import Muon
from vwm.nn.optimizer import OptimizerConfig

SHAPES = [(24, 100)] * 3 + [(100, 24)] * 2 + [(16, 16), (16, 3, 2, 2), (16, 12)]
OTHER_SHAPES = [(10,), (), (1, 16, 8), (16, 1, 3, 3), (3, 8), (4, 600)]
"""Vectors, a position embedding, a depthwise convolution, and matrices that are too slim."""


def make_weights() -> nn.ParameterDict:
    torch.manual_seed(0)
    return nn.ParameterDict({f"w{i}": torch.randn(shape) for i, shape in enumerate(SHAPES + OTHER_SHAPES)})


def step(optimizer: torch.optim.Optimizer, weights: nn.ParameterDict, seed: int) -> None:
    """Take a step with given gradients; the last matrix has none in the first step."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in weights.items():
        gradient = torch.randn(weight.shape, generator=generator)
        weight.grad = None if seed == 0 and name == f"w{len(SHAPES) - 1}" else gradient
    optimizer.step()


@pytest.mark.parametrize("name", ["muon", "nmuon"])
def test_equals_timms_and_continues_from_its_state(name):
    theirs, ours = make_weights(), make_weights()
    settings = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    reference = create_optimizer_v2(theirs, opt=name, **settings)
    optimizer, _ = OptimizerConfig(name=name, warmup=0, **settings).build(ours, 10)
    assert type(optimizer) is Muon
    for seed in range(4):
        step(reference, theirs, seed)
        step(optimizer, ours, seed)
    resumed = copy.deepcopy(theirs)
    continued, _ = OptimizerConfig(name=name, warmup=0, **settings).build(resumed, 10)
    continued.load_state_dict(copy.deepcopy(reference.state_dict()))
    for seed in (4, 5):
        for one, weights in ((reference, theirs), (optimizer, ours), (continued, resumed)):
            step(one, weights, seed)
    for key, weight in theirs.items():
        for other in (ours, resumed):
            torch.testing.assert_close(other[key], weight, rtol=0, atol=1e-5)  # a step changes a weight by 1e-3
        names = set(reference.state[weight]) - {"use_muon"}
        assert names == set(optimizer.state[ours[key]])


def test_orthogonalizes_all_matrices_of_a_shape_at_once(monkeypatch):
    """A convolution of 16x3x2x2 is a matrix of 16x12."""
    stacks = []

    def record(stack, eps):
        stacks.append(tuple(stack.shape))
        return muon_orthogonalize(stack, eps)

    muon_orthogonalize = muon.orthogonalize
    monkeypatch.setattr(muon, "orthogonalize", record)
    weights = make_weights()
    optimizer, _ = OptimizerConfig(name="muon", lr=0.1, warmup=0).build(weights, 10)
    step(optimizer, weights, 1)
    assert sorted(stacks) == [(1, 16, 16), (2, 16, 12), (2, 100, 24), (3, 24, 100)]


@pytest.mark.parametrize("shape", [(2, 40, 8), (3, 8, 40), (2, 16, 16)])
def test_orthogonalized_matrices_keep_their_singular_vectors(shape):
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    u, s, v = torch.linalg.svd(stack, full_matrices=False)
    inner = u.mT @ muon.orthogonalize(stack).float() @ v.mT
    clear = s > 0.2 * s[:, :1]
    assert (inner.diagonal(dim1=1, dim2=2)[clear] - 1).abs().max() < 0.35
    assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 0.1


def test_matrices_in_float64_are_orthogonalized_in_float64():
    """An iteration maps each singular value to a s + b s^3 + c s^5: the last digit of a matrix must not change more."""
    stack = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(stack / stack.norm(dim=(1, 2), keepdim=True), full_matrices=False)
    for a, b, c in muon.NEWTON_SCHULZ_COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    result = muon.orthogonalize(stack)
    assert result.dtype == torch.float64
    assert (result - u @ torch.diag_embed(s) @ v).abs().max() < 1e-12
    assert muon.orthogonalize(stack.float()).dtype == torch.bfloat16


def test_refuses_flattened_weights():
    """FSDP's first version marks the parts of weights that a process holds."""
    weight = nn.Parameter(torch.zeros(8))
    weight._fsdp_flattened = True
    with pytest.raises(ValueError, match=r"\(8,\) is flattened: train with trainer.strategy=fsdp"):
        Muon([weight], lr=0.1)
