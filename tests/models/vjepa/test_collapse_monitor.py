"""The collapse monitor: its measurements, and what it reports as a collapse."""

import pytest
import torch

from vwm.models.vjepa.collapse_monitor import CollapseBaseline, CollapseMonitor, measure_representations


def make_features(clips: int = 40, positions: int = 5, width: int = 12) -> torch.Tensor:
    return torch.randn(clips, positions, width, generator=torch.Generator().manual_seed(0))


def test_spread_is_the_standard_deviation_between_clips_at_a_position():
    x = make_features() * 3 + torch.randn(5, 12, generator=torch.Generator().manual_seed(1)) * 100
    health = measure_representations(x)
    expected = x.var(dim=0).mean(dim=0).sqrt()
    assert health.spread == pytest.approx(expected.mean().item(), rel=1e-4)
    assert health.least_spread == pytest.approx(expected.min().item(), rel=1e-4)


def test_features_that_differ_between_positions_only_have_collapsed():
    x = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0)).expand(40, 5, 12) + 1e-4 * make_features()
    assert measure_representations(x).spread < 1e-3


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_effective_rank_of_equally_strong_directions_is_their_number(rank):
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    x = torch.zeros(2 * rank, 1, 12, dtype=torch.float64)
    for i in range(rank):
        x[2 * i, 0], x[2 * i + 1, 0] = basis[i], -basis[i]
    assert measure_representations(x).rank == pytest.approx(rank, rel=1e-3)


def test_drift_is_one_minus_the_cosine():
    x = make_features()
    assert measure_representations(x, x).drift == pytest.approx(0, abs=1e-6)
    assert measure_representations(x, -x).drift == pytest.approx(2, abs=1e-5)
    assert measure_representations(x).drift == 0


def test_the_alarm_compares_with_the_first_measurement():
    monitor = CollapseMonitor(min_spread_ratio=0.2, min_rank_ratio=0.25)
    first = measure_representations(make_features())
    assert monitor.check(measure_representations(make_features() * 0.3), first) is None
    assert "becoming equal" in monitor.check(measure_representations(make_features() * 0.1), first)
    flat = make_features() * torch.tensor([1.0] + [1e-3] * 11)
    assert "few dimensions" in monitor.check(measure_representations(flat * 20), first)


def test_the_first_measurement_is_kept_in_checkpoints():
    saved, loaded = CollapseBaseline(), CollapseBaseline()
    first, later = measure_representations(make_features()), measure_representations(make_features() * 2)
    assert saved.get_or_set(first) == saved.get_or_set(later) == first
    loaded.load_state_dict(saved.state_dict())
    assert loaded.get_or_set(later) == first


def test_rejects_a_single_clip():
    with pytest.raises(ValueError, match="batch_size"):
        measure_representations(make_features(1))
