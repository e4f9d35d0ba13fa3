"""What a simulator or an environment shows, and what it takes: its observation space and its action space.

Legend: b batch, h w pixels, k numbers of a vector, a dimensions of a continuous action.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, compress
from typing import Any, Literal

import torch
from torch import Tensor

from vwm.core.action_parts import ActionPart, check_part_names, read_action_parts


@dataclass(frozen=True)
class ObservationSpace:
    """What is observed at one time step.

    Attributes:
        kind: ``"image"`` (uint8 [b, h, w, 3]), ``"vector"`` (float32 [b, k]: joint angles, positions), or
            ``"latent"`` for a simulator that predicts latents only and shows nothing.
        shape: shape of one observation, without the batch: (h, w, 3), (k,), or that of a latent.

    Raises:
        ValueError: the shape does not fit the kind.
    """

    kind: Literal["image", "vector", "latent"]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if self.kind not in ("image", "vector", "latent"):
            raise ValueError(f"kind must be 'image', 'vector' or 'latent', got {self.kind!r}")
        if self.kind == "image" and (len(self.shape) != 3 or self.shape[-1] != 3):
            raise ValueError(f"images have shape (height, width, 3), got {self.shape}")
        if self.kind == "vector" and len(self.shape) != 1:
            raise ValueError(f"vectors have shape (k,), got {self.shape}")

    @classmethod
    def image(cls, height: int, width: int) -> ObservationSpace:
        """RGB images of a size in pixels."""
        return cls("image", (height, width, 3))

    @classmethod
    def vector(cls, size: int) -> ObservationSpace:
        """Vectors of ``size`` numbers."""
        return cls("vector", (size,))

    @classmethod
    def latent(cls, *shape: int) -> ObservationSpace:
        """Latents of a shape, and no observation."""
        return cls("latent", shape)

    @classmethod
    def of_shape(cls, shape: tuple[int, ...] | list[int]) -> ObservationSpace:
        """Images for a shape (h, w, 3), vectors for (k,)."""
        return cls("image" if len(shape) == 3 else "vector", tuple(shape))

    @property
    def is_image(self) -> bool:
        """Whether observations are images."""
        return self.kind == "image"

    @property
    def is_vector(self) -> bool:
        """Whether observations are vectors."""
        return self.kind == "vector"

    @property
    def is_latent(self) -> bool:
        """Whether there are latents only."""
        return self.kind == "latent"

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels. Raises ValueError where observations are not images."""
        if not self.is_image:
            raise ValueError(f"observations of kind {self.kind!r} have no image size")
        return self.shape[0], self.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """uint8 for images, else float32."""
        return torch.uint8 if self.is_image else torch.float32

    def __str__(self) -> str:
        """Such as ``uint8 [64, 64, 3]``, for messages."""
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


MAX_ENUMERATED_ACTIONS = 1024
"""Combinations of a composite action's choices and keys that are told apart as discrete actions at most."""


