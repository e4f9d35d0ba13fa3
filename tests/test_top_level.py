"""The public API of `import vwm`: light to import, complete, and free about text and paths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vwm


def test_importing_vwm_imports_nothing_heavy() -> None:
    code = "import sys, vwm; print(*{'torch', 'numpy', 'lightning', 'diffusers'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


@pytest.mark.parametrize("name", vwm.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    found = getattr(vwm, name)
    assert found.__doc__ and name in dir(vwm)
    assert getattr(vwm, name) is found


def test_type_checkers_and_python_see_the_same_names() -> None:
    assert set(vwm.__all__) == set(vwm.read_public_api())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'vwm' has no attribute 'lode'"):
        vwm.lode  # noqa: B018


def test_folders_may_be_text_or_paths(tmp_path: Path) -> None:
    vwm.record("vwm/TwoRooms-v0", str(tmp_path / "data"), frames=20, size=16, workers=0)
    clips = [vwm.open_clips(folder, clip_length=4) for folder in (tmp_path / "data", str(tmp_path / "data"))]
    assert len(clips[0]) == len(clips[1]) > 0
    assert [len(clip["frames"]) for clip in clips[0]] == [4] * len(clips[0])
    with pytest.raises(IndexError, match=f"there are {len(clips[0])} clips"):
        clips[0][len(clips[0])]
