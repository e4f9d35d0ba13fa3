"""Large files of the hub, downloaded into its cache: a download that breaks off continues where it ended.

The cache is that of huggingface_hub: ``blobs/SHA256`` in the folder of a repository. Its own download starts anew in
each process, and keeps nothing of a file that did not arrive as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vwm.hub.hub_errors import HubError, hub_endpoint, hub_errors
from vwm.hub.hub_name import HubName
from vwm.hub.listed_files import ListedFile, has_listed_hash

PART_SUFFIX = ".part"
CHUNK_BYTES = 2**20
"""What a broken connection or a killed process loses at most."""


def repository_cache(name: HubName) -> Path:
    """Return the folder of a repository in the cache of huggingface_hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{name.repository.replace('/', '--')}"


def download_large_file(name: HubName, commit: str, path: str, listed: ListedFile) -> None:
    """Bring a large file into the cache, unless it is there; what an earlier call downloaded of it is kept and used.

    Args:
        name: of the repository.
        commit: of the listing.
        path: of the file, in the repository.
        listed: its size and SHA-256.

    Raises:
        HubError: the hub does not give the file, or its content is not the listed one.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    assert listed.sha256 is not None
    blob = repository_cache(name) / "blobs" / listed.sha256
    if blob.exists():
        return
    lock = Path(constants.HF_HUB_CACHE).expanduser() / ".locks" / repository_cache(name).name / f"{listed.sha256}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # the same as that of huggingface_hub
        if not blob.exists():
            part = blob.with_name(blob.name + PART_SUFFIX)
            _continue_download(name, commit, path, listed, part)
            if not has_listed_hash(part, listed):
                part.unlink()
                raise HubError(wrong_hash(name, path))
            part.replace(blob)


def wrong_hash(name: HubName, path: str) -> str:
    """Return the message about a file whose content is not the listed one."""
    return (
        f"{path} of {name.repository} at {hub_endpoint()} does not have the hash that the hub lists for it: it was "
        f"damaged or changed on its way, and was thrown away; try again, and tell the owner if it stays so"
    )


def _continue_download(name: HubName, commit: str, path: str, listed: ListedFile, part: Path) -> None:
    """Download what is missing of a file."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if part.exists() and part.stat().st_size > listed.size:
        part.unlink()
    url = hf_hub_url(name.repository, path, revision=commit, endpoint=hub_endpoint())
    with part.open("ab") as file, hub_errors(name), _small_chunks():
        try:
            http_get(
                url,
                file,
                resume_size=file.seek(0, os.SEEK_END),
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                expected_size=listed.size,
                displayed_filename=path,
            )
        except OSError as error:
            if "Consistency check failed" not in str(error):
                raise
            file.flush()
            if part.stat().st_size >= listed.size:
                part.unlink()  # longer than listed
            raise HubError(f"{path} of {name.repository} at {hub_endpoint()} did not arrive with the listed size of "
                           f"{listed.size} bytes; try again") from error  # fmt: skip


@contextmanager
def _small_chunks() -> Iterator[None]:
    """Let huggingface_hub write what it downloads at once, and not every 10 MB only."""
    from huggingface_hub import constants

    before = constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = min(before, CHUNK_BYTES)
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = before
