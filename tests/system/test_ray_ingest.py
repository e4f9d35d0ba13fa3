"""``vwm ingest --engine ray``, as a user runs it: killed workers and a killed command change nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vwm.core.components import save_component
from vwm.tokenizers.corpus import ingest_videos
from vwm.tokenizers.corpus_models import CorpusModels
from vwm.tokenizers.frame_vae import FrameVAE

sys.path.append(str(Path(__file__).parents[2] / "tools" / "corpus"))
from disturbed import descendants, run_until_killed
from synthetic import make_corpus

pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A Ray cluster of its own processes, as (address, process number), which only this test has the token of."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=1",
        "--include-dashboard=false",
    ]
    words += ["--object-store-memory=200000000", "--disable-usage-stats"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}", process.pid
    finally:
        for number in [process.pid, *descendants(process.pid)]:  # asked to end, it would take half a minute
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(900)
def test_ray_gives_the_bytes_of_the_local_engine_although_workers_and_the_command_are_killed(
    cluster: tuple[str, int], tmp_path: Path
) -> None:
    source, local, out, encoder = (tmp_path / name for name in ("in", "local", "out", "encoder"))
    make_corpus(source, 20)
    save_component(FrameVAE((32, 32), latent_size=6, widths=[8, 8]).eval(), encoder)
    settings: dict[str, Any] = {"size": 32, "shots": "detect", "remove": ["black", "frozen", "duplicates"]}
    models = CorpusModels(tokenizer=encoder)
    ingest_videos(source, local, **settings, videos_per_shard=1, workers=0, models=models)
    words = [str(source), str(out), "--size", "32", "--shots", "detect", "--remove", ",".join(settings["remove"])]
    words += ["--videos-per-shard", "1", "--engine", "ray", "--workers", "1", "--tokenizer", str(encoder)]
    kills = [(1, "worker"), (5, "driver")]
    assert run_until_killed(words, out, tmp_path / "log", kills) == ["worker", "driver"]
    address, processes = cluster  # what Ray on this machine has begun goes on in a cluster
    log = tmp_path / "log_of_cluster"
    assert run_until_killed([*words, "--ray-address", address], out, log, [(20, "actor")], processes) == ["actor"]
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
