"""vwm: from a folder of videos to a world that people play, researchers probe and agents train in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vwm.worlds.bundle import load_simulator as load_simulator
    from vwm.worlds.families import register_family as register_family

__version__ = "0.1.0"
__all__ = ["load_simulator", "register_family"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for, so that `vwm --help` does not wait for torch.
    if name == "load_simulator":
        from vwm.worlds.bundle import load_simulator

        return load_simulator
    if name == "register_family":
        from vwm.worlds.families import register_family

        return register_family
    raise AttributeError(f"module 'vwm' has no attribute {name!r}")
