"""Checkpoint folders in an object store: faults that pass are survived, others are named; nothing starts from zero."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from store import Answer, Request, Store, run_store

from vwm.core import remote_files
from vwm.core.remote_files import RetryPolicy, StoreError
from vwm.runs.checkpoint_files import FolderFiles
from vwm.runs.checkpoint_folders import CheckpointFolders
from vwm.runs.checkpoints import CheckpointError
from vwm.runs.run_folder import RunFolder
from vwm.train.resume_points import find_resume_point

POLICY = RetryPolicy(
    attempts=3, requests=1, first_wait=0, longest_wait=0, connect_timeout=5, stall_timeout=5, patience=60
)
TENSORS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with run_store() as store:
        yield store


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name, value in {
        "AWS_ENDPOINT_URL": server.address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote_files, "RETRY_POLICY", POLICY)
    monkeypatch.setattr(remote_files, "_FILE_SYSTEMS", {})
    server.make_faults(None)
    server.requests.clear()
    yield server
    server.make_faults(None)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"s3://bucket/{tmp_path.name}/run"


def make_state(number: int) -> dict[str, Any]:
    weights = {f"weight{index}": torch.full((500,), float(number + index)) for index in range(TENSORS)}
    return {"state_dict": weights, "global_step": number}


def save(folders: CheckpointFolders, *steps: int) -> None:
    for step in steps:
        folders.save(step, make_state(step))
    folders.wait()


def loaded_step(address: str) -> int:
    """Load as another process would; the weights are those of the step that is returned."""
    state = CheckpointFolders(address).load()
    expected = make_state(state["global_step"])["state_dict"]
    assert all(torch.equal(state["state_dict"][name], weight) for name, weight in expected.items())
    return int(state["global_step"])


def refuse(status: int, code: str) -> Callable[[Request, Answer], Answer]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    headers = {"Content-Type": "application/xml", "Content-Length": str(len(body))}
    return lambda request, answer: Answer(status, headers, body)


def reset(request: Request, answer: Answer) -> None:
    return None


def writes(part: str = "") -> Callable[[Request], bool]:
    return lambda request: request.method in ("PUT", "POST") and part in request.path


def test_the_last_ones_are_kept_and_loaded_with_few_bytes(store: Store, address: str) -> None:
    save(CheckpointFolders(address, keep=2, keep_every_n_steps=4), 2, 4, 6, 8, 9)
    assert CheckpointFolders(address).steps() == [4, 8, 9]
    assert FolderFiles(address).names() == ["step-00000004", "step-00000008", "step-00000009"]
    store.requests.clear()
    assert loaded_step(address) == 9
    asked = [re.match(r"bytes=(\d+)-(\d+)", request.headers.get("Range", "")) for request in store.requests]
    bytes_asked = sum(int(part[2]) - int(part[1]) + 1 for part in asked if part)
    size = TENSORS * 500 * 4
    assert 2 * size < bytes_asked < 2.3 * size  # to compare checksums, and to load


@pytest.mark.parametrize("fault", [refuse(503, "SlowDown"), refuse(500, "InternalError"), reset])
def test_writes_and_reads_that_fail_for_a_moment_are_repeated(store: Store, address: str, fault: Any) -> None:
    store.make_faults(fault, 2, writes())
    save(CheckpointFolders(address), 1)
    assert store.faults_left == 0
    store.make_faults(fault, 2, lambda request: request.method == "GET" and "rank-" in request.path)
    assert loaded_step(address) == 1
    assert store.faults_left == 0


def test_a_store_that_fails_for_long_costs_checkpoints_and_then_ends_the_training(
    store: Store, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = CheckpointFolders(address)
    save(folders, 1)
    store.make_faults(reset, matches=lambda request: True)
    folders.save(2, make_state(2))
    folders.save(3, make_state(3))
    said = capsys.readouterr().out
    assert f"warning: {address}/step-00000002: rank 0 could not write it" in said and "saves step 3" in said
    store.make_faults(None)
    save(folders, 4)  # 3 may be complete or not: it was under way
    assert folders.steps()[-1] == 4 and folders.steps()[0] != 2 and loaded_step(address) == 4

    store.make_faults(reset, matches=writes("index.json"))
    for step in (5, 6, 7):
        folders.save(step, make_state(step))
    with pytest.raises(CheckpointError, match=r"step-00000007: rank 0 could not write it .*3 attempts"):
        folders.save(8, make_state(8))
    assert 5 not in folders.steps() and loaded_step(address) == 4


@pytest.mark.parametrize("kind", ["cut off", "other bytes", "missing", "of another training"])
def test_a_damaged_object_is_named_and_the_one_before_is_used(
    store: Store, address: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(CheckpointFolders(address), 1, 2)
    files = FolderFiles(f"{address}/step-00000002")
    place = files.place("rank-00000.safetensors").removeprefix("bucket/")
    data = files.read("rank-00000.safetensors")
    if kind == "missing":
        store.delete(place)
    elif kind == "of another training":
        store.put(place, FolderFiles(f"{address}/step-00000001").read("rank-00000.safetensors"))
    else:
        store.put(place, data[:-9] if kind == "cut off" else data[:-1] + b"?")
    assert loaded_step(address) == 1
    reasons = {"cut off": "cut off or foreign", "missing": "is missing"}
    said = capsys.readouterr().out
    assert f"step-00000002/rank-00000.safetensors: is {reasons.get(kind, 'damaged').removeprefix('is ')}" in said


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/a/run"])
def test_a_store_that_cannot_be_reached_is_no_empty_one(
    store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that resumes does not begin again, nor with an older checkpoint, because the store is down."""
    save(CheckpointFolders(url), 1, 2)
    run = RunFolder(tmp_path)
    for fault, message in ((reset, "3 attempts"), (refuse(403, "AccessDenied"), "refuses access")):
        store.make_faults(fault, matches=lambda request: True)
        with pytest.raises(StoreError, match=message):
            find_resume_point(run, url)
    store.make_faults(reset, matches=lambda request: "step-00000002/rank" in request.path)
    with pytest.raises(StoreError, match=r"step-00000002: rank-00000.safetensors could not be read in 3 attempts"):
        CheckpointFolders(url).load()
    store.make_faults(None)
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        find_resume_point(run, "s3://bucke/run")
    assert find_resume_point(run, "s3://bucket/nothing/yet") is None
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        FolderFiles("s3://bucke/run").check_writable()
    FolderFiles(url).check_writable()
    assert "write-test" not in FolderFiles(url).names()


def test_old_ones_that_may_not_be_removed_do_not_end_the_training(
    store: Store, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = CheckpointFolders(address, keep=1)
    removes = lambda request: request.method == "DELETE" or "delete" in request.path  # noqa: E731
    store.make_faults(refuse(403, "AccessDenied"), matches=removes)
    save(folders, 1, 2)
    assert f"warning: {address}: old checkpoints could not be removed" in capsys.readouterr().out
    assert loaded_step(address) == 2
