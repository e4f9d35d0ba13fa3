"""Invariants of the efficient transformer, for every layout."""

import pytest
import torch
from factories import randomize

from vwm.core.states import concatenate_states
from vwm.nn.attention_kernels import dot_product_attention
from vwm.nn.recomputation import recompute_blocks
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates

FRAMES, WINDOW = 9, 4
LAYOUTS = {
    "factored": {},
    "time-every-4th": {"time_every": 4},
    "full": {"attention": "full"},
    "gqa": {"kv_heads": 2},
    "capped": {"soft_cap": 5.0},
    "gelu": {"mlp": "gelu"},
    "conditioned": {"conditioned": True},
    "full-conditioned-gqa": {"attention": "full", "conditioned": True, "kv_heads": 1},
}


def make_network(**changes) -> VideoTransformer:
    torch.manual_seed(0)
    return randomize(VideoTransformer(32, 4, 4, WINDOW, **changes)).double().eval()


@pytest.fixture(params=list(LAYOUTS))
def transformer(request):
    return make_network(**LAYOUTS[request.param])


def make_clip(seed: int = 0, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(2, frames, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_condition(transformer) -> torch.Tensor | None:
    return make_clip(1)[:, :, 0] if transformer.modulation is not None else None


COORDINATES = grid_coordinates(2, 2, before=2)


@pytest.mark.parametrize("chunks", [[1] * FRAMES, [FRAMES], [5, 4], [1, 6, 2]])
def test_streaming_equals_parallel_past_the_window(transformer, chunks):
    x, condition, start = make_clip(), make_condition(transformer), 0
    whole, state = transformer(x, COORDINATES, condition), transformer.init_state(2, 6)
    for length in chunks:
        chunk = slice(start, start + length)
        chunk_condition = None if condition is None else condition[:, chunk]
        y, state = transformer.step(x[:, chunk], state, COORDINATES, chunk_condition)
        torch.testing.assert_close(y, whole[:, chunk], rtol=0, atol=1e-10)
        start += length


def test_frames_attend_to_no_later_frame_and_to_none_outside_of_every_window(transformer):
    x = make_clip().requires_grad_()
    y = transformer(x, COORDINATES, make_condition(transformer))
    (grad,) = torch.autograd.grad(y[:, 4].sum(), x)
    assert (grad[:, 5:] == 0).all() and (grad[:, :5].abs().amax((0, 2, 3)) > 0).any()
    assert (grad[:, 4].abs() > 0).any()
    layers = sum(kind != "space" for kind in transformer.attention_kinds)
    (grad,) = torch.autograd.grad(transformer(x, COORDINATES, make_condition(transformer))[:, 8].sum(), x)
    receptive_field = layers * (WINDOW - 1)
    assert (grad[:, : max(0, 8 - receptive_field)] == 0).all()


def test_worlds_at_different_positions_step_in_one_batch(transformer):
    x, condition = make_clip(), make_condition(transformer)
    select_condition = (
        (lambda world, a, b: None) if condition is None else (lambda world, a, b: condition[world, a:b][None])
    )
    _, older = transformer.step(x[:1, :5], transformer.init_state(1, 6), COORDINATES, select_condition(0, 0, 5))
    _, newer = transformer.step(x[1:, :1], transformer.init_state(1, 6), COORDINATES, select_condition(1, 0, 1))
    alone = [
        transformer.step(x[:1, 5:6], older, COORDINATES, select_condition(0, 5, 6))[0],
        transformer.step(x[1:, 1:2], newer, COORDINATES, select_condition(1, 1, 2))[0],
    ]
    conditions = None if condition is None else torch.cat((select_condition(0, 5, 6), select_condition(1, 1, 2)))
    y, _ = transformer.step(
        torch.cat((x[:1, 5:6], x[1:, 1:2])), concatenate_states([older, newer]), COORDINATES, conditions
    )
    torch.testing.assert_close(y, torch.cat(alone), rtol=0, atol=1e-10)


def test_results_depend_only_on_relative_positions(transformer):
    """Rotary positions are relative: shifting all of them in time or space changes nothing."""
    x, condition = make_clip(), make_condition(transformer)
    shifted = transformer(x, COORDINATES + 5, condition, positions=torch.arange(FRAMES) + 1000)
    torch.testing.assert_close(shifted, transformer(x, COORDINATES, condition), rtol=0, atol=1e-9)
    scaled = transformer(x, COORDINATES * 3, condition)
    assert not torch.allclose(scaled, transformer(x, COORDINATES, condition), atol=1e-4)


def test_recomputation_does_not_change_gradients(transformer):
    x, condition = make_clip(), make_condition(transformer)
    gradients = []
    for recomputation in ("none", "selective", "full"):
        recompute_blocks(transformer.train(), recomputation)
        transformer.zero_grad()
        transformer(x, COORDINATES, condition).square().sum().backward()
        gradients.append([p.grad.clone() for p in transformer.parameters()])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*gradients, strict=True))


