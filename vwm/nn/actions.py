"""Actions of every kind as vectors: discrete, continuous, both at once, or missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vwm.core.spaces import ActionSpace


class ActionEmbedding(nn.Module):
    """One vector an action.

    Args:
        choices: sizes of the discrete parts; one number for plain discrete actions, several for several at once.
        dims: dimensions of the continuous part.
        width: d.

    With one discrete part and no continuous one, actions are int64 [b, t]. Else they are float [b, t, k + dims]: first
    the k discrete parts as whole numbers (k = 0 for plain continuous actions), then the continuous ones in [-1, 1].
    """

    def __init__(self, choices: list[int], dims: int, width: int) -> None:
        super().__init__()
        self.choices, self.dims = list(choices), dims
        tables = [nn.Embedding(size, width) for size in choices]
        # Two layers: what half a turn of a wheel does is not half of what a full one does.
        self.mlp = nn.Sequential(nn.Linear(dims, width), nn.SiLU(), nn.Linear(width, width)) if dims else None
        for table in tables:
            nn.init.normal_(table.weight, std=0.02)
        self.tables = nn.ModuleList(tables)

    @property
    def plain(self) -> bool:
        """Whether actions are single integers."""
        return len(self.choices) == 1 and not self.dims

    def check(self, actions: Tensor) -> None:
        """Raise ValueError for another shape or type, and for choices that do not exist; it waits for the device."""
        self._check_shape(actions)
        columns = [actions] if self.plain else list(actions.unbind(-1))
        for size, column in zip(self.choices, columns, strict=False):
            low, high = int(column.min()), int(column.max())
            if low < 0 or high >= size:
                raise ValueError(
                    f"actions run from {low} to {high}, but dynamics.num_actions={size} knows 0..{size - 1}"
                )

    def forward(self, actions: Tensor) -> Tensor:
        """[b, t] or [b, t, k + dims] -> [b, t, d].

        Raises:
            ValueError: another shape or type.
        """
        self._check_shape(actions)
        if self.plain:
            return self.tables[0](actions)
        parts = [table(actions[..., i].long()) for i, table in enumerate(self.tables)]
        if self.mlp is not None:
            parts.append(self.mlp(actions[..., len(self.choices) :].to(next(self.parameters()).dtype)))
        return torch.stack(parts).sum(0)

    def _check_shape(self, actions: Tensor) -> None:
        if self.plain:
            if actions.ndim != 2 or actions.is_floating_point():
                raise ValueError(f"actions must be integers [b, t], got {actions.dtype} {list(actions.shape)}")
            return
        columns = len(self.choices) + self.dims
        if actions.ndim != 3 or actions.shape[-1] != columns:
            raise ValueError(
                f"actions must be [b, t, {columns}] ({len(self.choices)} discrete parts, then {self.dims} continuous "
                f"dimensions), got {actions.dtype} {list(actions.shape)}"
            )


def check_action_space(embedding: ActionEmbedding, actions: ActionSpace) -> None:
    """Raise ValueError unless the dynamics' actions are those of the space."""
    if len(embedding.choices) + bool(embedding.dims) > 1:
        raise ValueError(
            f"dynamics takes {len(embedding.choices)} discrete parts and {embedding.dims} dimensions at once: a "
            "simulator's action is either one choice or a vector"
        )
    kind, size = ("discrete", embedding.choices[0]) if embedding.choices else ("continuous", embedding.dims)
    if (actions.kind, actions.size) != (kind, size):
        raise ValueError(f"{actions.size} {actions.kind} actions named, but the dynamics takes {size} {kind} ones")
