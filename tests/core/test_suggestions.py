"""A mistyped path gets another one of its folder, and never itself."""

from __future__ import annotations

from pathlib import Path

from vwm.core.suggestions import suggest_sibling


def test_a_path_is_not_suggested_for_itself(tmp_path: Path) -> None:
    for name in ("coinrun", "coinrun_old", "zzz"):
        (tmp_path / name).mkdir()
    assert suggest_sibling(tmp_path / "coinrum") == f" (did you mean {tmp_path / 'coinrun'}?)"
    assert suggest_sibling(tmp_path / "coinrun") == f" (did you mean {tmp_path / 'coinrun_old'}?)"
    (tmp_path / "alone" / "coinrun").mkdir(parents=True)
    assert suggest_sibling(tmp_path / "alone" / "coinrun") == ""
    assert suggest_sibling(tmp_path / "nowhere" / "coinrun", known=["coinrun_base"]) == ""
