"""The games of DIAMOND's published worlds, and how their actions become the conditions of its networks.

The order of actions is that of the games' own reduced sets in the Arcade Learning Environment. Those of Counter-Strike
are in ``vwm.data.importers.csgo_actions``.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.spaces import ActionSpace
from vwm.data.importers.csgo_actions import CSGO_KEYS, FULL_MOUSE_MOVEMENT, MOUSE_X, MOUSE_Y

_DIRECTIONS = "NOOP FIRE UP RIGHT LEFT DOWN UPRIGHT UPLEFT DOWNRIGHT DOWNLEFT"
_FULL = f"{_DIRECTIONS} UPFIRE RIGHTFIRE LEFTFIRE DOWNFIRE UPRIGHTFIRE UPLEFTFIRE DOWNRIGHTFIRE DOWNLEFTFIRE"
_MOVES = "NOOP UP RIGHT LEFT DOWN UPRIGHT UPLEFT DOWNRIGHT DOWNLEFT"
_SIDES = "NOOP FIRE RIGHT LEFT RIGHTFIRE LEFTFIRE"
ATARI_ACTIONS = {
    "Alien": _FULL,
    "Amidar": "NOOP FIRE UP RIGHT LEFT DOWN UPFIRE RIGHTFIRE LEFTFIRE DOWNFIRE",
    "Assault": "NOOP FIRE UP RIGHT LEFT RIGHTFIRE LEFTFIRE",
    "Asterix": _MOVES,
    "BankHeist": _FULL,
    "BattleZone": _FULL,
    "Boxing": _FULL,
    "Breakout": "NOOP FIRE RIGHT LEFT",
    "ChopperCommand": _FULL,
    "CrazyClimber": _MOVES,
    "DemonAttack": _SIDES,
    "Freeway": "NOOP UP DOWN",
    "Frostbite": _FULL,
    "Gopher": "NOOP FIRE UP RIGHT LEFT UPFIRE RIGHTFIRE LEFTFIRE",
    "Hero": _FULL,
    "Jamesbond": _FULL,
    "Kangaroo": _FULL,
    "Krull": _FULL,
    "KungFuMaster": (
        "NOOP UP RIGHT LEFT DOWN DOWNRIGHT DOWNLEFT RIGHTFIRE LEFTFIRE DOWNFIRE UPRIGHTFIRE UPLEFTFIRE DOWNRIGHTFIRE "
        "DOWNLEFTFIRE"
    ),
    "MsPacman": _MOVES,
    "Pong": _SIDES,
    "PrivateEye": _FULL,
    "Qbert": "NOOP FIRE UP RIGHT LEFT DOWN",
    "RoadRunner": _FULL,
    "Seaquest": _FULL,
    "UpNDown": "NOOP FIRE UP DOWN UPFIRE DOWNFIRE",
}
"""Names of the actions of the 26 games of Atari 100k, in order."""


def atari_action_space(game: str, num_actions: int) -> ActionSpace:
    """Return the actions of a game of the weights' number of actions; numbered for a game that is not known."""
    names = tuple(ATARI_ACTIONS.get(game, "").split())
    return ActionSpace.recorded("discrete", num_actions, {"action_names": names})


@cache
def _mouse_levels(device: torch.device) -> tuple[Tensor, ...]:
    return tuple(
        torch.tensor([*(-x for x in reversed(side)), 0, *side], device=device, dtype=torch.float32)
        for side in (MOUSE_X, MOUSE_Y)
    )


def csgo_columns(actions: Tensor) -> Tensor:
    """Convert actions of ``csgo_action_space`` [..., 15] to the columns of the network, zeros and ones [..., 51].

    The mouse's movement becomes the nearest one of those that the network tells apart.
    """
    keys, mouse = actions[..., : len(CSGO_KEYS)], actions[..., len(CSGO_KEYS) :] * FULL_MOUSE_MOVEMENT
    nearest = [
        (mouse[..., side, None] - levels).abs().argmin(dim=-1)
        for side, levels in enumerate(_mouse_levels(actions.device))
    ]
    sides = [F.one_hot(index, 2 * len(side) + 1) for index, side in zip(nearest, (MOUSE_X, MOUSE_Y), strict=True)]
    return torch.cat((keys, *(side.to(keys.dtype) for side in sides)), dim=-1)
