"""Trained tokenizers from disk."""

from __future__ import annotations

import os

from vwm.nn.parts import CONFIG, PartError, load_part
from vwm.tokenizer.interface import VideoTokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> VideoTokenizer:
    """A frozen tokenizer from its folder, or from a bundle that has one.

    Raises:
        FileNotFoundError: there is none; the message says how to make one.
        PartError: it is broken, or something else.
    """
    folder = os.fspath(path)
    for place in (os.path.join(folder, "tokenizer"), folder):
        if os.path.isfile(os.path.join(place, CONFIG)):
            tokenizer = load_part(place)
            if not isinstance(tokenizer, VideoTokenizer):
                raise PartError(f"{place} holds a {type(tokenizer).__name__}, which is no tokenizer")
            return tokenizer
    raise FileNotFoundError(
        f"no tokenizer at {folder}: there is no {CONFIG} in it. Train one (vwm fit -c configs/tokenizer/...) and "
        f"export it (vwm export RUN -o {folder})"
    )
