"""Settings of MuZero and EfficientZero: sizes of the network, weights of losses, temperatures, augmentation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vwm.core.checks import check_not_negative, check_positive
from vwm.models.muzero.representation import ImageNetwork
from vwm.nn.image_augmentation import random_intensity, random_shift


@dataclass(frozen=True)
class MuZeroNetworkConfig:
    """Sizes of the network.

    Attributes:
        num_stacked_frames, width, num_blocks, hidden, support_limit, value_prefix_horizon, prefix_hidden,
            projection_size, image_network, image_downsampling, prediction_blocks, projector_layers,
            predictor_hidden: see ``MuZeroNetwork``.

    Raises:
        ValueError: a size is out of range.
    """

    num_stacked_frames: int = 1
    width: int = 64
    num_blocks: int = 1
    hidden: int = 64
    support_limit: int = 300
    value_prefix_horizon: int = 5
    prefix_hidden: int = 64
    projection_size: int = 128
    image_network: ImageNetwork = "strided"
    image_downsampling: int = 16
    prediction_blocks: int = 0
    projector_layers: int = 2
    predictor_hidden: int = 0

    def __post_init__(self) -> None:
        check_positive(
            num_stacked_frames=self.num_stacked_frames,
            width=self.width,
            num_blocks=self.num_blocks,
            hidden=self.hidden,
            support_limit=self.support_limit,
            prefix_hidden=self.prefix_hidden,
            projection_size=self.projection_size,
        )
        check_not_negative(prediction_blocks=self.prediction_blocks, predictor_hidden=self.predictor_hidden)
        if self.projector_layers < 2:
            raise ValueError(f"projector_layers must be 2 or more, got {self.projector_layers}")
        if self.value_prefix_horizon < 0:
            raise ValueError(
                f"value_prefix_horizon must be 0 (no value prefix) or more, got {self.value_prefix_horizon}"
            )


@dataclass(frozen=True)
class MuZeroLossWeights:
    """Weights of the losses; the defaults are EfficientZero's.

    Attributes:
        policy, value, reward: of MuZero's losses.
        consistency: of EfficientZero's consistency loss; 0 omits it.

    Raises:
        ValueError: a weight is negative.
    """

    policy: float = 1.0
    value: float = 0.25
    reward: float = 1.0
    consistency: float = 2.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if weight < 0:
                raise ValueError(f"the loss weight {name} must be 0 or more, got {weight}")


@dataclass(frozen=True)
class MuZeroTemperatureSchedule:
    """Temperature of the decisions in training, constant between milestones.

    Attributes:
        temperatures: one after another.
        milestones: fractions of all updates after which the next temperature applies.

    Raises:
        ValueError: a temperature is not above 0, their number is wrong, or the milestones do not rise.
    """

    temperatures: tuple[float, ...] = (1.0, 0.5, 0.25)
    milestones: tuple[float, ...] = (0.5, 0.75)

    def __post_init__(self) -> None:
        if len(self.temperatures) != len(self.milestones) + 1 or min(self.temperatures) <= 0:
            raise ValueError(
                "temperatures must be above 0 and one more than milestones, got temperatures "
                f"{list(self.temperatures)} and milestones {list(self.milestones)}"
            )
        if sorted(self.milestones) != list(self.milestones):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")

    def temperature(self, updates: int, total_updates: int) -> float:
        """Return the temperature after a number of updates; the first one while the total is 0 (unknown)."""
        if not total_updates:
            return self.temperatures[0]
        return self.temperatures[sum(updates >= milestone * total_updates for milestone in self.milestones)]


@dataclass(frozen=True)
class MuZeroAugmentation:
    """Random changes of the images that are learned from; vectors stay as they are. The defaults change nothing.

    The root's images and those that the consistency loss compares with are changed independently.

    Attributes:
        max_shift: largest shift in pixels (EfficientZero: 4 of 96).
        intensity: see ``random_intensity`` (EfficientZero: 0.05).

    Raises:
        ValueError: a number is negative.
    """

    max_shift: int = 0
    intensity: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(max_shift=self.max_shift, intensity=self.intensity)

    def __call__(self, windows: Tensor) -> Tensor:
        """Change stacks of images, uint8 [b, f, h, w, 3]; return others, [b, f, k], as they are."""
        if windows.ndim != 5:
            return windows
        if self.max_shift:
            windows = random_shift(windows, self.max_shift)
        return random_intensity(windows, self.intensity) if self.intensity else windows
