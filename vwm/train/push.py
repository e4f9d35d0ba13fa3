"""``vwm push``: publish a bundle on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vwm.core.bundle_folder import check_no_outside_link, find_local_bundle, find_local_folder
from vwm.core.command_output import format_command, format_count, format_size, print_next_command
from vwm.core.json_files import read_json_object
from vwm.eval.model_card import card_metadata, publish_card
from vwm.eval.report_figures import REPORT_FILE
from vwm.hub.front_matter import read_front_matter
from vwm.hub.hub_errors import HubError
from vwm.hub.hub_name import parse_hub_name
from vwm.hub.listed_files import bundle_files_in
from vwm.hub.upload import upload_bundle
from vwm.hub.weight_hash import hash_weights
from vwm.worlds.bundle_check import check_bundle

CARD_FILE = "README.md"
MAX_REPORT_BYTES = 2**24


def push_bundle(
    bundle: Path,
    repository: str,
    private: bool = False,
    revision: str | None = None,
    report: Path | None = None,
    license: str | None = None,
    message: str | None = None,
) -> str:
    """Publish a bundle on the hub, in one commit with its model card.

    The bundle is loaded first, and a broken one is not published. The repository is made where it is missing. Only
    data and text are published: safetensors, JSON, PNG, the model card and the license. It requires a login
    (hf auth login) or HF_TOKEN, with the right to write.

    Args:
        bundle: folder of the bundle, as ``vwm export`` writes it, or the name of one that comes with vwm.
        repository: name on the hub, org/name.
        private: make the repository private; a public one is then refused.
        revision: the branch to write, made where it is missing; by default main.
        report: folder of a report of ``vwm eval`` of this bundle, or its report.json: the figures of the model card;
            by default the one in the bundle, if it has one.
        license: of the weights, as the hub calls it, such as mit or cc-by-4.0; by default that of the model card.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        BundleError: the bundle is missing or damaged; nothing is written to the hub.
        ValueError: the report is of other weights.
        HubError: the hub refuses.
    """
    name = parse_hub_name(repository, revision)
    if name is None:
        raise HubError(f"{repository!r} is no name on the hub: give org/name")
    folder = find_local_folder(bundle)
    if not folder.is_dir():
        folder = find_local_bundle(bundle)  # raises the error about a missing one
    world = check_bundle(folder)
    files: dict[str, Path | bytes] = {path: folder / path for path in bundle_files_in(folder)}
    for path in files:
        check_no_outside_link(folder / path, folder)
    left = [path for path in _other_files(folder) if path not in files]
    figures = _read_report(report or folder, folder)
    if figures is not None:
        files[REPORT_FILE] = json.dumps(figures, indent=2, allow_nan=False).encode() + b"\n"
    card = folder / CARD_FILE
    text = publish_card(
        card.read_text(encoding="utf-8") if card.is_file() else f"# {name.repository.partition('/')[2]}\n",
        name.repository,
        card_metadata(world, license),
        figures,
    )
    files[CARD_FILE] = text.encode()
    if "license" not in read_front_matter(text)[0]:
        print("warning: the model card names no license, so that nobody may use the weights: give one with --license")
    if left:
        print(f"left out: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''} (no data of a bundle)")
    done = upload_bundle(name, files, message or f"vwm push of {folder.resolve().name}", private or None)
    size = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())
    what = f"{format_count(len(files), 'file')}, {format_size(size)}" if done.changed else "nothing had changed"
    print(f"output: {done.url} ({what}), commit {done.commit[:12]}")
    print_next_command(format_command("pull", name))
    return done.url


def _other_files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _read_report(path: Path, bundle: Path) -> dict[str, Any] | None:
    """Read a report of a bundle, without the paths of this machine; None where a folder has none.

    Raises:
        ValueError: there is no report at a path outside the bundle, or it is of other weights.
    """
    file = path / REPORT_FILE if path.is_dir() else path
    if not file.is_file():
        if path == bundle:
            return None
        raise ValueError(f"there is no report at {file}: make one with vwm eval {bundle} DATA -o FOLDER")
    report = read_json_object(file, MAX_REPORT_BYTES)
    source = report.get("provenance")
    if not isinstance(source, dict) or "bundle_hash" not in source:
        raise ValueError(f"{file} is no report of vwm eval: it does not say which weights it measured")
    if source["bundle_hash"] != hash_weights(bundle):
        raise ValueError(f"{file} is the report of other weights (of {source.get('bundle')}): measure these with "
                         f"vwm eval {bundle} DATA -o FOLDER")  # fmt: skip
    source["bundle"] = Path(str(source["bundle"])).name
    if "://" not in str(source["data"]):
        source["data"] = ", ".join(Path(part).name for part in str(source["data"]).split(","))
    return report
