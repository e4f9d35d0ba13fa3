"""What a simulator or an environment shows, and what it takes: its observation space and its action space.

Legend: b batch, h w pixels, k numbers of a vector, a dimensions of a continuous action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch


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


@dataclass(frozen=True)
class ActionSpace:
    """What a step takes.

    Attributes:
        kind: ``"discrete"`` (int64 [b] in [0, size)) or ``"continuous"`` (float32 [b, size] in [-1, 1]).
        size: number of discrete actions, or of dimensions.
        names: display names, one per discrete action or dimension; latent actions are named by their observed effect.
        latent: whether the actions were learned from unlabeled video.
        rest: one value per dimension, its position without any input (a brake rests at -1); empty where all
            rest at 0.

    Raises:
        ValueError: another kind, no action, or names or rest values that do not fit the size.
    """

    kind: str
    size: int
    names: tuple[str, ...] = ()
    latent: bool = False
    rest: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("discrete", "continuous") or type(self.size) is not int or self.size < 0:
            raise ValueError(
                "an action space is discrete or continuous and has 0 actions or more, got "
                f"{self.kind!r} and {self.size!r}"
            )
        if self.names and len(self.names) != self.size:
            raise ValueError(f"names must be one for each of {self.size} actions, got {len(self.names)}")
        rests_fit = len(self.rest) == self.size and all(abs(value) <= 1 for value in self.rest)
        if self.rest and (self.kind == "discrete" or not rests_fit):
            raise ValueError(f"rest must be one number in [-1, 1] per dimension ({self.size}), got {self.rest}")

    @classmethod
    def recorded(cls, kind: str, size: int, recording: Mapping[str, Any]) -> ActionSpace:
        """Make a space with the names and rest values that a recording states in an episode's metadata.

        Args:
            kind, size: see ``ActionSpace``.
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

    @property
    def is_discrete(self) -> bool:
        """Whether an action is one of ``size`` choices."""
        return self.kind == "discrete"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one action: () for a discrete one, (size,) for a continuous one."""
        return () if self.is_discrete else (self.size,)

    @property
    def dtype(self) -> torch.dtype:
        """int64 for discrete actions, float32 for continuous ones."""
        return torch.int64 if self.is_discrete else torch.float32

    def __str__(self) -> str:
        """Such as ``4 discrete actions``, for messages."""
        return f"{self.size} {self.kind} action{'' if self.size == 1 else 's'}"
