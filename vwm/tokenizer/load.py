"""Trained tokenizers from disk."""

from __future__ import annotations

import os

from vwm.tokenizer.space_time import SpaceTimeTokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> SpaceTimeTokenizer:
    """A frozen tokenizer from its folder, or from a bundle that has one. Raises FileNotFoundError with the way out."""
    folder = os.fspath(path)
    for place in (os.path.join(folder, "tokenizer"), folder):
        if os.path.isfile(os.path.join(place, "config.json")):
            tokenizer = SpaceTimeTokenizer.from_pretrained(
                place, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
            return tokenizer.eval().requires_grad_(False)
    raise FileNotFoundError(
        f"no tokenizer at {folder}: there is no config.json in it. Train one (vwm fit -c configs/tokenizer/...) and "
        f"export it (vwm export RUN -o {folder})"
    )
