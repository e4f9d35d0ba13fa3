"""The laws of the efficient transformer, for every layout."""

import pytest
import torch
from factories import randomize

from vwm.core.states import concatenate_states
from vwm.nn.attention import dot_product_attention
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


def network(**changes) -> VideoTransformer:
    torch.manual_seed(0)
    return randomize(VideoTransformer(32, 4, 4, WINDOW, **changes)).double().eval()


@pytest.fixture(params=list(LAYOUTS))
def transformer(request):
    return network(**LAYOUTS[request.param])


def clip(seed: int = 0, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(2, frames, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def vectors(transformer) -> torch.Tensor | None:
    return clip(1)[:, :, 0] if transformer.modulation is not None else None


PLACES = grid_coordinates(2, 2, extra=2)


@pytest.mark.parametrize("chunks", [[1] * FRAMES, [FRAMES], [5, 4], [1, 6, 2]])
def test_streaming_is_parallel_past_the_window(transformer, chunks):
    x, condition, start = clip(), vectors(transformer), 0
    whole, state = transformer(x, PLACES, condition), transformer.init_state(2, 6)
    for length in chunks:
        here = slice(start, start + length)
        some = None if condition is None else condition[:, here]
        y, state = transformer.step(x[:, here], state, PLACES, some)
        torch.testing.assert_close(y, whole[:, here], rtol=0, atol=1e-10)
        start += length


def test_no_frame_sees_a_later_one_or_one_that_has_left_every_window(transformer):
    x = clip().requires_grad_()
    y = transformer(x, PLACES, vectors(transformer))
    (grad,) = torch.autograd.grad(y[:, 4].sum(), x)
    assert (grad[:, 5:] == 0).all() and (grad[:, :5].abs().amax((0, 2, 3)) > 0).any()
    assert (grad[:, 4].abs() > 0).any()
    layers = sum(kind != "space" for kind in transformer.attention_kinds)
    (grad,) = torch.autograd.grad(transformer(x, PLACES, vectors(transformer))[:, 8].sum(), x)
    reach = layers * (WINDOW - 1)
    assert (grad[:, : max(0, 8 - reach)] == 0).all()


def test_worlds_of_different_age_step_in_one_batch(transformer):
    x, condition = clip(), vectors(transformer)
    pick = (lambda world, a, b: None) if condition is None else (lambda world, a, b: condition[world, a:b][None])
    _, old = transformer.step(x[:1, :5], transformer.init_state(1, 6), PLACES, pick(0, 0, 5))
    _, young = transformer.step(x[1:, :1], transformer.init_state(1, 6), PLACES, pick(1, 0, 1))
    alone = [
        transformer.step(x[:1, 5:6], old, PLACES, pick(0, 5, 6))[0],
        transformer.step(x[1:, 1:2], young, PLACES, pick(1, 1, 2))[0],
    ]
    both = None if condition is None else torch.cat((pick(0, 5, 6), pick(1, 1, 2)))
    y, _ = transformer.step(torch.cat((x[:1, 5:6], x[1:, 1:2])), concatenate_states([old, young]), PLACES, both)
    torch.testing.assert_close(y, torch.cat(alone), rtol=0, atol=1e-10)


def test_places_and_frame_numbers_count_only_by_their_differences(transformer):
    """Rotary positions are relative: a world moved in time or space looks the same to itself."""
    x, condition = clip(), vectors(transformer)
    moved = transformer(x, PLACES + 5, condition, positions=torch.arange(FRAMES) + 1000)
    torch.testing.assert_close(moved, transformer(x, PLACES, condition), rtol=0, atol=1e-9)
    scaled = transformer(x, PLACES * 3, condition)
    assert not torch.allclose(scaled, transformer(x, PLACES, condition), atol=1e-4)


def test_recomputed_layers_give_the_same_gradients(transformer):
    x, condition = clip(), vectors(transformer)
    gradients = []
    for recompute in (False, True):
        transformer.train().checkpointing = recompute
        transformer.zero_grad()
        transformer(x, PLACES, condition).square().sum().backward()
        gradients.append([p.grad.clone() for p in transformer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_space_mask_holds():
    transformer, x = network(), clip().requires_grad_()
    mask = torch.eye(6, dtype=torch.bool)
    (grad,) = torch.autograd.grad(transformer(x, PLACES, space_mask=mask)[:, :, 0].sum(), x)
    assert (grad[:, :, 1:] == 0).all() and (grad[:, :, 0] != 0).any()


def test_without_causality_frames_see_later_ones_and_cannot_stream():
    transformer, x = network(causal=False), clip().requires_grad_()
    (grad,) = torch.autograd.grad(transformer(x, PLACES)[:, 0].sum(), x)
    assert (grad[:, 8] != 0).any()
    with pytest.raises(ValueError, match="causal=False"):
        transformer.step(x[:, :1], transformer.init_state(2, 6), PLACES)


def test_shared_key_heads_are_repeated_ones():
    q, k, v = (torch.randn(2, h, 5, 8, dtype=torch.float64) for h in (6, 2, 2))
    mask = torch.ones(5, 5).tril().bool()
    wide = dot_product_attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), mask)
    torch.testing.assert_close(dot_product_attention(q, k, v, mask), wide, rtol=0, atol=1e-12)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(dot_product_attention(q, k, v, mask), fused, rtol=0, atol=1e-12)
    torch.testing.assert_close(dot_product_attention(q, k, v, mask, soft_cap=1e6), wide, rtol=0, atol=1e-9)


@pytest.mark.parametrize("key_heads", [6, 2])
def test_a_soft_cap_bounds_logits_as_its_formula_says(key_heads):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 5, 8, dtype=torch.float64) * 3 for h in (6, key_heads, key_heads))
    mask = torch.ones(5, 5).tril().bool()
    keys, values = (p.repeat_interleave(6 // key_heads, 1) for p in (k, v))
    logits = torch.einsum("bhtc,bhsc->bhts", q, keys) / 8**0.5
    for cap in (1.0, 5.0):
        capped = (cap * torch.tanh(logits / cap)).masked_fill(~mask, -torch.inf)
        expected = torch.einsum("bhts,bhsc->bhtc", capped.softmax(-1), values)
        torch.testing.assert_close(dot_product_attention(q, k, v, mask, soft_cap=cap), expected, rtol=0, atol=1e-12)
        assert not torch.allclose(dot_product_attention(q, k, v, mask), expected, atol=0.1)


def test_a_soft_cap_reaches_every_kind_of_layer():
    for layout in ({}, {"attention": "full"}, {"kv_heads": 2}):
        plain = network(**layout)(clip(), PLACES)
        high, low = (network(**layout, soft_cap=cap)(clip(), PLACES) for cap in (1e6, 1.0))
        torch.testing.assert_close(high, plain, rtol=0, atol=1e-9)
        assert not torch.allclose(low, plain, atol=1e-4)


def test_errors_name_the_cause():
    for changes, message in (
        ({"window": 0}, "window"),
        ({"heads": 3}, "heads=3 must divide width=32"),
        ({"kv_heads": 3}, "kv_heads=3 must divide heads=4"),
        ({"time_every": 9}, r"time_every=9 must be 2\.\.depth=4"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoTransformer(**{"width": 32, "depth": 4, "heads": 4, "window": 4, **changes})
