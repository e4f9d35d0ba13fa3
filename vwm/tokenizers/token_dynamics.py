"""Which settings of a dynamics over tokens must equal those of the tokenizer that makes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from vwm.core.tokenizer import VideoTokenizer

SettingPair = tuple[str, object, str, object]
"""The name and value of a setting, and of the one that it must equal."""


class TokenDynamics(Protocol):
    """What a dynamics over tokens says about them."""

    codebook_size: int
    tokens_per_frame: int
    frames_per_latent: int
    config: Any


def token_setting_pairs(tokenizer: VideoTokenizer, dynamics: TokenDynamics) -> list[SettingPair]:
    """Return the settings of the dynamics that must equal the tokenizer's."""
    pairs: list[SettingPair] = [
        ("dynamics.codebook_size", dynamics.codebook_size, "the tokenizer's codes", tokenizer.codebook_size),
        ("dynamics.tokens_per_frame", dynamics.tokens_per_frame, "the tokenizer's", tokenizer.tokens_per_frame),
        ("dynamics.frames_per_latent", dynamics.frames_per_latent, "the tokenizer's", tokenizer.time_compression),
    ]
    if levels := dynamics.config.codebook_levels:
        codebook = tokenizer.config.codebook
        known_levels = codebook if isinstance(codebook, list) else None
        pairs.append(("dynamics.codebook_levels", levels, "the tokenizer's FSQ levels", known_levels))
    return pairs


def check_equal_settings(pairs: Iterable[SettingPair]) -> None:
    """Raise ValueError for the first pair of different values, naming both."""
    for name, value, of, other in pairs:
        if value != other:
            raise ValueError(f"{name}={value} but {of}: {other}. Set {name}={other}.")
