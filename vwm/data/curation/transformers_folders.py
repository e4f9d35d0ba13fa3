"""Load models of the transformers library from local folders, without running code of theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.suggestions import suggest_sibling

HASHED = (".json", ".txt", ".model", ".jinja", ".safetensors", ".bin")
"""Endings of the files that a model's outputs depend on."""


def hash_model_folder(folder: Path, *more: str) -> str:
    """Return a hash of the files of a model, and of texts.

    Raises:
        ValueError: the folder holds no model that transformers saved.
    """
    if not (folder / "config.json").is_file():
        reason = "has no config.json" if folder.is_dir() else f"is no folder{suggest_sibling(folder)}"
        raise ValueError(
            f"{folder}: {reason}; give a folder that save_pretrained of transformers wrote, or a download of one"
        )
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.suffix in HASHED):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'blake2b').hexdigest()}".encode())
    for text in more:
        digest.update(f"\0{text}".encode())
    return digest.hexdigest()


def load_pretrained(folder: str, kind: str) -> Any:
    """Load a model or a processor by the class of transformers that chooses it (``"AutoModel"``), for inference.

    Raises:
        ImportError: transformers is not installed.
        ValueError: the folder holds none, or a part of its weights is missing.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"models of transformers need it ({error}): pip install 'vwm[transformers]'") from error
    is_model = kind.startswith("AutoModel")
    options = {"output_loading_info": True, "dtype": "auto"} if is_model else {}
    shows_progress = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        loaded = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: transformers' {kind} cannot load it ({str(error).strip():.300})") from error
    finally:
        if shows_progress:
            transformers.utils.logging.enable_progress_bar()
    if not is_model:
        return loaded
    model, info = loaded
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{folder}: its weights lack {', '.join(missing[:3])}, which would be random: choose a complete model, or "
            f"save it again as {type(model).__name__}"
        )
    model.has_pooler = not info["missing_keys"]
    return model.eval().requires_grad_(False)


def move_inputs(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Move the inputs of a model to its device, and floating-point ones to its precision."""

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(model.device, model.dtype if value.is_floating_point() else None)

    return {name: move(value) for name, value in inputs.items()}


def choose_frames(frames: NDArray[np.uint8], count: int) -> list[Any]:
    """Return frames of a clip, evenly spaced, as pictures."""
    from PIL import Image

    count = min(count, len(frames))
    return [Image.fromarray(frames[(2 * i + 1) * len(frames) // (2 * count)]) for i in range(count)]
