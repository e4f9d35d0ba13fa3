"""The index is the same whether written, rebuilt or cached; foreign, changed and broken shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vwm.core.atomic_files import atomic_write_text
from vwm.data.episode import Episode
from vwm.data.episode_entry import parse_npy_header
from vwm.data.frame_reading import read_episode_frames
from vwm.data.shard_index import (
    build_shard_index,
    list_shards,
    load_shard_index,
    shard_fingerprint,
    shard_index_path,
)
from vwm.data.shards import ShardWriter
from vwm.data.video_encoding import encode_video


def frames(length: int, value: int = 0, side: int = 16) -> np.ndarray:
    return np.full((length, side, side, 3), value, np.uint8)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    """A tar as somebody else would make it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vwm" / "shards"


def test_foreign_shards_work(tmp_path: Path) -> None:
    shard = tmp_path / "foreign.tar"
    members = {
        "./clips/000.mp4": encode_video(frames(9, 40), fps=24),
        "./clips/000.json": b'{"caption": "gray"}',
        "./clips/001.frames.npy": npy(frames(5, 80)),
        "./clips/001.actions.npy": npy(np.arange(5)),
        "./clips/002.MP4": encode_video(frames(3, 120), fps=24),
        "./clips/003.txt": b"a sample without video",
        "./clips/.DS_Store": b"rubbish",
        "./README": b"no sample",
    }
    shard.write_bytes(tar(members))
    index = load_shard_index(str(shard))
    assert [(e.key, e.frames, e.height, e.width, e.fps) for e in index.episodes] == [
        ("./clips/000", 9, 16, 16, 24.0), ("./clips/001", 5, 16, 16, 0.0), ("./clips/002", 3, 16, 16, 24.0)
    ]  # fmt: skip
    assert set(index.episodes[1].members) == {"frames.npy", "actions.npy"}
    for entry, value in zip(index.episodes, (40, 80, 120), strict=True):
        assert abs(read_episode_frames(str(shard), entry).astype(int) - value).max() <= 3
    # The index is kept next to the shard, and is the same from there.
    assert Path(shard_index_path(shard)).is_file()
    assert load_shard_index(str(shard)) == index == build_shard_index(str(shard))


def test_several_readers_may_rebuild_at_once(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar({"a.frames.npy": npy(frames(4))}))
    load_shard_index(str(shard))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.index.json", "s.tar"]


def test_a_read_only_folder_uses_the_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tmp_path / "disk" / "s.tar"
    shard.parent.mkdir()
    shard.write_bytes(tar({"a.frames.npy": npy(frames(4))}))

    def write_text(path: str | Path, text: str) -> None:
        if Path(path).parent == shard.parent:
            raise PermissionError(path)
        atomic_write_text(path, text)

    monkeypatch.setattr("vwm.data.shard_index.atomic_write_text", write_text)
    index = load_shard_index(str(shard))
    assert [p.name for p in shard.parent.iterdir()] == ["s.tar"] and len(list(cache.iterdir())) == 1
    monkeypatch.setattr("vwm.data.shard_index.build_shard_index", None)  # not built again
    assert load_shard_index(str(shard)) == index


def test_the_cache_notices_a_changed_shard(cache: Path) -> None:
    address = "memory://test-index/s.tar"
    for length in (4, 40):
        with fsspec.open(address, "wb") as file:
            file.write(tar({"a.frames.npy": npy(frames(length))}))
        assert load_shard_index(address).episodes[0].frames == length
        assert len(list(cache.iterdir())) == 1


def test_a_shard_changes_with_its_size_its_time_or_its_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(b"1")
    os.utime(shard, (5, 5))
    before = shard_fingerprint(str(shard))
    assert shard_fingerprint(str(shard)) == before
    os.utime(shard, (6, 6))
    assert shard_fingerprint(str(shard)) != before
    address = "memory://test-index/tagged.tar"
    fsspec.filesystem("memory").pipe(address, b"1")
    untagged = shard_fingerprint(address)
    info = MemoryFileSystem.info
    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path, **more: {**info(self, path), "ETag": "a"})
    assert shard_fingerprint(address) == {**untagged, "ETag": "a"}


