"""A data set that TensorFlow Datasets 4.9.10 wrote: cameras as PNG and JPEG, a depth map, float64 actions, two splits.

Its files of records are read without TensorFlow; ArrayRecord files are written here, of the same messages.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from drawer_episodes import TASKS, axes, check_frames, raw_actions, rewards, states
from shard_contents import read_shards

from vwm.data.importers.rlds import RldsSource
from vwm.data.importers.tf_example import find_records, map_record, parse_example
from vwm.data.importing import import_dataset

SOURCE = Path(__file__).parent / "rlds" / "toy_drawer"
TRAIN = "toy_drawer-train.tfrecord-00000-of-00001"


def run(source: Path, out: Path) -> None:
    import_dataset("rlds", source, out, cameras=["wrist_image", "image"], size=16, fps=5, workers=0)


def check(folder: Path) -> None:
    """Compare the three episodes with what was written; the first of the second split is that of the first."""
    episodes = read_shards(folder)
    assert len(episodes) == 3
    for arrays, meta in episodes:
        number = int(arrays["state"][0, 0])
        frames = arrays["frames"]
        check_frames(frames[:, :, 16:], number, 0, frames[:, :, :16])
        np.testing.assert_allclose(raw_actions(arrays, meta), axes(number), atol=1e-4)
        np.testing.assert_array_equal(arrays["state"], states(number))
        np.testing.assert_array_equal(arrays["rewards"], rewards(number))
        assert meta["task"] == TASKS[number] and meta["terminated"] == (number == 1) and meta["fps"] == 5
    assert sorted(int(arrays["state"][0, 0]) for arrays, _ in episodes) == [0, 0, 1]


def test_steps_stay_aligned_over_splits_and_the_only_version_is_found(tmp_path: Path) -> None:
    assert RldsSource(SOURCE).cameras == ("image", "wrist_image")  # and not the depth map
    run(SOURCE, tmp_path / "out")
    check(tmp_path / "out")


def test_array_record_files(tmp_path: Path) -> None:
    module = pytest.importorskip("array_record.python.array_record_module")
    source = tmp_path / "1.0.0"
    shutil.copytree(SOURCE / "1.0.0", source)
    for file in sorted(source.glob("*.tfrecord*")):
        writer = module.ArrayRecordWriter(str(file).replace("tfrecord", "array_record"), "group_size:1")
        for place in find_records(file):
            writer.write(bytes(map_record(file, place)))
        writer.close()
        file.unlink()
    run(source, tmp_path / "out")
    check(tmp_path / "out")


def test_damaged_files_and_steps_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(shutil.copytree(SOURCE / "1.0.0", tmp_path / "in"))
    content = bytearray((source / TRAIN).read_bytes())
    (start, size), _ = find_records(source / TRAIN)
    place = content.index(b"\x89PNG", start)
    content[place : place + 40] = bytes(40)  # a picture, and nothing that holds the message together
    (source / TRAIN).write_bytes(content)
    (source / "toy_drawer-cut.tfrecord-00000-of-00001").write_bytes(content[: start + size - 9])
    (source / "toy_drawer-text.tfrecord-00000-of-00001").write_bytes(b"these are no records at all")
    run(source, tmp_path / "out")
    text = capsys.readouterr().out
    assert "skipped (3):" in text
    assert (
        "toy_drawer-cut.tfrecord-00000-of-00001:0: toy_drawer-cut.tfrecord-00000-of-00001: is cut off within record 0"
        in text
    )
    assert "is no file of TensorFlow records, or damaged at byte 0" in text
    assert f"{TRAIN}:0: observation/image 0: cannot be decoded as a picture" in text
    assert len(read_shards(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"has no features.json; give the folder of one version \(found: none\)"),
        ({"featuresDict": {"features": {"image": {}}}}, "describes no episodes with steps, as RLDS has them"),
    ],
)
def test_folders_of_other_data_are_refused(tmp_path: Path, change: dict[str, object] | None, message: str) -> None:
    if change is not None:
        (tmp_path / "features.json").write_text(json.dumps(change))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, tmp_path / "out")


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def test_numbers_of_messages_packed_and_not_packed() -> None:
    values = [0, 1, 127, 128, -1, 2**62 + 3, -(2**63), 300]
    packed = field(1, b"".join(map(varint, values)))
    single = b"".join(varint(1 << 3) + varint(value) for value in values)
    floats = b"".join(varint(1 << 3 | 5) + np.float32(value).tobytes() for value in (0.5, -2.0))
    features = {"packed": field(3, packed), "single": field(3, single), "floats": field(2, floats), "no": field(1, b"")}
    entries = [field(1, field(1, name.encode()) + field(2, content)) for name, content in features.items()]
    found = parse_example(field(1, b"".join(entries)), {"packed", "single", "floats"})
    assert list(found) == ["packed", "single", "floats"]
    assert np.asarray(found["packed"]).tolist() == np.asarray(found["single"]).tolist() == values
    assert np.asarray(found["floats"]).tolist() == [0.5, -2.0]
    for cut in (1, 5, 30):
        with pytest.raises(ValueError, match=r"is no tf.train.Example, or a damaged one"):
            parse_example(field(1, b"".join(entries))[:cut], {"packed"})
