"""What the page has to know of a world before it plays."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from vwm.core.simulator import Simulator

IDLE_NAMES = {"noop", "no-op", "no op", "nothing", "none", "idle", "stay", "stop", "wait", "still", "·", ""}
IDLE_NAMES |= {"no visible change"}  # the description of a latent action without effect in vwm.eval


def describe_world(simulator: Simulator, max_upload: int, media_type: str) -> dict[str, Any]:
    """Describe the world for a page: the answer to its first message.

    Args:
        simulator: the world.
        max_upload: largest size of an uploaded image in bytes; 0 where none can be uploaded.
        media_type: of the frames that the page gets.
    """
    spec, space, starts = simulator.spec, simulator.spec.actions, simulator_starts(simulator)
    names = space.names or tuple(str(index) for index in range(space.size))
    actions = {"kind": space.kind, "size": space.size, "names": names, "latent": space.latent}
    if space.is_composite:
        actions["parts"] = [part.to_json() for part in space.parts]
    if not space.is_discrete:
        actions["rest"] = space.rest or (0.0,) * space.size
    height, width = spec.context.image_size
    return {
        "type": "hello",
        "title": spec.title,
        "actions": actions,
        "idle": find_idle_action(names) if space.kind == "discrete" else None,
        "width": width,
        "height": height,
        "fps": spec.fps,
        "frames_per_step": spec.frames_per_step,
        "starts": 0 if starts is None else len(starts),
        "max_upload": max_upload,
        "images": media_type,
    }


def simulator_starts(simulator: Simulator) -> Tensor | None:
    """Return the starting contexts of a world, uint8 [n, t, h, w, 3]; None where there are none."""
    starts = simulator.starts
    return starts if starts is not None and len(starts) > 0 else None


def find_idle_action(names: tuple[str, ...]) -> int | None:
    """Find the index of the no-op action by its name; None where there is none."""
    # the name of a latent action includes its share: "noop 92%"
    bare = [re.sub(r"\s*\d+%$", "", name).strip().lower() for name in names]
    return next((index for index, name in enumerate(bare) if name in IDLE_NAMES), None)
