"""``vwm pull``: bring a bundle from the hub to this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from vwm.core.atomic_files import atomic_folder
from vwm.core.bundle_folder import BUNDLE_INDEX_FILE
from vwm.core.command_output import format_command, print_output
from vwm.core.components import COMPONENT_CONFIG_FILE
from vwm.hub.download import download_bundle
from vwm.hub.hub_errors import HubError
from vwm.hub.hub_name import parse_hub_name
from vwm.hub.listed_files import bundle_files_in
from vwm.worlds.bundle_check import check_bundle


def pull_bundle(repository: str, revision: str | None = None, out: Path | None = None) -> Path:
    """Download a bundle from the hub, check its hashes, and load it once to see that it is whole.

    Downloads that break off continue where they ended when the command is repeated. Only data and text are downloaded:
    safetensors, JSON, PNG, the model card and the license. Private repositories require a login (hf auth login) or
    HF_TOKEN; HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are those of huggingface_hub.

    Args:
        repository: name on the hub, org/name or org/name@revision.
        revision: a branch, a tag or a commit; by default main.
        out: folder to write; by default the bundle stays in the hub's cache, from which every command opens it by its
            name.

    Returns:
        The folder: ``out``, or the one in the cache.

    Raises:
        HubError: the hub does not give it, or a hash differs; nothing is written to ``out``.
        BundleError: what was downloaded is no valid bundle; nothing is written to ``out``.
        ValueError: ``out`` is a folder with other content.
    """
    name = parse_hub_name(repository, revision)
    if name is None:
        raise HubError(f"{repository!r} is no name on the hub: give org/name, or org/name@revision")
    if out is not None and out.exists() and not _is_replaceable(out):
        raise ValueError(f"{out} exists and is no bundle: choose another folder (--out)")
    cached = download_bundle(name, check_cached=True)
    world = check_bundle(cached)
    if out is None:
        opened: object = name
    else:
        with atomic_folder(out) as temporary:
            for file in bundle_files_in(cached):
                (temporary / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(cached / file, temporary / file)
        opened = out
    title = "networks without a simulator" if world is None else world.spec.title
    plays = world is not None and world.spec.observation.is_image
    following = format_command("play", opened) if plays else format_command("probe", opened, "DATA")
    print_output(out or cached, f"{title}, commit {cached.name[:12]} of {name}", following)
    return out or cached


def _is_replaceable(folder: Path) -> bool:
    """Whether a folder is empty or holds an earlier bundle."""
    marks = (BUNDLE_INDEX_FILE, COMPONENT_CONFIG_FILE, f"*/{COMPONENT_CONFIG_FILE}")
    return folder.is_dir() and (not any(folder.iterdir()) or any(any(folder.glob(mark)) for mark in marks))
