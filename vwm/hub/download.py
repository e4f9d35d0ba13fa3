"""A bundle of the hub as a folder: downloaded into the cache of huggingface_hub, with every hash checked."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vwm.core.atomic_files import atomic_write_text
from vwm.core.bundle_folder import BUNDLE_INDEX_FILE
from vwm.core.command_output import format_count, format_size
from vwm.core.json_files import read_json_object
from vwm.hub.hub_errors import HubError, HubUnreachableError, hub_endpoint, hub_errors
from vwm.hub.hub_name import HubName
from vwm.hub.large_files import download_large_file, repository_cache, wrong_hash
from vwm.hub.listed_files import (
    BUNDLE_FILE_PATTERNS,
    HubListing,
    bundle_files,
    has_index,
    has_listed_hash,
    list_hub_files,
)

COMPONENT_FILE = "config.json"
MAX_INDEX_BYTES = 2**20
PIPELINE_PART = "vae"
"""The only part of diffusers' pipelines that vwm loads."""


def download_bundle(name: HubName, check_cached: bool = False, pipelines: bool = False) -> Path:
    """Return the folder of a bundle in the cache, after downloading what is missing of it.

    Nothing is downloaded before the listing of the repository shows a bundle, and of a repository with an index only
    the networks that it names. Where the hub does not answer, a bundle that is in the cache as a whole is returned.

    Args:
        name: of the repository.
        check_cached: compare also the hashes of files that earlier calls downloaded.
        pipelines: of a pipeline of diffusers, download its autoencoder (``vae``) instead of refusing it.

    Raises:
        HubUnreachableError: the hub does not answer, and the cache does not hold the bundle.
        HubError: there is no such repository or revision, it holds no bundle, a hash differs, or access is denied.
    """
    try:
        listing = list_hub_files(name)
    except HubUnreachableError as error:
        return _find_cached(name, error)
    networks = None
    if has_index(listing):
        index = _download(name, listing, [BUNDLE_INDEX_FILE], check_cached) / BUNDLE_INDEX_FILE
        networks = _read_networks(name, index, listing, pipelines)
    elif not any(path.rpartition("/")[2] == COMPONENT_FILE for path in listing.files):
        raise HubError(
            f"{name} at {hub_endpoint()} is no bundle: it has neither {BUNDLE_INDEX_FILE} nor {COMPONENT_FILE}; it "
            f"holds {', '.join(sorted(listing.files)[:5]) or 'no files'}"
        )
    folder = _download(name, listing, bundle_files(listing, networks), check_cached)
    if name.revision != listing.commit:
        atomic_write_text(repository_cache(name) / "refs" / name.revision, listing.commit)
    return folder


def _find_cached(name: HubName, error: HubUnreachableError) -> Path:
    """Return the folder of a bundle that is in the cache as a whole."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name.repository,
            revision=name.revision,
            cache_dir=constants.HF_HUB_CACHE,
            allow_patterns=list(BUNDLE_FILE_PATTERNS),
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, OSError) as missing:
        raise HubUnreachableError(
            f"{error}; the cache ({constants.HF_HUB_CACHE}) holds no whole copy of {name}: run "
            f"vwm pull {name} while the hub can be reached"
        ) from missing
    folder = Path(found)
    print(f"{error}: using the copy of {name} in the cache, commit {folder.name[:12]}", file=sys.stderr)
    return folder


def _read_networks(name: HubName, index: Path, listing: HubListing, pipelines: bool) -> list[str]:
    """Return the networks that an index names, and check that the listing has them before they are downloaded."""
    content: dict[str, Any] = read_json_object(index, MAX_INDEX_BYTES, HubError)
    is_world = isinstance(content.get("settings"), dict)
    if not is_world and pipelines and f"{PIPELINE_PART}/{COMPONENT_FILE}" in listing.files:
        return [PIPELINE_PART]
    if not is_world:
        raise HubError(
            f"{name} at {hub_endpoint()} is no world of vwm: its {BUNDLE_INDEX_FILE} describes a "
            f"{str(content.get('_class_name'))[:100]}"
        )
    networks = [key for key, value in content.items() if isinstance(value, list) and any(value)]
    for network in networks:
        files = {path for path in listing.files if path.startswith(f"{network}/")}
        if f"{network}/{COMPONENT_FILE}" not in files or not any(path.endswith(".safetensors") for path in files):
            raise HubError(
                f"{name} at {hub_endpoint()} is incomplete: {BUNDLE_INDEX_FILE} names {network}, and there is no "
                f"{network}/{COMPONENT_FILE} with weights (*.safetensors) next to it"
            )
    return networks


def _download(name: HubName, listing: HubListing, paths: Sequence[str], check_cached: bool) -> Path:
    """Bring files into the cache and return their folder."""
    from huggingface_hub import constants, snapshot_download

    folder = repository_cache(name) / "snapshots" / listing.commit
    missing = [path for path in paths if not (folder / path).exists()]
    checked = paths if check_cached else missing
    for path in [path for path in paths if check_cached and path not in missing]:
        if not has_listed_hash(folder / path, listing.files[path]):
            _forget(folder / path)  # damaged in the cache: it is downloaded again
            missing.append(path)
    if not missing:
        return folder
    if len(paths) > 1:
        size = format_size(sum(listing.files[path].size for path in missing))
        print(f"downloading {format_count(len(missing), 'file')} ({size}) of {name}, commit {listing.commit[:12]}",
              file=sys.stderr)  # fmt: skip
    for path in missing:
        if listing.files[path].sha256 is not None:
            download_large_file(name, listing.commit, path, listing.files[path])
    with hub_errors(name):
        found = snapshot_download(
            name.repository,
            revision=listing.commit,
            endpoint=hub_endpoint(),
            cache_dir=constants.HF_HUB_CACHE,
            allow_patterns=[glob.escape(path) for path in missing],
        )
    for path in checked:
        if not has_listed_hash(Path(found) / path, listing.files[path]):
            _forget(Path(found) / path)
            raise HubError(wrong_hash(name, path))
    return Path(found)


def _forget(file: Path) -> None:
    """Remove a file from the cache: the link and the content."""
    content = file.resolve()
    file.unlink()
    content.unlink(missing_ok=True)
