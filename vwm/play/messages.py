"""Messages from the page to the server, one dataclass each, and their strict validation.

Each message gets exactly one answer, in order (``answers.py``). The first one says which images the page decodes. A
page waits for the answer before it sends the next message, except for steps that it asks for ahead (``StepMessage``).
Text messages are JSON objects with a ``type``; a binary message is an uploaded image, decoded in ``images.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vwm.core.spaces import ActionSpace

MAX_TEXT = 64 * 1024
"""Largest number of characters of a text message; a step with a hundred action dimensions takes far fewer."""
MAX_SEED = 2**32 - 1
MAX_UNDO = 256
MAX_IMAGE_FORMATS = 16


class MessageError(ValueError):
    """A message of the page is invalid; the text names the field and what is expected."""


@dataclass(frozen=True)
class HelloMessage:
    """The page is there, and decodes images of some formats; its answer describes the world."""

    images: tuple[str, ...]


@dataclass(frozen=True)
class ResetMessage:
    """Reset the world to the start of an index, or to the uploaded image where ``start`` is None."""

    start: int | None
    seed: int


@dataclass(frozen=True)
class StepMessage:
    """Advance the world by one step with a discrete action, or with one number per action dimension.

    ``ahead``: the page has not yet got the answer to the step before. The step is not taken where that one ended the
    episode; its answer then repeats the last frame.
    """

    action: int | tuple[float, ...]
    ahead: bool = False


@dataclass(frozen=True)
class UndoMessage:
    """Go back a number of steps, or to the start of the history."""

    steps: int


@dataclass(frozen=True)
class RecordMessage:
    """Start or stop recording, or download it as a video of a format (mp4, gif), or its actions (csv)."""

    command: str
    format: str


ClientMessage = HelloMessage | ResetMessage | StepMessage | UndoMessage | RecordMessage


def parse_message(text: str, actions: ActionSpace, starts: int) -> ClientMessage:
    """Parse and validate one message of the page.

    Args:
        text: JSON.
        actions: the world's action space, for the validation of steps.
        starts: number of starting contexts of the world.

    Raises:
        MessageError: the message is invalid; the error names the field and what is expected.
    """
    if len(text) > MAX_TEXT:
        raise MessageError(f"a message may have {MAX_TEXT} characters, this one has {len(text)}")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageError("a message must be JSON") from None
    if not isinstance(data, dict):
        raise MessageError(f"a message must be a JSON object, got {_json_type(data)}")
    readers: dict[str, Callable[[dict[str, Any]], ClientMessage]] = {
        "hello": _parse_hello,
        "reset": lambda fields: _parse_reset(fields, starts),
        "step": lambda fields: _parse_step(fields, actions),
        "undo": _parse_undo,
        "record": _parse_record,
    }
    kind = data.pop("type", None)
    if not isinstance(kind, str) or kind not in readers:
        raise MessageError(f"'type' must be one of {', '.join(readers)}, got {_format_value(kind)}")
    message = readers[kind](data)
    if data:
        raise MessageError(f"a {kind} message has no field {', '.join(_format_value(name) for name in sorted(data))}")
    return message


def _parse_hello(fields: dict[str, Any]) -> HelloMessage:
    names = fields.pop("images", None)
    if not isinstance(names, list) or len(names) > MAX_IMAGE_FORMATS or not all(isinstance(n, str) for n in names):
        raise MessageError(f"'images' must be a list of at most {MAX_IMAGE_FORMATS} names, got {_format_value(names)}")
    return HelloMessage(tuple(names))


def _parse_reset(fields: dict[str, Any], starts: int) -> ResetMessage:
    start = fields.pop("start", None)
    if start == "upload":
        return ResetMessage(None, _read_integer(fields, "seed", 0, MAX_SEED, default=0))
    if starts == 0:
        raise MessageError("this world has no starts: upload an image and reset with 'start' \"upload\"")
    checked = _read_integer({"start": start}, "start", 0, starts - 1)
    return ResetMessage(checked, _read_integer(fields, "seed", 0, MAX_SEED, default=0))


def _parse_step(fields: dict[str, Any], actions: ActionSpace) -> StepMessage:
    ahead = fields.pop("ahead", False)
    if not isinstance(ahead, bool):
        raise MessageError(f"'ahead' must be true or false, got {_format_value(ahead)}")
    if actions.is_discrete:
        return StepMessage(_read_integer(fields, "action", 0, actions.size - 1), ahead)
    values = fields.pop("action", None)
    if not isinstance(values, list) or len(values) != actions.size:
        raise MessageError(f"'action' must be a list of {actions.size} numbers, got {_format_value(values)}")
    for value in values:
        if type(value) not in (int, float) or not (actions.is_composite or -1 <= value <= 1):
            raise MessageError(f"'action' must hold numbers from -1 to 1, got {_format_value(value)}")
    if actions.is_composite:
        try:
            actions.check_rows(torch.tensor(values, dtype=torch.float32))
        except (OverflowError, ValueError) as error:
            raise MessageError(f"'action': {error}") from error
    return StepMessage(tuple(float(value) for value in values), ahead)


def _parse_undo(fields: dict[str, Any]) -> UndoMessage:
    return UndoMessage(_read_integer(fields, "steps", 1, MAX_UNDO, default=1))


def _parse_record(fields: dict[str, Any]) -> RecordMessage:
    command = _read_choice(fields, "command", ("start", "stop", "download"))
    return RecordMessage(command, _read_choice(fields, "format", ("mp4", "gif", "csv"), default="mp4"))


def _read_integer(fields: dict[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    value = fields.pop(name, default)
    # bool is a subclass of int, but true is not a valid number
    if type(value) is not int or not low <= value <= high:
        raise MessageError(f"'{name}' must be an integer from {low} to {high}, got {_format_value(value)}")
    return value


def _read_choice(fields: dict[str, Any], name: str, choices: tuple[str, ...], default: str | None = None) -> str:
    value = fields.pop(name, default)
    if not isinstance(value, str) or value not in choices:
        raise MessageError(f"'{name}' must be one of {', '.join(choices)}, got {_format_value(value)}")
    return value


def _json_type(value: Any) -> str:
    return {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


def _format_value(value: Any) -> str:
    """Format a value as JSON of limited length."""
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
