"""The number of threads is that of the shortest step, or more where that costs little."""

from __future__ import annotations

import os

import pytest
import torch

from vwm.cli import thread_choice
from vwm.cli.thread_choice import fastest_thread_count


@pytest.mark.parametrize(
    ("slowdown", "expected"), [(1.0, 8), (8.5, 8), (20.0, 1)], ids=["free", "nearly equal", "busy"]
)
def test_takes_fewer_threads_where_they_wait_for_other_work(
    monkeypatch: pytest.MonkeyPatch, slowdown: float, expected: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(
        thread_choice, "_time_step", lambda layer, x, threads: (slowdown if threads > 1 else 1) / threads
    )
    before = torch.get_num_threads()
    assert fastest_thread_count() == expected
    assert torch.get_num_threads() == before


def test_a_real_measurement_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    assert 1 <= fastest_thread_count() <= (os.cpu_count() or 1)
    assert torch.get_num_threads() == before
