"""Invariants of the space-time transformer: streaming equals parallel, causality, the window, checkpointing."""

import pytest
import torch
from factories import randomize
from torch import Tensor

from vwm.core.states import concatenate_states, merge_states, select_worlds, state_batch_size
from vwm.nn import attention
from vwm.nn.attention import apply_rotary, frame_rotary_embedding
from vwm.nn.attention_kernels import dot_product_attention
from vwm.nn.recomputation import recompute_blocks
from vwm.nn.space_time import SpaceTimeTransformer
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates

FRAMES = 11


def make_network(window: int = 4) -> SpaceTimeTransformer:
    torch.manual_seed(0)
    return randomize(SpaceTimeTransformer(width=16, depth=3, heads=2, window=window)).double()


def make_clip(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, FRAMES, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chunks", [[1] * FRAMES, [FRAMES], [4, 7], [7, 1, 3], [2, 2, 2, 2, 2, 1]])
@pytest.mark.parametrize("window", [1, 4, FRAMES, 20])
def test_streaming_equals_parallel_for_every_chunking(chunks, window):
    model, x = make_network(window), make_clip()
    state, parts, start = model.init_state(2, 5), [], 0
    for length in chunks:
        y, state = model.step(x[:, start : start + length], state)
        parts.append(y)
        start += length
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x), rtol=0, atol=1e-10)


def test_a_step_does_not_change_the_given_state():
    model, x = make_network(), make_clip()
    _, state = model.step(x[:, :3], model.init_state(2, 5))
    before = [k.keys.clone() for k in state.blocks]
    first, _ = model.step(x[:, 3:4], state)
    second, _ = model.step(x[:, 3:4], state)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b.keys) for a, b in zip(before, state.blocks, strict=True))


def test_no_frame_depends_on_a_later_one():
    model, x = make_network(), make_clip()
    changed = x.clone()
    changed[:, 6:] = -changed[:, 6:]
    assert torch.equal(model(x)[:, :6], model(changed)[:, :6])
    assert not torch.allclose(model(x)[:, 6], model(changed)[:, 6])


def test_a_block_attends_to_exactly_its_window():
    model, x = make_network(window=3), make_clip()
    model.blocks = model.blocks[:1]  # one block, so that the receptive field is the window itself
    changed = x.clone()
    changed[:, 2] = -changed[:, 2]
    differs = (model(x) - model(changed)).abs().amax(dim=(0, 2, 3)) > 1e-9
    assert differs.tolist() == [2 <= t < 5 for t in range(FRAMES)]


def test_tokens_of_a_frame_attend_to_each_other():
    model, x = make_network(), make_clip()
    changed = x.clone()
    changed[:, 4, 0] = -changed[:, 4, 0]
    assert ((model(x) - model(changed))[:, 4].abs().amax(dim=-1) > 1e-9).all()


def test_worlds_that_started_at_different_times_step_together():
    model, x = make_network(), make_clip()
    _, older = model.step(x[:1, :7], model.init_state(1, 5))
    _, newer = model.step(x[1:, :2], model.init_state(1, 5))
    batched, new_state = model.step(x[:, 7:8], concatenate_states([older, newer]))
    alone, _ = model.step(x[1:, 7:8], newer)
    torch.testing.assert_close(batched[1:], alone, rtol=0, atol=1e-12)
    assert new_state.position.tolist() == [8, 3]
    restarted = merge_states(torch.tensor([True, False]), model.init_state(2, 5), new_state)
    assert (
        restarted.position.tolist() == [0, 3]
        and state_batch_size(select_worlds(restarted, torch.tensor([0, 0, 1]))) == 3
    )


@pytest.mark.parametrize("recomputation", ["selective", "full"])
def test_recomputation_does_not_change_gradients(recomputation):
    model, x = make_network(), make_clip().requires_grad_()
    model(x).square().sum().backward()
    plain, x.grad = x.grad, None
    recompute_blocks(model, recomputation)
    model(x).square().sum().backward()
    assert torch.equal(plain, x.grad)


def test_rotary_products_depend_only_on_the_distance_at_large_positions():
    q, k = torch.randn(2, 1, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def product(i: int, j: int) -> torch.Tensor:
        rotations = (frame_rotary_embedding(torch.tensor([at]), 4, torch.float64) for at in (i, j))
        rotated_q, rotated_k = (apply_rotary(x, rotation) for x, rotation in zip((q, k), rotations, strict=True))
        return (rotated_q * rotated_k).sum()

    assert torch.allclose(product(3, 1), product(1_000_003, 1_000_001), rtol=0, atol=1e-8)


@pytest.mark.parametrize("autocast", [False, True])
def test_rotary_tables_are_made_once_per_forward_in_the_type_of_the_queries(monkeypatch, autocast):
    """Counted by their float64 cosines; converted from float64 at once, a table is rounded once."""
    cosines, types = [], set()
    cos, apply = Tensor.cos, attention.apply_rotary

    def record_types(x, rotation):
        types.add((x.dtype, rotation.cos.dtype))
        return apply(x, rotation)

    monkeypatch.setattr(Tensor, "cos", lambda angles: cosines.append(angles.dtype) or cos(angles))
    monkeypatch.setattr(attention, "apply_rotary", record_types)
    model, x = make_network().float(), make_clip().float()
    video = VideoTransformer(16, 4, 2, window=4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(x)
        model.step(x[:, :3], model.init_state(2, 5))
        assert cosines == [torch.float64] * 2
        assert types == {(torch.bfloat16,) * 2 if autocast else (torch.float32,) * 2}
        video(x, grid_coordinates(1, 5))
    assert len(cosines) == 2 + 2  # of time and of space


def test_the_attention_formula_equals_torchs():
    q, k, v = torch.randn(3, 2, 3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(dot_product_attention(q, k, v, mask), expected, rtol=0, atol=1e-12)


def test_rejects_a_width_that_is_not_divisible_by_the_heads():
    with pytest.raises(ValueError, match="heads=3 must divide width=16"):
        SpaceTimeTransformer(width=16, depth=1, heads=3, window=2)
