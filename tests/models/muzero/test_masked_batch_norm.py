"""Masked batch norm = batch norm of the valid entries alone, in values and gradients."""

import torch
from torch import nn

from vwm.models.muzero.masked_batch_norm import masked_batch_norm


def test_valid_entries_get_what_batch_norm_gives_them_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    valid = torch.arange(9) % 3 != 1
    norm = nn.BatchNorm1d(5, track_running_stats=False).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    upstream = torch.randn(9, 5, dtype=torch.float64).masked_fill(~valid[:, None], 0)
    gradients = []
    for y in (norm(x[valid]), masked_batch_norm(norm, x, valid)[valid]):
        gradients.append(torch.autograd.grad((y * upstream[valid]).sum(), (x, norm.weight, norm.bias)))
    torch.testing.assert_close(masked_batch_norm(norm, x, valid)[valid], norm(x[valid]), rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_of_all_entries_are_right() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    norm = nn.BatchNorm1d(3, track_running_stats=False).double()
    valid = torch.tensor([True, True, False, True, False, True])
    assert torch.autograd.gradcheck(lambda given: masked_batch_norm(norm, given, valid), (x,))
