"""Load frozen features of any model that a folder holds; and the features of the pixel control.

Legend: b batch, t time, H W pixels, n tokens of a clip, d width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from math import log, prod

from einops import rearrange
from torch import Tensor

from vwm.core.bundle_folder import BUNDLE_INDEX_FILE, BundleError, shipped_bundles
from vwm.core.components import COMPONENT_CONFIG_FILE
from vwm.core.feature_extractor import FeatureExtractor
from vwm.core.suggestions import suggest_sibling
from vwm.hub.bundle_names import find_folder
from vwm.worlds.bundle import load_simulator
from vwm.worlds.families import find_family, world_families


class PixelFeatureExtractor(FeatureExtractor):
    """The control that has no model: the pixels of space-time patches.

    Args:
        tubelet: frames that a token spans.
        patch_size: side of the square that it spans.
    """

    def __init__(self, tubelet: int, patch_size: tuple[int, int]) -> None:
        super().__init__({})
        self.tubelet = tubelet
        self.patch_size = patch_size

    @classmethod
    def matching(cls, tokens: int, frames: int, image_size: tuple[int, int]) -> PixelFeatureExtractor:
        """Return an extractor with as many tokens per clip as a model, or nearly as many if no patch size fits exactly.

        Args:
            tokens: n of the model.
            frames: t.
            image_size: (H, W).
        """
        sides = (_divisors(frames), _divisors(image_size[0]), _divisors(image_size[1]))

        def unlike(spans: tuple[int, ...]) -> tuple[float, float, int]:
            found = frames * prod(image_size) / prod(spans)
            return abs(log(found / tokens)), abs(log(spans[1] / spans[2])), spans[0]

        tubelet, height, width = min(product(*sides), key=unlike)
        return cls(tubelet, (height, width))

    def tokens(self, video: Tensor) -> Tensor:
        p, q = self.patch_size
        return rearrange(video, "b (t r) c (h p) (w q) -> b (t h w) (r p q c)", r=self.tubelet, p=p, q=q)


def load_feature_extractor(
    path: str | os.PathLike[str], layer: int | None = None, image_size: tuple[int, int] | None = None
) -> FeatureExtractor:
    """Load the features of what a folder holds.

    Args:
        path: a bundle (or the name of a shipped one), or networks that a family exports without a simulator: a V-JEPA
            ``encoder/``, a tokenizer.
        layer: see ``FeatureExtractor``.
        image_size: (H, W) of the data, for published autoencoders, which accept any size.

    Raises:
        ValueError: the folder holds nothing of that kind or is damaged, or there is no such layer.
    """
    folder = find_folder(path)
    if not (folder / BUNDLE_INDEX_FILE).is_file():
        for family in world_families():
            features = family.load_features(folder, layer, image_size)
            if features is not None:
                return features
    try:
        simulator = load_simulator(folder, "cpu")  # a folder, or the name of a shipped bundle
    except BundleError as error:
        if (folder / BUNDLE_INDEX_FILE).is_file():
            raise
        close = suggest_sibling(folder, shipped_bundles())
        raise ValueError(
            f"{folder} holds nothing to probe{close}: neither a V-JEPA bundle (encoder/{COMPONENT_CONFIG_FILE}), nor a "
            f"world ({BUNDLE_INDEX_FILE}), nor a tokenizer ({COMPONENT_CONFIG_FILE}). Make one from a training run: "
            f"vwm export RUN -o {folder}"
        ) from error
    return find_family(simulator).feature_extractor(simulator, layer)


def _divisors(number: int) -> Sequence[int]:
    return [i for i in range(1, number + 1) if number % i == 0]
