"""Inspection reports the numbers that were written, and draws the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vwm.data.episode import Episode
from vwm.data.inspection import SHEET_COLUMNS, SHEET_SIDE, inspect_dataset
from vwm.data.shards import ShardWriter


def gray(level: int, length: int, side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((length, side, side, 3), level, np.uint8)


def write_shards(folder: Path) -> None:
    meta = {"fps": 10.0, "source": "test", "action_names": ["stay", "go"]}
    with ShardWriter(folder / "shard-000000.tar") as writer:
        actions, rewards = np.array([0, 1, 1, 1]), np.array([0, 1, 0, 0.5], np.float32)
        writer.write("a", Episode(gray(0, 4, 8), actions, rewards, terminated=True, truncated=False, meta=meta))
    with ShardWriter(folder / "shard-000001.tar") as writer:
        writer.write("b", Episode(gray(200, 6, 128), meta=meta))
        box = np.array([[0, -0.5], [1, 0.5]], np.float32)
        writer.write("c", Episode(gray(90, 2, 8), box, meta=meta))


def test_counts_are_those_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path)
    inspect_dataset(str(tmp_path))
    said = capsys.readouterr().out
    lines = {line[:14].strip(): line[15:] for line in said.splitlines()}
    assert lines["shards"].startswith("2, ")
    assert lines["episodes"] == "3, of 2 to 6 frames, median 4"
    assert lines["frames"].startswith("12, 0.00 hours")
    assert lines["size"] == "8x8 (2), 128x128 (1)"
    assert lines["fps"] == "10"
    assert lines["ends"] == "truncated (2), terminated (1)"
    assert lines["reward"] == "1.5 in total, 1.5 per episode"
    assert "discrete (1)" in lines["actions"] and "none (1)" in lines["actions"]
    assert "  0 stay                   1  25.0%" in said and "  1 go                     3  75.0%" in said
    assert "dimension 1 (go): mean 0.000, std 0.500, from -0.500 to 0.500" in said


def test_named_numbers_of_the_state_are_shown_with_their_ranges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(tmp_path / "a" / "shard-000000.tar") as writer:
        for key, state in (("a", [[1, 5, 0], [2, 6, 0]]), ("b", [[-3, 5.5, 9], [0, 7, 9]])):
            meta = {"state_names": ["ball_x", "ram_1", "ball_y"]}
            writer.write(key, Episode(gray(0, 2, 8), state=np.array(state, np.float32), meta=meta))
    inspect_dataset(str(tmp_path / "a"))
    said = capsys.readouterr().out
    assert "state          3 variables, 1 of them without a name" in said and "ram_1" not in said
    assert [line.split() for line in said.splitlines() if "ball" in line] == [
        ["ball_x", "from", "-3", "to", "2"],
        ["ball_y", "from", "0", "to", "9"],
    ]
    with ShardWriter(tmp_path / "b" / "shard-000000.tar") as writer:  # as recordings before names were
        writer.write("a", Episode(gray(0, 2, 8), state=np.array([[1] * 15, [2] * 15], np.float32)))
    inspect_dataset(str(tmp_path / "b"))
    said = capsys.readouterr().out
    assert "state          15 variables\n" in said and "state_11 " in said and "state_12" not in said
    assert "and 3 more" in said


def test_the_hash_is_of_the_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name)
    with ShardWriter(tmp_path / "c" / "shard-000000.tar") as writer:
        writer.write("a", Episode(gray(1, 4, 8)))
    hashes = []
    for name in ("a", "b", "c"):
        inspect_dataset(str(tmp_path / name))
        hashes += [line for line in capsys.readouterr().out.splitlines() if line.startswith("content hash")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_contact_sheet_has_one_row_per_episode(tmp_path: Path) -> None:
    write_shards(tmp_path)
    inspect_dataset(str(tmp_path), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image)
    step = SHEET_SIDE + 2
    assert pixels.shape == (3 * step, SHEET_COLUMNS * step, 3)
    middles = pixels[step // 2 :: step, step // 2 :: step].astype(int)
    assert np.abs(middles - np.array([0, 200, 90])[:, None, None]).max() <= 3
    with pytest.raises(ValueError, match=r"name it \.png"):
        inspect_dataset(str(tmp_path), tmp_path / "sheet.jpg")


def test_missing_shards_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="vwm record"):
        inspect_dataset(str(tmp_path))
