"""Mask samplers: context and targets are disjoint, tokens are dropped uniformly, and seeds determine the masks."""

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
SAMPLERS = {
    "v-jepa short": MultiBlockMaskSampler(8, (0.15, 0.15)),
    "v-jepa long": MultiBlockMaskSampler(2, (0.7, 0.7)),
    "blocks that come and go": MultiBlockMaskSampler(3, (0.2, 0.5), (0.25, 0.75)),
    "i-jepa": ContextBlockMaskSampler(),
}


def make_seeds(count: int) -> torch.Tensor:
    return torch.arange(count) * 7919 + 13


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_context_and_targets_are_disjoint(name):
    mask = SAMPLERS[name].sample(make_seeds(16), GRID)
    for clip in range(16):
        context = set(mask.context_indices[clip].tolist())
        assert len(context) == mask.context_indices.shape[1] and max(context) < 4 * 8 * 8
        for targets in mask.target_indices:
            target_set = set(targets[clip].tolist())
            assert len(target_set) == targets.shape[1] and not target_set & context


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_masks_are_a_function_of_the_seeds(name):
    one, two = SAMPLERS[name].sample(make_seeds(8), GRID), SAMPLERS[name].sample(make_seeds(8), GRID)
    assert torch.equal(one.context_indices, two.context_indices) and all(
        map(torch.equal, one.target_indices, two.target_indices)
    )
    other = SAMPLERS[name].sample(make_seeds(8) + 1, GRID)
    assert one.context_indices.shape != other.context_indices.shape or not torch.equal(
        one.context_indices, other.context_indices
    )


def test_all_time_steps_are_equally_frequent_in_the_context():
    """Truncating sorted lists would leave the last of eight time steps 0.9% of the context instead of 12.5%."""
    grid, counts = (8, 14, 14), torch.zeros(8)
    for start in range(40):
        mask = SAMPLERS["v-jepa short"].sample(make_seeds(24) + 1000 * start, grid)
        counts += torch.bincount(mask.context_indices.flatten() // (14 * 14), minlength=8)
    assert (counts / counts.sum() - 1 / 8).abs().max() < 0.002


def test_tokens_dropped_for_an_equal_length_are_sampled_uniformly():
    members = torch.ones(2, 32, dtype=torch.bool)
    members[1, ::2] = False  # the second clip has half as many: half of the first clip's are dropped
    counts = torch.zeros(32)
    for seed in range(600):
        kept = subsample_equal_tokens(torch.tensor([seed, seed + 10_000]), members, "see", (2, 4, 4))
        assert kept.shape == (2, 16) and torch.equal(kept[1], torch.arange(1, 32, 2))
        assert (kept[0].diff() > 0).all()
        counts[kept[0]] += 1
    # Each token is kept with probability 1/2: 300 of 600, standard deviation 12.2.
    assert (counts - 300).abs().max() < 5 * 12.3


def test_blocks_have_the_requested_size_and_cover_all_positions():
    size = sample_block_size(torch.tensor([3]), GRID, (0.25, 0.25), (0.5, 0.5), (1.0, 1.0))
    assert size == (2, 4, 4)
    blocks = sample_block_masks(make_seeds(500), GRID, size, 1, 1)[:, 0, 0]
    assert (blocks.sum(dim=(1, 2, 3)) == 2 * 4 * 4).all()
    starts = blocks.flatten(2).any(2).int().argmax(1)
    assert set(starts.tolist()) == {0, 1, 2}
    rows = blocks.any(dim=(1, 3)).int().argmax(1)
    counts = torch.bincount(rows, minlength=5).float()
    assert len(counts) == 5 and (counts - 100).abs().max() < 45  # standard deviation 8.9


def test_blocks_have_the_requested_duration_and_coverage():
    targets = (
        MultiBlockMaskSampler(1, (0.25, 0.25), (0.5, 0.5), (1.0, 1.0)).sample(make_seeds(6), GRID).target_indices[0]
    )
    assert targets.shape == (6, 2 * 16)
    time_steps = [set((clip // 64).tolist()) for clip in targets]
    assert all(len(steps) == 2 and max(steps) - min(steps) == 1 for steps in time_steps)


def test_images_are_clips_of_one_frame():
    mask = ContextBlockMaskSampler().sample(make_seeds(5), (1, 14, 14))
    assert (
        len(mask.target_indices) == 4 and mask.context_indices.shape[0] == 5 and int(mask.context_indices.max()) < 196
    )


def test_the_context_is_never_empty_even_if_two_large_blocks_could_cover_everything():
    for start in range(50):
        mask = MultiBlockMaskSampler(2, (0.7, 0.7)).sample(make_seeds(32) + start * 999, (2, 8, 8))
        assert mask.context_indices.shape[1] >= 7  # 5% of 128 tokens


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiBlockMaskSampler(0), "num_blocks=0"),
        (lambda: MultiBlockMaskSampler(spatial_scale=(0.5, 0.2)), "spatial_scale"),
        (lambda: MultiBlockMaskSampler(temporal_scale=(0.0, 1.0)), "temporal_scale"),
        (lambda: MultiBlockMaskSampler(1, (1.0, 1.0)).sample(make_seeds(2), GRID), "leaves none to see"),
        (lambda: ContextBlockMaskSampler(num_targets=0), "num_targets=0"),
    ],
)
def test_rejects_invalid_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
