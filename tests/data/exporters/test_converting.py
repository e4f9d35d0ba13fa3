"""Shards of two cameras that become a data set of LeRobot, and tars that webdataset reads.

The episodes are those of ``tests/data/importers/lerobot_v3``: frame t of episode e is grey 20 e + 10 t + 40 in front,
its inverse at the wrist, its state (e, t), its action (30 t, -1.5 e), and the last frame has a reward of 1.
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import webdataset
from shard_contents import read_shards

from vwm.data.converting import convert_dataset
from vwm.data.importing import import_dataset
from vwm.data.video import decode_frames

pytest.importorskip("pyarrow", reason="LeRobot's tables require pyarrow")
SOURCE = Path(__file__).parents[1] / "importers" / "lerobot_v3"
LENGTHS = (12, 9)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "data"
    import_dataset("lerobot", SOURCE, out, cameras=["front", "wrist"], size=16, episodes_per_shard=1, workers=0)
    return out


def test_a_data_set_of_lerobot_comes_back_from_our_own_importer(tmp_path: Path, shards: Path) -> None:
    convert_dataset("lerobot", shards, tmp_path / "lerobot", workers=0)
    import_dataset("lerobot", tmp_path / "lerobot", tmp_path / "back", cameras=["front", "wrist"], workers=0)
    before, after = read_shards(shards), read_shards(tmp_path / "back")
    assert len(after) == 2
    for (was, meta_before), (now, meta) in zip(before, after, strict=True):
        np.testing.assert_allclose(now["frames"].astype(int), was["frames"].astype(int), atol=3)
        np.testing.assert_allclose(now["actions"], was["actions"], atol=1e-6)
        np.testing.assert_array_equal(now["state"], was["state"])
        np.testing.assert_array_equal(now["rewards"], was["rewards"])
        same = ("task", "fps", "action_low", "action_high", "action_names", "state_names", "cameras", "camera_widths")
        assert [meta[name] for name in same] == [meta_before[name] for name in same]


def test_missing_files_are_written_again_and_other_folders_refused(tmp_path: Path, shards: Path) -> None:
    out = tmp_path / "lerobot"
    convert_dataset("lerobot", shards, out, workers=0)
    content = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "meta/info.json").unlink()
    (out / "meta/episodes/chunk-000/file-001.parquet").unlink()  # written last of a shard
    (out / "data/chunk-000/file-001.parquet").unlink()
    convert_dataset("lerobot", shards, out, workers=0)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == content
    with pytest.raises(ValueError, match="kind was 'lerobot' and is now 'webdataset'"):
        convert_dataset("webdataset", shards, out, workers=0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists, and `vwm convert` did not write it"):
        convert_dataset("lerobot", shards, tmp_path / "other", workers=0)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_tars(tmp_path: Path, shards: Path) -> None:
    convert_dataset("webdataset", shards, tmp_path / "tars", workers=0)
    urls = sorted(str(path) for path in (tmp_path / "tars").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()  # webdataset leaves its last file open, which must not show in another test
    assert [sample["json"]["task"] for sample in samples] == ["pick the cube", "open the drawer"]
    for number, sample in enumerate(samples):
        length, time = LENGTHS[number], np.arange(LENGTHS[number])
        level = 20 * number + 10 * time + 40
        for name, expected in (("front.mp4", level), ("wrist.mp4", 255 - level)):
            frames = decode_frames(sample[name], range(length), name)
            np.testing.assert_allclose(frames.mean((1, 2, 3)), expected, atol=3)
        arrays = sample["npz"]
        expected_actions = np.stack([30 * time, np.full(length, -1.5 * number)], 1)
        np.testing.assert_allclose(arrays["actions"], expected_actions, atol=1e-4)
        np.testing.assert_array_equal(arrays["state"], np.stack([np.full(length, number), time], 1))
        np.testing.assert_array_equal(arrays["rewards"], time == length - 1)
        np.testing.assert_allclose(arrays["timestamps"], time / 10)
