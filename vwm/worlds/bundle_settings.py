"""The settings of a bundle in ``model_index.json``, checked by type and range: the file may come from anybody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vwm.core.bundle_folder import BundleError
from vwm.core.limits import MAX_CONTEXT_FRAMES
from vwm.core.spaces import ActionSpace

MAX_TITLE_LENGTH = 1000
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "title": ((str,), "a text"),
    "fps": ((int, float), "a number"),
    "context_frames": ((int,), "a whole number"),
    "actions": ((dict,), "an object"),
    "sampling": ((dict,), "an object"),
}
"""Types of the settings, and how messages call them."""


class BundleSettings(NamedTuple):
    """What a bundle says about its simulator, in addition to its networks; see ``SimulatorSpec``."""

    title: str
    fps: float
    context_frames: int
    actions: ActionSpace
    sampling: dict[str, Any]


def read_bundle_settings(file: Path, index: Mapping[str, Any]) -> BundleSettings:
    """Read the settings of an index.

    Args:
        file: of the index, for errors.
        index: its content.

    Raises:
        BundleError: a setting is missing, of another type or out of range; the message names it and the file.
    """
    settings = index.get("settings")
    if not isinstance(settings, dict):
        raise BundleError(f"{file}: settings must be an object, got {type(settings).__name__}")
    for name, (kinds, words) in _TYPES.items():
        if name not in settings:
            raise BundleError(f"{file}: settings.{name} is missing")
        value = settings[name]
        if type(value) not in kinds:
            raise BundleError(f"{file}: settings.{name} must be {words}, got {str(value)[:100]}")
    if len(settings["title"]) > MAX_TITLE_LENGTH:
        raise BundleError(f"{file}: settings.title has {len(settings['title'])} letters, at most {MAX_TITLE_LENGTH}")
    frames = settings["context_frames"]
    if not 1 <= frames <= MAX_CONTEXT_FRAMES:
        raise BundleError(f"{file}: settings.context_frames must be 1 or more and at most {MAX_CONTEXT_FRAMES}, "
                          f"got {frames}")  # fmt: skip
    try:
        actions = ActionSpace.from_json(settings["actions"])
    except KeyError as error:
        raise BundleError(f"{file}: settings.actions.{error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise BundleError(f"{file}: settings.actions: {error}") from error
    return BundleSettings(settings["title"], float(settings["fps"]), frames, actions, settings["sampling"])