@dataclass(frozen=True)
class ActionSpace:
    """What a step takes.

    Attributes:
        kind: ``"discrete"`` (int64 [b] in [0, size)), ``"continuous"`` (float32 [b, size] in [-1, 1]) or
            ``"composite"`` (float32 [b, size], the columns of its parts side by side; see ``ActionPart``).
        size: number of discrete actions, of dimensions, or of columns.
        names: display names, one per discrete action, dimension or column; latent actions are named by their observed
            effect.
        latent: whether the actions were learned from unlabeled video.
        rest: one value per dimension, its position without any input (a brake rests at -1); empty where all
            rest at 0.
        parts: of a composite action; empty for others.

    Raises:
        ValueError: another kind, no action, or names, rest values or parts that do not fit the size.
    """

    kind: str
    size: int
    names: tuple[str, ...] = ()
    latent: bool = False
    rest: tuple[float, ...] = ()
    parts: tuple[ActionPart, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("discrete", "continuous", "composite") or type(self.size) is not int or self.size < 0:
            raise ValueError(
                "an action space is discrete, continuous or composite and has 0 actions or more, got "
                f"{self.kind!r} and {self.size!r}"
            )
        if self.names and len(self.names) != self.size:
            raise ValueError(f"names must be one for each of {self.size} actions, got {len(self.names)}")
        rests_fit = len(self.rest) == self.size and all(abs(value) <= 1 for value in self.rest)
        if self.rest and (self.kind == "discrete" or not rests_fit):
            raise ValueError(f"rest must be one number in [-1, 1] per dimension ({self.size}), got {self.rest}")
        columns = sum(part.columns for part in self.parts)
        if bool(self.parts) != self.is_composite or (self.is_composite and columns != self.size):
            raise ValueError(f"a composite space has parts of {self.size} columns in total, others none: got {columns}")
        check_part_names(self.parts)

    @classmethod
    def composite(cls, *parts: ActionPart) -> ActionSpace:
        """Make a composite space; its names and rest values are those of the columns."""
        names = tuple(name for part in parts for name in part.column_names)
        rest = tuple(value for part in parts for value in part.rest or (0.0,) * part.columns)
        return cls("composite", len(names), names, rest=rest if any(rest) else (), parts=parts)

    @classmethod
    def recorded(cls, kind: str, size: int, recording: Mapping[str, Any]) -> ActionSpace:
        """Make a space with the names and rest values that a recording states in an episode's metadata.

        Args:
            kind, size: see ``ActionSpace``; of a discrete or continuous one.
            recording: the metadata, with ``action_names`` and ``action_rest`` where they are known; values of another
                size are ignored.
        """
        names = tuple(map(str, recording.get("action_names") or ()))
        rest = tuple(map(float, recording.get("action_rest") or ()))
        return cls(
            kind,
            size,
            names if len(names) == size else tuple(f"action {i}" for i in range(size)),
            rest=rest if kind == "continuous" and len(rest) == size else (),
        )

    @classmethod
    def recorded_parts(cls, parts: tuple[ActionPart, ...], recording: Mapping[str, Any]) -> ActionSpace:
        """Make a composite space with the names and rest values of a recording whose parts have these kinds and sizes.

        Args:
            parts: of the space.
            recording: metadata of an episode, with ``action_parts`` where it is known; other parts are ignored.
        """
        stated = read_action_parts(recording["action_parts"]) if recording.get("action_parts") else ()
        fits = [(part.kind, part.size) for part in stated] == [(part.kind, part.size) for part in parts]
        return cls.composite(*(stated if fits else parts))

    def named_by(self, recording: Mapping[str, Any]) -> ActionSpace:
        """Return the same space with the names and rest values of a recording; see ``recorded``."""
        if self.is_composite:
            return ActionSpace.recorded_parts(self.parts, recording)
        return ActionSpace.recorded(self.kind, self.size, recording)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> ActionSpace:
        """Read a space as ``to_json`` wrote it. Raises KeyError, TypeError or ValueError for other values."""
        if not isinstance(saved.get("latent", False), bool):
            raise ValueError(f"latent must be true or false, got {saved['latent']!r}")
        if saved["kind"] == "composite":
            space = cls.composite(*read_action_parts(saved["parts"]))
            return cls(**{**saved, "names": space.names, "rest": space.rest, "parts": space.parts})
        if not isinstance(saved["names"], list | tuple) or not all(isinstance(name, str) for name in saved["names"]):
            raise ValueError(f"names must be a list of texts, got {str(saved['names'])[:100]}")
        return cls(**{**saved, "names": tuple(saved["names"]), "rest": tuple(saved.get("rest", ()))})

    def to_json(self) -> dict[str, Any]:
        """Return the space as JSON; only a composite one has ``parts``, which hold names and rest values."""
        if self.is_composite:
            saved = {"kind": self.kind, "size": self.size, "latent": self.latent}
            return {**saved, "parts": [part.to_json() for part in self.parts]}
        saved = asdict(self)
        del saved["parts"]
        return saved

    @property
    def has_one_action(self) -> bool:
        """A single discrete action: a world without actions, which nothing controls."""
        return self.kind == "discrete" and self.size == 1

    @property
    def is_named(self) -> bool:
        """Whether the names say more than numbers do."""
        return bool(self.names) and self.names != tuple(f"action {i}" for i in range(self.size))

    @property
    def is_discrete(self) -> bool:
        """Whether an action is one of ``size`` choices."""
        return self.kind == "discrete"

    @property
    def is_composite(self) -> bool:
        """Whether an action has several parts."""
        return self.kind == "composite"

    def fits(self, other: ActionSpace) -> bool:
        """Whether actions of one space are actions of the other: equal kinds and sizes, also of the parts."""
        layouts = [
            (space.kind, space.size, [(part.kind, part.size) for part in space.parts]) for space in (self, other)
        ]
        return layouts[0] == layouts[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one action: () for a discrete one, (size,) for others."""
        return () if self.is_discrete else (self.size,)

    @property
    def dtype(self) -> torch.dtype:
        """int64 for discrete actions, float32 for others."""
        return torch.int64 if self.is_discrete else torch.float32

    @property
    def slices(self) -> dict[str, slice]:
        """The columns of each part of a composite action, by its name."""
        stops = accumulate(part.columns for part in self.parts)
        return {part.name: slice(stop - part.columns, stop) for part, stop in zip(self.parts, stops, strict=True)}

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lowest and highest value of each column, float32 [size], and whether it holds whole numbers, bool [size]."""
        by_column = [part for part in self.parts for _ in range(part.columns)]
        low, high = (torch.tensor([float(getattr(part, end)) for part in by_column]) for end in ("low", "high"))
        return low, high, torch.tensor([part.is_whole for part in by_column])

    def check_rows(self, actions: Tensor) -> None:
        """Raise ValueError unless composite actions [..., size] fit their parts; the error names the column."""
        if actions.shape[-1:] != self.shape:
            raise ValueError(f"composite actions have {self.size} columns ({', '.join(self.names)}), "
                             f"got {list(actions.shape)}")  # fmt: skip
        low, high, whole = (bound.to(actions.device) for bound in self._columns)
        valid = (actions >= low) & (actions <= high) & (~whole | (actions == actions.round()))  # NaN fails this, too
        if bool(valid.all()):
            return
        column = int((~valid).reshape(-1, self.size).any(0).nonzero()[0])
        value = actions[..., column][~valid[..., column]][0]
        kind = "a whole number" if whole[column] else "a number"
        raise ValueError(
            f"action column {self.names[column]!r} must be {kind} in {low[column]:g}..{high[column]:g}, got {value:g}"
        )

    @property
    def flat(self) -> ActionSpace:
        """A continuous space that stands for a composite one (see ``from_flat``); others stand for themselves.

        Agents and planners that know only discrete and continuous actions act in it.
        """
        if not self.is_composite:
            return self
        rest = tuple(self.to_flat(torch.tensor(self.rest)).tolist()) if self.rest else ()
        return ActionSpace("continuous", self.size, self.names, rest=rest)

    def from_flat(self, actions: Tensor) -> Tensor:
        """Map actions of ``flat``, in [-1, 1], to actions of this space.

        A key is held above 0, and the range of a choice is cut into equal parts. Uniform numbers give uniform actions.
        """
        if not self.is_composite:
            return actions
        _, high, whole = (bound.to(actions.device) for bound in self._columns)
        bins = (((actions + 1) / 2 * (high + 1)).ceil() - 1).clamp(min=torch.zeros_like(high), max=high)
        return torch.where(whole, bins.to(actions.dtype), actions)

    def to_flat(self, actions: Tensor) -> Tensor:
        """Map actions of this space to ones of ``flat`` that stand for them."""
        if not self.is_composite:
            return actions
        _, high, whole = (bound.to(actions.device) for bound in self._columns)
        return torch.where(whole, ((actions + 0.5) / (high + 1) * 2 - 1).to(actions.dtype), actions)

    @property
    def enumerated(self) -> ActionSpace:
        """A discrete space of all combinations of a composite action's choices and keys (see ``from_enumerated``).

        Tree searches and agents that know only discrete actions act in it; discrete actions stand for themselves.

        Raises:
            ValueError: a part is continuous, or there are too many combinations.
        """
        if self.is_discrete:
            return self
        if not self.is_composite:
            raise ValueError(f"{self} cannot be enumerated")
        continuous = [part.name for part in self.parts if not part.is_whole]
        if continuous:
            raise ValueError(f"{self} cannot be enumerated, because {', '.join(continuous)} is continuous")
        size = math.prod(self._radices)
        if size > MAX_ENUMERATED_ACTIONS:
            raise ValueError(f"{self} cannot be enumerated: {size} combinations are more than {MAX_ENUMERATED_ACTIONS}")
        rows = self.from_enumerated(torch.arange(size)).long().tolist()
        return ActionSpace("discrete", size, tuple(", ".join(self._row_words(row)) for row in rows))

    def from_enumerated(self, actions: Tensor) -> Tensor:
        """Map actions int64 [...] of ``enumerated`` to actions of this space; the last column changes fastest."""
        if self.is_discrete:
            return actions
        columns = []
        for radix in reversed(self._radices):
            columns.append(actions % radix)
            actions = actions // radix
        return torch.stack(columns[::-1], dim=-1).float()

    @property
    def _radices(self) -> list[int]:
        """Number of values of each column of choices and keys."""
        return [part.high + 1 for part in self.parts for _ in range(part.columns)]

    def _row_words(self, row: list[int]) -> Iterator[str]:
        """Yield the chosen name or the held keys of each part of a row of choices and keys."""
        for part, columns in zip(self.parts, self.slices.values(), strict=True):
            values = row[columns]
            yield part.names[values[0]] if part.kind == "choice" else "+".join(compress(part.names, values)) or "no key"

    def __str__(self) -> str:
        """Such as ``4 discrete actions``, for messages."""
        if self.is_composite:
            parts = ", ".join(f"{part.name} ({part.kind} of {part.size})" for part in self.parts)
            return f"composite actions of {parts}"
        return f"{self.size} {self.kind} action{'' if self.size == 1 else 's'}"
