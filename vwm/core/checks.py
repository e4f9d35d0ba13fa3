"""Checks of settings that are counts."""

from __future__ import annotations


def check_positive(**settings: int | None) -> None:
    """Raise ValueError for a setting below 1, naming it; None is skipped."""
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
