"""What an export reads from the data of a run, in particular from all data sets of a mixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.train.export_data import find_export_data, read_recording, read_starts


def write(folder: Path, color: int, fps: float = 10, size: int = 8, **meta: Any) -> str:
    """A data set of one color, with discrete actions where the metadata name them."""
    actions = np.zeros(6, np.int64) if "action_names" in meta else None
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for key in ("a", "b"):
            writer.write(key, Episode(np.full((6, size, size, 3), color, np.uint8), actions, meta={"fps": fps} | meta))
    return str(folder)


def config(path: Any, *fields: str) -> Any:
    return {"data": {"init_args": {"path": path, "fields": list(fields or ("frames", "actions"))}}}


def test_starts_and_descriptions_come_from_all_data_sets_of_a_mixture(tmp_path):
    silent = write(tmp_path / "silent", 10)
    labeled = write(tmp_path / "labeled", 200, action_names=["left", "right"])
    path = find_export_data(config({silent: 1, labeled: 3}), None)
    assert path == {silent: 1, labeled: 3}
    recording, fps = read_recording(path)
    assert recording["action_names"] == ["left", "right"] and fps == 10
    starts = read_starts(path, 3, 8)
    assert starts is not None and starts.shape == (8, 3, 8, 8, 3)
    assert sorted(starts[:, 0, 0, 0, 0].tolist()) == [10] * 2 + [200] * 6


def test_data_sets_that_are_gone_are_named_and_the_others_read(tmp_path, capsys):
    there, gone = write(tmp_path / "there", 10), str(tmp_path / "gone")
    assert find_export_data(config([gone, there]), None) == [there]
    assert "gone of the run's data is no longer there; the export reads" in capsys.readouterr().out
    assert find_export_data(config([gone]), None) is None
    assert find_export_data(config(gone), None) is None
    assert find_export_data(config(there), "none") is None
    with pytest.raises(FileNotFoundError):
        find_export_data(config(there), gone)


def test_data_sets_that_no_longer_agree_are_refused_where_the_run_read_them(tmp_path):
    one = write(tmp_path / "one", 10, action_names=["left", "right"])
    other = write(tmp_path / "other", 20, action_names=["up", "down"])
    with pytest.raises(ValueError, match=r"one has the actions left, right, .*other has the actions up, down"):
        find_export_data(config([one, other]), None)
    assert find_export_data(config([one, other], "frames"), None) == [one, other]
    slow = write(tmp_path / "slow", 10, fps=5)
    with pytest.raises(ValueError, match=r"one has 10 frames per second, .*slow has 5 frames per second"):
        find_export_data(config([one, slow], "frames"), None)
