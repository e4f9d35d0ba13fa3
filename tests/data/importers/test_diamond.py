"""Recordings that DIAMOND's own ``Episode.save`` wrote, numbers 2 and 10, in its folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawer_episodes import check_frames, choices, rewards
from shard_contents import read_shards

from vwm.data.importing import import_dataset

SOURCE = Path(__file__).parent / "diamond"


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran_code",)


def test_frames_actions_and_rewards_stay_aligned(tmp_path: Path) -> None:
    import_dataset("diamond", SOURCE, tmp_path / "out", fps=15, workers=0)
    episodes = read_shards(tmp_path / "out")
    assert [meta["source"] for _, meta in episodes] == ["train/000/00/2/2.pt", "train/000/10/0/10.pt"]
    for number, (arrays, meta) in enumerate(episodes):
        check_frames(arrays["frames"], number, 1)  # their own rounding to bytes
        np.testing.assert_array_equal(arrays["actions"], choices(number))
        np.testing.assert_array_equal(arrays["rewards"], rewards(number))
        assert [meta["terminated"], meta["truncated"], meta["fps"]] == [number == 1, number == 0, 15]


def test_hostile_and_broken_recordings_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path(shutil.copytree(SOURCE, tmp_path / "in"))
    torch.save({"obs": torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "info": _Hostile()}, source / "90.pt")
    torch.save({"obs": torch.zeros(4, 3, 8, 8)}, source / "91.pt")
    torch.save({"obs": torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "act": torch.zeros(3).long()}, source / "92.pt")
    torch.save({"act": torch.zeros(4)}, source / "93.pt")
    content = (SOURCE / "train/000/00/2/2.pt").read_bytes()
    (source / "94.pt").write_bytes(content[: len(content) // 2])
    torch.save({"num_episodes": 2}, source / "train" / "info.pt")  # which DIAMOND writes beside the recordings
    import_dataset("diamond", source, tmp_path / "out", workers=0)
    text = capsys.readouterr().out
    assert "skipped (4):\n  90.pt: cannot be read as a file of tensors only: it names posix.mkdir, which" in text
    assert "  91.pt: obs must be uint8 [T, 3, H, W], is float32 [4, 3, 8, 8]" in text
    assert "  93.pt: has no tensor `obs`" in text
    assert "  94.pt: cannot be read as a file of tensors only: it is damaged" in text
    assert not (tmp_path / "ran_code").exists()
    assert [meta["frames"] for _, meta in read_shards(tmp_path / "out")] == [3, 6, 4]  # of 92.pt, those with actions
