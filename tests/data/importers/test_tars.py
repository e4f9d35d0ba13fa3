"""Tars of our own converter, and of rocket-science's layout as its published loader reads it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from drawer_episodes import level
from rocket_matches import KEYS, write_match
from shard_contents import read_shards

from vwm.data.converting import convert_dataset
from vwm.data.episode import Episode
from vwm.data.importing import import_dataset
from vwm.data.shards import ShardWriter

HERE = Path(__file__).parent


def test_what_convert_writes_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="LeRobot's tables require pyarrow")
    import_dataset("lerobot", HERE / "lerobot_v3", tmp_path / "a", cameras=["front", "wrist"], size=16, workers=0)
    convert_dataset("webdataset", tmp_path / "a", tmp_path / "tars", workers=0)
    import_dataset("webdataset", tmp_path / "tars", tmp_path / "b", cameras=["front", "wrist"], workers=0)
    for (was, meta_before), (now, meta) in zip(read_shards(tmp_path / "a"), read_shards(tmp_path / "b"), strict=True):
        np.testing.assert_allclose(now["frames"].astype(int), was["frames"].astype(int), atol=3)
        np.testing.assert_allclose(now["actions"], was["actions"], atol=1e-6)
        np.testing.assert_array_equal(now["state"], was["state"])
        np.testing.assert_array_equal(now["rewards"], was["rewards"])
        same = ("task", "fps", "action_low", "action_high", "action_names", "state_names", "terminated", "frames")
        assert [meta[name] for name in same] == [meta_before[name] for name in same]
        assert meta["cameras"] == ["front", "wrist"] and meta["camera_widths"] == [16, 16]


def test_views_keys_physics_and_events_of_rocket_science(tmp_path: Path) -> None:
    write_match(tmp_path / "in", {})
    import_dataset("rocket-science", tmp_path / "in", tmp_path / "out", cameras=["p2", "p0"], workers=0)
    episodes = read_shards(tmp_path / "out")
    assert [meta["source"] for _, meta in episodes] == ["m7_c00000", "m7_c00003"]
    for number, (arrays, meta) in enumerate(episodes):
        grey = level(number)
        np.testing.assert_allclose(arrays["frames"][:, :, :14].mean((1, 2, 3)), grey + 10, atol=3)
        np.testing.assert_allclose(arrays["frames"][:, :, 18:].mean((1, 2, 3)), grey, atol=3)
        held = np.zeros((len(grey), 18))
        for column, player in ((0, 2), (9, 0)):
            for t in range(len(grey)):
                held[t, [column + player, column + (t + player) % 9]] = 1
        np.testing.assert_array_equal(arrays["actions"], held)
        assert [(part["name"], part["names"]) for part in meta["action_parts"]] == [("p2", KEYS), ("p0", KEYS)]
        names = meta["state_names"]
        for t, row in enumerate(arrays["state"]):
            state = dict(zip(names, row, strict=True))
            assert state["ball.location.x"] == 100 + t and state["game.score_blue"] == 1
            assert [state[f"cars.{i}.location.x"] for i in range(4)] == [10 + t, 20 + t, 30 + t, 40 + t]
        assert meta["fps"] == 20 and meta["match"] == "m7"
        # 0.4 s after the recording began is frame 8, the third of the second sample.
        assert meta["events"] == ([] if number == 0 else [{"event": "GoalScored", "frame": 2}])


def test_broken_samples_of_rocket_science_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_match(tmp_path / "in", {"m7_c00000.p0.jsonl": b'{"keys": ["F13"]}\n' * 6})
    import_dataset("rocket-science", tmp_path / "in", tmp_path / "out", cameras=["p0"], workers=0)
    assert "m7_c00000: key 'F13' of p0 at frame 0 is none of W A S" in capsys.readouterr().out
    write_match(tmp_path / "out_of", {}, shard="../../etc/passwd")
    with pytest.raises(ValueError, match="none of its 2 episodes could be read"):
        import_dataset("rocket-science", tmp_path / "out_of", tmp_path / "no", cameras=["p0"], workers=0)
    assert "its shard ../../etc/passwd leads out of the folder" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no index.json; give the folder of one split"):
        import_dataset("rocket-science", tmp_path / "empty", tmp_path / "no", workers=0)


def test_a_source_without_a_whole_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"a.tar: is no tar, or a damaged one"):
        import_dataset("webdataset", tmp_path / "a.tar", tmp_path / "out", workers=0)


def write_tars(folder: Path) -> dict[str, bytes]:
    """Write two tars of two samples each, as our converter does; return their bytes."""
    shards = folder.parent / "shards"
    for shard in range(2):
        with ShardWriter(shards / f"shard-{shard:06d}.tar") as writer:
            for number in range(2):
                grey = (level(number) + 7 * shard).astype(np.uint8)
                frames = np.broadcast_to(grey[:, None, None, None], (len(grey), 16, 16, 3))
                writer.write(f"{shard}-{number}", Episode(np.array(frames), np.arange(len(grey))))
    convert_dataset("webdataset", shards, folder, fps=10, workers=0)
    return {tar.name: tar.read_bytes() for tar in sorted(folder.glob("*.tar"))}


def test_damaged_tars_are_named_and_the_samples_of_others_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_tars(tmp_path / "tars")
    first, second = whole
    (tmp_path / "tars" / "00.tar").write_bytes(b"no tar at all" * 100)
    cut = whole[second].index(b"json", whole[second].index(b"json") + 600)  # in the second sample's header
    (tmp_path / "tars" / second).write_bytes(whole[second][: cut + 300])

    def run() -> list[str]:
        import_dataset("webdataset", tmp_path / "tars", tmp_path / "out", episodes_per_shard=3, workers=0)
        return [meta["source"].partition(":")[0] for _, meta in read_shards(tmp_path / "out")]

    kept = run()
    text = capsys.readouterr().out
    assert kept[:2] == [first, first] and "  00.tar: is no tar, or a damaged one (" in text
    assert f"  {second}: is " in text and 2 <= len(kept) < 4
    for name, content in whole.items():
        (tmp_path / "tars" / name).write_bytes(content)
    (tmp_path / "tars" / "00.tar").write_bytes(whole[first])  # mended: samples with names of their own
    assert sorted(run()) == sorted(["00.tar"] * 2 + [first] * 2 + [second] * 2)
    assert "skipped" not in capsys.readouterr().out
    levels = {meta["source"]: arrays["frames"][0].mean() for arrays, meta in read_shards(tmp_path / "out")}
    by_tar = {tar: sorted(v for k, v in levels.items() if k.startswith(tar)) for tar in ("00.tar", first, second)}
    np.testing.assert_allclose(by_tar["00.tar"], by_tar[first])
    np.testing.assert_allclose(np.array(by_tar[second]) - by_tar[first], 7, atol=2)


def test_hostile_samples_are_named_and_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tar,) = list(write_tars(tmp_path / "tars"))[:1]
    pickled = io.BytesIO()
    np.savez(pickled, actions=np.array([{"a": 1}], object))
    members = {"x.json": b'{"frames": 6}', "x.npz": pickled.getvalue(), "x.mp4": b"", "y.json": b"[]", "y.mp4": b""}
    with tarfile.open(tmp_path / "tars" / tar, "a") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(f"../../{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    import_dataset("webdataset", tmp_path / "tars", tmp_path / "out", workers=0)
    text = capsys.readouterr().out
    assert "skipped (2):" in text and len(read_shards(tmp_path / "out")) == 4
    assert f"  {tar}:x: x.npz: cannot be read as NumPy arrays (" in text and "allow_pickle=False" in text
    assert f"  {tar}:y: y.json" in text


def test_a_damaged_tar_of_rocket_science_costs_the_samples_behind_the_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_match(tmp_path / "in", {})
    tar = tmp_path / "in" / "000" / "dataset_0.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: content.index(b"m7_c00003.p1")])
    import_dataset("rocket-science", tmp_path / "in", tmp_path / "out", cameras=["p1"], workers=0)
    assert [meta["source"] for _, meta in read_shards(tmp_path / "out")] == ["m7_c00000"]
    assert "skipped (1):\n  m7_c00003: " in capsys.readouterr().out
