"""Checkpoint folders: complete or not there, verified, without pickles, on disks and in object stores."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vwm.runs import checkpoint_folder
from vwm.runs.checkpoint_files import FolderFiles
from vwm.runs.checkpoint_folders import CheckpointFolders, take_out_tensors
from vwm.runs.checkpoints import CheckpointError


def make_state(number: int) -> dict[str, Any]:
    """A checkpoint with tensors of several types, an empty one, a number, and values that are no tensors."""
    return {
        "state_dict": {"weight": torch.arange(12.0).reshape(3, 4).t() + number, "half": torch.ones(3).bfloat16()},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(number), "empty": torch.zeros(0, 2)}}, "groups": [1]}],
        "callbacks": {"EMACallback": {"average": {"shadow_params": [torch.full((2,), float(number))]}}},
        "generators": [{"torch": torch.arange(5, dtype=torch.uint8)}],
        "global_step": number,
        "pair": (1, "two"),
    }


def assert_equal(value: Any, expected: Any) -> None:
    assert type(value) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert value.dtype == expected.dtype and torch.equal(value, expected)
    elif isinstance(expected, dict):
        assert list(value) == list(expected)
        for key in expected:
            assert_equal(value[key], expected[key])
    elif isinstance(expected, list | tuple):
        for one, other in zip(value, expected, strict=True):
            assert_equal(one, other)
    else:
        assert value == expected


@pytest.fixture(params=["disk", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "checkpoints") if request.param == "disk" else f"memory://{tmp_path.name}"


def test_what_was_saved_is_loaded_while_the_training_goes_on(address: str) -> None:
    folders, state = CheckpointFolders(address), make_state(3)
    folders.save(3, state)
    state["state_dict"]["weight"].zero_()  # the next step
    folders.wait()
    assert_equal(folders.load(), make_state(3))
    assert folders.steps() == [3]


def test_old_ones_are_kept_by_policy_and_incomplete_ones_removed(address: str) -> None:
    folders = CheckpointFolders(address, keep=2, keep_every_n_steps=4)
    place = FolderFiles(address)
    place.files.makedirs(place.place("step-00000005"))
    place.files.pipe(place.place("step-00000005/rank-00000.safetensors"), b"killed while it was written")
    for step in (4, 6, 8, 10, 11):
        folders.save(step, make_state(step))
    folders.wait()
    assert folders.steps() == [4, 8, 10, 11]
    assert not place.files.exists(place.place("step-00000005"))


def test_other_programs_read_the_tensors(tmp_path: Path) -> None:
    folders = CheckpointFolders(str(tmp_path))
    folders.save(1, make_state(1))
    folders.wait()
    read = load_file(tmp_path / "step-00000001" / "rank-00000.safetensors")
    (weight,) = (tensor for name, tensor in read.items() if "state_dict/weight" in name)
    assert torch.equal(weight, make_state(1)["state_dict"]["weight"])


@pytest.mark.parametrize("kind", ["cut off", "damaged", "missing", "foreign index", "no index", "trainer"])
def test_a_damaged_one_is_named_and_replaced_by_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folders = CheckpointFolders(str(tmp_path))
    for step in (1, 2):
        folders.save(step, make_state(step))
    folders.wait()
    file = tmp_path / "step-00000002" / ("trainer.ckpt" if kind == "trainer" else "rank-00000.safetensors")
    data = file.read_bytes()
    if kind == "cut off":
        file.write_bytes(data[:-1])
    elif kind in ("damaged", "trainer"):
        file.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif kind == "missing":
        file.unlink()
    elif kind == "foreign index":
        (file.parent / "index.json").write_text("{}")
    else:
        (file.parent / "index.json").unlink()
    assert_equal(folders.load(), make_state(1))
    said = capsys.readouterr().out
    if kind != "no index":  # never complete: not spoken of
        name = "index.json" if kind == "foreign index" else file.name
        assert f"step-00000002/{name}: is " in said and f"Continuing from {tmp_path}/step-00000001" in said
    (tmp_path / "step-00000001" / "trainer.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000001/trainer.ckpt: is missing"):
        folders.load()


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    folders = CheckpointFolders(str(tmp_path))
    folders.save(1, make_state(1))
    folders.wait()
    path = tmp_path / "step-00000001" / "index.json"
    index = json.loads(path.read_text())
    part = index["tensors"]["state_dict/weight"]["parts"][0]
    for changed in (
        index | {"files": index["files"] | {"../secret": {"bytes": 1, "crc32": 0}}},
        index | {"tensors": {"a": index["tensors"]["state_dict/weight"] | {"parts": [part | {"start": -8}]}}},
        index | {"tensors": {"a": {"dtype": "F32", "shape": [1], "parts": [part]}}},
        index | {"tensors": {"a": {"dtype": "object", "shape": [1], "parts": []}}},
        index | {"format": "another"},
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match="is no index of a checkpoint"):
            folders.load()


def test_nothing_is_unpickled_as_code(tmp_path: Path) -> None:
    folders = CheckpointFolders(str(tmp_path))
    folders.save(1, make_state(1))
    folders.wait()
    folder = FolderFiles(folders.folder(1))
    index = checkpoint_folder.read_index(folder)

    class Hostile:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("ran").touch, ())

    index["files"]["trainer.ckpt"] = folder.write("trainer.ckpt", lambda: iter([pickle.dumps(Hostile(), 2)]))
    folder.write("index.json", lambda: iter([json.dumps(index).encode()]))
    with pytest.raises(CheckpointError, match=r"trainer.ckpt: is no checkpoint of vwm"):
        folders.load()
    assert not (tmp_path / "ran").exists()


def test_a_failed_write_is_an_error_of_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = CheckpointFolders(str(tmp_path))
    folders.save(1, make_state(1))
    folders.wait()

    def fail(*arguments: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(checkpoint_folder.FolderFiles, "write", fail)
    folders.save(2, make_state(2))
    with pytest.raises(CheckpointError, match=r"step-00000002: rank 0 could not write it \(the disk is full\)"):
        folders.wait()
    assert folders.steps() == [1]


def test_tensors_are_separated_by_their_paths() -> None:
    rest, tensors = take_out_tensors(make_state(1))
    assert rest["optimizer_states"][0]["state"][0]["step"] == ("vwm.tensor", "optimizer_states/0/state/0/step")
    assert list(tensors) == [
        "state_dict/weight", "state_dict/half", "optimizer_states/0/state/0/step", "optimizer_states/0/state/0/empty",
        "callbacks/EMACallback/average/shadow_params/0",
    ]  # fmt: skip
    assert isinstance(rest["generators"][0]["torch"], torch.Tensor)
