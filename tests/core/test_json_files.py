"""JSON that is broken, nested without end or no object is an error that names the file, wherever it is read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vwm.core.json_files import parse_json_object, read_json_object
from vwm.data.action_files import read_action_file
from vwm.data.ingest_manifest import IngestSettings, load_manifest
from vwm.data.shard_index import load_shard_index, shard_index_path
from vwm.envs.recording import record_dataset
from vwm.tokenizers.loading import load_tokenizer

BROKEN = {"deep": b"[" * 10**5, "list": b"[]", "bytes": b'{"a": "\xff"}', "cut": b'{"a": ', "digits": b"9" * 10**5}


def write_shard(folder: Path, meta: bytes) -> Path:
    """Write a shard with one sample of four frames and the given metadata."""
    shard = folder / "a.tar"
    frames = io.BytesIO()
    np.save(frames, np.zeros((4, 8, 8, 3), np.uint8))
    with tarfile.open(shard, "w") as tar:
        for name, data in (("0.frames.npy", frames.getvalue()), ("0.json", meta)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return shard


def read_shard(folder: Path, content: bytes) -> None:
    load_shard_index(str(write_shard(folder, content)))


def read_manifest(folder: Path, content: bytes) -> None:
    write_shard(folder, b"{}")
    (folder / "ingest.json").write_bytes(content)
    load_manifest(folder, IngestSettings("videos", None, None, None, 100, 8))


def read_recording(folder: Path, content: bytes) -> None:
    write_shard(folder, b"{}")
    (folder / "recording.json").write_bytes(content)
    record_dataset("CartPole-v1", folder, frames=10, workers=0)


def read_tokenizer(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    load_tokenizer(folder)


def read_parts(folder: Path, content: bytes) -> None:
    np.save(folder / "a.actions.npy", np.zeros((4, 2)))
    (folder / "a.actions.json").write_bytes(content)
    read_action_file(folder / "a.mp4")


READERS: dict[str, Callable[[Path, bytes], None]] = {
    "0.json": read_shard, "ingest.json": read_manifest, "recording.json": read_recording,
    "config.json": read_tokenizer, "a.actions.json": read_parts,
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", BROKEN)
def test_every_reader_names_the_file(name: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}:? .*") as error:
        READERS[name](tmp_path, BROKEN[kind])
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", ['{"settings": [1]}', '{"shards": 3}', '{"settings": {}, "shards": 3}'])
def test_a_manifest_of_another_kind_is_named(content: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ingest\.json: "):
        read_manifest(tmp_path, content.encode())


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_index_is_built_again(kind: str, tmp_path: Path) -> None:
    shard = str(write_shard(tmp_path, b"{}"))
    whole = load_shard_index(shard)
    Path(shard_index_path(shard)).write_bytes(BROKEN[kind])
    assert load_shard_index(shard) == whole
    json.loads(Path(shard_index_path(shard)).read_text())


def test_large_files_are_refused_by_their_size(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"a": 1}))
    assert read_json_object(file) == {"a": 1} == parse_json_object('{"a": 1}', "text")
    with pytest.raises(ValueError, match=r"a\.json: 8 bytes are too large, at most 4"):
        read_json_object(file, max_bytes=4)
