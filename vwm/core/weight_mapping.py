"""Load and export weights under other names, with a check that each weight exists, has the right shape and is used.

A name map is a function from the name of a weight in vwm to its names in the foreign state dict. Several names are
parts that are concatenated along the first axis. The same function is used for loading and for exporting.
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
    """Weights that cannot be loaded or exported; the message names the file and the problem."""


def load_mapped_weights(
    network: MappedNetworkT,
    weights: StateDict,
    name_map: WeightNameMap,
    source: str,
    stacked_shapes: WeightShapes | None = None,
) -> MappedNetworkT:
    """Load weights into a network.

    Args:
        network: the network, whose weights are replaced.
        weights: weights by their foreign names. Used weights are removed; all must be used.
        name_map: see the module.
        source: file to name in error messages.
        stacked_shapes: shapes of concatenated parts, by the name in vwm, if they have additional axes of size 1.

    Returns:
        The network, frozen and in evaluation mode, in float64 if a weight is float64 and in float32 otherwise.

    Raises:
        PretrainedWeightsError: weights are missing, have another shape or are not used.
    """
    state, missing, misshapen = {}, [], []
    for name, own in network.state_dict().items():
        parts = name_map(name)
        shape = tuple((stacked_shapes or {}).get(name, own.shape))
        expected = (shape[0] // len(parts), *shape[1:])
        found = {part: weights.pop(part) for part in parts if part in weights}
        missing += [part for part in parts if part not in found]
        wrong = {part: tuple(weight.shape) for part, weight in found.items() if tuple(weight.shape) != expected}
        misshapen += [f"{part} {list(other)} instead of {list(expected)}" for part, other in wrong.items()]
        if len(found) == len(parts) and not wrong:
            state[name] = torch.cat([found[part] for part in parts]).reshape(own.shape)
    errors = {"missing": missing, "of another shape": misshapen, "not used": sorted(weights)}
    if any(errors.values()):
        raise PretrainedWeightsError(
            f"{source}: " + "; ".join(_format_key_list(kind, names) for kind, names in errors.items() if names)
        )
    network.load_state_dict({name: weight.float() for name, weight in state.items()})
    if any(weight.dtype == torch.float64 for weight in state.values()):
        network.double().load_state_dict(state)
    return network.eval().requires_grad_(False)


def export_mapped_weights(
    network: nn.Module, name_map: WeightNameMap, stacked_shapes: WeightShapes | None = None
) -> StateDict:
    """Return the weights of a network by their foreign names, the inverse of ``load_mapped_weights``."""
    weights: StateDict = {}
    for name, weight in network.state_dict().items():
        parts = name_map(name)
        stacked = weight.reshape(tuple((stacked_shapes or {}).get(name, weight.shape)))
        weights |= dict(zip(parts, stacked.chunk(len(parts)), strict=True))
    return weights


def get_weight(weights: StateDict, key: str, source: str, axes: int = 2) -> Tensor:
    """Return a weight. Raises PretrainedWeightsError if it is missing or does not have ``axes`` axes."""
    weight = weights.get(key)
    if weight is None:
        raise PretrainedWeightsError(f"{source}: missing: {key}")
    if weight.ndim != axes:
        raise PretrainedWeightsError(f"{source}: of another shape: {key} {list(weight.shape)} instead of {axes} axes")
    return weight


def count_numbered_layers(weights: StateDict, prefix: str) -> int:
    """Return the number of numbered submodules, one more than the highest number."""
    numbers = [key.removeprefix(f"{prefix}.").split(".")[0] for key in weights if key.startswith(f"{prefix}.")]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


def infer_mlp_ratio(weights: StateDict, block: str, source: str) -> float:
    """Return the ``mlp_ratio`` of a ``ViTBlock`` from the shape of its weights."""
    hidden, width = get_weight(weights, f"{block}.mlp.fc1.weight", source).shape
    return (hidden * 1.5 if f"{block}.mlp.fc3.weight" in weights else hidden) / width


def _format_key_list(kind: str, names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{kind}: {', '.join(names[:limit])}{more}"
