"""What importing a foreign data set and reading it in place share: cameras, values and metadata of an episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.data.importers.source import ActionBounds, EpisodeSource, SourceEpisode
from vwm.data.video_episodes import resize_and_crop


def choose_cameras(opened: EpisodeSource, wanted: tuple[str, ...], source: str) -> tuple[str, ...]:
    """Return full names of cameras; the last part of a name, such as ``wrist``, is enough where it is unique.

    Args:
        opened: the data set.
        wanted: the names; none where there is one camera.
        source: name of the data set in errors.

    Raises:
        ValueError: there is no such camera, or several and none is chosen.
    """
    listed = ", ".join(opened.cameras)
    if not opened.cameras:
        raise ValueError(f"{source}: has no camera, and no frames without one")
    if not wanted:
        if len(opened.cameras) > 1:
            raise ValueError(
                f"{source}: has {len(opened.cameras)} cameras ({listed}): choose by --cameras, or where it is read in "
                f"place by ?cameras={opened.cameras[0].split('.')[-1]}"
            )
        return opened.cameras
    chosen = []
    for name in wanted:
        found = [c for c in opened.cameras if c == name] or [c for c in opened.cameras if c.split(".")[-1] == name]
        if len(found) != 1:
            raise ValueError(f"{source}: has no camera {name}; its cameras are {listed}")
        chosen += found
    return tuple(chosen)


def convert_values(found: SourceEpisode, bounds: ActionBounds | None) -> dict[str, NDArray[Any] | None]:
    """Return actions, rewards and state of an episode as shards have them; continuous actions in [-1, 1].

    Raises:
        ValueError: an action lies out of the bounds.
    """
    actions = found.actions
    if bounds is not None and actions is not None:
        actions = bounds.normalize(actions)
    rewards, state = (None if x is None else np.asarray(x, np.float32) for x in (found.rewards, found.state))
    return {"actions": actions, "rewards": rewards, "state": state}


def describe_episode(
    opened: EpisodeSource,
    name: str,
    found: SourceEpisode,
    camera_widths: dict[str, int],
    bounds: ActionBounds | None,
    fps: float | None,
) -> dict[str, Any]:
    """Return the metadata of an episode, but for those that depend on where it is cut.

    Args:
        opened: the data set.
        name: of the episode.
        found: the episode.
        camera_widths: width of the frames of each camera, in pixels.
        bounds: of continuous actions.
        fps: frames per second where the data set does not state them.
    """
    meta: dict[str, Any] = {"source": name, "cameras": list(camera_widths)}
    meta |= {"camera_widths": list(camera_widths.values()), **found.meta}
    if found.fps or fps:
        meta["fps"] = found.fps or fps
    if bounds is not None:
        meta |= {"action_low": bounds.low.tolist(), "action_high": bounds.high.tolist()}
        meta |= {"action_names": list(opened.action_names)} if opened.action_names else {}
    if found.state is not None and opened.state_names:
        meta["state_names"] = list(opened.state_names)
    return meta


def resize_views(
    pictures: Sequence[NDArray[np.uint8]], height: int | None, width: int | None
) -> list[NDArray[np.uint8]]:
    """Return the frames of all cameras at one time, each resized, so that they can stand side by side.

    Raises:
        ValueError: their heights differ.
    """
    resized = [resize_and_crop(picture, height, width) for picture in pictures]
    if len({picture.shape[0] for picture in resized}) > 1:
        sizes = ", ".join(f"{p.shape[1]}x{p.shape[0]}" for p in resized)
        raise ValueError(f"its cameras have frames of different heights ({sizes}): give --size to resize them")
    return resized
