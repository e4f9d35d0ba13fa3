"""Find the folder of a bundle by its path or by the name of a shipped world, without importing torch."""

from __future__ import annotations

import os
from pathlib import Path

from vwm.core.suggestions import suggest_sibling

BUNDLE_INDEX_FILE = "model_index.json"
_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED_BUNDLE_FOLDERS = (_PACKAGE / "bundles", _PACKAGE.parent / "bundles")
"""In an installed package, and in a checkout."""


class BundleError(ValueError):
    """A bundle that cannot be loaded; the message names the file and what is wrong with it."""


def find_local_bundle(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle: the given one, or else the shipped one of that name.

    Raises:
        BundleError: neither is a bundle; the message suggests a name that is close.
    """
    folder = Path(path)
    for candidate in (folder, *(shipped / folder for shipped in SHIPPED_BUNDLE_FOLDERS)):
        if (candidate / BUNDLE_INDEX_FILE).is_file():
            return candidate
    shipped = shipped_bundles()
    if folder.exists():
        reason = f"it has no {BUNDLE_INDEX_FILE}"
    else:
        reason = f"there is no such folder{suggest_sibling(folder, shipped)}"
    raise BundleError(
        f"{folder} is no bundle: {reason}. vwm comes with "
        f"{', '.join(shipped) or 'none'}. Make one from a training run: vwm export RUN -o {folder}"
    )


def check_no_outside_link(path: Path, folder: Path, error: type[ValueError] = BundleError) -> None:
    """Raise an error where ``path``, which lies in a folder from somebody else, leads out of that folder.

    In the cache of huggingface_hub, the files of a repository are links to ``blobs`` in the repository's own folder.
    """
    real, inside = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if not (real.is_relative_to(inside) or any(real.is_relative_to(blobs) for blobs in _cached_blobs(inside))):
        raise error(f"{path}: is a link to another folder; put the file itself there")


def _cached_blobs(folder: Path) -> list[Path]:
    """Return ``models--ORG--NAME/blobs`` for a folder in ``models--ORG--NAME/snapshots/COMMIT``."""
    parents = [folder, *folder.parents]
    return [
        repository / "blobs"
        for _, snapshots, repository in zip(parents, parents[1:], parents[2:], strict=False)
        if snapshots.name == "snapshots" and repository.name.startswith("models--")
    ]


def find_local_folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder that holds trained parts: the given one where it exists, else the shipped bundle of that name."""
    folder = Path(path)
    candidates = (folder, *(shipped / folder for shipped in SHIPPED_BUNDLE_FOLDERS))
    return next((candidate for candidate in candidates if candidate.is_dir()), folder)


def shipped_bundles() -> list[str]:
    """Return the names of the worlds that come with vwm."""
    found = {file.parent.name for folder in SHIPPED_BUNDLE_FOLDERS for file in folder.glob(f"*/{BUNDLE_INDEX_FILE}")}
    return sorted(found)
