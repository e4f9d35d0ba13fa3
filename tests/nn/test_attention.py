"""Every kernel equals the formula, and each shape gets the one that was measured to be fastest."""

import pytest
import torch
from torch import Tensor

from vwm.nn.attention_kernels import (
    KeyValueCache,
    choose_kernel,
    dot_product_attention,
    formula_attention,
    fused_attention,
    packed_attention,
)


def draw(heads: int, queries: int, keys: int, places: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(2, places, h, t, 8, dtype=torch.float64, generator=generator)
        for h, t in ((4, queries), (heads, keys), (heads, keys))
    )


def draw_mask(shape: tuple[int, ...] | None) -> Tensor | None:
    if shape is None:
        return None
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[..., 0] = True  # every query attends to at least one key
    return mask


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize(
    "mask_shape", [None, (5, 9), (2, 1, 1, 5, 9), (2, 3, 4, 5, 9)], ids=["none", "all", "world", "each"]
)
def test_fused_attention_equals_the_formula_with_batch_dimensions_and_shared_heads(heads, mask_shape):
    q, k, v = draw(heads, 5, 9)
    mask = draw_mask(mask_shape)
    torch.testing.assert_close(fused_attention(q, k, v, mask), dot_product_attention(q, k, v, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("mask_shape", [None, (8, 8), (8, 11)], ids=str)
@pytest.mark.parametrize("places", [1, 3, 8, 31])
def test_packed_sequences_equal_the_formula(heads, mask_shape, places):
    q, k, v = draw(heads, 8, 11 if mask_shape == (8, 11) else 8, places)
    mask = draw_mask(mask_shape)
    expected = dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(packed_attention(q, k, v, mask), expected, rtol=0, atol=1e-12)


def test_the_causal_kernel_equals_the_causal_mask():
    q, k, v = draw(2, 6, 6)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(
        fused_attention(q, k, v, mask, is_causal=True), dot_product_attention(q, k, v, mask), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_keys_of_the_past_need_not_be_joined_with_those_of_the_present(queries, heads, soft_cap):
    q, k, v = draw(heads, queries, queries + 5)
    mask = draw_mask((2, 1, 1, queries, queries + 5))
    past, k_new, v_new = KeyValueCache(k[..., :5, :], v[..., :5, :]), k[..., 5:, :], v[..., 5:, :]
    expected = formula_attention(q, [KeyValueCache(k, v)], mask, soft_cap)
    torch.testing.assert_close(
        formula_attention(q, [past, KeyValueCache(k_new, v_new)], mask, soft_cap), expected, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        dot_product_attention(q, k_new, v_new, mask, soft_cap, past=past), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("shape", "options", "kernel"),
    [
        (("cpu", 64, 64), {}, "formula"),
        (("cuda", 64, 64), {}, "fused"),
        (("cuda", 1, 64), {}, "formula"),
        (("cuda", 8, 8), {}, "packed"),
        (("cuda", 8, 8), {"same_mask": False}, "fused"),
        (("cuda", 8, 8), {"compiling": True}, "packed"),
        (("cuda", 16, 16), {"compiling": True}, "formula"),
        (("cuda", 16, 16), {}, "packed"),
        (("cuda", 32, 32), {}, "fused"),
        (("cuda", 32, 32), {"compiling": True}, "formula"),
        (("cuda", 33, 33), {"compiling": True}, "fused"),
        (("cuda", 64, 64), {"only_formula": True}, "formula"),
    ],
)
def test_the_kernel_fits_the_shape(shape, options, kernel):
    assert choose_kernel(*shape, **options) == kernel
