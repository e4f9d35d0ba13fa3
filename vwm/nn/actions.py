"""Embed discrete, continuous and composite actions.

Legend: b batch, t time, a columns of an action, p its parts, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vwm.core.action_parts import ActionPart, read_action_parts
from vwm.core.spaces import ActionSpace


class ActionEmbedding(nn.Module, ABC):
    """Map each action to a vector.

    Attributes:
        space: the actions, without their display names.
    """

    space: ActionSpace

    @abstractmethod
    def check(self, actions: Tensor) -> None:
        """Raise ValueError for a wrong shape, dtype or range. Synchronizes with the device."""

    @abstractmethod
    def forward(self, actions: Tensor) -> Tensor:
        """Actions of ``space``, [b, t] or [b, t, a] -> [b, t, d]. Raises ValueError for a wrong shape or dtype."""

    @abstractmethod
    def init_constant(self, vector: Tensor) -> None:
        """Initialize so that every action has the same vector [d]."""

    def embed(self, actions: Tensor, known: Tensor | None, unknown: Tensor) -> Tensor:
        """Embed actions of which some are unknown or hidden.

        Args:
            actions: of ``space``, [b, t] or [b, t, a].
            known: bool, broadcastable to [b, t], or [b, t, p] for a composite space; None where all are known.
            unknown: [d], of an action without a known part.

        Returns:
            [b, t, d].
        """
        embedding: Tensor = self(actions)
        return embedding if known is None else torch.where(known[..., None], embedding, unknown)


class DiscreteActionEmbedding(ActionEmbedding):
    """A table of vectors. Actions are int64 [b, t].

    Args:
        num_actions: number of actions.
        width: d.
    """

    def __init__(self, num_actions: int, width: int) -> None:
        super().__init__()
        self.space = ActionSpace("discrete", num_actions)
        self.table = nn.Embedding(num_actions, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def check(self, actions: Tensor) -> None:
        """See ``ActionEmbedding.check``."""
        self._check_shape(actions)
        low, high = int(actions.min()), int(actions.max())
        if low < 0 or high >= self.space.size:
            raise ValueError(
                f"actions run from {low} to {high}, but dynamics.num_actions={self.space.size} allows "
                f"0..{self.space.size - 1}"
            )

    def forward(self, actions: Tensor) -> Tensor:
        """See ``ActionEmbedding.forward``."""
        self._check_shape(actions)
        embedding: Tensor = self.table(actions)
        return embedding

    @torch.no_grad()
    def init_constant(self, vector: Tensor) -> None:
        """See ``ActionEmbedding.init_constant``."""
        self.table.weight.copy_(vector.expand_as(self.table.weight))

    def _check_shape(self, actions: Tensor) -> None:
        if actions.ndim != 2 or actions.is_floating_point():
            raise ValueError(f"actions must be integers [b, t], got {actions.dtype} {list(actions.shape)}")


class ContinuousActionEmbedding(ActionEmbedding):
    """An MLP of two layers, because the effect of a continuous action is not linear in it.

    Args:
        action_dims: number of dimensions. Actions are float [b, t, action_dims] in [-1, 1].
        width: d.
        linear: a single layer instead (V-JEPA 2-AC).
    """

    def __init__(self, action_dims: int, width: int, linear: bool = False) -> None:
        super().__init__()
        self.space = ActionSpace("continuous", action_dims)
        self.mlp = AxesMLP(action_dims, width, linear)

    def check(self, actions: Tensor) -> None:
        """See ``ActionEmbedding.check``."""
        _check_columns(actions, self.space)

    def forward(self, actions: Tensor) -> Tensor:
        """See ``ActionEmbedding.forward``."""
        _check_columns(actions, self.space)
        embedding: Tensor = self.mlp(actions.to(self.mlp.last.weight.dtype))
        return embedding

    @torch.no_grad()
    def init_constant(self, vector: Tensor) -> None:
        """See ``ActionEmbedding.init_constant``."""
        self.mlp.last.weight.zero_()
        self.mlp.last.bias.copy_(vector)


class CompositeActionEmbedding(ActionEmbedding):
    """The sum of the vectors of the parts: tables for choices, linear maps of held keys, MLPs for axes and pointers.

    Each part has a learned vector for where it is unknown or hidden.

    Args:
        parts: of the actions, float [b, t, a].
        width: d.
        linear: see ``ContinuousActionEmbedding``.
    """

    def __init__(self, parts: Sequence[ActionPart], width: int, linear: bool = False) -> None:
        super().__init__()
        self.space = ActionSpace.composite(*parts)
        self.parts = nn.ModuleList(_make_part_embedding(part, width, linear) for part in parts)
        self.unknown_parts = nn.Parameter(torch.zeros(len(parts), width))

    def check(self, actions: Tensor) -> None:
        """See ``ActionEmbedding.check``."""
        _check_columns(actions, self.space)
        self.space.check_rows(actions)

    def forward(self, actions: Tensor) -> Tensor:
        """See ``ActionEmbedding.forward``."""
        return self._embed_parts(actions).sum(-2)

    def embed(self, actions: Tensor, known: Tensor | None, unknown: Tensor) -> Tensor:
        """See ``ActionEmbedding.embed``: an unknown part of a known action has the vector of that part."""
        if known is None or known.ndim < actions.ndim:
            return super().embed(actions, known, unknown)
        vectors = self._embed_parts(actions)
        embedding = torch.where(known[..., None], vectors, self.unknown_parts).sum(-2)
        return torch.where(known.any(-1)[..., None], embedding, unknown)

    @torch.no_grad()
    def init_constant(self, vector: Tensor) -> None:
        """See ``ActionEmbedding.init_constant``."""
        for parameter in self.parts.parameters():
            parameter.zero_()
        first = self.parts[0]
        if isinstance(first, nn.Embedding):
            first.weight.copy_(vector.expand_as(first.weight))
        else:
            list(first.parameters())[-1].copy_(vector)  # the bias of a linear map, or of an MLP's last layer
        self.unknown_parts.zero_()
        self.unknown_parts[0] = vector

    def _embed_parts(self, actions: Tensor) -> Tensor:
        """[b, t, a] -> [b, t, p, d]."""
        _check_columns(actions, self.space)
        dtype = self.unknown_parts.dtype
        columns = actions.split([part.columns for part in self.space.parts], dim=-1)
        return torch.stack(
            [
                module(column[..., 0].long() if isinstance(module, nn.Embedding) else column.to(dtype))
                for module, column in zip(self.parts, columns, strict=True)
            ],
            dim=-2,
        )


class AxesMLP(nn.Sequential):
    """Two layers, or a single one, that map continuous dimensions to a vector of a width."""

    def __init__(self, dims: int, width: int, linear: bool) -> None:
        super().__init__(nn.Linear(dims, width))
        if not linear:
            self.extend([nn.SiLU(), nn.Linear(width, width)])

    @property
    def last(self) -> nn.Linear:
        """The last layer."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer


