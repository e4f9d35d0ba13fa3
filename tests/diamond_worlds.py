"""Small worlds of DIAMOND's networks, with all weights random."""

from __future__ import annotations

import torch
from factories import randomize

from vwm.core.spaces import ActionSpace
from vwm.data.importers.csgo_actions import CSGO_COLUMNS, csgo_action_space
from vwm.models.diamond.denoiser import DiamondDenoiser
from vwm.models.diamond.outcome_model import DiamondOutcomeModel
from vwm.models.diamond.policy_network import DiamondPolicyNetwork
from vwm.models.diamond.sampling import DiamondSampling
from vwm.models.diamond.simulator import DiamondSimulator
from vwm.models.diamond.upsampler import DiamondUpsampler
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer

LEVELS = {"depths": [1, 1], "channels": [8, 16], "attention": [False, True]}
NAMES = ("LEFT", "RIGHT", "UP", "noop")


def diamond_world(size: int = 16, outcomes: bool = True, **sampling: float) -> DiamondSimulator:
    """A world of discrete actions, with rewards, terminations and a policy."""
    torch.manual_seed(11)
    framed = {"num_actions": 4, "image_size": (size, size), "lstm_width": 8}
    model = DiamondOutcomeModel(**framed, condition_width=8, **LEVELS)
    policy = DiamondPolicyNetwork(**framed, channels=[4, 4], halve=[True, True])
    return DiamondSimulator(
        tokenizer=PixelTokenizer((size, size), pixel_std=1.0),
        dynamics=_louder(DiamondDenoiser(condition_width=16, **LEVELS)),
        outcomes=randomize(model) if outcomes else None,
        actions=ActionSpace("discrete", 4, NAMES),
        trained_policy=randomize(policy) if outcomes else None,
        sampling=DiamondSampling(**{"steps": 1, **sampling}),
        title="noise",
    )


def csgo_world() -> DiamondSimulator:
    """A world of keys and a mouse, whose frames are sampled at low resolution and enlarged."""
    torch.manual_seed(12)
    upsampler = DiamondUpsampler(image_size=(20, 30), factor=5, condition_width=16, **LEVELS)
    dynamics = DiamondDenoiser(
        num_actions=CSGO_COLUMNS, action_columns=True, condition_width=16, noisy_past=True, **LEVELS
    )
    return DiamondSimulator(
        tokenizer=_louder(upsampler),
        dynamics=_louder(dynamics),
        outcomes=None,
        actions=csgo_action_space(),
        sampling=DiamondSampling(steps=1, past_noise=0.005),
        title="noise",
    )


def _louder(network):
    """Randomize a network, with actions that change the frames of such a small one."""
    randomize(network)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "act_emb" in name:
                weight.mul_(3)
    return network
