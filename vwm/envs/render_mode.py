"""The render modes of this package's Gymnasium environments."""

from __future__ import annotations


def check_render_mode(render_mode: str | None) -> None:
    """Raise ValueError for another render mode than ``"rgb_array"``, which lets ``render`` return an image, or None."""
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode={render_mode!r} must be None or 'rgb_array'")
