"""Masks: what is hidden is what is predicted, no place is dropped more often than another, seeds decide."""

import pytest
import torch

from vwm.models.vjepa.masking import (
    ContextBlockMaskSampler,
    MultiBlockMaskSampler,
    sample_block_masks,
    sample_block_size,
    subsample_equal_tokens,
)

GRID = (4, 8, 8)
WAYS = {
    "v-jepa short": MultiBlockMaskSampler(8, (0.15, 0.15)),
    "v-jepa long": MultiBlockMaskSampler(2, (0.7, 0.7)),
    "blocks that come and go": MultiBlockMaskSampler(3, (0.2, 0.5), (0.25, 0.75)),
    "i-jepa": ContextBlockMaskSampler(),
}


def seeds(count: int) -> torch.Tensor:
    return torch.arange(count) * 7919 + 13


@pytest.mark.parametrize("name", list(WAYS))
def test_what_is_seen_and_what_is_predicted_never_meet(name):
    mask = WAYS[name].sample(seeds(16), GRID)
    for clip in range(16):
        seen = set(mask.context_indices[clip].tolist())
        assert len(seen) == mask.context_indices.shape[1] and max(seen) < 4 * 8 * 8
        for targets in mask.target_indices:
            aims = set(targets[clip].tolist())
            assert len(aims) == targets.shape[1] and not aims & seen


@pytest.mark.parametrize("name", list(WAYS))
def test_masks_are_a_function_of_the_seeds(name):
    one, two = WAYS[name].sample(seeds(8), GRID), WAYS[name].sample(seeds(8), GRID)
    assert torch.equal(one.context_indices, two.context_indices) and all(
        map(torch.equal, one.target_indices, two.target_indices)
    )
    other = WAYS[name].sample(seeds(8) + 1, GRID)
    assert one.context_indices.shape != other.context_indices.shape or not torch.equal(
        one.context_indices, other.context_indices
    )


def test_the_last_moment_is_seen_as_often_as_the_first():
    """Lists cut in sorted order leave the last of eight moments 0.9% of the context, where 12.5% are its due."""
    grid, counts = (8, 14, 14), torch.zeros(8)
    for start in range(40):
        mask = WAYS["v-jepa short"].sample(seeds(24) + 1000 * start, grid)
        counts += torch.bincount(mask.context_indices.flatten() // (14 * 14), minlength=8)
    assert (counts / counts.sum() - 1 / 8).abs().max() < 0.002


def test_tokens_given_up_for_a_common_length_are_drawn_evenly():
    members = torch.ones(2, 32, dtype=torch.bool)
    members[1, ::2] = False  # the second clip has half as many: the first gives up half of its own
    counts = torch.zeros(32)
    for seed in range(600):
        kept = subsample_equal_tokens(torch.tensor([seed, seed + 10_000]), members, "see", (2, 4, 4))
        assert kept.shape == (2, 16) and torch.equal(kept[1], torch.arange(1, 32, 2))
        assert (kept[0].diff() > 0).all()
        counts[kept[0]] += 1
    # Each token is kept with chance 1/2: 300 of 600, deviation 12.2.
    assert (counts - 300).abs().max() < 5 * 12.3


def test_blocks_have_the_requested_size_and_cover_all_positions():
    size = sample_block_size(torch.tensor([3]), GRID, (0.25, 0.25), (0.5, 0.5), (1.0, 1.0))
    assert size == (2, 4, 4)
    blocks = sample_block_masks(seeds(500), GRID, size, 1, 1)[:, 0, 0]
    assert (blocks.sum(dim=(1, 2, 3)) == 2 * 4 * 4).all()
    starts = blocks.flatten(2).any(2).int().argmax(1)
    assert set(starts.tolist()) == {0, 1, 2}
    rows = blocks.any(dim=(1, 3)).int().argmax(1)
    counts = torch.bincount(rows, minlength=5).float()
    assert len(counts) == 5 and (counts - 100).abs().max() < 45  # deviation 8.9


def test_blocks_have_the_requested_duration_and_coverage():
    hidden = MultiBlockMaskSampler(1, (0.25, 0.25), (0.5, 0.5), (1.0, 1.0)).sample(seeds(6), GRID).target_indices[0]
    assert hidden.shape == (6, 2 * 16)
    moments = [set((clip // 64).tolist()) for clip in hidden]
    assert all(len(m) == 2 and max(m) - min(m) == 1 for m in moments)


def test_images_are_clips_of_one_frame():
    mask = ContextBlockMaskSampler().sample(seeds(5), (1, 14, 14))
    assert (
        len(mask.target_indices) == 4 and mask.context_indices.shape[0] == 5 and int(mask.context_indices.max()) < 196
    )


def test_a_batch_sees_something_even_where_two_large_blocks_could_cover_everything():
    for start in range(50):
        mask = MultiBlockMaskSampler(2, (0.7, 0.7)).sample(seeds(32) + start * 999, (2, 8, 8))
        assert mask.context_indices.shape[1] >= 7  # 5% of 128 tokens


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: MultiBlockMaskSampler(0), "num_blocks=0"),
        (lambda: MultiBlockMaskSampler(spatial_scale=(0.5, 0.2)), "spatial_scale"),
        (lambda: MultiBlockMaskSampler(temporal_scale=(0.0, 1.0)), "temporal_scale"),
        (lambda: MultiBlockMaskSampler(1, (1.0, 1.0)).sample(seeds(2), GRID), "leaves none to see"),
        (lambda: ContextBlockMaskSampler(num_targets=0), "num_targets=0"),
    ],
)
def test_what_cannot_be_is_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        wrong()
