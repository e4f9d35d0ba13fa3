"""Names of repositories on the hub: ``org/name``, or ``org/name@revision``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from vwm.core.bundle_folder import BundleError

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?P<repository>{_WORD}/{_WORD})(?:@(?P<revision>.+))?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_MAX_LENGTH = 96
"""Of a repository's name, on the hub."""


class HubName(NamedTuple):
    """A repository on the hub, at a revision."""

    repository: str
    """``org/name``."""
    revision: str = "main"
    """A branch, a tag or a commit."""

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"


def parse_hub_name(path: str | os.PathLike[str], revision: str | None = None) -> HubName | None:
    """Read the name of a repository; None where a text cannot be one, such as a path of three folders.

    Args:
        path: ``org/name`` or ``org/name@revision``.
        revision: a branch, a tag or a commit, where ``path`` names none; None is ``main``.

    Raises:
        BundleError: two different revisions, or one that git does not allow.
    """
    text = path.as_posix() if isinstance(path, Path) else os.fspath(path)
    matched = _NAME.fullmatch(text)
    if matched is None or len(matched["repository"]) > _MAX_LENGTH or "--" in text or ".." in matched["repository"]:
        return None
    named = matched["revision"]
    if named is not None and revision is not None and named != revision:
        raise BundleError(f"{text} names the revision {named}, and revision={revision}: give one of them")
    chosen = named or revision or "main"
    if not _REVISION.fullmatch(chosen) or ".." in chosen or chosen.endswith(".lock"):
        raise BundleError(f"revision {chosen!r} of {matched['repository']} is no branch, tag or commit")
    return HubName(matched["repository"], chosen)
