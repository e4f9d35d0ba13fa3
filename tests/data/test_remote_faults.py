"""Faults of a store are survived or named: no clip is dropped, repeated or other than it was written."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from store import Answer, Request, Store, run_store

from vwm.core import remote_files
from vwm.core.remote_files import ChangedShardError, RetryPolicy, StoreError
from vwm.data import remote_blocks
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import ClipDataset
from vwm.data.datamodule import ClipLoader
from vwm.data.episode import Episode
from vwm.data.shard_cache import ShardCache
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shards import ShardWriter

FIELDS = ("frames", "actions")
POLICY = RetryPolicy(
    attempts=4, first_wait=0, longest_wait=0, connect_timeout=5, stall_timeout=0.4, slowest=1e9, patience=60
)


def write_shard(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    with ShardWriter(path) as writer:
        for episode in range(4):
            length = int(rng.integers(9, 20))
            frames = rng.integers(0, 256, (length, 48, 48, 3), dtype=np.uint8)
            writer.write(f"{seed}-{episode}", Episode(frames, rng.integers(0, 9, length)))
    return path


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        write_shard(folder / f"shard-{number:06d}.tar", number)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with run_store() as store:
        yield store


@pytest.fixture
def store(server: Store, local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    for name, value in {
        "AWS_ENDPOINT_URL": server.address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote_files, "RETRY_POLICY", POLICY)
    server.make_faults(None)
    for file in local.iterdir():
        server.put(f"data/{file.name}", file.read_bytes())
    forget()
    server.requests.clear()
    yield server
    server.make_faults(None)


def forget() -> None:
    """Read everything again, as a new process would."""
    remote_blocks._SHARDS.clear()
    remote_blocks.forget_recent_pieces()


def open_clips(path: str | Path) -> ClipDataset:
    return make_clip_dataset(str(path), 4, fields=FIELDS, seed=3)


def read_all(clips: ClipDataset) -> list[dict[str, np.ndarray]]:
    return clips.__getitems__([(0, position) for position in range(len(clips))])


def same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in (*FIELDS, "seed")
    )


def refuse(status: int, code: str, message: str = "no") -> Callable[[Request, Answer], Answer]:
    """A fault: an error of the store, as S3 sends it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    headers = {"Content-Type": "application/xml", "Content-Length": str(len(body))}
    return lambda request, answer: Answer(status, headers, body)


def change(**changes) -> Callable[[Request, Answer], Answer]:
    """A fault: parts of the answer are others; a function is called with the answer."""

    def fault(request: Request, answer: Answer) -> Answer:
        found = {name: value(answer) if callable(value) else value for name, value in changes.items()}
        return dataclasses.replace(answer, **found)

    return fault


def with_body(body: Callable[[bytes], bytes]) -> Callable[[Request, Answer], Answer]:
    """A fault: another body, whose length the headers say."""

    def fault(request: Request, answer: Answer) -> Answer:
        data = body(answer.body)
        return dataclasses.replace(answer, body=data, headers=answer.headers | {"Content-Length": str(len(data))})

    return fault


