"""Every script in examples/ runs as its first lines state."""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path

import pytest

from vwm.worlds import families

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
REQUIRED = {"evaluate_a_world": "Box2D"}
"""Packages of extras that an example needs."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``__main__`` of this process, which has imported torch and vwm already."""
    if path.stem in REQUIRED:
        pytest.importorskip(REQUIRED[path.stem], reason=f"{REQUIRED[path.stem]} is not installed")
    monkeypatch.setattr(families, "_registered", dict(families._registered))
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert f"python examples/{path.name}" in path.read_text().split('"""')[1]
