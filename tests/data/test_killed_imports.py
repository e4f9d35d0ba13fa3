"""What a kill before each renaming would leave: nothing half-written, and from there the same bytes as without it.

``tools/kill_at_writes`` kills real processes, at all other writes and at random moments too.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vwm.data.converting import convert_dataset
from vwm.data.importing import import_dataset

DEAD_PROCESS = str(2**22 + 1)
"""More than Linux numbers processes."""
RECORDINGS = Path(__file__).parent / "importers"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keep_states(run: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Run into ``folder / out``, and keep it before each renaming; return the copies."""
    out, states = folder / "out", []
    replace = Path.replace

    def keep(self: Path, target: Path) -> Path:
        if self.is_relative_to(out):
            states.append(Path(shutil.copytree(out, folder / f"state {len(states)}")))
            for file in states[-1].rglob(f".*.{os.getpid()}.*"):  # this process lives, that which is killed does not
                file.rename(file.with_name(file.name.replace(str(os.getpid()), DEAD_PROCESS)))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", keep)
        run(out)
    return states


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "data"
    import_dataset("diamond", RECORDINGS / "diamond", out, fps=15, episodes_per_shard=1, workers=0)
    return out


@pytest.mark.parametrize("command", ["import", "webdataset", "lerobot"])
def test_a_run_goes_on_from_every_renaming(
    tmp_path: Path, shards: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "lerobot":
        pytest.importorskip("pyarrow", reason="LeRobot's tables require pyarrow")

    def run(out: Path) -> None:
        if command == "import":
            import_dataset("diamond", RECORDINGS / "diamond", out, episodes_per_shard=1, workers=0)
        else:
            convert_dataset(command, shards, out, workers=0)  # type: ignore[arg-type]

    states = keep_states(run, tmp_path, monkeypatch)
    expected = content(tmp_path / "out")
    assert len(states) >= 3 and expected and not any(Path(name).name.startswith(".") for name in expected)
    for state in states:
        for shard in state.rglob("*.tar"):
            if not shard.name.startswith("."):
                with tarfile.open(shard) as tar:
                    assert tar.getnames()
        run(state)
        assert content(state) == expected
