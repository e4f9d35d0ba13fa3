"""Processes of ``vwm fit`` that share their imports, for the tests of trainings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from fit_runs import Runs


@pytest.fixture(scope="session")
def runs() -> Iterator[Runs]:
    """The server that forks runs, one for each worker of the tests."""
    runs = Runs()
    yield runs
    runs.close()
