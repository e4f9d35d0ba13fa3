"""docs/environments.md says what is so: its examples run, one after the other."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


def test_the_examples_run() -> None:
    pytest.importorskip("torchrl")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 9
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    for face in ("SimulatorEnv", "SimulatorVectorEnv", "SimulatorTorchRLEnv", "StableBaselinesVecEnv"):
        assert face in names
