"""Data sets that Minari 0.5.4 wrote as Arrow, as Parquet, and as HDF5 with pictures as JPEG.

Frame t of episode e is grey 20 e + 10 t + 30, its state is (e, t), and its action (5 t, -e) in a box of 40 and 2.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from shard_contents import read_shards

from vwm.data.importing import import_dataset

pytest.importorskip("pyarrow")
pytest.importorskip("h5py")
FOLDER = Path(__file__).parent
LENGTHS = (6, 4)


@pytest.mark.parametrize(("name", "side"), [("minari_arrow", 32), ("minari_parquet", 16), ("minari_pictures", 32)])
def test_every_storage_gives_the_same_steps(tmp_path: Path, name: str, side: int) -> None:
    import_dataset("minari", FOLDER / name, tmp_path, workers=0)
    found = read_shards(tmp_path)
    assert [meta["source"] for _, meta in found] == ["episode_0", "episode_1"]
    for number, (arrays, meta) in enumerate(found):
        time = np.arange(LENGTHS[number])
        assert arrays["frames"].shape == (len(time), side, side, 3)
        np.testing.assert_allclose(arrays["frames"].mean((1, 2, 3)), 20 * number + 10 * time + 30, atol=1)
        np.testing.assert_array_equal(arrays["state"], np.stack([np.full(len(time), number), time], 1))
        np.testing.assert_array_equal(arrays["rewards"], time == time[-1])
        expected = np.stack([5 * time / 40, np.full(len(time), -number / 2)], 1)
        np.testing.assert_allclose(arrays["actions"], expected, atol=1e-6)
        assert (meta["action_low"], meta["action_high"]) == ([-40, -2], [40, 2])
        assert [meta["terminated"], meta["truncated"]] == [number == 1, number == 0]


def test_broken_episodes_and_unknown_storages_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(shutil.copytree(FOLDER / "minari_arrow", tmp_path / "in"))
    shutil.copytree(source / "data/1", source / "data/10")
    content = (source / "data/0/part-0.arrow").read_bytes()
    (source / "data/0/part-0.arrow").write_bytes(content[: len(content) // 2])
    (source / "data/2").mkdir()
    import_dataset("minari", source, tmp_path / "out", workers=0)
    text = capsys.readouterr().out
    assert "skipped (2):\n  episode_0: is no readable arrow table (" in text
    assert "  episode_2: has no observations" in text
    assert [meta["source"] for _, meta in read_shards(tmp_path / "out")] == ["episode_1", "episode_10"]
    description = json.loads((source / "data/metadata.json").read_text(encoding="utf-8"))
    (source / "data/metadata.json").write_text(json.dumps(description | {"data_format": "zarr"}), encoding="utf-8")
    with pytest.raises(ValueError, match="is stored as zarr; Minari's data sets as hdf5, arrow and parquet are read"):
        import_dataset("minari", source, tmp_path / "other", workers=0)
