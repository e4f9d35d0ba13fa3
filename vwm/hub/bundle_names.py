"""Find a bundle by its path, by the name of a shipped world, or by its name on the hub, in this order."""

from __future__ import annotations

import os
from pathlib import Path

from vwm.core.bundle_folder import BUNDLE_INDEX_FILE, BundleError, find_local_bundle, find_local_folder
from vwm.hub.hub_errors import HubError
from vwm.hub.hub_name import HubName, parse_hub_name


def find_bundle(path: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return the folder of a bundle: the given one, else the shipped one of that name, else a download from the hub.

    A folder of that name wins over the hub.

    Args:
        path: a folder, the name of a shipped world, or ``org/name`` or ``org/name@revision`` on the hub.
        revision: a branch, a tag or a commit of the repository.

    Raises:
        BundleError: there is none; the message says where it was looked for.
    """
    name = _hub_name(path, revision)
    try:
        return find_local_bundle(path)
    except BundleError:
        if name is None:
            raise
        folder = _download(name)
    if not (folder / BUNDLE_INDEX_FILE).is_file():
        raise HubError(f"{name} on the hub is no world: it has no {BUNDLE_INDEX_FILE}")
    return folder


def find_folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder that holds trained parts: as ``find_bundle``, and the given one where there is none.

    On the hub these may also be networks without a simulator, and the autoencoder of a pipeline of diffusers.

    Raises:
        HubError: the text is no folder, but could be a name on the hub, which does not give it.
    """
    folder, name = find_local_folder(path), _hub_name(path)
    if folder.is_dir() or name is None:
        return folder
    return _download(name, pipelines=True)


def _hub_name(path: str | os.PathLike[str], revision: str | None = None) -> HubName | None:
    """Return the name on the hub; None where the path exists here or cannot be a name."""
    exists = Path(path).exists()
    if exists and revision is not None:
        raise BundleError(f"{path} is a folder of this machine, which has no revisions: leave out revision={revision}")
    name = None if exists else parse_hub_name(path, revision)
    if name is None and revision is not None:
        raise BundleError(f"revision={revision} requires a name on the hub, such as org/name, not {path}")
    return name


def _download(name: HubName, pipelines: bool = False) -> Path:
    from vwm.hub.download import download_bundle

    try:
        return download_bundle(name, pipelines=pipelines)
    except HubError as error:
        raise type(error)(f"{_describe_absence(name.repository)}. On the hub: {error}") from error


def _describe_absence(path: str) -> str:
    """Return where a bundle was looked for on this machine."""
    try:
        return f"{find_local_bundle(path)} is a bundle"
    except BundleError as error:
        return str(error)
