"""What a loss draws for a clip does not depend on the other clips of its process."""

import pytest
import torch

from vwm.nn.clip_draws import (
    clip_draws,
    draw_for_all_clips,
    draw_integers,
    draw_normal_for_all_clips,
    draw_normal_like,
    draw_seeds,
    draw_share_of_clips,
    draw_uniform,
    repeated_draws,
)

CPU = torch.device("cpu")
SEEDS = torch.arange(8) * 7919


def draw(first: int, count: int, seed: int = 3, step: int = 5) -> list[torch.Tensor]:
    with clip_draws(SEEDS[first : first + count], seed, step, first):
        return [
            draw_uniform((count, 3), CPU),
            draw_normal_like(torch.empty(count * 2, 5, dtype=torch.float64)),
            draw_integers(7, (count, 4), CPU),
            draw_seeds(count, CPU),
            torch.tensor([first + i for i in draw_share_of_clips(0.3, count)]),
        ]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_a_batch_draw_what_the_batch_draws(size):
    whole = draw(0, 8)
    parts = [draw(first, size) for first in range(0, 8, size)]
    for expected, *found in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(found), expected)


def test_draws_differ_between_calls_clips_seeds_and_steps():
    with clip_draws(SEEDS, 3):
        one, two = draw_uniform((8,), CPU), draw_uniform((8,), CPU)
        shared = [draw_for_all_clips((4,), CPU), draw_normal_for_all_clips((4,), CPU)]
    assert len({*one.tolist(), *two.tolist()}) == 16
    with clip_draws(SEEDS, 4):
        assert not (draw_uniform((8,), CPU) == one).any()
    with clip_draws(SEEDS[:2], 3), repeated_draws():
        assert torch.equal(draw_uniform((2,), CPU), one[:2])
        draw_uniform((2,), CPU)
        assert torch.equal(draw_for_all_clips((4,), CPU), shared[0])
        assert torch.equal(draw_normal_for_all_clips((4,), CPU), shared[1])
    with clip_draws(SEEDS, 3, step=1):
        draw_uniform((8,), CPU), draw_uniform((8,), CPU)
        assert not (draw_for_all_clips((4,), CPU) == shared[0]).any()


def test_a_share_of_clips_is_spread_and_rounded_at_random():
    counts = torch.zeros(8)
    for step in range(400):
        with clip_draws(SEEDS, 0, step):
            chosen = draw_share_of_clips(0.3, 8)
        assert len(chosen) in (2, 3)
        counts[chosen] += 1
    assert (counts / 400 - 0.3).abs().max() < 0.08
    with clip_draws(SEEDS):
        assert draw_share_of_clips(0.0, 8) == [] and draw_share_of_clips(1.0, 8) == list(range(8))


def test_without_clips_torchs_generator_draws():
    torch.manual_seed(0)
    expected = torch.rand(2, 3)
    torch.manual_seed(0)
    with clip_draws(None):
        assert torch.equal(draw_uniform((2, 3), CPU), expected)
