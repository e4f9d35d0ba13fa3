"""Learning rates that fall from the last layer to the first, for fine-tuning (arXiv 2106.08254, 2111.06377)."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasLayers(Protocol):
    """A model whose weights are ordered in layers."""

    def weight_layer(self, name: str) -> int:
        """Return the layer of a weight by its name: 0 for the input's embedding, then one number for each block."""
        ...


def layer_decay_groups(model: nn.Module, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Group the trainable weights of a model by layer: the last layer has ``lr``, and each one before it less.

    Args:
        model: a model that ``HasLayers``.
        lr: learning rate of the last layer.
        weight_decay: of matrices; biases, norms and other vectors have none.
        layer_decay: learning rate of a layer divided by that of the next one.

    Returns:
        Parameter groups for an optimizer, the first layers first.

    Raises:
        ValueError: the model's weights are not ordered in layers.
    """
    if not isinstance(model, HasLayers):
        raise ValueError(
            f"optimizer.layer_decay={layer_decay:g}: the weights of a {type(model).__name__} are not ordered in "
            "layers. Set it to 1"
        )
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups.setdefault((model.weight_layer(name), weight.ndim > 1), []).append(weight)
    last = max(layer for layer, _ in groups)
    return [
        {
            "params": weights,
            "lr": lr * layer_decay ** (last - layer),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (layer, decays), weights in sorted(groups.items(), key=lambda item: item[0])
    ]
