"""Files of robomimic's and D4RL's layout, written by h5py, NumPy files, and a data set that Minari 0.5.4 wrote.

Frame t of episode e is grey 20 e + 10 t + 30, its state is (e, t), and its action (t / 10, -e).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from shard_contents import Arrays, read_shards

from vwm.data.importing import import_dataset

h5py = pytest.importorskip("h5py")
LENGTHS = (6, 4)


def episode(number: int, observations: int) -> Arrays:
    """Arrays of one episode; it may have one observation more than actions."""
    length = LENGTHS[number]
    time = np.arange(observations)
    level = (20 * number + 10 * time + 30).astype(np.uint8)
    return {
        "frames": np.broadcast_to(level[:, None, None, None], (observations, 8, 8, 3)).copy(),
        "states": np.stack([np.full(observations, number), time], 1).astype(np.float64),
        "actions": np.stack([np.arange(length) / 10, np.full(length, -number)], 1).astype(np.float64),
        "rewards": (np.arange(length) == length - 1).astype(np.float64),
        "ends": np.arange(length) == length - 1,
    }


def write_robomimic(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for number, name in ((1, "demo_10"), (0, "demo_2")):  # 2 comes before 10
            group, arrays = data.create_group(name), episode(number, LENGTHS[number])
            group["obs/agentview_image"], group["obs/robot0_eef_pos"] = arrays["frames"], arrays["states"]
            group["actions"], group["rewards"], group["dones"] = arrays["actions"], arrays["rewards"], arrays["ends"]
            group["states"] = arrays["states"]


def write_flat(path: Path) -> None:
    """All episodes in a row, channels first; the first ends by a time limit, the second by itself."""
    parts = [episode(number, LENGTHS[number]) for number in (0, 1)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = np.flatnonzero(whole["ends"])
    with h5py.File(path, "w") as file:
        file["observations"] = np.moveaxis(whole["frames"], -1, 1)
        file["actions"], file["rewards"], file["state"] = whole["actions"], whole["rewards"], whole["states"]
        file["timeouts"] = np.arange(len(whole["ends"])) == ends[0]
        file["terminals"] = np.arange(len(whole["ends"])) == ends[1]


def write_npz(path: Path) -> None:
    """One file an episode, with the last observation that no action leads away from."""
    path.mkdir()
    for number in (0, 1):
        arrays = episode(number, LENGTHS[number] + 1)
        arrays["terminated"] = arrays.pop("ends") * (number == 1)
        np.savez_compressed(path / f"{number}.npz", **arrays)


def check(folder: Path, ends: list[bool]) -> list[dict[str, Any]]:
    """Compare the shards with the episodes; return their metadata."""
    found = read_shards(folder)
    assert len(found) == 2
    for number, (arrays, meta) in enumerate(found):
        expected = episode(number, LENGTHS[number])
        np.testing.assert_array_equal(arrays["frames"], expected["frames"])
        np.testing.assert_array_equal(arrays["state"], expected["states"])
        np.testing.assert_array_equal(arrays["rewards"], expected["rewards"])
        np.testing.assert_allclose(arrays["actions"], expected["actions"], atol=1e-6)  # they lie in [-1, 1] already
        assert (meta["action_low"], meta["action_high"]) == ([-1, -1], [1, 1])
        assert meta["terminated"] == ends[number] and meta["truncated"] != ends[number]
    return [meta for _, meta in found]


def test_a_file_of_robomimic(tmp_path: Path) -> None:
    write_robomimic(tmp_path / "lift.hdf5")
    import_dataset("hdf5", tmp_path / "lift.hdf5", tmp_path / "out", workers=0)
    metas = check(tmp_path / "out", [True, True])
    assert [(meta["task"], meta["fps"], meta["source"]) for meta in metas] == [
        ("Lift", 20, "demo_2"),
        ("Lift", 20, "demo_10"),
    ]


def test_a_flat_file(tmp_path: Path) -> None:
    write_flat(tmp_path / "flat.hdf5")
    import_dataset("hdf5", tmp_path / "flat.hdf5", tmp_path / "out", fps=12, workers=0)
    assert [meta["fps"] for meta in check(tmp_path / "out", [False, True])] == [12, 12]


def test_a_folder_of_numpy_files(tmp_path: Path) -> None:
    write_npz(tmp_path / "npz")
    import_dataset("npz", tmp_path / "npz", tmp_path / "out", workers=0)
    check(tmp_path / "out", [False, True])


def test_a_data_set_of_minari_keeps_the_bounds_of_its_action_space(tmp_path: Path) -> None:
    import_dataset("minari", Path(__file__).parent / "minari", tmp_path / "out", fps=30, workers=0)
    found = read_shards(tmp_path / "out")
    assert [(meta["terminated"], meta["truncated"]) for _, meta in found] == [(False, True), (True, False)]
    for number, (arrays, meta) in enumerate(found):
        expected = episode(number, LENGTHS[number])
        np.testing.assert_array_equal(arrays["frames"], expected["frames"])
        np.testing.assert_array_equal(arrays["state"], expected["states"])
        np.testing.assert_array_equal(arrays["rewards"], expected["rewards"])
        assert (meta["action_low"], meta["action_high"], meta["fps"]) == ([-40, -2], [40, 2], 30)
        # It was recorded with the action (5 t, -e).
        np.testing.assert_allclose(arrays["actions"], expected["actions"] * [50 / 40, 1 / 2], atol=1e-6)


def test_actions_beyond_one_are_scaled_by_their_extremes_and_whole_numbers_stay(tmp_path: Path) -> None:
    frames, ramp = np.zeros((5, 8, 8, 3), np.uint8), np.linspace(-30.0, 10.0, 5)
    actions = {"axes": np.stack([ramp, np.ones(5)], 1), "keys": np.arange(5), "one_hot": np.eye(5, dtype=np.int64)}
    expected = {"axes": np.stack([np.linspace(-1, 1, 5), np.zeros(5)], 1), "keys": range(5), "one_hot": range(5)}
    for name in actions:
        np.savez(tmp_path / f"{name}.npz", obs=frames, act=actions[name])
        import_dataset("npz", tmp_path / f"{name}.npz", tmp_path / name, workers=0)
        ((arrays, _),) = read_shards(tmp_path / name)
        np.testing.assert_allclose(arrays["actions"], list(expected[name]), atol=1e-6)


def test_broken_files_are_named_and_the_others_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(tmp_path / "npz")
    content = (tmp_path / "npz" / "1.npz").read_bytes()
    (tmp_path / "npz" / "2.npz").write_bytes(content[: len(content) // 2])
    np.savez(tmp_path / "npz" / "3.npz", frames=np.zeros((3, 8, 8, 3), np.uint8), actions=np.zeros(7))
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "npz" / "4.npz", frames=np.zeros((3, 8, 8, 3), np.uint8), actions=pickled)
    import_dataset("npz", tmp_path / "npz", tmp_path / "out", workers=0)
    text = capsys.readouterr().out
    assert "skipped (3):\n  2.npz:0: " in text
    assert "  3.npz:0: actions has 7 entries for 3 frames" in text
    assert "  4.npz:0: " in text and "allow_pickle=False" in text
    check(tmp_path / "out", [False, True])


@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_files_of_another_kind_are_refused(tmp_path: Path, kind: Literal["hdf5", "npz"]) -> None:
    (tmp_path / "file").write_bytes(b"not an archive of arrays")
    with pytest.raises(ValueError, match=r"file: (is no HDF5 file|cannot be read as NumPy arrays)"):
        import_dataset(kind, tmp_path / "file", tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()
