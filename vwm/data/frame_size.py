"""The size of the frames of shards, as commands ask for it."""

from __future__ import annotations

from vwm.core.limits import MAX_FRAME_SIDE


def choose_frame_size(size: int | None, height: int | None, width: int | None) -> tuple[int, int] | tuple[None, None]:
    """Return height and width in pixels, or twice None where frames keep their size.

    Args:
        size: side of square frames.
        height, width: of frames that are not square.

    Raises:
        ValueError: a value is out of range, or they contradict each other.
    """
    if size is not None and (height is not None or width is not None):
        raise ValueError(f"give size ({size}) or height and width ({height}, {width}), not both")
    if size is not None:
        height = width = size
    if height is None and width is None:
        return None, None
    if height is None or width is None:
        raise ValueError(f"height and width go together, got height {height} and width {width}")
    for name, value in (("height", height), ("width", width)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
        if value > MAX_FRAME_SIDE:
            raise ValueError(f"{name} must be at most {MAX_FRAME_SIDE}, got {value:g}")
    return height, width
