"""Model sizes of DreamerV3, as in the published code."""

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
    "1m": DreamerV3Size(deter=512, hidden=64, classes=4, depth=4, units=64),
    "12m": DreamerV3Size(deter=2048, hidden=256, classes=16, depth=16, units=256),
    "25m": DreamerV3Size(deter=3072, hidden=384, classes=24, depth=24, units=384),
    "50m": DreamerV3Size(deter=4096, hidden=512, classes=32, depth=32, units=512),
    "100m": DreamerV3Size(deter=6144, hidden=768, classes=48, depth=48, units=768),
    "200m": DreamerV3Size(deter=8192, hidden=1024, classes=64, depth=64, units=1024),
    "400m": DreamerV3Size(deter=12288, hidden=1536, classes=96, depth=96, units=1536),
}
"""Sizes by name; the name counts the parameters of world model, actor and critics for image observations."""


def dreamerv3_world_config(name: str, **overrides: Any) -> RSSMWorldModelConfig:
    """Return the configuration of DreamerV3's world model at a size.

    Args:
        name: Key of ``DREAMERV3_SIZES``.
        **overrides: Other fields of ``RSSMWorldModelConfig``.

    Raises:
        ValueError: Unknown size.
    """
    if name not in DREAMERV3_SIZES:
        raise ValueError(f"size {name!r} must be one of {', '.join(DREAMERV3_SIZES)}")
    return RSSMWorldModelConfig(**{**DREAMERV3_SIZES[name]._asdict(), **overrides})
