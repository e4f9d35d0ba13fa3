"""The monitor: what it measures, and what it calls a collapse."""

import pytest
import torch

from vwm.models.vjepa.collapse_monitor import CollapseBaseline, CollapseMonitor, measure_representations


def features(clips: int = 40, places: int = 5, width: int = 12) -> torch.Tensor:
    return torch.randn(clips, places, width, generator=torch.Generator().manual_seed(0))


def test_spread_is_the_deviation_between_clips_at_a_place():
    x = features() * 3 + torch.randn(5, 12, generator=torch.Generator().manual_seed(1)) * 100
    health = measure_representations(x)
    by_hand = x.var(dim=0).mean(dim=0).sqrt()
    assert health.spread == pytest.approx(by_hand.mean().item(), rel=1e-4)
    assert health.least_spread == pytest.approx(by_hand.min().item(), rel=1e-4)


def test_features_that_tell_places_apart_but_no_clips_have_collapsed():
    x = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0)).expand(40, 5, 12) + 1e-4 * features()
    assert measure_representations(x).spread < 1e-3


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_effective_rank_of_equally_strong_directions_is_their_number(rank):
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    x = torch.zeros(2 * rank, 1, 12, dtype=torch.float64)
    for i in range(rank):
        x[2 * i, 0], x[2 * i + 1, 0] = basis[i], -basis[i]
    assert measure_representations(x).rank == pytest.approx(rank, rel=1e-3)


def test_drift_is_one_less_the_cosine():
    x = features()
    assert measure_representations(x, x).drift == pytest.approx(0, abs=1e-6)
    assert measure_representations(x, -x).drift == pytest.approx(2, abs=1e-5)
    assert measure_representations(x).drift == 0


def test_the_alarm_goes_by_the_first_look():
    monitor = CollapseMonitor(min_spread_ratio=0.2, min_rank_ratio=0.25)
    first = measure_representations(features())
    assert monitor.check(measure_representations(features() * 0.3), first) is None
    assert "becoming equal" in monitor.check(measure_representations(features() * 0.1), first)
    flat = features() * torch.tensor([1.0] + [1e-3] * 11)
    assert "few dimensions" in monitor.check(measure_representations(flat * 20), first)


def test_the_first_look_is_kept_in_checkpoints():
    kept, taken_up = CollapseBaseline(), CollapseBaseline()
    first, later = measure_representations(features()), measure_representations(features() * 2)
    assert kept.get_or_set(first) == kept.get_or_set(later) == first
    taken_up.load_state_dict(kept.state_dict())
    assert taken_up.get_or_set(later) == first


def test_one_clip_cannot_be_compared():
    with pytest.raises(ValueError, match="batch_size"):
        measure_representations(features(1))
