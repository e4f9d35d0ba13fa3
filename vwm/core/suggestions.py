"""Suggestions for mistyped words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean WORD?)``, or an empty text where no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def suggest_sibling(path: Path, known: Iterable[str] = ()) -> str:
    """Do the same for a path that is missing or of another kind: suggest one of ``known`` or of its folder."""
    others = path.parent.iterdir() if path.parent.is_dir() else ()
    siblings = [str(other) for other in others if other.name != path.name]
    return suggest(str(path), [*known, *siblings])
