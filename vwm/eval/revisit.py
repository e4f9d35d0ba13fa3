"""Revisits: turn away and come back. A world with memory shows again what it showed before.

Legend: n clips, t time, h w pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator
from vwm.core.spaces import ActionSpace
from vwm.eval.drift import held_parts
from vwm.eval.metrics import frame_mse, psnr
from vwm.eval.rollouts import open_loop_rollout

OPPOSITES = (("left", "right"), ("up", "down"), ("forward", "back"))
"""Words in the names of actions that undo each other."""
REVISIT_SEED = 11


def opposite_actions(space: ActionSpace) -> dict[str, tuple[Tensor, Tensor]]:
    """Find pairs of actions that undo each other: by their names, or the two ends of a dimension that rests at 0.

    Returns:
        By a display name, the two actions, int64 [] or float32 [a]; empty where none are known.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    if space.is_discrete:
        names = [name.lower() for name in space.names]
        for one, other in OPPOSITES:
            if one in names and other in names:
                pairs[f"{one}, then {other}"] = (torch.tensor(names.index(one)), torch.tensor(names.index(other)))
        return pairs
    if space.is_composite:
        rows = held_parts(space)
        for one in rows:
            part, _, word = one.rpartition(".")
            other = f"{part}.{dict(OPPOSITES).get(word.lower(), '')}"
            other = f"{one.removesuffix(' -1')} +1" if one.endswith(" -1") else other
            if other in rows:
                pairs[f"{one}, then {other}"] = (rows[one], rows[other])
        return pairs
    rest = torch.tensor(space.rest or (0.0,) * space.size)
    for i in range(space.size):
        if rest[i] == 0:
            ends = rest.repeat(2, 1)
            ends[0, i], ends[1, i] = -1.0, 1.0
            name = space.names[i] if space.names else f"action {i}"
            pairs[f"{name} -1, then +1"] = (ends[0], ends[1])
    return pairs


def measure_revisit(
    simulator: Simulator, frames: Tensor, actions: Tensor, context: int, seconds: float, starts: int, batch_size: int
) -> dict[str, Any] | None:
    """Hold an action, then its opposite for as long, and compare with the frame at the start.

    Args:
        simulator: the world.
        frames: uint8 [n, t, h, w, 3], real clips.
        actions: int64 [n, t-1] or float32 [n, t-1, a], between their frames.
        context: context frames.
        seconds: for which each of the two is held.
        starts: clips to start from, the first ones.
        batch_size: simulations that step together.

    Returns:
        By pair, the PSNR in dB of the last frame to the one at the start, and that of the frame at the turning point,
        which a world without memory does not exceed; None where no opposites are known.
    """
    pairs = opposite_actions(simulator.spec.actions)
    steps = max(1, round(seconds * simulator.spec.fps))
    steps += -steps % simulator.spec.frames_per_step  # an action per frame, for whole steps
    begin, results = frames[:starts], {}
    seeds = world_seeds(REVISIT_SEED, len(begin))
    for name, pair in pairs.items():
        held = torch.cat([action.expand(len(begin), steps, *action.shape) for action in pair], dim=1)
        taken = torch.cat((actions[:starts, : context - 1], held.to(actions.dtype)), dim=1)
        shown = open_loop_rollout(simulator, begin, taken, context, seeds, batch_size, f"revisit, {name}")
        last = shown.shape[1] - 1
        start = begin[:, context - 1 : context]
        returned, away = (psnr(frame_mse(start, shown[:, i : i + 1]).mean()) for i in (last, last // 2))
        results[name] = {"returned": float(returned), "turning_point": float(away)}
    return results or None