def test_an_index_of_another_version_is_rebuilt(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.tar") as writer:
        writer.write("a", Episode(frames(4)))
    sidecar = tmp_path / "s.index.json"
    whole = sidecar.read_text()
    sidecar.write_text(json.dumps({**json.loads(whole), "version": 0, "episodes": "of another form"}))
    assert load_shard_index(str(tmp_path / "s.tar")).episodes[0].frames == 4
    assert sidecar.read_text() == whole


def test_truncated_shards_are_reported(tmp_path: Path) -> None:
    data = tar({"a.frames.npy": npy(frames(4)), "b.frames.npy": npy(frames(4))})
    shard = tmp_path / "cut.tar"
    first = 512 + -(-len(npy(frames(4))) // 512) * 512  # where the second member begins
    # In a member, in a header, between two members, after the last one.
    for length in (first + 512 + 700, first + 100, first, 2 * first, 512 + 10):
        shard.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.tar: not a complete tar file .*Write or download this shard again"):
            load_shard_index(str(shard))
    for rubbish in (b"", b"<html>not found</html>" * 100):
        shard.write_bytes(rubbish)
        with pytest.raises(ValueError, match=r"cut\.tar: not a complete tar file"):
            load_shard_index(str(shard))
    assert [p.name for p in tmp_path.iterdir()] == ["cut.tar"]
    shard.write_bytes(data)
    assert len(load_shard_index(str(shard)).episodes) == 2


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.json": b"{", "a.frames.npy": npy(frames(4))}, "a.json is not JSON"),
        (
            {"a.frames.npy": npy(np.zeros((4, 8, 8), np.uint8))},
            r"a\.frames\.npy must be uint8 \[T, H, W, 3\], got uint8 \[4, 8, 8\]",
        ),
        ({"a.frames.npy": npy(np.zeros((4, 8, 8, 3), np.float32))}, r"a\.frames\.npy must be uint8 .* got float32"),
        ({"a.json": b"[1]", "a.frames.npy": npy(frames(4))}, r"a\.json must hold an object, .* not list"),
        ({"a.json": b'{"fps": null}', "a.frames.npy": npy(frames(4))}, r"fps must be a number of 0 or more, got None"),
        ({"a.json": b'{"fps": NaN}', "a.frames.npy": npy(frames(4))}, r"fps must be a number of 0 or more, got nan"),
        ({"walk.v1.mp4": b"video"}, r"none of its 1 samples .* end in v1\.mp4; .* A name is cut at its first dot"),
        ({"a.frames.npy": npy(np.array([{}, {}]))}, r"a\.frames\.npy cannot be read \(npy members must be"),
        ({"a.frames.npy": npy(np.asfortranarray(frames(4)))}, r"a\.frames\.npy cannot be read \(npy members must be"),
        ({"a.frames.npy": b"rubbish" * 50}, r"a\.frames\.npy cannot be read"),
        ({"a.mp4": b"rubbish" * 50}, r"s\.tar:a\.mp4"),
    ],
)
def test_invalid_samples_are_reported(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    (tmp_path / "s.tar").write_bytes(tar(members))
    with pytest.raises(ValueError, match=said) as caught:
        load_shard_index(str(tmp_path / "s.tar"))
    assert "s.tar" in str(caught.value)


def test_two_samples_of_one_name_are_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as file:
        for _ in range(2):
            data = npy(frames(4))
            member = tarfile.TarInfo("a.frames.npy")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    with pytest.raises(ValueError, match=r"s\.tar: two members are called a\.frames\.npy"):
        load_shard_index(str(tmp_path / "s.tar"))


def test_an_index_of_the_shard_as_it_was_before_is_rebuilt(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    for count, value in ((4, 1), (9, 1), (9, 2)):  # another size, then the same size and other content
        shard.write_bytes(tar({"a.frames.npy": npy(frames(count, value))}))
        later = shard.stat().st_mtime_ns + 10**9 * (count + value)
        os.utime(shard, ns=(later, later))
        assert load_shard_index(str(shard)) == build_shard_index(str(shard))
        assert read_episode_frames(str(shard), load_shard_index(str(shard)).episodes[0]).shape[0] == count
        os.utime(shard_index_path(shard), ns=(later, later))


def test_a_sidecar_that_is_cut_off_or_foreign_is_rebuilt(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar({"a.frames.npy": npy(frames(4))}))
    index = load_shard_index(str(shard))
    text = Path(shard_index_path(shard)).read_text()
    for broken in (
        text[:60],
        "",
        "[]",
        "null",
        '{"version": 2}',
        text.replace('"episodes": [{', '"episodes": [{"x": 1, '),
    ):
        Path(shard_index_path(shard)).write_text(broken)
        assert load_shard_index(str(shard)) == index
        assert Path(shard_index_path(shard)).read_text() == text


def test_nothing_is_written_where_neither_folder_nor_cache_can_be(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str | Path, text: str) -> None:
        raise PermissionError(path)

    shard = tmp_path / "s.tar"
    shard.write_bytes(tar({"a.frames.npy": npy(frames(4))}))
    monkeypatch.setattr("vwm.data.shard_index.atomic_write_text", refuse)
    assert load_shard_index(str(shard)).episodes[0].frames == 4


def test_a_folder_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "data[1]").mkdir()
    (tmp_path / "data[1]" / "s.tar").touch()
    assert [Path(path).name for path in list_shards(tmp_path / "data[1]")] == ["s.tar"]


def test_npy_headers() -> None:
    for array in (np.zeros((3, 4, 5, 3), np.uint8), np.arange(6), np.zeros((2, 3), np.float32), np.zeros(0)):
        data = npy(array)
        shape, dtype, length = parse_npy_header(data[:256])
        assert (shape, dtype) == (array.shape, array.dtype)
        assert data[length:] == array.tobytes()


def test_listing(tmp_path: Path) -> None:
    for name in ("shard-000002.tar", "shard-000000.tar", "shard-000001.tar"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    all_three = [str(tmp_path / f"shard-00000{i}.tar") for i in range(3)]
    assert list_shards(tmp_path) == list_shards(f"{tmp_path}/") == list_shards(f"{tmp_path}/shard-*.tar") == all_three
    assert list_shards(tmp_path / "shard-000001.tar") == all_three[1:2]
    for nothing in (tmp_path / "none", tmp_path / "none.tar", f"{tmp_path}/x*.tar"):
        with pytest.raises(FileNotFoundError, match=r"no shards at .*vwm record"):
            list_shards(nothing)


@pytest.mark.parametrize("shape", [(3,), (200, 64, 64, 3), (5, 0), ()])
@pytest.mark.parametrize("dtype", ["u1", "<f4", "<i8", "?", "<f2"])
def test_usual_headers_are_read_without_the_parser_of_python(
    shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's parser fails at times where several threads use it, as readers of remote shards do."""
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype))
    expected = shape, np.dtype(dtype), len(file.getvalue()) - int(np.prod(shape)) * np.dtype(dtype).itemsize
    assert parse_npy_header(file.getvalue()[:256]) == expected
    if shape:
        monkeypatch.setattr(np.lib.format, "read_array_header_1_0", None)
        assert parse_npy_header(file.getvalue()[:256]) == expected
