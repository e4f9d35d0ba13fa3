"""The benchmark of a store reads the same shards in four ways."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest

from vwm.cli.bench_data import benchmark_data
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter


def test_a_store_is_compared_with_the_local_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path / "shard-000000.tar") as writer:
        writer.write("e", Episode(np.zeros((40, 8, 8, 3), np.uint8), np.zeros(40, np.int64)))
    for file in tmp_path.iterdir():
        with fsspec.open(f"memory://bench-store/{file.name}", "wb") as remote:
            remote.write(file.read_bytes())
    benchmark_data("memory://bench-store", clip_length=4, batch_size=2, batches=2, repeats=2)
    printed = capsys.readouterr().out
    assert "1 shards, 1 episodes, 8x8 pixels" in printed and "copied" in printed
    for variant in ("local disk", "store ", "store, empty cache on disk", "store, full cache on disk"):
        assert f"\n{variant}" in printed
    assert printed.splitlines()[-1] == "next: vwm fit -c CONFIG --data memory://bench-store"
