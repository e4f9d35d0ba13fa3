"""Published weights are read without running code, and what is wrong with a file is named."""

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vwm.core.published_files import as_state_dict, find_published_file, read_published_weights
from vwm.core.weight_mapping import PretrainedWeightsError


class Hostile:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


def test_a_checkpoint_is_read_from_both_formats(tmp_path: Path) -> None:
    weights = {"module.a": torch.arange(3.0)}
    torch.save({"model": weights, "args": {"depth": 2}}, tmp_path / "a.pt")
    save_file(weights, tmp_path / "a.safetensors")
    read = read_published_weights(tmp_path / "a.pt")
    assert read["args"] == {"depth": 2}
    for found in (read["model"], read_published_weights(tmp_path / "a.safetensors")):
        assert torch.equal(as_state_dict(found, "a")["a"], weights["module.a"])


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Hostile(tmp_path / "made")}, tmp_path / "a.pt")
    with pytest.raises(PretrainedWeightsError, match=r"a\.pt: cannot be read"):
        read_published_weights(tmp_path / "a.pt")
    assert not (tmp_path / "made").exists()


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for name, problem in (("list.pt", "holds a list"), ("broken.safetensors", "cannot"), ("none.pt", "No such file")):
        with pytest.raises(PretrainedWeightsError, match=re.escape(name) + f".*{problem}"):
            read_published_weights(tmp_path / name)
    with pytest.raises(PretrainedWeightsError, match="no weights of this name"):
        as_state_dict({"a": 1}, "file")


def test_a_published_file_is_found_under_one_of_its_names(tmp_path: Path) -> None:
    names = ("a.safetensors", "a.pt")
    with pytest.raises(PretrainedWeightsError, match=r"there is no a.safetensors or a.pt: download"):
        find_published_file(tmp_path, names)
    (tmp_path / "a.pt").touch()
    assert find_published_file(tmp_path, names).name == "a.pt"
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(PretrainedWeightsError, match="leave one of them"):
        find_published_file(tmp_path, names)
