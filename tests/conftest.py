"""Test setup: make the modules of this folder importable, and use one thread so that two tests can run at once."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

# Before decord, whose own zlib otherwise breaks the PNG files that pygame reads.
with contextlib.suppress(ImportError):
    import pygame  # noqa: F401


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip plotting learning curves after every evaluation of an agent, which takes half a second."""
    monkeypatch.setattr("vwm.rl.evaluation_log.plot_run_curves", lambda *arguments: None)
