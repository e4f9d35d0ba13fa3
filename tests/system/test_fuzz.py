"""Mutated inputs are read or refused with a sentence: a few cases of each reader of ``tools/fuzz``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FUZZ = Path(__file__).parents[2] / "tools" / "fuzz"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    """Return the main module of the tool."""
    sys.path.insert(0, str(FUZZ))
    spec = importlib.util.spec_from_file_location("fuzz_main", FUZZ / "__main__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FUZZ))
    return module


@pytest.mark.filterwarnings("ignore")  # of libraries about damaged files
@pytest.mark.parametrize(
    ("target", "cases"),
    [("shard", 60), ("index", 20), ("video", 40), ("actions", 60), ("upload", 40), ("bundle", 25), ("checkpoint", 40),
     ("config", 15), ("message", 200)],
)  # fmt: skip
def test_no_mutation_crashes_a_reader(fuzz: ModuleType, target: str, cases: int, tmp_path: Path) -> None:
    fuzz.TARGETS[target].prepare(tmp_path)
    results = {number: fuzz.run_case(target, 11, number, tmp_path) for number in range(cases)}
    assert {number: result for number, result in results.items() if result.startswith("fault")} == {}
    assert "refused" in results.values() or target == "index"  # an index is rebuilt instead
