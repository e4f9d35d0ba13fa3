"""Embed discrete, continuous and mixed actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vwm.core.spaces import ActionSpace


class ActionEmbedding(nn.Module):
    """Map each action to a vector.

    Args:
        choices: numbers of choices of the discrete components of an action (usually one component).
        dims: number of continuous dimensions.
        width: d.
        linear: embed continuous actions by a single layer (V-JEPA 2-AC), not by two.

    With one discrete part and no continuous one, actions are int64 [b, t]. Otherwise they are float [b, t, k + dims]:
    the k discrete components as integers (k = 0 for continuous actions), then the continuous ones in [-1, 1].
    """

    def __init__(self, choices: list[int], dims: int, width: int, linear: bool = False) -> None:
        super().__init__()
        self.choices = list(choices)
        self.dims = dims
        tables = [nn.Embedding(size, width) for size in choices]
        self.mlp = nn.Sequential(nn.Linear(dims, width)) if dims else None
        if self.mlp is not None and not linear:  # the effect of a continuous action is usually not linear in it
            self.mlp.extend([nn.SiLU(), nn.Linear(width, width)])
        for table in tables:
            nn.init.normal_(table.weight, std=0.02)
        self.tables = nn.ModuleList(tables)

    @property
    def is_single_discrete(self) -> bool:
        """Whether actions are single integers."""
        return len(self.choices) == 1 and not self.dims

    def check(self, actions: Tensor) -> None:
        """Raise ValueError for a wrong shape or dtype, or a choice out of range. Synchronizes with the device."""
        self._check_shape(actions)
        columns = [actions] if self.is_single_discrete else list(actions.unbind(-1))
        for size, column in zip(self.choices, columns, strict=False):
            low, high = int(column.min()), int(column.max())
            if low < 0 or high >= size:
                raise ValueError(
                    f"actions run from {low} to {high}, but dynamics.num_actions={size} allows 0..{size - 1}"
                )

    def forward(self, actions: Tensor) -> Tensor:
        """[b, t] or [b, t, k + dims] -> [b, t, d].

        Raises:
            ValueError: wrong shape or dtype.
        """
        self._check_shape(actions)
        if self.is_single_discrete:
            return self.tables[0](actions)
        parts = [table(actions[..., i].long()) for i, table in enumerate(self.tables)]
        if self.mlp is not None:
            parts.append(self.mlp(actions[..., len(self.choices) :].to(next(self.parameters()).dtype)))
        return torch.stack(parts).sum(0)

    def _check_shape(self, actions: Tensor) -> None:
        if self.is_single_discrete:
            if actions.ndim != 2 or actions.is_floating_point():
                raise ValueError(f"actions must be integers [b, t], got {actions.dtype} {list(actions.shape)}")
            return
        columns = len(self.choices) + self.dims
        if actions.ndim != 3 or actions.shape[-1] != columns:
            raise ValueError(
                f"actions must be [b, t, {columns}] ({len(self.choices)} discrete components, then {self.dims} "
                f"continuous dimensions), got {actions.dtype} {list(actions.shape)}"
            )


def discrete_choices(num_actions: int | list[int]) -> list[int]:
    """Return the ``choices`` of an ``ActionEmbedding`` for one number of actions (0 for none) or several."""
    if isinstance(num_actions, list):
        return list(num_actions)
    return [num_actions] if num_actions else []


def check_action_space(embedding: ActionEmbedding, actions: ActionSpace) -> None:
    """Raise ValueError unless the dynamics takes the actions of the space."""
    if len(embedding.choices) + bool(embedding.dims) > 1:
        raise ValueError(
            f"dynamics takes {len(embedding.choices)} discrete components and {embedding.dims} continuous dimensions: "
            "the action of a simulator is either one choice or a vector"
        )
    kind, size = ("discrete", embedding.choices[0]) if embedding.choices else ("continuous", embedding.dims)
    if (actions.kind, actions.size) != (kind, size):
        raise ValueError(f"{actions.size} {actions.kind} actions named, but the dynamics takes {size} {kind} ones")


def embedded_action_space(embedding: ActionEmbedding | None, recording: Mapping[str, Any]) -> ActionSpace:
    """Return the action space of a dynamics model by its embedding; without one, a single action without effect.

    Args:
        embedding: action embedding of the dynamics model.
        recording: metadata of an episode of the data, see ``ActionSpace.recorded``.
    """
    if embedding is None:
        return ActionSpace("discrete", 1, ("go on",))
    if embedding.choices:
        return ActionSpace.recorded("discrete", embedding.choices[0], recording)
    return ActionSpace.recorded("continuous", embedding.dims, recording)
