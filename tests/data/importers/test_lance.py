"""Tables that stable-worldmodel's own LanceWriter and LanceVideoWriter wrote, from episodes as its World.collect makes.

Frame t of episode e is grey 20 e + 10 t + 30 (255 less that in the camera wrist), its proprio is (e, t), and its action
(t / 10, -e). Six and four steps were recorded, and the frames that the last ones lead to.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_contents import read_shards

from vwm.data.importing import import_dataset

lance = pytest.importorskip("lance")
pa = pytest.importorskip("pyarrow")
FOLDER = Path(__file__).parent
LENGTHS = (6, 4)


@pytest.mark.parametrize(("name", "fps"), [("lance", 30), ("lance_videos", 12)])
def test_steps_are_aligned_with_the_frames_that_they_start_from(tmp_path: Path, name: str, fps: int) -> None:
    import_dataset("lance", FOLDER / name, tmp_path, cameras=["pixels", "pixels_wrist"], fps=30, workers=0)
    found = read_shards(tmp_path)
    assert len(found) == 2
    for number, (arrays, meta) in enumerate(found):
        time = np.arange(LENGTHS[number])
        level = 20 * number + 10 * time + 30
        assert arrays["frames"].shape == (len(time), 16, 32, 3)
        np.testing.assert_allclose(arrays["frames"][:, :, 4:12].mean((1, 2, 3)), level, atol=3)
        np.testing.assert_allclose(arrays["frames"][:, :, 20:28].mean((1, 2, 3)), 255 - level, atol=3)
        expected = np.stack([time / 10, np.full(len(time), -number)], 1)
        np.testing.assert_allclose(arrays["actions"], expected, atol=1e-6)
        np.testing.assert_array_equal(arrays["state"], np.stack([np.full(len(time), number), time], 1))
        np.testing.assert_array_equal(arrays["rewards"], time == time[-1])
        assert [meta["terminated"], meta["truncated"], meta["fps"]] == [number == 1, number == 0, fps]
        assert meta["task"] == f"push block {number}" and meta["episode_data"] == {"seed": number}


def write_table(path: Path, **columns: list[Any]) -> None:
    lance.write_dataset(pa.table(columns), str(path))


def jpegs(source: Path, count: int) -> list[bytes]:
    stored = lance.dataset(str(source)).take(list(range(count)), columns=["pixels"])
    contents: list[bytes] = stored.column("pixels").to_pylist()
    return contents


def test_whole_numbers_are_choices_and_rows_may_lie_in_any_order(tmp_path: Path) -> None:
    pictures = jpegs(FOLDER / "lance" / "push.lance", 6)
    order = [3, 0, 2, 5, 1, 4]
    columns: dict[str, list[Any]] = {"step_idx": [i % 3 for i in order], "pixels": [pictures[i] for i in order]}
    write_table(tmp_path / "t.lance", episode_idx=[i // 3 for i in order], action=[float(i) for i in order], **columns)
    import_dataset("lance", tmp_path / "t.lance", tmp_path / "out", workers=0)
    for number, (arrays, _) in enumerate(read_shards(tmp_path / "out")):
        assert arrays["actions"].tolist() == [3 * number + t for t in range(3)]
        expected = [30 + 10 * (3 * number + t) for t in range(3)]
        np.testing.assert_allclose(arrays["frames"].mean((1, 2, 3)), expected, atol=3)


def test_broken_and_foreign_tables_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = jpegs(FOLDER / "lance" / "push.lance", 3)
    pixels = pictures * 2 + [pictures[0], b"\xff\xd8 no picture", pictures[2]]
    write_table(
        tmp_path / "t.lance",
        episode_idx=[number for number in range(3) for _ in range(3)],
        step_idx=[0, 1, 2, 0, 2, 2, 0, 1, 2],
        pixels=pixels,
    )
    import_dataset("lance", tmp_path, tmp_path / "out", workers=0)
    text = capsys.readouterr().out
    assert "skipped (2):\n  episode 1: step 1 of its 3 is missing or stored twice\n" in text
    assert "  episode 2: pixels 1: cannot be decoded as a picture (" in text
    assert [meta["source"] for _, meta in read_shards(tmp_path / "out")] == ["episode 0"]

    shutil.copytree(tmp_path / "t.lance", tmp_path / "u.lance")
    for source, problem in (
        (tmp_path, r"has 2 tables \(t.lance, u.lance\): choose one"),
        (tmp_path / "out", "has no .lance table"),
    ):
        with pytest.raises(ValueError, match=problem):
            import_dataset("lance", source, tmp_path / "other", workers=0)
    next((tmp_path / "u.lance" / "_versions").glob("*.manifest")).write_bytes(b"no manifest")
    with pytest.raises(ValueError, match=r"u.lance: is no Lance table, or a damaged one"):
        import_dataset("lance", tmp_path / "u.lance", tmp_path / "other", workers=0)
    write_table(tmp_path / "w.lance", pixels=pictures)
    with pytest.raises(ValueError, match=r"w.lance: has no column episode_idx; its columns are pixels"):
        import_dataset("lance", tmp_path / "w.lance", tmp_path / "other", workers=0)
    assert not (tmp_path / "other").exists()