def test_a_space_mask_blocks_attention():
    transformer, x = make_network(), make_clip().requires_grad_()
    mask = torch.eye(6, dtype=torch.bool)
    (grad,) = torch.autograd.grad(transformer(x, COORDINATES, space_mask=mask)[:, :, 0].sum(), x)
    assert (grad[:, :, 1:] == 0).all() and (grad[:, :, 0] != 0).any()


def test_without_causality_frames_attend_to_later_ones_and_cannot_stream():
    transformer, x = make_network(causal=False), make_clip().requires_grad_()
    (grad,) = torch.autograd.grad(transformer(x, COORDINATES)[:, 0].sum(), x)
    assert (grad[:, 8] != 0).any()
    with pytest.raises(ValueError, match="causal=False"):
        transformer.step(x[:, :1], transformer.init_state(2, 6), COORDINATES)


def test_shared_key_heads_equal_repeated_heads():
    q, k, v = (torch.randn(2, h, 5, 8, dtype=torch.float64) for h in (6, 2, 2))
    mask = torch.ones(5, 5).tril().bool()
    repeated = dot_product_attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), mask)
    torch.testing.assert_close(dot_product_attention(q, k, v, mask), repeated, rtol=0, atol=1e-12)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(dot_product_attention(q, k, v, mask), fused, rtol=0, atol=1e-12)
    torch.testing.assert_close(dot_product_attention(q, k, v, mask, soft_cap=1e6), repeated, rtol=0, atol=1e-9)


@pytest.mark.parametrize("key_heads", [6, 2])
def test_a_soft_cap_bounds_logits_by_its_formula(key_heads):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 5, 8, dtype=torch.float64) * 3 for h in (6, key_heads, key_heads))
    mask = torch.ones(5, 5).tril().bool()
    keys, values = (x.repeat_interleave(6 // key_heads, 1) for x in (k, v))
    logits = torch.einsum("bhtc,bhsc->bhts", q, keys) / 8**0.5
    for cap in (1.0, 5.0):
        capped = (cap * torch.tanh(logits / cap)).masked_fill(~mask, -torch.inf)
        expected = torch.einsum("bhts,bhsc->bhtc", capped.softmax(-1), values)
        torch.testing.assert_close(dot_product_attention(q, k, v, mask, soft_cap=cap), expected, rtol=0, atol=1e-12)
        assert not torch.allclose(dot_product_attention(q, k, v, mask), expected, atol=0.1)


def test_a_soft_cap_applies_to_every_kind_of_layer():
    for layout in ({}, {"attention": "full"}, {"kv_heads": 2}):
        plain = make_network(**layout)(make_clip(), COORDINATES)
        high, low = (make_network(**layout, soft_cap=cap)(make_clip(), COORDINATES) for cap in (1e6, 1.0))
        torch.testing.assert_close(high, plain, rtol=0, atol=1e-9)
        assert not torch.allclose(low, plain, atol=1e-4)


def test_rejects_invalid_settings():
    for changes, message in (
        ({"window": 0}, "window"),
        ({"heads": 3}, "heads=3 must divide width=32"),
        ({"kv_heads": 3}, "kv_heads=3 must divide heads=4"),
        ({"time_every": 9}, r"time_every=9 must be 2\.\.depth=4"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoTransformer(**{"width": 32, "depth": 4, "heads": 4, "window": 4, **changes})
