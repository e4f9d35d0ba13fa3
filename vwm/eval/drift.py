"""Drift: how far the frames of long rollouts leave the distribution of real frames, by seconds, under held actions.

Open-loop errors say nothing after a second or two, because there is no true frame to compare with. A player sees
whether frames still look like the environment. So the world is unrolled under scripted patterns of actions, as people
hold keys, and the frames of each second are compared with real frames as two sets, by a sliced Fréchet distance of
features (the mean over random directions of the Fréchet distance of Gaussians, for which few frames suffice).

Legend: n clips, t time, h w pixels, f features of a frame, p patterns, s seconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_normal, world_seeds
from vwm.core.simulator import Simulator
from vwm.core.spaces import ActionSpace
from vwm.eval.drift_features import ClipFeatures
from vwm.eval.rollouts import open_loop_rollout

MAX_PATTERNS = 6
"""Largest number of patterns; of more actions than these, some are left out."""
DIRECTIONS = 256
"""Random directions of the sliced Fréchet distance."""
DRIFT_SEED = 7


class Drift(NamedTuple):
    """Frames and numbers of an unrolled world.

    Attributes:
        frames: by pattern, uint8 [n, s, h, w, 3]: the last frame of each second.
        numbers: what goes into the report.
    """

    frames: dict[str, Tensor]
    numbers: dict[str, Any]


def action_patterns(space: ActionSpace, steps: int, period: int) -> dict[str, Tensor]:
    """Make the scripted patterns of a space: each action held, and the first two in turn.

    Args:
        space: the actions of a world.
        steps: length of a pattern.
        period: steps after which the pattern ``in turn`` changes the action.

    Returns:
        By name, int64 [steps] or float32 [steps, a]. A dimension of a continuous action is held at both ends, while the
        others rest; of composite actions see ``held_parts``.
    """
    if space.is_composite:
        rows = {"rest": torch.tensor(space.rest or (0.0,) * space.size), **held_parts(space)}
        held = {name: row.expand(steps, -1).clone() for name, row in list(rows.items())[: MAX_PATTERNS - 1]}
    elif space.is_discrete:
        chosen = torch.linspace(0, space.size - 1, min(space.size, MAX_PATTERNS - 1)).round().long()
        held = {_action_name(space, int(i)): torch.full((steps,), int(i)) for i in chosen}
    else:
        rest = torch.tensor(space.rest or (0.0,) * space.size)
        held = {"rest": rest.expand(steps, -1).clone()}
        for i in range(space.size):
            for end in (-1.0, 1.0):
                action = rest.clone()
                action[i] = end
                if len(held) < MAX_PATTERNS - 1 and end != rest[i]:
                    held[f"{_action_name(space, i)} {end:+.0f}"] = action.expand(steps, -1).clone()
    first, *others = list(held.values())[-2:]
    if others:
        turn = torch.arange(steps) // max(1, period) % 2 == 0
        held["in turn"] = torch.where(turn if space.is_discrete else turn[:, None], first, others[0])
    return held


def held_parts(space: ActionSpace) -> dict[str, Tensor]:
    """Make composite actions, float32 [a], in each of which one column is held and the others rest.

    A key is held, a choice other than the first is made, and an axis or side of a pointer is at one end.
    """
    rest = torch.tensor(space.rest or (0.0,) * space.size)
    rows: dict[str, Tensor] = {}
    for part in space.parts:
        first = space.slices[part.name].start
        for i in range(part.columns):
            for value in range(1, part.size) if part.kind == "choice" else (1,) if part.kind == "keys" else (-1, 1):
                row = rest.clone()
                row[first + i] = value
                if not torch.equal(row, rest):
                    name = f"{part.name} {part.names[value]}" if part.kind == "choice" else part.column_names[i]
                    rows[name if part.is_whole else f"{name} {value:+d}"] = row
    return rows


def _action_name(space: ActionSpace, index: int) -> str:
    return space.names[index] if space.names else f"action {index}"


def measure_drift(
    simulator: Simulator,
    frames: Tensor,
    reconstructed: Tensor,
    actions: Tensor,
    *,
    features: ClipFeatures,
    context: int,
    seconds: int,
    starts: int,
    batch_size: int,
) -> Drift:
    """Unroll a world under every pattern, and compare its frames with real ones.

    Args:
        simulator: the world.
        frames: uint8 [n, t, h, w, 3], real clips.
        reconstructed: the same clips, encoded and decoded.
        actions: int64 [n, t-1] or float32 [n, t-1, a], between their frames.
        features: in which frames are compared.
        context: context frames of a rollout.
        seconds: length of the rollouts.
        starts: clips to start from, the first ones.
        batch_size: simulations that step together.
    """
    fps = max(1, round(simulator.spec.fps))
    begin = frames[:starts]
    steps = seconds * fps + -seconds * fps % simulator.spec.frames_per_step  # an action per frame, for whole steps
    compare = SlicedFrechet(features(frames))
    shown: dict[str, Tensor] = {}
    by_pattern: dict[str, list[float]] = {}
    for name, pattern in action_patterns(simulator.spec.actions, steps, period=fps).items():
        held = pattern.expand(len(begin), *pattern.shape).to(actions.dtype)
        taken = torch.cat((actions[:starts, : context - 1], held), dim=1)
        seeds = world_seeds(DRIFT_SEED, len(begin))
        rolled = open_loop_rollout(simulator, begin, taken, context, seeds, batch_size, f"drift, {name}")
        rolled = rolled[:, : seconds * fps]
        shown[name] = rolled[:, fps - 1 :: fps]
        by_pattern[name] = [compare(features(second)) for second in rolled.split(fps, dim=1)]
    mean = torch.tensor(list(by_pattern.values())).mean(dim=0)
    floor = compare(features(reconstructed))
    blank = frames.double().mean(dim=(0, 1)).round().to(torch.uint8)[None, None].expand(1, 4, -1, -1, -1)
    numbers = {
        "seconds": seconds,
        "starts": len(begin),
        "by_pattern": by_pattern,
        "mean_by_second": mean.tolist(),
        "floor": floor,
        "above_floor": [max(0.0, value - floor) for value in mean.tolist()],
        "still_image": compare(features(begin[:, context - 1 : context])),
        "mean_image": compare(features(blank)),
    }
    return Drift(shown, numbers)


class SlicedFrechet:
    """The sliced Fréchet distance of sets of features to a reference set.

    Features are divided by the root of their mean variance in the reference, so that constant features of real frames
    count as any other. A distance is the root of the mean over random
    directions of the squared Fréchet distance of two Gaussians in one dimension.

    Args:
        reference: float64 [n, f].
    """

    def __init__(self, reference: Tensor) -> None:
        self.mean = reference.mean(dim=0)
        self.scale = reference.var(dim=0).mean().sqrt().clamp(min=1e-6)
        seeds = fold_in(torch.tensor([DRIFT_SEED]), 0)
        directions = seeded_normal(seeds, DIRECTIONS, reference.shape[1])[0].double()
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        self.projected = self._project(reference)

    def __call__(self, features: Tensor) -> float:
        """Distance of float64 [m, f] to the reference."""
        one, other = self.projected, self._project(features)
        means = (one.mean(dim=0) - other.mean(dim=0)).square()
        deviations = (one.std(dim=0) - other.std(dim=0, correction=min(1, len(other) - 1))).square()
        return float((means + deviations).mean().sqrt())

    def _project(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale @ self.directions.T
