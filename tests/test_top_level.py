"""The public API of `import vwm`: fast to import, complete, and accepting folders as strings or paths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vwm


def test_importing_vwm_imports_no_heavy_package() -> None:
    code = "import sys, vwm; print(*{'torch', 'numpy', 'lightning', 'diffusers'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == ""


@pytest.mark.parametrize("name", vwm.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    public_object = getattr(vwm, name)
    assert public_object.__doc__ and name in dir(vwm)
    assert getattr(vwm, name) is public_object


def test_type_checkers_and_python_see_the_same_names() -> None:
    assert set(vwm.__all__) == set(vwm.read_public_api())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'vwm' has no attribute 'lode'"):
        vwm.lode  # noqa: B018


def test_folders_may_be_strings_or_paths(tmp_path: Path) -> None:
    vwm.record("vwm/TwoRooms-v0", str(tmp_path / "data"), frames=20, size=16, workers=0)
    clips = [vwm.open_clips(folder, clip_length=4) for folder in (tmp_path / "data", str(tmp_path / "data"))]
    assert len(clips[0]) == len(clips[1]) > 0
    assert [len(clip["frames"]) for clip in clips[0]] == [4] * len(clips[0])
    with pytest.raises(IndexError, match=f"there are {len(clips[0])} clips"):
        clips[0][len(clips[0])]
