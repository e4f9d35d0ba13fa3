"""Opening a bundle reads its folder and the installed packages only: no network, no program, no pickle."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import diffusion_world, genie

import vwm
from vwm.worlds.bundle import save_simulator

FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.", "urllib.")
INSTALLED = tuple({sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), str(Path(vwm.__file__).parents[1])})
_events: list[tuple[str, Any]] | None = None


def _record_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and (event == "open" or event.startswith(FORBIDDEN)):
        _events.append((event, arguments[0] if arguments else None))


@pytest.mark.parametrize("kind", ["genie", "dit"])
def test_loading_and_stepping_touches_nothing_outside(kind: str, tmp_path: Path, monkeypatch) -> None:
    global _events
    save_simulator(genie() if kind == "genie" else diffusion_world(), tmp_path / "world")
    vwm.load(tmp_path / "world", device="cpu")  # imports what it needs
    sys.addaudithook(_record_event)  # hooks cannot be removed; this one is idle while _events is None
    _events = events = []
    try:
        world = vwm.load(tmp_path / "world", device="cpu")
        state, _ = world.reset(world.starts[:1], 0)
        world.step(state, torch.zeros((1, *world.spec.actions.shape), dtype=world.spec.actions.dtype))
    finally:
        _events = None
    assert [event for event in events if event[0] != "open"] == []
    opened = {str(path) for event, path in events if not isinstance(path, int)}
    outside = {path for path in opened if not path.startswith((str(tmp_path), "/proc/", "/sys/", "/dev/", *INSTALLED))}
    assert outside == set()
    assert any(path.startswith(str(tmp_path / "world")) for path in opened)
