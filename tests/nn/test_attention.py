"""Fused attention equals the formula."""

import pytest
import torch

from vwm.nn.attention import dot_product_attention, fused_attention


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize(
    "mask_shape", [None, (5, 9), (2, 1, 1, 5, 9), (2, 3, 4, 5, 9)], ids=["none", "all", "world", "each"]
)
def test_fused_attention_equals_the_formula_with_batch_dimensions_and_shared_heads(heads, mask_shape):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, h, t, 8, dtype=torch.float64, generator=generator)
        for h, t in ((4, 5), (heads, 9), (heads, 9))
    )
    mask = None if mask_shape is None else torch.rand(mask_shape, generator=generator) < 0.7
    if mask is not None:
        mask[..., 0] = True  # every query attends to at least one key
    torch.testing.assert_close(fused_attention(q, k, v, mask), dot_product_attention(q, k, v, mask), rtol=0, atol=1e-12)
