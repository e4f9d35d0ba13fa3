"""The laws of causal layers; that streaming equals a whole clip is tested on whole tokenizers (test_contract.py)."""

import pytest
import torch

from vwm.nn.causal_conv import CausalConvStack, DepthToSpaceTime, SpaceTimeToDepth


def frames(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, count, 4, 4, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("time", [1, 2, 4])
def test_split_undoes_merge(time):
    x, merge, split = frames(9), SpaceTimeToDepth(time, 2), DepthToSpaceTime(time, 2)
    groups, _ = merge(x, merge.init_state(x, 2, 4, 4, 3))
    assert groups.shape == (2, 1 + 8 // time, 2, 2, 12 * time)
    back, _ = split(groups, split.init_state(x, 2))
    assert torch.equal(back, x)


def test_the_first_frame_makes_the_first_group_alone_and_a_half_filled_group_waits():
    x, merge = frames(7), SpaceTimeToDepth(4, 1)
    first, state = merge(x[:, :1], merge.init_state(x, 2, 4, 4, 3))
    assert torch.equal(first[:, 0].unflatten(-1, (4, 3))[..., 2, :], x[:, 0])
    none, state = merge(x[:, 1:4], state)
    assert none.shape[1] == 0 and torch.equal(state.frames, x[:, 1:4])
    same, again = merge(x[:, :0], state)
    assert same.shape[1] == 0 and torch.equal(again.frames, state.frames)
    second, state = merge(x[:, 4:6], state)
    assert torch.equal(second[:, 0].unflatten(-1, (4, 3))[..., 0, :], x[:, 1])
    assert torch.equal(state.frames, x[:, 5:6])


def test_no_frames_change_nothing():
    stack, x = CausalConvStack(3, 2).double(), frames(4)
    _, state = stack(x, stack.init_state(x, 2, 4, 4))
    nothing, after = stack(x[:, :0], state)
    assert nothing.shape == (2, 0, 4, 4, 3)
    assert all(torch.equal(a, b) for a, b in zip(after, state, strict=True))


def test_a_new_stack_is_the_identity():
    stack, x = CausalConvStack(3, 2).double(), frames(4)
    assert torch.equal(stack(x, stack.init_state(x, 2, 4, 4))[0], x)