def _make_part_embedding(part: ActionPart, width: int, linear: bool) -> nn.Module:
    if part.kind == "choice":
        table = nn.Embedding(part.size, width)
        nn.init.normal_(table.weight, std=0.02)
        return table
    return nn.Linear(part.size, width) if part.kind == "keys" else AxesMLP(part.size, width, linear)


def _check_columns(actions: Tensor, space: ActionSpace) -> None:
    if actions.ndim != 3 or actions.shape[-1] != space.size or not actions.is_floating_point():
        raise ValueError(
            f"actions must be [b, t, {space.size}] of floats ({space}), got {actions.dtype} {list(actions.shape)}"
        )


def make_action_embedding(
    width: int,
    num_actions: int = 0,
    action_dims: int = 0,
    action_parts: Sequence[Mapping[str, Any]] | None = None,
    linear: bool = False,
) -> ActionEmbedding | None:
    """Make the embedding that a network's config asks for; None without actions.

    Args:
        width: d.
        num_actions: number of discrete actions.
        action_dims: dimensions of continuous actions.
        action_parts: parts of composite actions, each with the fields of ``ActionPart``: ``{kind: keys, size: 4}``.
        linear: see ``ContinuousActionEmbedding``.

    Raises:
        ValueError: more than one kind of action is given.
    """
    given = {"num_actions": num_actions, "action_dims": action_dims, "action_parts": action_parts}
    if sum(map(bool, given.values())) > 1:
        values = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"set one of {values}: action_parts takes discrete and continuous parts together")
    if num_actions:
        return DiscreteActionEmbedding(num_actions, width)
    if action_dims:
        return ContinuousActionEmbedding(action_dims, width, linear)
    return CompositeActionEmbedding(read_action_parts(action_parts), width, linear) if action_parts else None


def check_action_space(embedding: ActionEmbedding, actions: ActionSpace) -> None:
    """Raise ValueError unless the dynamics takes the actions of the space."""
    taken = embedding.space
    if (actions.kind, actions.size) != (taken.kind, taken.size):
        raise ValueError(
            f"{actions.size} {actions.kind} actions named, but the dynamics takes {taken.size} {taken.kind} ones"
        )
    if not actions.fits(taken):
        raise ValueError(f"{actions} named, but the dynamics takes {taken}")


def embedded_action_space(embedding: ActionEmbedding | None, recording: Mapping[str, Any]) -> ActionSpace:
    """Return the action space of a dynamics model by its embedding; without one, a single action without effect.

    Args:
        embedding: action embedding of the dynamics model.
        recording: metadata of an episode of the data, see ``ActionSpace.recorded``.
    """
    if embedding is None:
        return ActionSpace("discrete", 1, ("go on",))
    return embedding.space.named_by(recording)