def flip(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


def shift_range(answer: Answer) -> dict[str, str]:
    """The header of a range that was not asked for."""
    first = int(answer.headers["Content-Range"].split()[1].split("-")[0])
    return answer.headers | {"Content-Range": f"bytes {first + 1}-{first + len(answer.body)}/999999"}


PAGE = b"<html><body>Please log in to this network.</body></html>"
PASSING = {
    "an internal error (500)": refuse(500, "InternalError"),
    "a bad gateway (502) that sends a page": change(status=502, body=PAGE, headers={"Content-Length": str(len(PAGE))}),
    "too many requests (503 SlowDown)": refuse(503, "SlowDown"),
    "too many requests (429)": refuse(429, "TooManyRequests"),
    "a request that took too long (408)": refuse(408, "RequestTimeout"),
    "a connection that is closed without an answer": lambda request, answer: None,
    "a connection that is lost in the body": change(cut=1000),
    "a connection that stalls before the body": change(stall=True, cut=0),
    "a connection that stalls in the body": change(stall=True, cut=1000),
    "a body that is shorter, and says so": with_body(lambda body: body[:-10]),
    "a body that is longer, and says so": with_body(lambda body: body + b"more"),
    "an empty body": with_body(lambda body: b""),
    "a bit that flipped on the way": with_body(flip),
    "a page instead of the bytes (200)": change(status=200, body=PAGE, headers={"Content-Length": str(len(PAGE))}),
    "bytes of another place": with_body(lambda body: body[1:] + body[:1]),
    "another range than was asked for": change(headers=shift_range),
    "an error that is no XML": change(status=500, body=b"\0\1garbage", headers={"Content-Length": "9"}),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_survived(store: Store, local: Path, fault: str) -> None:
    """The first two answers with bytes are faulty, then the store recovers."""
    clips = open_clips("s3://bucket/data")
    store.make_faults(PASSING[fault], 2)
    assert same(read_all(clips), read_all(open_clips(local)))
    assert store.faults_left == 0  # the faults were made


def test_a_body_that_trickles_is_given_up(store: Store, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause is as long as ``stall_timeout``, but the whole would take an hour."""
    monkeypatch.setattr(remote_files, "RETRY_POLICY", dataclasses.replace(POLICY, connect_timeout=0.3))
    clips = open_clips("s3://bucket/data")
    store.make_faults(change(trickle=True), 1)
    assert np.array_equal(clips[0]["frames"], open_clips(local)[0]["frames"]) and store.faults_left == 0


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(remote_files, "_FILE_SYSTEMS", {})
    with pytest.raises(ImportError, match=r"s3:// need s3fs: pip install 'vwm\[s3\]'"):
        list_shards("s3://bucket/data")


@pytest.mark.parametrize("fault", ["a bit that flipped on the way", "an internal error (500)", "an empty body"])
def test_what_does_not_pass_is_named(store: Store, fault: str) -> None:
    clips = open_clips("s3://bucket/data")
    store.make_faults(PASSING[fault])
    causes = {"a bit": "differ from what the index .* says", "an in": "InternalError", "an em": "0 bytes came instead"}
    said = rf"s3://bucket/data/shard-00000\d.tar: bytes \d+ to \d+ could not be read in 4 .*{causes[fault[:5]]}"
    with pytest.raises(StoreError, match=said):
        clips[0]


LASTING = {
    "AccessDenied": (403, "the store refuses access .*AccessDenied.*check the rights"),
    "InvalidAccessKeyId": (403, "does not accept the credentials .*set AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": (403, "does not accept the credentials"),
    "ExpiredToken": (400, "the credentials have expired .*renew them"),
    "RequestTimeTooSkewed": (403, "the clock of this machine"),
    "PermanentRedirect": (301, "another region .*AWS_DEFAULT_REGION"),
}


@pytest.mark.parametrize("code", LASTING)
def test_what_another_attempt_would_not_change_is_named_at_once(store: Store, code: str) -> None:
    clips = open_clips("s3://bucket/data")
    status, said = LASTING[code]
    store.requests.clear()
    store.make_faults(refuse(status, code))
    with pytest.raises(StoreError, match=rf"s3://bucket/data/shard-.*{said}"):
        clips[0]
    assert len([r for r in store.requests if r.method == "GET"]) <= 1 + (
        status == 301
    )  # the client itself looks for the region
    if status != 301:
        store.make_faults(refuse(status, code), matches=lambda request: "list-type" in request.path)
        with pytest.raises(StoreError, match=f"s3://bucket/data: the list of its files: .*{said}"):
            list_shards("s3://bucket/data")


def test_an_object_that_is_replaced_in_use_is_named(store: Store, local: Path, tmp_path: Path) -> None:
    clips = open_clips("s3://bucket/data")
    first = read_all(clips)
    other = write_shard(tmp_path / "shard-000001.tar", 1)
    changed = bytearray(other.read_bytes())
    changed[3000] ^= 1  # of the same size
    store.put("data/shard-000001.tar", bytes(changed))
    assert same(read_all(clips), first)  # what is in memory is of the first state
    remote_blocks.forget_recent_pieces()
    with pytest.raises(ChangedShardError, match=r"shard-000001.tar was replaced while it was in use"):
        read_all(clips)


def test_a_store_that_ignores_conditions_shows_other_tags(store: Store) -> None:
    clips = open_clips("s3://bucket/data")
    store.make_faults(change(headers=lambda answer: answer.headers | {"ETag": '"other"'}))
    with pytest.raises(ChangedShardError, match="was replaced while it was in use"):
        clips[0]


def test_an_object_or_bucket_that_is_not_there_is_named(store: Store) -> None:
    clips = open_clips("s3://bucket/data")
    for number in range(3):
        store.delete(f"data/shard-{number:06d}.tar")
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/data/shard-.*tar: there is no such file"):
        clips[0]
    with pytest.raises(FileNotFoundError, match=r"no shards at s3://bucket/data"):
        list_shards("s3://bucket/data")
    with pytest.raises(FileNotFoundError, match=r"s3://no-bucket/data: there is no such bucket: check its name"):
        list_shards("s3://no-bucket/data")


def test_a_host_without_a_name_or_a_server_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://no-such-host.invalid:1", "http://127.0.0.1:9"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setattr(remote_files, "_FILE_SYSTEMS", {})
        with pytest.raises(StoreError, match=r"could not be read in 4 attempts .*endpoint URL"):
            list_shards("s3://bucket/data")


def test_without_credentials_the_variables_are_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(remote_files, "_FILE_SYSTEMS", {})
    with pytest.raises(StoreError, match=r"no credentials were found .*set AWS_ACCESS_KEY_ID"):
        list_shards("s3://bucket/data")


def test_a_store_that_ignores_ranges_gives_the_same_clips(store: Store, local: Path) -> None:
    clips = open_clips("s3://bucket/data")
    whole = {f"/bucket/data/{file.name}": file.read_bytes() for file in local.iterdir()}

    def ignore_range(request: Request, answer: Answer) -> Answer:
        headers = {k: v for k, v in answer.headers.items() if k != "Content-Range"}
        body = whole[request.path]
        return Answer(200, headers | {"Content-Length": str(len(body))}, body)

    store.make_faults(ignore_range)
    store.requests.clear()
    with pytest.warns(UserWarning, match="ignores byte ranges and sent the whole shard; a copy is kept"):
        found = [clips[position] for position in range(len(clips))]
    assert same(found, read_all(open_clips(local)))
    assert len([r for r in store.requests if ".tar" in r.path and r.method == "GET"]) == 3  # each shard once


def test_faults_of_the_list_and_of_the_index_are_survived(store: Store, local: Path) -> None:
    here = open_clips(local).order.index_hash
    for fault in (
        refuse(503, "SlowDown"),
        change(cut=20),
        with_body(lambda body: b"<broken"),
        lambda request, answer: None,
    ):
        forget()
        store.make_faults(fault, 2, lambda request: "list-type" in request.path)
        assert open_clips("s3://bucket/data").order.index_hash == here
        assert store.faults_left == 0
    for fault in (refuse(500, "InternalError"), change(cut=20), lambda request, answer: None):
        forget()
        store.make_faults(fault, 2, lambda request: "index.json" in request.path)
        assert open_clips("s3://bucket/data").order.index_hash == here


@pytest.mark.parametrize("how", ["missing", "cut off", "damaged", "of another size"])
def test_an_index_that_is_no_good_is_built_again(store: Store, local: Path, how: str) -> None:
    name = "shard-000000.index.json"
    good = (local / name).read_bytes()
    if how == "missing":
        store.delete(f"data/{name}")
    else:
        other = json.dumps(json.loads(good) | {"size": 512}).encode()
        bad = {"cut off": good[:100], "damaged": good.replace(b'"frames"', b'"frame5"', 1), "of another size": other}[
            how
        ]
        store.put(f"data/{name}", bad)
    clips = open_clips("s3://bucket/data")
    assert clips.order.index_hash == open_clips(local).order.index_hash
    assert same(read_all(clips), read_all(open_clips(local)))
    store.requests.clear()
    forget()
    load_shard_index("s3://bucket/data/shard-000000.tar")  # from the user's cache
    assert not [r for r in store.requests if r.method == "GET" and ".tar" in r.path]


def test_an_index_that_the_store_refuses_is_not_built_again(store: Store) -> None:
    store.make_faults(refuse(403, "AccessDenied"), matches=lambda request: "index.json" in request.path)
    with pytest.raises(StoreError, match=r"index.json: the file: the store refuses access"):
        open_clips("s3://bucket/data")
    assert not [r for r in store.requests if r.method == "GET" and r.path.endswith(".tar")]


def test_a_shard_without_checksums_is_checked_by_length_and_tag(store: Store, local: Path) -> None:
    """As those that were indexed by earlier versions."""
    clips = open_clips("s3://bucket/data")
    old = [dataclasses.replace(shard, block_sums="") for shard in clips.shards]
    forget()
    plain = ClipDataset(clips.paths, old, clips.order, 4, fields=FIELDS)
    store.make_faults(PASSING["an empty body"], 2)
    assert same(read_all(plain), read_all(open_clips(local)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_batches_of_workers_and_resumes_are_those_of_the_disk(
    store: Store, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "RETRY_POLICY", dataclasses.replace(POLICY, attempts=20))

    def batches(path: str | Path, workers: int, start: int = 0) -> list[torch.Tensor]:
        loader = ClipLoader(open_clips(path), 3, workers=workers)
        loader.load_state_dict({**loader.state_dict(), "global_batches": start})
        found = [torch.cat((b.frames.flatten(1), b.actions, b.seed[:, None]), dim=1) for b in loader]
        return [*found, *(torch.cat((b.frames.flatten(1), b.actions, b.seed[:, None]), dim=1) for b in loader)]

    here = batches(local, 0)
    faults = iter([*PASSING.values()] * 3)
    store.make_faults(lambda request, answer: next(faults)(request, answer), 12)
    for workers, start in ((0, 0), (3, 0), (2, 2)):
        forget()
        there = batches("s3://bucket/data", workers, start)
        assert len(there) == len(here) - start and all(map(torch.equal, there, here[start:]))
    assert store.faults_left == 0


def test_an_error_in_a_worker_is_one_sentence(store: Store) -> None:
    loader = ClipLoader(open_clips("s3://bucket/data"), 2, workers=1)
    store.make_faults(refuse(403, "AccessDenied"))
    with pytest.raises(StoreError, match=r"^s3://bucket/data/shard-00000\d.tar: bytes .*the store refuses access"):
        next(iter(loader))
    store.make_faults(change(headers=lambda answer: answer.headers | {"ETag": '"other"'}))
    with pytest.raises(ChangedShardError, match=r"^s3://bucket/data/shard-00000\d.tar was replaced while"):
        next(iter(loader))


def test_two_openings_of_one_address_keep_their_states(store: Store, local: Path, tmp_path: Path) -> None:
    """A data set that was opened before an object was replaced does not read what one opened later may read."""
    cached = make_clip_dataset("s3://bucket/data", 4, fields=FIELDS, seed=3, cache=ShardCache(tmp_path / "c", 10**7))
    plain, expected = open_clips("s3://bucket/data"), read_all(open_clips(local))
    for i in range(len(plain)):  # pieces of other sizes in turn
        assert same([cached[i], plain[i]], [expected[i], expected[i]])
    data = bytearray((local / "shard-000001.tar").read_bytes())
    data[3000] ^= 1
    store.put("data/shard-000001.tar", bytes(data))
    load_shard_index("s3://bucket/data/shard-000001.tar")
    remote_blocks.forget_recent_pieces()
    with pytest.raises(ChangedShardError, match=r"shard-000001.tar was replaced"):
        read_all(plain)
    assert same(read_all(cached), expected)  # from the disk
