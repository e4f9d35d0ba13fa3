"""Tars of our own converter, and of rocket-science's layout as its published loader reads it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawer_episodes import level
from shard_contents import read_shards

from vwm.data.converting import convert_dataset
from vwm.data.importing import import_dataset
from vwm.data.video_encoding import encode_video

KEYS = ["W", "A", "S", "D", "Q", "E", "Space", "LShiftKey", "LControlKey"]
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


def physics(time: int) -> dict[str, Any]:
    place = {"x": 100.0 + time, "y": -3.0, "z": 93.0}
    cars = [
        {"player_id": p, "location": {"x": p + time, "y": 0, "z": 17}, "attacker_player_id": -1}
        for p in (40, 10, 30, 20)
    ]
    game = {"time_remaining": 0.0, "score_blue": 1, "score_orange": 0, "is_overtime": False}
    return {"game": game, "ball": {"location": place, "velocity": place}, "cars": cars}


def write_match(folder: Path, sample: dict[str, bytes], **changes: Any) -> None:
    """Write two samples of a match, of 6 and 4 frames, the numbers 0 and 3 of its recording."""
    goal = {"event_type": 1, "event_name": "GoalScored", "master_sec": 2.4}
    clock = {"frames": 10, "duration": 0.5, "recording_offset_sec": 2.0, "anchors": [goal]}
    players = [{"player_id": 10 * (i + 1), "team": i // 2} | clock for i in range(4)]
    entry = {"match_id": "m7", "shard": "000/dataset_0.tar", "n_players": 4, "arena": "cs_p"}
    entry |= {"chunk_frames": [6, 4], "chunk_indices": [0, 3], "perspectives": players[::-1]} | changes
    (folder / "000").mkdir(parents=True)
    (folder / "index.json").write_text(json.dumps({"total_samples": 1, "entries": [entry]}))
    members = {}
    for number, chunk in enumerate((0, 3)):
        grey = level(number).astype(np.uint8)
        for player in range(4):
            frames = np.broadcast_to((grey + 5 * player)[:, None, None, None], (len(grey), 16, 16, 3))
            keys = [json.dumps({"keys": [KEYS[player], KEYS[(t + player) % 9]]}) for t in range(len(grey))]
            start = f"m7_c{chunk:05d}.p{player}"
            members[f"{start}.mp4"] = encode_video(frames, 20)
            members[f"{start}.jsonl"] = "\n".join(keys).encode()
            members[f"{start}.physics.jsonl"] = "\n".join(json.dumps(physics(t)) for t in range(len(grey))).encode()
    with tarfile.open(folder / "000" / "dataset_0.tar", "w") as tar:
        for name, content in (members | sample).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


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


def test_broken_tars_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"a.tar: is no tar, or a damaged one"):
        import_dataset("webdataset", tmp_path / "a.tar", tmp_path / "out", workers=0)
