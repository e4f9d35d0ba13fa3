"""Classifier-free guidance by the action (arXiv 2207.12598), with one weight or with one for each part of it.

The prediction is extrapolated along a chain of conditions, from hidden actions to whole ones: with the predictions
p_0, p_1, ... of its levels, it is p_0 + sum_i w_i (p_i - p_(i-1)). One weight w has the chain (hidden, shown), which is
eq. 6 of the paper. With a weight per part, each part is shown given those before it, as for image and text in
InstructPix2Pix (arXiv 2211.09800, eq. 3): first all parts without a weight of their own, which have weight 1, and then
the others in their given order. Equal weights of all parts are therefore the same as one weight.

Legend: b batch, k frames per latent, d width, p parts of a composite action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.spaces import ActionSpace
from vwm.models.dit.network import DiT

Guidance = float | Mapping[str, float]
"""One weight, or weights by the names of parts; 1 is no guidance."""


class GuidanceLevel(NamedTuple):
    """A condition of the chain: its weight, which the first one ignores, and the embedding of the action, [b, 1, d]."""

    weight: float
    action_embedding: Tensor


def guidance_levels(dynamics: DiT, action_embedding: Tensor, weight: float) -> list[GuidanceLevel]:
    """Return the chain of one weight.

    Args:
        dynamics: the network.
        action_embedding: [b, 1, d], of the action that leads to the new frame.
        weight: 1 has a single level, which costs one pass of the network; other weights have two.
    """
    if weight == 1:
        return [GuidanceLevel(1.0, action_embedding)]
    return [GuidanceLevel(0.0, _hidden_action(dynamics, action_embedding)), GuidanceLevel(weight, action_embedding)]


def part_guidance_levels(
    dynamics: DiT, actions: Tensor, space: ActionSpace, weights: Mapping[str, float]
) -> list[GuidanceLevel]:
    """Return the chain of weights by part; consecutive parts of equal weight make one level.

    Args:
        dynamics: the network.
        actions: composite actions that lead to the new frame, [b, k, a].
        space: with the names of the parts.
        weights: see ``check_part_guidance``.
    """
    names = [part.name for part in space.parts]
    order = [*(name for name in names if name not in weights), *weights]
    groups = [(weight, list(group)) for weight, group in groupby(order, lambda name: float(weights.get(name, 1.0)))]
    while groups and groups[-1][0] == 0:  # parts that stay hidden
        groups.pop()
    shown = torch.zeros(len(names), dtype=torch.bool, device=actions.device)
    levels = []
    for weight, group in groups:
        shown = shown.clone()
        for name in group:
            shown[names.index(name)] = True  # filled on the device: a captured step copies nothing from the host
        known = shown.expand(*actions.shape[:2], -1)
        levels.append(GuidanceLevel(weight, dynamics.embed_actions(actions, known)))
    if levels and levels[0].weight == 1:
        return levels  # what precedes it has no effect
    like = levels[0].action_embedding if levels else dynamics.embed_actions(actions)
    return [GuidanceLevel(0.0, _hidden_action(dynamics, like)), *levels]


def check_part_guidance(dynamics: DiT, space: ActionSpace, guidance: Guidance) -> None:
    """Raise ValueError unless weights by part name parts of the actions that the network takes."""
    if not isinstance(guidance, Mapping):
        return
    if dynamics.embed_action is None or not space.is_composite:
        raise ValueError(f"guidance by part requires composite actions, and these are {space}: give one number")
    names = [part.name for part in space.parts]
    if not guidance.keys() <= set(names):
        raise ValueError(f"guidance={dict(guidance)} must name parts of the actions: {', '.join(names)}")


def guide(predictions: Sequence[Tensor], levels: Sequence[GuidanceLevel]) -> Tensor:
    """Combine the predictions of the levels of a chain."""
    guided = predictions[0]
    for level, prediction, previous in zip(levels[1:], predictions[1:], predictions, strict=False):
        guided = guided + level.weight * (prediction - previous)
    return guided


def _hidden_action(dynamics: DiT, action_embedding: Tensor) -> Tensor:
    return dynamics.embed_previous_actions(None, len(action_embedding), 1).to(action_embedding.dtype)
