"""Write a bundle to the hub, in one commit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from vwm.hub.hub_errors import HubError, hub_endpoint, hub_errors
from vwm.hub.hub_name import HubName
from vwm.hub.listed_files import is_bundle_file

HUB_HOST = "huggingface.co"


class UploadedBundle(NamedTuple):
    """What a commit made of a repository."""

    url: str
    """The page of the repository."""
    commit: str
    changed: bool
    """False where the hub had all files already."""


def upload_bundle(
    name: HubName, files: Mapping[str, Path | bytes], message: str, private: bool | None = None
) -> UploadedBundle:
    """Write files to a repository, in one commit: its readers see the old bundle or the new one.

    The repository and the branch are made where they are missing. Files of an earlier bundle that the new one does not
    have are removed; files of other kinds are left alone.

    Args:
        name: the repository and the branch.
        files: path in the repository, and the file or its content.
        message: of the commit.
        private: make a new repository private. True also refuses to write to one that everybody can read.

    Raises:
        HubUnreachableError: the hub cannot be asked.
        HubError: it refuses, or the repository is public and ``private`` is True.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(endpoint=hub_endpoint())
    with hub_errors(name, writing=True), _transfer_that_the_hub_speaks():
        try:
            info = api.model_info(name.repository)
        except RepositoryNotFoundError:
            api.create_repo(name.repository, private=private)
            info = api.model_info(name.repository)
        if private and info.private is False:
            raise HubError(
                f"{name.repository} at {hub_endpoint()} can be read by everybody: make it private on its page first, "
                f"or push without --private"
            )
        if name.revision != "main":
            api.create_branch(name.repository, branch=name.revision, exist_ok=True)
        before = api.model_info(name.repository, revision=name.revision).sha
        there = api.list_repo_files(name.repository, revision=name.revision)
        gone = [path for path in there if is_bundle_file(path) and path not in files]
        done = api.create_commit(
            name.repository,
            operations=[
                *(CommitOperationAdd(path, content) for path, content in files.items()),
                *(CommitOperationDelete(path) for path in gone),
            ],
            commit_message=message,
            revision=name.revision,
            parent_commit=before,  # refused where somebody else wrote meanwhile
        )
    return UploadedBundle(f"{hub_endpoint()}/{name.repository}", done.oid, done.oid != before)


@contextmanager
def _transfer_that_the_hub_speaks() -> Iterator[None]:
    """Use the transfer of large files that the endpoint has: Xet at the hub itself, Git LFS at other servers.

    HF_HUB_DISABLE_XET disables Xet everywhere.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    host = urlsplit(hub_endpoint()).hostname or ""
    if host != HUB_HOST and not host.endswith(f".{HUB_HOST}") and "HF_HUB_DISABLE_XET" not in os.environ:
        constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
