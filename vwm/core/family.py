"""The interface through which the rest of the project uses a model family.

Export, loading, evaluation, probing and benchmarks ask a ``WorldFamily`` and never test for a class. A family names
its classes as text, and its methods import them when they are called, so that importing it imports no network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from vwm.core.components import public_path
from vwm.core.feature_extractor import FeatureExtractor
from vwm.core.network_base import ModelMixin
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.simulator import Simulator


@dataclass(frozen=True)
class ExportSettings:
    """What an export knows in addition to the trained module.

    Attributes:
        title, fps, context_frames, starts: see ``NetworkSimulator``.
        recording: the metadata of an episode of the data, of a labeled one if there is one (``action_names``,
            ``action_rest``); empty without data.
    """

    title: str
    fps: float
    context_frames: int
    starts: Tensor | None
    recording: Mapping[str, Any]

    def simulator_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that every ``NetworkSimulator`` takes."""
        return {
            "title": self.title,
            "fps": self.fps,
            "context_frames": self.context_frames,
            "starts": self.starts,
        }


@dataclass(frozen=True)
class ExportedNetworks:
    """Networks that are exported without a simulator.

    Attributes:
        networks: the networks, by the names of their folders.
        contents: what they are, for the user.
        next_command: arguments of the ``vwm`` command that usually comes next; ``{out}`` stands for the folder,
            ``{data}`` for the run's data and ``{runs}`` for the folder that the run lies in.
    """

    networks: Mapping[str, ModelMixin]
    contents: str
    next_command: tuple[str, ...]


@dataclass(frozen=True)
class PublishedWorld:
    """A simulator of weights in the layout in which their authors publish them.

    Attributes:
        simulator: has its default sampling settings, title, frame rate and ``context_frames`` of 1 or more; starts
            where its authors publish some.
        license: of the weights, as the hub calls it, such as ``mit``.
        origin: sentences about the weights for the model card: who published them where.
    """

    simulator: NetworkSimulator
    license: str
    origin: str


class VideoSurprise(Protocol):
    """How surprising each part of a video is to a model.

    Attributes:
        image_size: (h, w) of the frames that the model takes.
    """

    image_size: tuple[int, int]

    def frame_times(self, frames: int) -> list[int]:
        """Return the frame at which each score of a video of ``frames`` frames is known. Raises ValueError."""
        ...

    def __call__(self, frames: Tensor) -> Tensor:
        """Score videos: uint8 [b, t, h, w, 3] -> float [b, len(frame_times(t))]."""
        ...


class CacheComparison(Protocol):
    """Steps with cached keys and values, and the same frames computed from the whole window, for ``vwm bench play``."""

    def check_agreement(self) -> str:
        """Compare the two on the same frames and return a line about it. Raises RuntimeError where they differ."""
        ...

    def step(self, number: int) -> None:
        """Advance by one frame with the cache."""
        ...

    def decode(self) -> None:
        """Decode the frame of the last ``step`` again, to measure the decoder's share of the time."""
        ...

    def step_uncached(self, number: int) -> None:
        """Advance by one frame without the cache, decoded."""
        ...


