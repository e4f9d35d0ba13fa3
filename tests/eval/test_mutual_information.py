"""Mutual information of labels."""

from __future__ import annotations

import pytest
import torch

from vwm.eval.mutual_information import (
    contingency_table,
    corrected_mutual_information,
    histogram_entropy,
    plugin_mutual_information,
)


def test_the_contingency_table_counts_pairs() -> None:
    table = contingency_table(torch.tensor([0, 0, 1]), torch.tensor([2, 2, 0]), rows=2, columns=3)
    assert table.tolist() == [[0, 0, 2], [1, 0, 0]]


@pytest.mark.parametrize(("counts", "bits"), [([1, 1], 1.0), ([4, 0], 0.0), ([2, 1, 1], 1.5), ([5] * 8, 3.0)])
def test_histogram_entropy_is_in_bits(counts: list[int], bits: float) -> None:
    assert float(histogram_entropy(torch.tensor(counts))) == pytest.approx(bits)


def test_the_mutual_information_of_identical_labels_is_their_entropy() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    table = contingency_table(labels, labels, 3, 3)
    assert float(plugin_mutual_information(table)) == pytest.approx(float(histogram_entropy(torch.tensor([1, 1, 2]))))


def test_mutual_information_is_invariant_to_permuted_labels() -> None:
    labels = torch.tensor([0, 1, 2, 3] * 50)
    renamed = torch.tensor([3, 0, 1, 2])[labels]
    information = corrected_mutual_information(labels, renamed, 4, 4, seed=0)
    assert information.bits + information.chance_bits == pytest.approx(2.0)
    assert information.chance_bits < 0.06


def test_independent_labels_have_no_information_above_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 8, (2, 300), generator=generator)
    information = corrected_mutual_information(a, b, 8, 8, seed=0)
    assert information.chance_bits > 0.08  # the plug-in estimate's bias, about (8-1)(8-1) / (2 * 300 ln 2)
    assert abs(information.bits) < 0.04
    assert information == corrected_mutual_information(a, b, 8, 8, seed=0)
