"""Position encodings equal their formulas."""

import math

import pytest
import torch

from vwm.models.vjepa.position_encoding import PositionEncoding, apply_rotary_tables, token_coordinates

GRID = (3, 2, 4)
LIKE = torch.zeros(1, dtype=torch.float64)


def test_tokens_are_ordered_by_time_then_row_then_column():
    assert token_coordinates(GRID)[(1 * 2 + 1) * 4 + 3].tolist() == [1, 1, 3]
    assert token_coordinates(GRID).shape == (24, 3)


@pytest.mark.parametrize("uniform", [False, True])
def test_sincos_embeddings_equal_the_formula(uniform):
    width = 32
    table = PositionEncoding("sincos", width, 1, uniform_power=uniform).additive_embedding(GRID, LIKE)
    sizes = (12, 12, 12) if uniform else (16, 8, 8)
    t, row, column = 2, 1, 3
    expected = []
    for position, size in zip((t, row, column), sizes, strict=True):
        angles = [position / 10000 ** (2 * i / size) for i in range(size // 2)]
        expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    index = (t * 2 + row) * 4 + column
    torch.testing.assert_close(table[index], torch.tensor(expected[:width], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("channels", [24, 32])
def test_rope_rotates_neighboring_channels_by_the_formula(tiled, channels):
    rotary = PositionEncoding("rope", channels, 1, tiled).rotary_tables(GRID, LIKE)
    x = torch.randn(1, 24, 1, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotated = apply_rotary_tables(x, rotary)[0, :, 0]
    pairs = channels // 6
    for index, positions in enumerate(token_coordinates(GRID).tolist()):
        for axis, position in enumerate(positions):
            for pair in range(pairs):
                i = 2 * (axis * pairs + pair)
                first, second = (2 * pair % pairs, (2 * pair + 1) % pairs) if tiled else (pair, pair)
                a, b = (position / 10000 ** (f / pairs) for f in (first, second))
                u, v = x[0, index, 0, i : i + 2].tolist()
                expected = [u * math.cos(a) - v * math.sin(a), v * math.cos(b) + u * math.sin(b)]
                assert rotated[index, i : i + 2].tolist() == pytest.approx(expected, abs=1e-12)
        rest = slice(6 * pairs, None)
        assert torch.equal(rotated[index, rest], x[0, index, 0, rest])


def test_a_reference_grid_rescales_rows_and_columns_but_not_time():
    rescaled = PositionEncoding("rope", 24, 1, reference_grid=(3, 2)).rotary_tables(GRID, LIKE)
    unscaled = PositionEncoding("rope", 24, 1).rotary_tables((3, 3, 2), LIKE)
    corner, unscaled_corner = (2 * 2 + 1) * 4 + 3, (2 * 3 + 2) * 2 + 1  # last frame, last row, last column of both
    torch.testing.assert_close(rescaled.cos[corner], unscaled.cos[unscaled_corner], rtol=0, atol=1e-12)
    one_row = PositionEncoding("rope", 24, 1, reference_grid=(3, 2)).rotary_tables((1, 1, 1), LIKE)
    assert one_row.cos.isfinite().all() and (one_row.cos == 1).all()


def test_tables_are_cached_and_indexed_by_token():
    indices = torch.tensor([[5, 0], [23, 7]])
    rope, sincos = PositionEncoding("rope", 24, 1), PositionEncoding("sincos", 24, 1)
    assert torch.equal(rope.rotary_tables(GRID, LIKE, indices).sin, rope.rotary_tables(GRID, LIKE).sin[indices])
    assert torch.equal(sincos.additive_embedding(GRID, LIKE, indices), sincos.additive_embedding(GRID, LIKE)[indices])
    assert rope.rotary_tables(GRID, LIKE).sin is rope.rotary_tables(GRID, LIKE).sin
    assert rope.additive_embedding(GRID, LIKE) is None and sincos.rotary_tables(GRID, LIKE) is None
    assert rope.rotary_tables(GRID, LIKE.float()).sin.dtype == torch.float32
