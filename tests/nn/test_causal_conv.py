"""Invariants of causal layers; test_contract.py checks on tokenizers that streaming equals the parallel path."""

import pytest
import torch

from vwm.nn.causal_conv import CausalConvStack, DepthToSpaceTime, SpaceTimeToDepth


def make_frames(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, count, 4, 4, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("time", [1, 2, 4])
def test_depth_to_space_time_inverts_space_time_to_depth(time):
    x, merge, split = make_frames(9), SpaceTimeToDepth(time, 2), DepthToSpaceTime(time, 2)
    groups, _ = merge(x, merge.init_state(x, 2, 4, 4, 3))
    assert groups.shape == (2, 1 + 8 // time, 2, 2, 12 * time)
    restored, _ = split(groups, split.init_state(x, 2))
    assert torch.equal(restored, x)


def test_the_first_frame_is_a_group_of_its_own_and_incomplete_groups_stay_in_the_state():
    x, merge = make_frames(7), SpaceTimeToDepth(4, 1)
    first, state = merge(x[:, :1], merge.init_state(x, 2, 4, 4, 3))
    assert torch.equal(first[:, 0].unflatten(-1, (4, 3))[..., 2, :], x[:, 0])
    no_groups, state = merge(x[:, 1:4], state)
    assert no_groups.shape[1] == 0 and torch.equal(state.frames, x[:, 1:4])
    still_no_groups, same_state = merge(x[:, :0], state)
    assert still_no_groups.shape[1] == 0 and torch.equal(same_state.frames, state.frames)
    second, state = merge(x[:, 4:6], state)
    assert torch.equal(second[:, 0].unflatten(-1, (4, 3))[..., 0, :], x[:, 1])
    assert torch.equal(state.frames, x[:, 5:6])


def test_a_chunk_without_frames_does_not_change_the_state():
    stack, x = CausalConvStack(3, 2).double(), make_frames(4)
    _, state = stack(x, stack.init_state(x, 2, 4, 4))
    output, new_state = stack(x[:, :0], state)
    assert output.shape == (2, 0, 4, 4, 3)
    assert all(torch.equal(a, b) for a, b in zip(new_state, state, strict=True))


def test_a_new_stack_is_the_identity():
    stack, x = CausalConvStack(3, 2).double(), make_frames(4)
    assert torch.equal(stack(x, stack.init_state(x, 2, 4, 4))[0], x)
