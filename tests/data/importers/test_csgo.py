"""Counter-Strike's recordings, written with h5py as the authors' script does, and DIAMOND's of low resolution."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_contents import read_shards

from vwm.data.clip_folders import make_clip_dataset
from vwm.data.importers.csgo_actions import csgo_action_space
from vwm.data.importing import import_dataset
from vwm.models.diamond.games import csgo_columns

h5py = pytest.importorskip("h5py")
MOUSE_X = [-1000, -500, -300, -200, -100, -60, -30, -20, -10, -4, -2, 0, 2, 4, 10, 20, 30, 60, 100, 200, 300, 500, 1000]
MOUSE_Y = [-200, -100, -50, -20, -10, -4, -2, 0, 2, 4, 10, 20, 50, 100, 200]
LENGTHS = {"hdf5_dm_july2021_2.hdf5": 9, "hdf5_dm_july2021_10.hdf5": 6}


def columns(length: int) -> np.ndarray[Any, Any]:
    """Keys t and t + 3 of the 13 are held at frame t, the mouse moves by MOUSE_X[5 t] and MOUSE_Y[2 t]."""
    rows = np.zeros((length, 51))
    for t in range(length):
        rows[t, [t % 13, (t + 3) % 13, 13 + 5 * t % 23, 36 + 2 * t % 15]] = 1
    return rows


def write(path: Path, length: int, **changes: Any) -> None:
    """Frame t is blue 10 t, green 100, red 200 - 10 t; a kill comes with frame 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for t, row in enumerate(columns(length)):
            picture = np.full((15, 28, 3), (10 * t, 100, 200 - 10 * t), np.uint8)
            aux = np.zeros(54)
            aux[15:18] = 1 - t / 10, 0.5, 1
            entries = {"x": picture, "xaux": aux, "y": row, "helperarr": np.array([t == 3, 0], float)}
            for name, value in entries.items():
                if changes.get(f"frame_{t}_{name}", value) is not None:
                    file.create_dataset(f"frame_{t}_{name}", data=changes.get(f"frame_{t}_{name}", value))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number, (name, length) in enumerate(LENGTHS.items()):
        write(tmp_path / "in" / f"part {number}" / name, length)
    return tmp_path / "in"


def check(arrays: dict[str, Any], meta: dict[str, Any], length: int) -> None:
    time = np.arange(length)
    colors = arrays["frames"].mean((1, 2))
    np.testing.assert_allclose(colors, np.stack((200 - 10 * time, np.full(length, 100), 10 * time), 1), atol=1)
    expected = columns(length)
    np.testing.assert_allclose(arrays["actions"][:, 13] * 1000, [MOUSE_X[5 * t % 23] for t in time], atol=1e-3)
    np.testing.assert_allclose(arrays["actions"][:, 14] * 1000, [MOUSE_Y[2 * t % 15] for t in time], atol=1e-3)
    # What DIAMOND's network gets is what the data set holds.
    np.testing.assert_array_equal(csgo_columns(torch.from_numpy(arrays["actions"])), expected)
    assert meta["action_parts"] == [part.to_json() for part in csgo_action_space().parts]
    held = [set(np.flatnonzero(row)) for row in arrays["actions"][:, :13]]
    assert held == [{t % 13, (t + 3) % 13} for t in time]


def test_frames_keys_mouse_and_events_stay_aligned(source: Path, tmp_path: Path) -> None:
    import_dataset("csgo", source, tmp_path / "out", workers=0)
    episodes = read_shards(tmp_path / "out")
    assert [meta["source"] for _, meta in episodes] == [f"part {i}/{name}" for i, name in enumerate(LENGTHS)]
    for (arrays, meta), length in zip(episodes, LENGTHS.values(), strict=True):
        check(arrays, meta, length)
        assert meta["fps"] == 16 and arrays["frames"].shape == (length, 15, 28, 3)
        state = dict(zip(meta["state_names"], arrays["state"].T, strict=True))
        np.testing.assert_array_equal(state["kill"], np.arange(length) == 3)
        np.testing.assert_allclose(state["health before"], 1 - np.arange(length) / 10, atol=1e-6)
        assert (state["team before"] == 1).all() and (state["death"] == 0).all()


def test_in_place_the_clips_are_those_of_an_import(source: Path, tmp_path: Path) -> None:
    import_dataset("csgo", source, tmp_path / "out", height=6, width=10, workers=0)
    fields = ("frames", "actions", "state", "terminated")
    shards = make_clip_dataset(str(tmp_path / "out"), 3, fields=fields)
    in_place = make_clip_dataset(f"csgo:{source}?height=6&width=10", 3, fields=fields)
    assert len(shards) == len(in_place) == 5
    for i in range(5):
        clip, other = shards[i], in_place[i]
        assert clip.keys() == other.keys()
        for field in clip:
            np.testing.assert_array_equal(clip[field], other[field])


def test_broken_recordings_are_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = columns(1)[0]
    for number, changes in enumerate(
        ({"frame_2_y": row * 0.5}, {"frame_2_y": row[:50]}, {"frame_1_x": np.zeros((15, 28))},
         {"frame_2_x": None}, {"frame_0_y": None}), 11
    ):  # fmt: skip
        write(source / f"{number}.hdf5", 5, **changes)
    whole = (source / "part 0" / "hdf5_dm_july2021_2.hdf5").read_bytes()
    (source / "16.hdf5").write_bytes(whole[: len(whole) // 2])
    (source / "17.hdf5").write_text("no file of this kind")
    import_dataset("csgo", source, tmp_path / "out", workers=0)
    text = capsys.readouterr().out
    assert "skipped (7):" in text and len(read_shards(tmp_path / "out")) == 2
    for line in (
        "11.hdf5: its action at frame 2 is not of keys that are held and one movement",
        "12.hdf5: ",
        "13.hdf5: frame_1_x is float64 [15, 28], not uint8 [H, W, 3]",
        "14.hdf5: has 19 entries, of which 4 a frame are known: frames are missing",
        "15.hdf5: has no frame_0_x and frame_0_y",
        "16.hdf5: is no HDF5 file, or a damaged one",
        "17.hdf5: is no HDF5 file, or a damaged one",
    ):
        assert f"  {line}" in text
    with pytest.raises(ValueError, match=r"14.hdf5: has 19 entries, .*: download it again, or remove it"):
        make_clip_dataset(f"csgo:{source}", 3)
    shutil.rmtree(source)
    source.mkdir()
    with pytest.raises(ValueError, match=r"has no .hdf5 files: unpack the tars"):
        import_dataset("csgo", source, tmp_path / "no", workers=0)


def test_low_resolution_recordings_of_diamond_have_the_same_actions(tmp_path: Path) -> None:
    time = torch.arange(7)
    colors = torch.stack((200 - 10 * time, torch.full((7,), 100), 10 * time), 1).to(torch.uint8)
    episode = {
        "obs": colors[:, :, None, None].expand(7, 3, 5, 6).clone(), "act": torch.from_numpy(columns(7)),
        "rew": torch.zeros(7), "end": torch.zeros(7, dtype=torch.uint8), "trunc": torch.zeros(7, dtype=torch.uint8),
        "info": {"original_file_id": "1-200/hdf5_dm_july2021_2.hdf5"},
    }  # fmt: skip
    (tmp_path / "train").mkdir()
    torch.save(episode, tmp_path / "train" / "0.pt")
    import_dataset("diamond", tmp_path / "train", tmp_path / "out", fps=16, workers=0)
    ((arrays, meta),) = read_shards(tmp_path / "out")
    check(arrays, meta, 7)
