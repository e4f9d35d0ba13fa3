"""Trained tokenizers from disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import diffusers

from vwm.core.components import COMPONENT_CONFIG_FILE, ComponentError, load_component
from vwm.core.tokenizer import VideoTokenizer
from vwm.tokenizers.diffusers_vae import SUPPORTED_DIFFUSERS_VAES, DiffusersTokenizer


def load_tokenizer(
    path: str | os.PathLike[str], image_size: tuple[int, int] | None = None, grid: tuple[int, int] | None = None
) -> VideoTokenizer:
    """A frozen tokenizer from its folder, or from a bundle or a diffusers pipeline that has one.

    Args:
        path: the folder.
        image_size, grid: of the frames or of the latents that it is wanted for. A diffusers autoencoder suits any and
            takes one of the two; our own tokenizers have a size, and look at neither.

    Raises:
        FileNotFoundError: there is none; the message says how to make one.
        PartError: it is broken, or something else.
        ValueError: a diffusers autoencoder, and no size for it.
    """
    folder = Path(path)
    for place in (folder / "tokenizer", folder / "vae", folder):
        if not (place / COMPONENT_CONFIG_FILE).is_file():
            continue
        foreign = _diffusers_class(place / COMPONENT_CONFIG_FILE)
        if foreign is not None:
            vae = load_component(place, getattr(diffusers, foreign))
            wrapped: VideoTokenizer = DiffusersTokenizer.of(vae, image_size, grid).eval().requires_grad_(False)
            return wrapped
        tokenizer = load_component(place)
        if not isinstance(tokenizer, VideoTokenizer):
            raise ComponentError(f"{place} holds a {type(tokenizer).__name__}, which is no tokenizer")
        return tokenizer
    raise FileNotFoundError(
        f"no tokenizer at {folder}: there is no {COMPONENT_CONFIG_FILE} in it. Train one (vwm fit -c "
        f"configs/tokenizer/...) and "
        f"export it (vwm export RUN -o {folder})"
    )


def _diffusers_class(config: Path) -> str | None:
    """The diffusers class that a folder of a diffusers autoencoder names; None where it is no such folder."""
    try:
        settings = json.loads(config.read_text())
    except json.JSONDecodeError:
        return None  # load_part says so
    if "_module" in settings or settings.get("_class_name") not in SUPPORTED_DIFFUSERS_VAES:
        return None
    return str(settings["_class_name"])
