"""Tokenizers as a family that exports networks without a simulator: see ``WorldFamily``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vwm.core.command_output import progress_bar
from vwm.core.family import ExportedNetworks, WorldFamily
from vwm.core.feature_extractor import FeatureExtractor

if TYPE_CHECKING:
    from vwm.core.tokenizer import VideoTokenizer
    from vwm.data.mixtures import DataPath
    from vwm.tokenizers.module import TokenizerModule

GENIE_SMALL_TOKENS = (1000, (8, 8))
"""Codebook size and grid of the tokens that ``genie/coinrun_small`` takes."""
NUM_STATISTICS_CLIPS = 256
"""Number of clips, of 8 latents each, on which the scale of continuous latents is measured."""


class TokenizerFamily(WorldFamily):
    """Networks that encode video to latents and decode it."""

    name = "tokenizer"
    title = "tokenizer"
    module_classes = ("vwm.tokenizers.TokenizerModule",)

    def export_networks(self, module: TokenizerModule, data: DataPath | None, average: bool) -> ExportedNetworks:
        """See ``WorldFamily.export_networks``; continuous latents are normalized on the data."""
        if module.tokenizer.channels:
            _measure_latent_statistics(module.tokenizer, data)
        return ExportedNetworks(
            {"tokenizer": module.tokenizer},
            contents="a tokenizer",
            next_command=_next_training(module.tokenizer),
        )

    def load_features(
        self, folder: Path, layer: int | None = None, image_size: tuple[int, int] | None = None
    ) -> FeatureExtractor | None:
        """See ``WorldFamily.load_features``: its latents."""
        from vwm.tokenizers.features import TokenizerFeatureExtractor
        from vwm.tokenizers.loading import load_tokenizer

        try:
            tokenizer = load_tokenizer(folder, image_size)
        except FileNotFoundError:
            return None
        return TokenizerFeatureExtractor(tokenizer, layer)


def _next_training(tokenizer: VideoTokenizer) -> tuple[str, ...]:
    """Return the command that trains dynamics on a tokenizer's latents: Genie of the small config where that fits."""
    if (tokenizer.codebook_size, tuple(tokenizer.grid)) == GENIE_SMALL_TOKENS:
        return "fit", "-c", "genie/coinrun_small", "--data", "{data}", "--tokenizer", "{out}", "--run", "{runs}/genie"
    return "fit", "-c", "CONFIG", "--data", "{data}", "--tokenizer", "{out}"


def _measure_latent_statistics(tokenizer: VideoTokenizer, data: DataPath | None) -> None:
    """Normalize continuous latents to zero mean and unit standard deviation, as diffusion requires."""
    import torch

    from vwm.data.clip_folders import make_clip_dataset
    from vwm.tokenizers.latent_statistics import measure_latent_statistics

    if data is None:
        print("warning: no data to measure the latents on, so their scale stays as it is: give --data SHARDS")
        return
    # Eight latents per clip: the first latent of a clip holds one frame only, which is rare in a long video.
    dataset = make_clip_dataset(data, 1 + 7 * tokenizer.time_compression, fields=("frames",), seed=1)
    count = min(NUM_STATISTICS_CLIPS, len(dataset.order))
    batches = (torch.from_numpy(dataset[(0, i)]["frames"].copy())[None] for i in range(count))
    measure_latent_statistics(tokenizer, progress_bar(batches, desc="measure latents", total=count, unit="clip"))
