"""Data sets written by lerobot 0.4.4 (version 3.0) and 0.3.3 (version 2.1): two cameras, two episodes.

Frame t of episode e is grey 20 e + 10 t + 40 in front, and its inverse at the wrist; its state is (e, t), its action
(30 t, -1.5 e), and the last frame has a reward of 1. The episodes have 12 and 9 frames.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_contents import read_shards

from vwm.data.importing import import_dataset

HERE = Path(__file__).parent
pytest.importorskip("pyarrow", reason="LeRobot's tables require pyarrow")


@pytest.mark.parametrize("name", ["lerobot_v2", "lerobot_v3", "lerobot_v3_images"])
def test_frames_actions_states_rewards_and_tasks_stay_aligned(tmp_path: Path, name: str) -> None:
    import_dataset("lerobot", HERE / name, tmp_path / "out", cameras=["front", "wrist"], size=16, workers=0)
    episodes = read_shards(tmp_path / "out")
    assert [meta["task"] for _, meta in episodes] == ["pick the cube", "open the drawer"]
    for number, (arrays, meta) in enumerate(episodes):
        length = (12, 9)[number]
        time = np.arange(length)
        frames = arrays["frames"]
        assert frames.shape == (length, 16, 32, 3)
        level = 20 * number + 10 * time + 40
        np.testing.assert_allclose(frames[:, :, :14].mean((1, 2, 3)), level, atol=2.5)
        np.testing.assert_allclose(frames[:, :, 18:].mean((1, 2, 3)), 255 - level, atol=2.5)
        np.testing.assert_array_equal(arrays["state"], np.stack([np.full(length, number), time], 1))
        np.testing.assert_array_equal(arrays["rewards"], time == length - 1)
        low, high = np.array(meta["action_low"]), np.array(meta["action_high"])
        raw = low + (arrays["actions"] + 1) / 2 * (high - low)
        np.testing.assert_allclose(raw, np.stack([30 * time, np.full(length, -1.5 * number)], 1), atol=1e-4)
        assert meta["action_names"] == ["shoulder", "gripper"] and meta["state_names"] == ["x", "y"]
        assert meta["fps"] == 10 and meta["source"] == f"episode {number}" and meta["truncated"]


def test_pieces_workers_and_a_second_run_give_the_same_shards(tmp_path: Path) -> None:
    for workers, out in ((0, tmp_path / "a"), (2, tmp_path / "b")):
        import_dataset(
            "lerobot",
            HERE / "lerobot_v3",
            out,
            cameras=["wrist"],
            size=8,
            clip_length=5,
            episodes_per_shard=1,
            workers=workers,
        )
    shards = sorted(path.name for path in (tmp_path / "a").glob("*.tar"))
    assert shards == ["shard-000000.tar", "shard-000001.tar"]
    for shard in shards:
        assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()
    assert [meta["frames"] for _, meta in read_shards(tmp_path / "a")] == [5, 5, 2, 5, 4]


def test_missing_shards_are_written_again_and_finished_ones_kept(tmp_path: Path) -> None:
    def run(**others: Any) -> None:
        import_dataset(
            "lerobot", HERE / "lerobot_v2", tmp_path / "out", ["front"], 8, episodes_per_shard=1, workers=0, **others
        )

    run()
    first, second = sorted((tmp_path / "out").glob("*.tar"))
    content, kept = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    run()
    assert second.read_bytes() == content and first.stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="clip_length was 1000 and is now 6"):
        run(clip_length=6)


def damaged(tmp_path: Path, name: str = "lerobot_v2") -> Path:
    return Path(shutil.copytree(HERE / name, tmp_path / "damaged"))


def test_an_episode_that_cannot_be_read_is_named_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = damaged(tmp_path)
    (source / "videos/chunk-000/observation.images.front/episode_000000.mp4").write_bytes(b"no video")
    import_dataset("lerobot", source, tmp_path / "out", cameras=["front"], size=8, workers=0)
    assert "skipped (1):\n  episode 0: " in capsys.readouterr().out
    assert [meta["source"] for _, meta in read_shards(tmp_path / "out")] == ["episode 1"]
    mended = "videos/chunk-000/observation.images.front/episode_000000.mp4"
    shutil.copy(HERE / "lerobot_v2" / mended, source / mended)
    import_dataset("lerobot", source, tmp_path / "out", cameras=["front"], size=8, workers=0)
    assert [meta["source"] for _, meta in read_shards(tmp_path / "out")] == ["episode 0", "episode 1"]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("meta/info.json", {"codebase_version": "v1.6"}, "is of version v1.6; versions v2.0, v2.1 and v3.0 are read"),
        ("meta/info.json", {"data_path": "../data/{episode_index}.parquet"}, "data_path leads out of the folder"),
        ("meta/info.json", {"features": {}}, "has no camera"),
    ],
)
def test_descriptions_that_cannot_be_right_are_named(
    tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    source = damaged(tmp_path)
    (source / file).write_text(json.dumps(json.loads((source / file).read_text()) | change))
    with pytest.raises(ValueError, match=message):
        import_dataset("lerobot", source, tmp_path / "out", cameras=["front"], workers=0)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_choice_of_cameras_is_asked_for_and_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 2 cameras \(observation.images.front, .*\): choose by --cameras"):
        import_dataset("lerobot", HERE / "lerobot_v3", tmp_path / "out", workers=0)
    with pytest.raises(ValueError, match="has no camera top; its cameras are"):
        import_dataset("lerobot", HERE / "lerobot_v3", tmp_path / "out", cameras=["top"], workers=0)
    with pytest.raises(ValueError, match="there is no such file or folder"):
        import_dataset("lerobot", tmp_path / "none", tmp_path / "out", workers=0)


def test_actions_beyond_the_stated_bounds_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = damaged(tmp_path)
    lines = [json.loads(line) for line in (source / "meta/episodes_stats.jsonl").read_text().splitlines()]
    for line in lines:
        line["stats"]["action"]["max"] = [100.0, 0.0]
    (source / "meta/episodes_stats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="none of its 2 episodes could be read"):
        import_dataset("lerobot", source, tmp_path / "out", cameras=["front"], size=8, workers=0)
    expected = "dimension 0 of its actions is 120 at frame 4, outside of the bounds that the data set states (0 to 100)"
    assert f"skipped (2):\n  episode 0: {expected}" in capsys.readouterr().out


def test_version_2_0_has_its_statistics_in_one_file(tmp_path: Path) -> None:
    """Derived from a 2.1 file: 2.0 has stats.json instead of the statistics of every episode."""
    source = damaged(tmp_path)
    meta = source / "meta"
    lines = [json.loads(line)["stats"]["action"] for line in (meta / "episodes_stats.jsonl").read_text().splitlines()]
    extremes = {name: getattr(np.array([line[name] for line in lines]), name)(0).tolist() for name in ("min", "max")}
    (meta / "stats.json").write_text(json.dumps({"action": extremes}))
    (meta / "episodes_stats.jsonl").unlink()
    info = json.loads((meta / "info.json").read_text())
    (meta / "info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    for folder, out in ((HERE / "lerobot_v2", "new"), (source, "old")):
        import_dataset("lerobot", folder, tmp_path / out, cameras=["front"], size=8, workers=0)
    new, old = read_shards(tmp_path / "new"), read_shards(tmp_path / "old")
    assert [meta for _, meta in old] == [meta for _, meta in new] and len(old) == 2
    for (was, _), (now, _) in zip(new, old, strict=True):
        for name in was:
            np.testing.assert_array_equal(now[name], was[name])


def test_actions_and_states_of_one_number_a_frame(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    source = damaged(tmp_path)
    for table in source.rglob("*.parquet"):
        columns = pyarrow.parquet.read_table(table)
        for name in ("action", "observation.state"):
            scalars = pyarrow.array(
                [row[-1 if name == "observation.state" else 0] for row in columns[name].to_pylist()]
            )
            columns = columns.set_column(columns.column_names.index(name), name, scalars)
        pyarrow.parquet.write_table(columns, table)
    stats = source / "meta/episodes_stats.jsonl"
    lines = [json.loads(line) for line in stats.read_text().splitlines()]
    for line in lines:
        for values in (line["stats"]["action"],):
            values.update({name: values[name][:1] for name in ("min", "max")})
    stats.write_text("\n".join(map(json.dumps, lines)))
    import_dataset("lerobot", source, tmp_path / "out", cameras=["front"], size=8, workers=0)
    for number, (arrays, meta) in enumerate(read_shards(tmp_path / "out")):
        time = np.arange((12, 9)[number])
        np.testing.assert_array_equal(arrays["state"], time[:, None])
        raw = meta["action_low"] + (arrays["actions"] + 1) / 2 * (np.array(meta["action_high"]) - meta["action_low"])
        np.testing.assert_allclose(raw, 30 * time[:, None], atol=1e-4)
