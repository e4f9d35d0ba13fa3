"""``vwm ingest --engine ray``, as a user runs it: killed workers and a killed command change nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vwm.data.ingest import ingest_videos

sys.path.append(str(Path(__file__).parents[2] / "tools" / "corpus"))
from disturbed import run_with_kills
from synthetic import make_corpus

pytest.importorskip("ray")


@pytest.mark.timeout(900)
def test_ray_gives_the_bytes_of_the_local_engine_although_workers_and_the_command_are_killed(tmp_path: Path) -> None:
    source, local, out = tmp_path / "in", tmp_path / "local", tmp_path / "out"
    make_corpus(source, 20)
    remove = ["black", "frozen", "duplicates"]
    ingest_videos(source, local, size=32, shots="detect", remove=remove, videos_per_shard=1, workers=0)
    words = [str(source), str(out), "--size", "32", "--shots", "detect", "--remove", ",".join(remove)]
    words += ["--videos-per-shard", "1", "--engine", "ray"]
    kills = [(1, "worker"), (5, "driver"), (6, "worker")]
    assert run_with_kills(words, out, tmp_path / "log", kills) == ["worker", "driver", "worker"]
    assert contents(out) == contents(local)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_ray_is_imported_only_where_it_is_asked_for(tmp_path: Path) -> None:
    make_corpus(tmp_path / "in", 1)
    code = (
        "import sys; from vwm.cli.main import main\n"
        f"main(['ingest', {str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}, '--workers', '0'])\n"
        "assert not {'ray', 'cv2', 'scenedetect', 'imagehash', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
