"""Every script in examples/ runs as its first lines state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
REQUIRED = {"evaluate_a_world": "Box2D"}
"""Packages of extras that an example needs."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(path: Path, tmp_path: Path) -> None:
    if path.stem in REQUIRED:
        pytest.importorskip(REQUIRED[path.stem], reason=f"{REQUIRED[path.stem]} is not installed")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    ran = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.strip()
    assert f"python examples/{path.name}" in path.read_text().split('"""')[1]
