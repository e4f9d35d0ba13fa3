"""DreamerV3's sizes, as its authors released them: one number grows with them all."""

from __future__ import annotations

from typing import Any, NamedTuple

from vwm.latent_dynamics.world import WorldSettings


class Size(NamedTuple):
    """Fields of ``WorldSettings`` that a size sets; ``units`` is also the width of actor and critic."""

    deter: int
    hidden: int
    classes: int
    depth: int
    units: int


SIZES = {
    "1m": Size(512, 64, 4, 4, 64),
    "12m": Size(2048, 256, 16, 16, 256),
    "25m": Size(3072, 384, 24, 24, 384),
    "50m": Size(4096, 512, 32, 32, 512),
    "100m": Size(6144, 768, 48, 48, 768),
    "200m": Size(8192, 1024, 64, 64, 1024),
    "400m": Size(12288, 1536, 96, 96, 1536),
}
"""By their names, which count the parameters of world, actor and critics over pictures."""


def sized(name: str, **changes: Any) -> WorldSettings:
    """DreamerV3's world of a size, with other fields of ``WorldSettings`` changed.

    Raises:
        ValueError: no such size.
    """
    if name not in SIZES:
        raise ValueError(f"size {name!r} is none of {', '.join(SIZES)}")
    return WorldSettings(**{**SIZES[name]._asdict(), **changes})
