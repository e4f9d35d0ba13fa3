"""Embeddings of clips by any vision model of the transformers library, for search, balancing and deduplication."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.devices import resolve_device
from vwm.data.clip_models import ClipAdditions, ClipFunction
from vwm.data.curation.transformers_folders import choose_frames, hash_model_folder, load_pretrained, move_inputs

EMBEDDED_FRAMES = 8
"""Frames of a clip that are embedded, evenly spaced."""


@dataclass(frozen=True)
class EmbeddingModel:
    """Adds ``embedding.npy``, float32 [d].

    Attributes:
        folder: that transformers saved.
        fingerprint: see ``hash_model_folder``.
    """

    folder: str
    fingerprint: str
    adds: str = "embedding"

    @classmethod
    def of_folder(cls, folder: Path) -> EmbeddingModel:
        """Make it; the model is loaded where it is used. Raises ValueError where the folder holds none."""
        return cls(str(folder.resolve()), hash_model_folder(folder))

    def load(self) -> ClipFunction:
        """Load the model, onto a GPU where there is one."""
        return ClipEmbedder(self.folder)


class ClipEmbedder:
    """Embeds clips: of the frames' vectors the mean, or the vector of a model that takes several frames.

    The vector of a model with a text tower (CLIP, SigLIP) is the one that it compares with texts; of another one its
    pooled output, or the mean of its last tokens where it has no trained pooling.

    Args:
        folder: that transformers saved.
    """

    def __init__(self, folder: str) -> None:
        self.model = load_pretrained(folder, "AutoModel").to(resolve_device("auto"))
        takes_videos = (Path(folder) / "video_preprocessor_config.json").is_file()
        self.processor = load_pretrained(folder, "AutoVideoProcessor" if takes_videos else "AutoImageProcessor")

    @torch.inference_mode()
    def __call__(self, frames: NDArray[np.uint8]) -> ClipAdditions:
        inputs = self.processor(choose_frames(frames, EMBEDDED_FRAMES), return_tensors="pt")
        vectors = self._vectors(move_inputs(inputs, self.model))
        return ClipAdditions({"embedding.npy": vectors.flatten(0, -2).mean(0).float().cpu().numpy()})

    def _vectors(self, inputs: dict[str, Any]) -> Tensor:
        """Return vectors [frames, d], or [1, d] of a video."""
        features = getattr(self.model, "get_image_features", self.model)(**inputs)
        if isinstance(features, Tensor):
            return features
        pooled = features.get("pooler_output")
        if pooled is not None and self.model.has_pooler:
            return pooled
        return features["last_hidden_state"].mean(dim=1)
