"""Small autoregressive token worlds shared by tests, with all weights random, like the networks of ``factories``."""

from __future__ import annotations

from typing import Any

import torch
from factories import composite_parts, composite_space, randomize

from vwm.core.spaces import ActionSpace
from vwm.models.autoregressive.dynamics import AutoregressiveDynamics
from vwm.models.autoregressive.outcomes import RewardSignHeads
from vwm.models.autoregressive.sampling import TokenSampling
from vwm.models.autoregressive.simulator import AutoregressiveSimulator
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer

NAMES = ("LEFT", "RIGHT", "UP", "noop")
SETTINGS = {"codebook_size": 36, "tokens_per_frame": 4, "num_actions": 4, "width": 16, "depth": 2, "heads": 2}


def token_dynamics(**changes: Any) -> AutoregressiveDynamics:
    """A network whose predictions depend visibly on everything before them."""
    torch.manual_seed(1)
    network = randomize(AutoregressiveDynamics(**{**SETTINGS, "window": 4, **changes}))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return network.eval()


def token_tokenizer() -> SpaceTimeTokenizer:
    """A tokenizer of four tokens a frame."""
    torch.manual_seed(0)
    return randomize(SpaceTimeTokenizer((16, 16), 8, [4, 3, 3], width=16, depth=1, heads=2, window=4))


def autoregressive_world(outcomes: str = "sign", **changes: Any) -> AutoregressiveSimulator:
    """A world of 16x16 pixels, with starting contexts, whose context begins anew after three frames."""
    heads = {"sign": RewardSignHeads(16), "value": RewardTerminationHeads(16, 8), "": None}[outcomes]
    return AutoregressiveSimulator(
        token_tokenizer(),
        token_dynamics(**{"positions": "learned", "window": 3, **changes}),
        ActionSpace("discrete", 4, NAMES),
        None if heads is None else randomize(heads),
        context_frames=2,
        title="noise",
        starts=torch.randint(0, 256, (3, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)),
    )


def composite_token_world() -> AutoregressiveSimulator:
    """A world with a sliding window and composite actions."""
    return AutoregressiveSimulator(
        token_tokenizer(),
        token_dynamics(num_actions=0, action_parts=composite_parts(), codebook_levels=[4, 3, 3], window=3),
        composite_space(),
        randomize(RewardTerminationHeads(16, 8)),
        sampling=TokenSampling(temperature=0.8, top_k=9, top_p=0.9),
        context_frames=2,
        title="noise",
        starts=torch.randint(0, 256, (3, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)),
    )
