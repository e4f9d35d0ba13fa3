"""Data sets of LeRobot read in place: the clips of an import, in its order, without converting anything."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from vwm.core.command_output import format_size
from vwm.core.components import save_component
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import ClipBatch, ClipDataset
from vwm.data.converting import convert_dataset
from vwm.data.datamodule import ClipLoader
from vwm.data.frame_reading import read_episode_frames
from vwm.data.importing import import_dataset
from vwm.data.inspection import inspect_dataset
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_array, read_episode_metadata
from vwm.data.video import decode_frames
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.tokenizers.shard_encoding import encode_shards

pytest.importorskip("pyarrow", reason="LeRobot's tables require pyarrow")

SETS = Path(__file__).parent / "importers"
FIELDS = ("frames", "actions", "rewards", "state", "terminated")
NAMES = ("lerobot_v2", "lerobot_v3", "lerobot_v3_images")


def address(folder: Path) -> str:
    return f"lerobot:{folder}?cameras=front,wrist&size=16"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of each data set, imported with the same cameras and size."""
    out = tmp_path_factory.mktemp("imported")
    for name in NAMES:
        import_dataset("lerobot", SETS / name, out / name, cameras=["front", "wrist"], size=16, workers=0)
    return out


def assert_same(clips: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert len(clips) == len(others) > 0
    for clip, other in zip(clips, others, strict=True):
        assert clip.keys() == other.keys()
        for field, value in clip.items():
            assert value.dtype == other[field].dtype
            np.testing.assert_array_equal(value, other[field], err_msg=field)


@pytest.mark.parametrize("name", NAMES)
def test_clips_are_those_of_an_import_in_the_same_order(imported: Path, name: str) -> None:
    shards = make_clip_dataset(str(imported / name), 4, fields=FIELDS, seed=7)
    in_place = make_clip_dataset(address(SETS / name), 4, fields=FIELDS, seed=7)
    for epoch in range(2):
        assert_same(*([clips[epoch, i] for i in range(len(clips.order))] for clips in (in_place, shards)))
    for split in ("train", "val"):  # the same episodes are held out
        kept = [
            [entry.key for shard in make_clip_dataset(path, 4, split=split, val_fraction=0.31).shards
             for entry in shard.episodes]
            for path in (address(SETS / name), str(imported / name))
        ]  # fmt: skip
        assert kept[0] == kept[1] and len(kept[0]) == 1


def test_every_frame_value_and_word_of_an_episode_is_that_of_the_import(imported: Path) -> None:
    (shard,), (here,) = list_shards(imported / "lerobot_v3"), list_shards(address(SETS / "lerobot_v3"))
    index, index_here = load_shard_index(shard), load_shard_index(here)
    for entry, entry_here in zip(index.episodes, index_here.episodes, strict=True):
        assert (entry.key, entry.frames, entry.height, entry.width, entry.fps) == (
            (entry_here.key, entry_here.frames, entry_here.height, entry_here.width, entry_here.fps)
        )
        assert read_episode_metadata(shard, entry) == read_episode_metadata(here, entry_here)
        assert read_episode_metadata(here, entry_here)["task"] in ("pick the cube", "open the drawer")
        np.testing.assert_array_equal(read_episode_frames(shard, entry), read_episode_frames(here, entry_here))
        for field in ("actions", "rewards", "state"):
            np.testing.assert_array_equal(read_array(shard, entry, field), read_array(here, entry_here, field))


def batches(clips: ClipDataset, count: int, **options: Any) -> list[ClipBatch]:
    loader = ClipLoader(clips, options.pop("batch_size", 2), **options)
    found: list[ClipBatch] = []
    while len(found) < count:
        found += islice(loader, count - len(found))
    return found


def assert_same_batches(some: list[ClipBatch], others: list[ClipBatch]) -> None:
    assert_same(*([{k: v.numpy() for k, v in vars(b).items() if v is not None} for b in run] for run in (some, others)))


def test_workers_ranks_and_a_resumed_run_see_the_same_batches() -> None:
    clips = make_clip_dataset(address(SETS / "lerobot_v3"), 4, fields=FIELDS, seed=3)
    alone = batches(clips, 6)
    assert_same_batches(batches(clips, 6, workers=2), alone)
    ranks = [batches(clips, 6, batch_size=1, rank=rank, world_size=2) for rank in range(2)]
    joined = [
        ClipBatch(**{k: torch.cat([vars(a)[k], vars(b)[k]]) for k, v in vars(a).items() if v is not None})
        for a, b in zip(*ranks, strict=True)
    ]
    assert_same_batches(joined, alone)
    for done in (1, 3):
        loader = ClipLoader(clips, 2)
        while loader.global_batches < done:
            list(islice(loader, done - loader.global_batches))
        resumed = ClipLoader(make_clip_dataset(address(SETS / "lerobot_v3"), 4, fields=FIELDS, seed=3), 2)
        resumed.load_state_dict(loader.state_dict())
        rest: list[ClipBatch] = []
        while len(rest) < 6 - done:
            rest += islice(resumed, 6 - done - len(rest))
        assert_same_batches(rest, alone[done:])


def test_a_run_does_not_resume_on_other_data(tmp_path: Path) -> None:
    copy = shutil.copytree(SETS / "lerobot_v2", tmp_path / "copy")
    state = ClipLoader(make_clip_dataset(address(SETS / "lerobot_v2"), 4), 2).state_dict()
    ClipLoader(make_clip_dataset(address(copy), 4), 2).load_state_dict(state)  # wherever it lies
    video = copy / "videos/chunk-000/observation.images.front/episode_000001.mp4"
    video.write_bytes(video.read_bytes() + b"\0" * 8)
    for other in (address(copy), address(copy).replace("size=16", "size=8")):
        with pytest.raises(ValueError, match="cannot resume in the same order: the shards or their weights differ"):
            ClipLoader(make_clip_dataset(other, 4), 2).load_state_dict(state)


def test_mixtures_join_shards_and_data_in_place_and_conversions_read_it(imported: Path, tmp_path: Path) -> None:
    both = {address(SETS / "lerobot_v2"): 1.0, str(imported / "lerobot_v3"): 3.0}
    clips = make_clip_dataset(both, 4, fields=FIELDS)
    drawn = [clips.order.address(0, i).shard for i in range(8)]
    assert sorted(drawn) == [0, 0, 1, 1, 1, 1, 1, 1]
    convert_dataset("webdataset", Path(address(SETS / "lerobot_v2")), tmp_path / "a", workers=0)
    convert_dataset("webdataset", imported / "lerobot_v2", tmp_path / "b", workers=0)
    assert (tmp_path / "a/000000.tar").read_bytes() == (tmp_path / "b/000000.tar").read_bytes()


@pytest.mark.parametrize("name", ["lerobot_v2", "lerobot_v3"])
def test_inspect_counts_the_files_of_the_source_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of both episodes, without the other camera; version 3 has one table and one video for both."""
    inspect_dataset(f"lerobot:{SETS / name}?cameras=front")
    tables, videos = ([*(SETS / name).rglob(place)] for place in ("data/**/*.parquet", "videos/**/*.mp4"))
    videos = [video for video in videos if "front" in str(video)]
    assert len(tables) == len(videos) == (2 if name == "lerobot_v2" else 1)
    sizes = [sum(file.stat().st_size for file in files) for files in (tables, videos)]
    total, table, video = map(format_size, (sum(sizes), *sizes))
    assert f"shards         1, {total} (parquet {table}, mp4 {video}), read in place\n" in capsys.readouterr().out


def test_latents_of_data_in_place_are_those_of_the_import(imported: Path, tmp_path: Path) -> None:
    save_component(PixelTokenizer((16, 32), 4), tmp_path / "tokenizer")
    for name, data in (("here", address(SETS / "lerobot_v3")), ("shards", str(imported / "lerobot_v3"))):
        encode_shards(data, tmp_path / "tokenizer", tmp_path / name, device="cpu")
    fields = (*FIELDS, "latents")
    clips = [make_clip_dataset(str(tmp_path / name), 4, fields=fields, seed=3) for name in ("here", "shards")]
    assert_same(*([data_set[0, i] for i in range(len(data_set.order))] for data_set in clips))
    ((shard, entry), (other, expected)) = (
        (path, load_shard_index(path).episodes[1])
        for path in (list_shards(tmp_path / name)[0] for name in ("here", "shards"))
    )
    assert read_episode_metadata(shard, entry) == read_episode_metadata(other, expected)


def test_a_folder_of_one_camera_needs_no_address(tmp_path: Path) -> None:
    folder = shutil.copytree(SETS / "lerobot_v2", tmp_path / "one")
    info = json.loads((folder / "meta/info.json").read_text())
    del info["features"]["observation.images.wrist"]
    (folder / "meta/info.json").write_text(json.dumps(info))
    clips = make_clip_dataset(str(folder), 4, shuffle=False)
    frames = np.asarray(clips[0]["frames"])
    assert frames.shape == (4, 48, 64, 3)
    np.testing.assert_allclose(frames[:, :16].mean((1, 2, 3)), [40, 50, 60, 70], atol=2.5)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("", r"has 2 cameras .*: choose by --cameras, or where it is read in place by \?cameras=front"),
        ("?cameras=top", "has no camera top; its cameras are"),
        ("?cameras=front&sise=16", r"sise=16: unknown are sise. An address is such as lerobot:data/aloha\?cameras"),
        ("?cameras=front&size=0", "height must be above 0, got 0. An address is such as"),
        ("?cameras=front&fps=-1", "fps must be above 0"),
    ],
)
def test_addresses_that_cannot_be_right_are_named(end: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_shards(f"lerobot:{SETS / 'lerobot_v3'}{end}")


def test_missing_and_remote_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file or folder"):
        list_shards(address(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="data sets are read in place from a folder of this machine"):
        list_shards("lerobot:s3://bucket/pusht")


def test_damaged_files_are_named_with_their_episode(tmp_path: Path) -> None:
    source = shutil.copytree(SETS / "lerobot_v2", tmp_path / "in")
    for camera, content in (("front", b"no video"), ("wrist", None)):
        video = source / f"videos/chunk-000/observation.images.{camera}/episode_000001.mp4"
        video.unlink() if content is None else video.write_bytes(content)
        clips = make_clip_dataset(f"lerobot:{source}?cameras={camera}&size=8", 9, shuffle=False, fields=("frames",))
        assert clips[0]["frames"].shape == (9, 8, 8, 3)
        with pytest.raises(ValueError, match=rf"in: episode 1: .*{camera}/episode_000001.mp4: cannot be opened"):
            clips[len(clips) - 1]
    (source / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1")
    actions = make_clip_dataset(f"lerobot:{source}?cameras=front&size=8", 9, shuffle=False, fields=("actions",))
    with pytest.raises(ValueError, match=r"in: episode 1: .*episode_000001.parquet: is no readable parquet table"):
        actions[len(actions) - 1]


def test_an_episode_in_several_row_groups_and_in_any_order(tmp_path: Path) -> None:
    import pyarrow.parquet

    source = shutil.copytree(SETS / "lerobot_v3", tmp_path / "in")
    file = source / "data/chunk-000/file-000.parquet"
    table = pyarrow.parquet.read_table(file)
    rows = np.random.default_rng(0).permutation(table.num_rows)
    for statistics in (True, False):
        pyarrow.parquet.write_table(table.take(rows), file, row_group_size=4, write_statistics=statistics)
        ours, others = (
            make_clip_dataset(address(folder), 4, fields=FIELDS) for folder in (source, SETS / "lerobot_v3")
        )
        assert_same([ours[i] for i in range(len(ours))], [others[i] for i in range(len(others))])


def test_h264_with_frames_out_of_order_is_read_by_frame_number(imported: Path, tmp_path: Path) -> None:
    convert_dataset("lerobot", imported / "lerobot_v3", tmp_path / "again", workers=0)
    for video in (tmp_path / "again").rglob("*.mp4"):
        frames = decode_frames(video, range(21), "all", backend="pyav")
        with av.open(str(video), "w") as out:
            stream = out.add_stream("libx264", rate=10, options={"bf": "3", "g": "8", "crf": "1"})
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            for frame in frames:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            out.mux(stream.encode(None))
    ours = make_clip_dataset(address(tmp_path / "again"), 4, fields=FIELDS)
    others = make_clip_dataset(str(imported / "lerobot_v3"), 4, fields=FIELDS)
    for i in range(len(others)):
        clip, other = ours[i], others[i]
        np.testing.assert_allclose(clip["frames"].mean((1, 2, 3)), other["frames"].mean((1, 2, 3)), atol=1.5)
        np.testing.assert_allclose(clip["actions"], other["actions"], atol=1e-6)
        np.testing.assert_array_equal(clip["state"], other["state"])


def test_pictures_of_tables_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    source = shutil.copytree(SETS / "lerobot_v3_images", tmp_path / "in")
    (file,) = (source / "data").rglob("*.parquet")
    table = pyarrow.parquet.read_table(file)
    column = table.column_names.index("observation.images.front")
    pictures = [{"bytes": None, "path": "../../etc/hostname"} for _ in range(table.num_rows)]
    pyarrow.parquet.write_table(table.set_column(column, table.column_names[column], pyarrow.array(pictures)), file)
    with pytest.raises(ValueError, match=r"episode 0: leads out of the folder \(../../etc/hostname\)"):
        make_clip_dataset(f"lerobot:{source}?cameras=front", 4)
