"""Load trained tokenizers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vwm.core.bundle_folder import shipped_bundles
from vwm.core.components import COMPONENT_CONFIG_FILE, ComponentError, load_component, read_component_config
from vwm.core.network_base import find_diffusers_class
from vwm.core.suggestions import suggest_sibling
from vwm.core.tokenizer import VideoTokenizer
from vwm.hub.bundle_names import find_folder
from vwm.tokenizers.diffusers_vae import SUPPORTED_DIFFUSERS_VAES, DiffusersTokenizer
from vwm.tokenizers.rae_tokenizer import RAE_CLASS, RAETokenizer, find_rae_class
from vwm.tokenizers.video_vae.adapter import VIDEO_VAES
from vwm.tokenizers.video_vae.tokenizer import VideoVAETokenizer

_given: VideoTokenizer | None = None


@contextmanager
def given_tokenizer(tokenizer: VideoTokenizer | None) -> Iterator[None]:
    """Let ``load_tokenizer`` return this tokenizer, whatever folder it is to load; with None it loads."""
    global _given
    before, _given = _given, tokenizer
    try:
        yield
    finally:
        _given = before


def load_tokenizer(
    path: str | os.PathLike[str], image_size: tuple[int, int] | None = None, grid: tuple[int, int] | None = None
) -> VideoTokenizer:
    """Load a frozen tokenizer from its folder, or from a bundle or a diffusers pipeline that contains one.

    Video autoencoders of diffusers compress time; ``DiffusersTokenizer.from_vae`` encodes frame by frame with them.

    Args:
        path: the folder, or the name of a world that comes with vwm.
        image_size: (height, width) of the frames, for a diffusers autoencoder; other tokenizers have a fixed size.
        grid: (h, w) of the latents, for a diffusers autoencoder if ``image_size`` is None.

    Raises:
        FileNotFoundError: there is no tokenizer.
        ComponentError: the tokenizer cannot be loaded, or the folder contains something else.
        ValueError: a diffusers autoencoder without ``image_size`` and ``grid``.
    """
    if _given is not None:
        return _given
    folder = find_folder(path)
    for candidate in (folder / "tokenizer", folder / "vae", folder):
        if not (candidate / COMPONENT_CONFIG_FILE).is_file():
            continue
        diffusers_class = _diffusers_class(candidate / COMPONENT_CONFIG_FILE)
        if diffusers_class is not None:
            return _wrap(candidate, diffusers_class, image_size, grid)
        tokenizer = load_component(candidate)
        if not isinstance(tokenizer, VideoTokenizer):
            raise ComponentError(f"{candidate} holds a {type(tokenizer).__name__}, which is no tokenizer")
        return tokenizer
    raise FileNotFoundError(
        f"no tokenizer at {folder}: it has no {COMPONENT_CONFIG_FILE}{suggest_sibling(folder, shipped_bundles())}. "
        f"Train one (vwm fit -c tokenizer/coinrun_small) and export it (vwm export RUN -o {folder})"
    )


def _wrap(folder: Path, name: str, image_size: tuple[int, int] | None, grid: tuple[int, int] | None) -> VideoTokenizer:
    """Load an autoencoder of diffusers as a tokenizer."""
    kind: type[DiffusersTokenizer | RAETokenizer | VideoVAETokenizer] = DiffusersTokenizer
    if name in VIDEO_VAES:
        kind = VideoVAETokenizer
    elif name == RAE_CLASS:
        kind = RAETokenizer
    vae = load_component(folder, find_rae_class() if name == RAE_CLASS else find_diffusers_class(name))
    wrapped: VideoTokenizer = kind.from_vae(vae, image_size, grid).eval().requires_grad_(False)
    return wrapped


def _diffusers_class(config: Path) -> str | None:
    """Name of the diffusers class in a config file; None if it is not a supported diffusers autoencoder."""
    settings = read_component_config(config)
    if "_module" in settings or settings.get("_class_name") not in (*SUPPORTED_DIFFUSERS_VAES, *VIDEO_VAES, RAE_CLASS):
        return None
    return str(settings["_class_name"])
