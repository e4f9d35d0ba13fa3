"""Every script in examples/ runs and states in its docstring how to run it."""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path

import pytest

from vwm.worlds import families

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
REQUIRED_PACKAGES = {"evaluate_a_world": "Box2D"}
"""Optional packages that an example requires."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_and_prints_output(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run it as ``__main__`` in this process, which has imported torch and vwm already."""
    if path.stem in REQUIRED_PACKAGES:
        pytest.importorskip(REQUIRED_PACKAGES[path.stem], reason=f"{REQUIRED_PACKAGES[path.stem]} is not installed")
    monkeypatch.setattr(families, "_registered", dict(families._registered))
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert f"python examples/{path.name}" in path.read_text().split('"""')[1]
