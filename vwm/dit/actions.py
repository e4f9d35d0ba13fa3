"""Actions of every kind as vectors: discrete, continuous, both at once, or missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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

    def forward(self, actions: Tensor) -> Tensor:
        """[b, t] or [b, t, k + dims] -> [b, t, d].

        Raises:
            ValueError: another shape or type.
        """
        if self.plain:
            if actions.ndim != 2 or actions.is_floating_point():
                raise ValueError(f"actions must be integers [b, t], got {actions.dtype} {list(actions.shape)}")
            return self.tables[0](actions)
        columns = len(self.choices) + self.dims
        if actions.ndim != 3 or actions.shape[-1] != columns:
            raise ValueError(
                f"actions must be [b, t, {columns}] ({len(self.choices)} discrete parts, then {self.dims} continuous "
                f"dimensions), got {actions.dtype} {list(actions.shape)}"
            )
        parts = [table(actions[..., i].long()) for i, table in enumerate(self.tables)]
        if self.mlp is not None:
            parts.append(self.mlp(actions[..., len(self.choices) :].to(next(self.parameters()).dtype)))
        return torch.stack(parts).sum(0)
