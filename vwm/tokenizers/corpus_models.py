"""The models that ``vwm ingest`` runs on every clip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vwm.core.devices import resolve_device
from vwm.data.clip_models import ClipFunction, ClipModel
from vwm.data.curation.captions import CaptionModel
from vwm.data.curation.embeddings import EmbeddingModel


@dataclass(frozen=True)
class CorpusModels:
    """The models of an ingest; each adds something to every clip that is kept.

    Attributes:
        tokenizer: add the latents of this tokenizer, as ``vwm encode`` would: a bundle, or the folder of a tokenizer, a
            diffusers autoencoder or a diffusers pipeline.
        embed: add an embedding, float32 [d], of this model for images or videos: a folder that transformers saved.
        caption: add a text, "caption" in the metadata, of this image-to-text or video-to-text model: a folder that
            transformers saved.
        caption_prompt: what a model that follows instructions is asked for.
    """

    tokenizer: Path | None = None
    embed: Path | None = None
    caption: Path | None = None
    caption_prompt: str = "Describe what happens in this video in one sentence."


def make_clip_models(models: CorpusModels, height: int | None, width: int | None) -> list[ClipModel]:
    """Check that the models can be loaded and fit frames of this size.

    Raises:
        ValueError: a folder holds no such model, or the tokenizer requires frames of another size.
    """
    made: list[ClipModel] = []
    if models.tokenizer is not None:
        made.append(_make_latent_model(models.tokenizer, height, width))
    if models.embed is not None:
        made.append(EmbeddingModel.of_folder(models.embed))
    if models.caption is not None:
        made.append(CaptionModel.of_folder(models.caption, models.caption_prompt))
    return made


def _make_latent_model(folder: Path, height: int | None, width: int | None) -> ClipModel:
    if height is None or width is None:
        raise ValueError(f"--tokenizer {folder} requires frames of one size: give --size, or --height and --width")
    from vwm.tokenizers.loading import load_tokenizer  # diffusers takes seconds to import
    from vwm.tokenizers.shard_encoding import tokenizer_fingerprint

    tokenizer = load_tokenizer(folder, image_size=(height, width))
    if tokenizer.image_size != (height, width):
        needed = "x".join(map(str, tokenizer.image_size))
        raise ValueError(f"--tokenizer {folder} encodes frames of {needed} pixels, not of {height}x{width}: "
                         f"give --height {tokenizer.image_size[0]} --width {tokenizer.image_size[1]}")  # fmt: skip
    return LatentModel(str(folder), (height, width), tokenizer_fingerprint(tokenizer))


@dataclass(frozen=True)
class LatentModel:
    """Adds the latents of a tokenizer.

    Attributes:
        folder: from which ``load_tokenizer`` loads it.
        image_size: (height, width) of the frames.
        fingerprint: see ``tokenizer_fingerprint``.
    """

    folder: str
    image_size: tuple[int, int]
    fingerprint: str
    adds: str = "latents"

    def load(self) -> ClipFunction:
        """Load the tokenizer, onto a GPU where there is one."""
        from vwm.tokenizers.loading import load_tokenizer
        from vwm.tokenizers.shard_encoding import encode_clip

        tokenizer = load_tokenizer(self.folder, image_size=self.image_size)
        return partial(encode_clip, tokenizer.to(resolve_device("auto")))
