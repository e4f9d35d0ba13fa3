"""Seeded frames, clips and worlds, in addition to those of ``factories.py``, which is a link to the tests' own."""

from __future__ import annotations

from typing import Any

import torch
from factories import randomize
from torch import Tensor

from vwm.core.spaces import ActionSpace
from vwm.data.clips import ClipBatch
from vwm.models.rssm.simulator import RSSMSimulator
from vwm.models.rssm.world_model import RSSMWorldModel, RSSMWorldModelConfig


def pictures(*shape: int, seed: int = 4) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def clips(batch: int, frames: int, side: int, choices: int = 4, **more: Any) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (batch, frames, side, side, 3), dtype=torch.uint8, generator=generator)
    taken = torch.randint(0, choices, (batch, frames), generator=generator)
    earned = {"rewards": (taken == 1).float(), "terminated": taken == 3}
    return ClipBatch(**{"frames": video, "actions": taken, "seed": torch.arange(batch) * 7919, **earned, **more})


def names_of(dims: int) -> tuple[str, ...]:
    return ("steer", "gas", "brake")[:dims] if dims else ("LEFT", "RIGHT", "UP", "noop")


def space_of(dims: int) -> ActionSpace:
    return ActionSpace("continuous" if dims else "discrete", dims or 4, names_of(dims))


def imagined_world(observation: tuple[int, ...] = (16, 16, 3), action_dims: int = 0, **changes: Any) -> RSSMSimulator:
    torch.manual_seed(8)
    small: dict[str, Any] = {"deter": 16, "hidden": 8, "stoch": 12, "classes": 4, "blocks": 2, "units": 8}
    settings = RSSMWorldModelConfig(**{**small, "vector_layers": 1, "depth": 4, "mults": (1, 2), **changes})
    world = randomize(RSSMWorldModel.from_settings(observation, 0 if action_dims else 4, action_dims, settings))
    generator = torch.Generator().manual_seed(4)
    starts = (
        pictures(3, 2, *observation[:2])
        if len(observation) == 3
        else torch.randn(3, 2, *observation, generator=generator)
    )
    return RSSMSimulator(world, space_of(action_dims), context_frames=2, title="noise", starts=starts)
