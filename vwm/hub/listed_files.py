"""What a repository on the hub holds at a commit, and which of its files belong to a bundle."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vwm.core.bundle_folder import BUNDLE_INDEX_FILE
from vwm.hub.hub_errors import HubError, hub_endpoint, hub_errors
from vwm.hub.hub_name import HubName

BUNDLE_FILE_PATTERNS = ("*.safetensors", "*.json", "*.png", "README.md", "LICENSE", "LICENSE.*", "NOTICE")
"""The only files that are read from the hub or written to it: data and text, never code or pickles."""
_BLOCK = 2**20


class ListedFile(NamedTuple):
    """A file as the hub lists it."""

    size: int
    """In bytes."""
    sha256: str | None
    """Of a large file; small ones have the hash that git gives them."""
    git_hash: str


class HubListing(NamedTuple):
    """The files of a repository at a commit."""

    commit: str
    files: dict[str, ListedFile]
    """By path, with slashes."""


def list_hub_files(name: HubName) -> HubListing:
    """Ask the hub for the commit of a revision, and for all files at that commit.

    Raises:
        HubUnreachableError: the hub cannot be asked.
        HubError: there is no such repository or revision, or a file name leads out of the repository's folder.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=hub_endpoint())
    with hub_errors(name):
        commit = api.model_info(name.repository, revision=name.revision).sha
        if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise HubError(f"{name.repository} at {hub_endpoint()}: the hub names no commit of {name.revision!r}")
        listed = [
            entry
            for entry in api.list_repo_tree(name.repository, recursive=True, revision=commit)
            if isinstance(entry, RepoFile)
        ]
    check_file_names(name, (entry.path for entry in listed))
    return HubListing(
        commit,
        {
            entry.path: ListedFile(
                entry.size if entry.lfs is None else entry.lfs.size,
                None if entry.lfs is None else entry.lfs.sha256,
                entry.blob_id,
            )
            for entry in listed
        },
    )


def check_file_names(name: HubName, paths: Iterable[str]) -> None:
    """Raise HubError where a path of a listing is absolute, leads upwards, or is a path on another system only."""
    for path in paths:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:\x00-\x1f]", path):
            raise HubError(
                f"{name.repository} at {hub_endpoint()} lists a file called {path!r:.200}, which could lead out of its "
                f"folder; nothing was downloaded"
            )


def is_bundle_file(path: str) -> bool:
    """Whether a path in a repository may belong to a bundle: by its ending, at most one folder deep, and not hidden."""
    parts = PurePosixPath(path).parts
    hidden = any(part.startswith(".") for part in parts)
    return len(parts) <= 2 and not hidden and any(fnmatch.fnmatchcase(parts[-1], p) for p in BUNDLE_FILE_PATTERNS)


def bundle_files(listing: HubListing, networks: Iterable[str] | None) -> list[str]:
    """Return the paths of a listing that belong to a bundle.

    Args:
        listing: of the repository.
        networks: the folders that the bundle's index names; None takes every folder, where there is no index.
    """
    folders = None if networks is None else {*networks, "starts"}
    found = [path for path in sorted(listing.files) if is_bundle_file(path)]
    return [path for path in found if "/" not in path or folders is None or path.partition("/")[0] in folders]


def bundle_files_in(folder: Path) -> list[str]:
    """Return the paths of the files in a folder that may belong to a bundle, with slashes."""
    files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if is_bundle_file(path)]


def has_index(listing: HubListing) -> bool:
    """Whether a repository has the index of a bundle, or of a pipeline of diffusers."""
    return BUNDLE_INDEX_FILE in listing.files


def has_listed_hash(file: Path, listed: ListedFile) -> bool:
    """Whether the content of a file is the one that the hub lists: by SHA-256, or by git's hash of small files."""
    if file.stat().st_size != listed.size:
        return False
    digest = hashlib.sha256() if listed.sha256 is not None else hashlib.sha1(f"blob {listed.size}\0".encode())
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == (listed.sha256 or listed.git_hash)
