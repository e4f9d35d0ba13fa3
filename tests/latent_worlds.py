"""Small RSSM worlds shared by tests, with all weights random, like the networks of ``factories``."""

from __future__ import annotations

import torch
from factories import randomize

from vwm.core.spaces import ActionSpace
from vwm.models.rssm.simulator import RSSMSimulator
from vwm.models.rssm.world_model import RSSMWorldModel, RSSMWorldModelConfig


def latent_world(observation=(16, 16, 3), num_actions: int = 4, action_dims: int = 0, **changes) -> RSSMWorldModel:
    """A Dreamer world model with configurable settings and enough latent variables that samples differ."""
    torch.manual_seed(8)
    small = {"deter": 16, "hidden": 8, "stoch": 12, "classes": 4, "blocks": 2, "units": 8, "vector_layers": 1}
    settings = RSSMWorldModelConfig(**{**small, "depth": 4, "mults": (1, 2), **changes})
    return randomize(RSSMWorldModel.from_settings(observation, num_actions, action_dims, settings))


def rssm_world(observation=(16, 16, 3), action_dims: int = 0, **changes) -> RSSMSimulator:
    """An RSSM world as a simulator, with starting contexts."""
    generator = torch.Generator().manual_seed(4)
    if len(observation) == 3:
        starts = torch.randint(0, 256, (3, 2, *observation), dtype=torch.uint8, generator=generator)
    else:
        starts = torch.randn(3, 2, *observation, generator=generator)
    names = ("steer", "gas", "brake")[:action_dims] if action_dims else ("LEFT", "RIGHT", "UP", "noop")
    return RSSMSimulator(
        latent_world(observation, 0 if action_dims else 4, action_dims, **changes),
        ActionSpace("continuous" if action_dims else "discrete", action_dims or 4, names),
        context_frames=2,
        title="noise",
        starts=starts,
    )
