"""DreamerV3's sizes, as its authors released them: one number grows with them all."""

from __future__ import annotations

from typing import Any, NamedTuple

from vwm.models.rssm.world_model import RSSMWorldModelConfig


class DreamerV3Size(NamedTuple):
    """Fields of ``RSSMWorldModelConfig`` that a size sets; ``units`` is also the width of actor and critic."""

    deter: int
    hidden: int
    classes: int
    depth: int
    units: int


DREAMERV3_SIZES = {
    "1m": DreamerV3Size(512, 64, 4, 4, 64),
    "12m": DreamerV3Size(2048, 256, 16, 16, 256),
    "25m": DreamerV3Size(3072, 384, 24, 24, 384),
    "50m": DreamerV3Size(4096, 512, 32, 32, 512),
    "100m": DreamerV3Size(6144, 768, 48, 48, 768),
    "200m": DreamerV3Size(8192, 1024, 64, 64, 1024),
    "400m": DreamerV3Size(12288, 1536, 96, 96, 1536),
}
"""By their names, which count the parameters of world, actor and critics over pictures."""


def dreamerv3_world_config(name: str, **changes: Any) -> RSSMWorldModelConfig:
    """DreamerV3's world of a size, with other fields of ``RSSMWorldModelConfig`` changed.

    Raises:
        ValueError: no such size.
    """
    if name not in DREAMERV3_SIZES:
        raise ValueError(f"size {name!r} is none of {', '.join(DREAMERV3_SIZES)}")
    return RSSMWorldModelConfig(**{**DREAMERV3_SIZES[name]._asdict(), **changes})
