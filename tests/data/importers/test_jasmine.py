"""array_record files as Jasmine's ``save_chunks`` writes them: each record a pickled dict of the frames and actions."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shard_contents import read_shards

from vwm.data.importers.plain_pickle import read_plain_pickle
from vwm.data.importing import import_dataset

array_record = pytest.importorskip("array_record.python.array_record_module")


def video(number: int, length: int, height: int = 16, width: int = 16) -> NDArray[np.uint8]:
    """Frame t of clip e is a ramp from 20 e + 10 t at its top left to the right and down."""
    time, ramp = np.arange(length), np.arange(height)[:, None] * 2 + np.arange(width)
    return (20 * number + 10 * time[:, None, None, None] + ramp[..., None] + np.zeros(3)).astype(np.uint8)


def record(frames: NDArray[np.uint8], actions: Any = None, protocol: int = 4) -> bytes:
    content = {"raw_video": frames.tobytes(), "sequence_length": frames.shape[0]}
    return pickle.dumps(content | ({} if actions is None else {"actions": actions}), protocol)


def write(path: Path, *records: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = array_record.ArrayRecordWriter(str(path), "group_size:1")
    for content in records:
        writer.write(content)
    writer.close()


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran_code",)


def test_frames_and_actions_of_every_record(tmp_path: Path) -> None:
    choices = [np.arange(6) * 2, np.arange(4, dtype=np.int8)]
    write(
        tmp_path / "in/train/data_0000.array_record", record(video(0, 6), choices[0]), record(video(1, 4), choices[1])
    )
    write(tmp_path / "in/val/data_0000.array_record", record(video(2, 5), np.arange(5)[::-1]))
    (tmp_path / "in/metadata.json").write_text(json.dumps({"env": "coinrun", "num_actions": 15}), encoding="utf-8")
    import_dataset("jasmine", tmp_path / "in", tmp_path / "out", fps=15, workers=0)
    found = read_shards(tmp_path / "out")
    names = ["train/data_0000.array_record:0", "train/data_0000.array_record:1", "val/data_0000.array_record:0"]
    assert [meta["source"] for _, meta in found] == names and {meta["fps"] for _, meta in found} == {15}
    for number, (arrays, _) in enumerate(found):
        np.testing.assert_array_equal(arrays["frames"], video(number, (6, 4, 5)[number]))
        assert arrays["actions"].tolist() == [*choices, np.arange(5)[::-1]][number].tolist()


def test_frames_that_are_not_square_have_the_stated_size(tmp_path: Path) -> None:
    """9 x 16 frames could be 12 x 12 ones."""
    write(tmp_path / "in/train/a.array_record", record(video(0, 3, 9, 16)))
    with pytest.raises(ValueError, match="none of its 1 episodes"):
        import_dataset("jasmine", tmp_path / "in/train", tmp_path / "out", workers=0)
    stated = {"image_height": 9, "image_width": 16}
    (tmp_path / "in/metadata.json").write_text(json.dumps(stated), encoding="utf-8")
    import_dataset("jasmine", tmp_path / "in/train", tmp_path / "out", workers=0)
    ((arrays, _),) = read_shards(tmp_path / "out")
    np.testing.assert_array_equal(arrays["frames"], video(0, 3, 9, 16))


def test_broken_and_hostile_records_are_named_and_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frames, good = video(0, 3), record(video(0, 3))
    write(
        tmp_path / "in/a.array_record",
        good,
        pickle.dumps({"raw_video": frames.tobytes(), "sequence_length": 3, "actions": _Hostile()}),
        good[: len(good) // 2],
        record(video(0, 3, 9, 16)),
        record(frames, np.zeros((3, 11), np.uint8)),
        record(frames, np.array([{"a": 1}, 2, 3], object)),
        pickle.dumps({"raw_video": bytes(100), "sequence_length": 3}),
        pickle.dumps([1, 2]),
        pickle.dumps({"frames": 1}),
    )
    (tmp_path / "in/b.array_record").write_bytes(b"no records at all")
    content = (tmp_path / "in/a.array_record").read_bytes()
    (tmp_path / "in/c.array_record").write_bytes(content[: 70 * 1024])
    import_dataset("jasmine", tmp_path / "in", tmp_path / "out", workers=0)
    text = capsys.readouterr().out
    for line in (
        "skipped (10):",
        "a.array_record:1: is a pickle that names posix.mkdir: only values and arrays of numbers are read",
        "a.array_record:2: ",
        "a.array_record:3: has frames of 144 pixels that do not look square, rather 16x9: state image_height",
        "a.array_record:4: has actions uint8 [3, 11]: neither one choice a frame nor one-hot",
        "a.array_record:5: ",
        "a.array_record:6: has 100 bytes of raw_video, which are not 3 frames of 3 channels",
        "a.array_record:7: is a pickle with EMPTY_LIST",
        "a.array_record:8: has no raw_video",
        "b.array_record: is no ArrayRecord file, or a damaged one",
        "c.array_record: is no ArrayRecord file, or a damaged one",
    ):
        assert line in text
    assert [meta["source"] for _, meta in read_shards(tmp_path / "out")] == ["a.array_record:0"]
    assert not (tmp_path / "ran_code").exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_of_arrays_are_read_as_python_reads_them(protocol: int) -> None:
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {
        "none": None, "yes": True, "count": 2**40, "negative": -3, "rate": 0.5, "text": "ä", "bytes": b"\0" * 300,
        "shared": (1, (2, "a"), ()), "long": list(range(3)) and "x" * 300,
    }  # fmt: skip
    for kind in ("i1", "<i8", ">f4", "u2", "?"):
        content[kind] = (rng.random((3, 2, 2)) * 100).astype(kind)
    content |= {"turned": content["<i8"].T, "scalar": np.int64(7), "again": content["<i8"]}
    found = read_plain_pickle(pickle.dumps(content, protocol))
    assert list(found) == list(content)
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
        else:
            assert found[name] == value


def test_damaged_pickles_only_raise_errors_of_values() -> None:
    rng = np.random.default_rng(0)
    failures = 0
    for number in range(3_000):
        content = bytearray(record(video(0, 1, 2, 2), np.arange(1), 3 + number % 3))
        for place in rng.integers(len(content), size=3):
            content[place] = rng.integers(256)
        try:
            read_plain_pickle(bytes(content))
        except ValueError:
            failures += 1
    assert failures > 1_000
