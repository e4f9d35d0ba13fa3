"""What ingest and import share: shards that a manifest plans, and that are written one by one."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vwm.core.command_output import progress_bar
from vwm.core.json_files import read_json_object
from vwm.data.workers import JobRunner

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SAVE_SECONDS = 5.0
"""Time between two writes of the manifest, which lists all sources."""


class PlannedShard(Protocol):
    """A shard of a manifest."""

    @property
    def name(self) -> str:
        """File name of the tar."""


Shard = TypeVar("Shard", bound=PlannedShard)


def read_manifest(
    path: Path,
    settings: DataclassInstance,
    command: str,
    shard: Callable[..., Shard],
    earlier_defaults: Mapping[str, Any] = {},
) -> list[Shard]:
    """Read the shards of a manifest.

    Args:
        path: of the manifest.
        settings: which its shards must have been made with.
        command: that writes such manifests, for errors: ``vwm ingest``.
        shard: makes a shard of its attributes.
        earlier_defaults: values of settings that manifests of earlier versions lack.

    Raises:
        ValueError: the shards were made with other settings, or the file is no such manifest.
    """
    found = read_json_object(path)
    expected, earlier = json.loads(json.dumps(asdict(settings))), found.get("settings")
    if not isinstance(earlier, dict):
        raise ValueError(f"{path}: settings are missing: `{command}` did not write this file. Choose another folder.")
    earlier = {**earlier_defaults, **earlier}
    if earlier != expected:
        changes = ", ".join(
            f"{key} was {earlier.get(key)!r} and is now {expected[key]!r}"
            for key in expected
            if earlier.get(key) != expected[key]
        )
        raise ValueError(f"{path}: these shards were made with other settings ({changes}). Choose another folder.")
    try:
        return [shard(**attributes) for attributes in found["shards"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: `{command}` did not write this file ({error}). Choose another folder.") from error


def map_shards(
    shards: list[Shard],
    pending: Sequence[Shard],
    function: Callable[[Shard], Shard],
    run: JobRunner,
    save: Callable[[], None],
    count: Callable[[Shard], int],
    unit: str,
    description: str,
) -> None:
    """Replace pending shards by what a function returns, and save the manifest from time to time and at the end.

    Args:
        shards: all shards, in place.
        pending: those to work on.
        function: the work.
        run: runs it.
        save: writes the manifest. A killed process does again what it lacks.
        count: sources of a shard, for the progress bar.
        unit, description: of the progress bar.
    """
    places = {shard.name: i for i, shard in enumerate(shards)}
    saved = time.monotonic()
    with (
        contextlib.ExitStack() as at_end,
        progress_bar(total=sum(map(count, pending)), unit=unit, desc=description) as bar,
    ):
        at_end.callback(save)
        for shard, finished in run(function, pending):
            shards[places[shard.name]] = finished
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
            bar.update(count(shard))
