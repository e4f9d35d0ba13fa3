"""Weights between two layouts, key by key: each must be there, fit and have a use.

A layout is a function from a weight's name here to its names there; where there are several, they are parts stacked
along the first axis. The same function serves both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]
WeightNameMap = Callable[[str], list[str]]
WeightShapes = Mapping[str, Sequence[int]]
MappedNetworkT = TypeVar("MappedNetworkT", bound=nn.Module)


class PretrainedWeightsError(ValueError):
    """Weights that cannot be read or written; the message names the file and what is wrong with it."""


def load_mapped_weights(
    network: MappedNetworkT, weights: StateDict, layout: WeightNameMap, where: str, shapes: WeightShapes | None = None
) -> MappedNetworkT:
    """Give a network its weights; they are used up.

    Args:
        network: its own weights are replaced.
        weights: by their names there. None may be left over.
        layout: see the module.
        where: what to blame.
        shapes: of the stacked parts, by the name here, where they have more axes of size 1 than the weight.

    Returns:
        The network, frozen and in evaluation mode, in float32 or, where the weights are, in float64.

    Raises:
        PublishedError: names every key that is missing, misshapen or without a use.
    """
    state, missing, misshapen = {}, [], []
    for name, own in network.state_dict().items():
        parts = layout(name)
        shape = tuple((shapes or {}).get(name, own.shape))
        expected = (shape[0] // len(parts), *shape[1:])
        found = {part: weights.pop(part) for part in parts if part in weights}
        missing += [part for part in parts if part not in found]
        wrong = {part: tuple(weight.shape) for part, weight in found.items() if tuple(weight.shape) != expected}
        misshapen += [f"{part} {list(has)} instead of {list(expected)}" for part, has in wrong.items()]
        if len(found) == len(parts) and not wrong:
            state[name] = torch.cat([found[part] for part in parts]).reshape(own.shape)
    faults = {"missing": missing, "of another shape": misshapen, "without a use": sorted(weights)}
    if any(faults.values()):
        raise PretrainedWeightsError(
            f"{where}: " + "; ".join(_format_key_list(kind, names) for kind, names in faults.items() if names)
        )
    network.load_state_dict({name: weight.float() for name, weight in state.items()})
    if any(weight.dtype == torch.float64 for weight in state.values()):
        network.double().load_state_dict(state)
    return network.eval().requires_grad_(False)


def export_mapped_weights(network: nn.Module, layout: WeightNameMap, shapes: WeightShapes | None = None) -> StateDict:
    """The weights of a network by their names there: the inverse of ``load_mapped_weights``."""
    weights: StateDict = {}
    for name, weight in network.state_dict().items():
        parts = layout(name)
        stacked = weight.reshape(tuple((shapes or {}).get(name, weight.shape)))
        weights |= dict(zip(parts, stacked.chunk(len(parts)), strict=True))
    return weights


def get_weight(weights: StateDict, key: str, where: str, axes: int = 2) -> Tensor:
    """A weight whose shape is asked for. Raises PublishedError where it is missing or has other axes."""
    weight = weights.get(key)
    if weight is None:
        raise PretrainedWeightsError(f"{where}: missing: {key}")
    if weight.ndim != axes:
        raise PretrainedWeightsError(f"{where}: of another shape: {key} {list(weight.shape)} instead of {axes} axes")
    return weight


def count_numbered_layers(weights: StateDict, prefix: str) -> int:
    """How many numbered parts there are, by the highest number."""
    numbers = [key.removeprefix(f"{prefix}.").split(".")[0] for key in weights if key.startswith(f"{prefix}.")]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


def infer_mlp_ratio(weights: StateDict, block: str, where: str) -> float:
    """Hidden width over width of a block's feed-forward, before what ``SwiGLU`` takes off."""
    hidden, width = get_weight(weights, f"{block}.mlp.fc1.weight", where).shape
    return (hidden * 1.5 if f"{block}.mlp.fc3.weight" in weights else hidden) / width


def _format_key_list(kind: str, names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{kind}: {', '.join(names[:most])}{more}"
