"""Checks of settings: errors name the setting, its range and the value."""

from __future__ import annotations


def check_positive(**settings: int | None) -> None:
    """Raise ValueError for a setting below 1, naming it; None is skipped."""
    for name, value in settings.items():
        if value is not None and not value >= 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")


def check_not_negative(**settings: float | None) -> None:
    """Raise ValueError for a setting below 0 or one that is NaN, naming it; None is skipped."""
    for name, value in settings.items():
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")


def check_fraction(**settings: float | None) -> None:
    """Raise ValueError for a setting outside of 0..1, naming it; None is skipped."""
    for name, value in settings.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in 0..1, got {value}")