class WorldFamily:
    """A model family: how its modules become bundles, and what its simulators can be used for.

    Subclass it, set the attributes, override what the family can do, and call ``vwm.worlds.register_family``.

    Attributes:
        name: a short unique name, such as ``genie``.
        title: display name.
        simulator_class: public path of the simulator's class; empty for a family that exports networks only.
        module_classes: public paths of the Lightning modules that train it, for ``vwm export``.
        report: what ``vwm eval`` measures: ``frames`` (every measure of predicted frames), ``compounding_error`` of
            compact latent worlds, ``latent_error`` of worlds whose frames, if any, are a by-product, or None.
        no_report: why ``report`` is None, as the end of a sentence that begins with the bundle's folder.
        published_files: names of the published files that ``load_published`` reads, for messages; empty where it reads
            none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    simulator_class: ClassVar[str] = ""
    module_classes: ClassVar[tuple[str, ...]] = ()
    report: ClassVar[Literal["frames", "compounding_error", "latent_error"] | None] = "frames"
    no_report: ClassVar[str] = ""
    published_files: ClassVar[str] = ""

    # ------------------------------------------------------------------------------------------------ export

    def export_networks(self, module: Any, data: Any, average: bool) -> ExportedNetworks | None:
        """Return the networks of a module that is exported without a simulator; None for one that has a simulator.

        Args:
            module: the trained module.
            data: shards to measure statistics on, as ``vwm.data.make_clip_dataset`` takes them (of a mixture several
                data sets); None where there are none.
            average: whether the averaged weights are exported.
        """
        return None

    def make_simulator(self, module: Any, settings: ExportSettings) -> NetworkSimulator:
        """Make a simulator of a trained module, with its default sampling settings."""
        raise ValueError(f"a {type(module).__name__} cannot be exported: its family {self.name!r} makes no simulator")

    def load_published(self, source: Path, variant: str = "") -> PublishedWorld:
        """Make a simulator of the weights that the authors of a world publish, in their layout.

        Args:
            source: folder with their files, or the file of a world that has one.
            variant: which of several worlds, such as a game; empty for the only one or the usual one.

        Raises:
            ValueError: the family has no published world, or no such variant; or a file or a weight is missing, broken
                or not of this layout.
        """
        raise ValueError(f"{self.title} has no published world: WorldFamily.load_published is not implemented")

    # --------------------------------------------------------------------------------------------------- use

    def window(self, simulator: Any) -> int:
        """Return the number of frames after which a step costs no more than before: its attention window, or 1."""
        return 1

    def feature_extractor(self, simulator: Any, layer: int | None = None) -> FeatureExtractor:
        """Return the features of a simulator for probing, of a layer or of the family's default one.

        Raises:
            ValueError: the family has none, or there is no such layer.
        """
        raise ValueError(f"{self.title} has no features to probe: WorldFamily.feature_extractor is not implemented")

    def load_features(
        self, folder: Path, layer: int | None = None, image_size: tuple[int, int] | None = None
    ) -> FeatureExtractor | None:
        """Load the features of networks that were exported without a simulator; None where the folder holds others.

        Args:
            folder: any folder; the family reads those that hold what its ``export_networks`` returns.
            layer: see ``FeatureExtractor``.
            image_size: (H, W) of the data, for networks that suit any size.

        Raises:
            ValueError: the networks are broken, or there is no such layer.
        """
        return None

    def load_surprise_scorer(
        self, folder: Path, context: int | None, mask_token: int | None, device: str
    ) -> VideoSurprise | None:
        """Load a scorer of surprise; None where the folder holds no networks of this family that can measure it.

        Args:
            folder: folder of a bundle.
            context: frames of each window that the model sees; None for half of the window.
            mask_token: the mask token that stands for the frames to predict; None for the model's own choice.
            device: where it runs.

        Raises:
            ValueError: the networks are broken or others, or the context does not suit them.
        """
        return None

    def compare_cache(
        self, simulator: Any, context: Tensor, actions: Callable[[int], Tensor]
    ) -> CacheComparison | None:
        """Return play with and without a cache, past the first window; None where there is nothing to compare.

        Args:
            simulator: to play with.
            context: frames to start from, uint8 [b, 1, h, w, 3].
            actions: the actions [b, ...] of a step, by its number.
        """
        return None

    # ------------------------------------------------------------------------------------------------ lookup

    def simulates(self, simulator: Simulator) -> bool:
        """Return whether a simulator is of the family's class."""
        return bool(self.simulator_class) and _is_of_class(simulator, self.simulator_class)

    def trains(self, module: Any) -> bool:
        """Return whether a Lightning module is of the family's classes."""
        return any(_is_of_class(module, path) for path in self.module_classes)


def _is_of_class(thing: object, path: str) -> bool:
    name = path.rpartition(".")[2]
    return any(kind.__name__ == name and public_path(kind) == path for kind in type(thing).__mro__)
