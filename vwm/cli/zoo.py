"""``vwm zoo``: the worlds that are here, and what loads from elsewhere."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from vwm.cli.published_weights import PUBLISHED_WEIGHTS
from vwm.core.bundle_folder import BUNDLE_INDEX_FILE, find_local_bundle, shipped_bundles
from vwm.core.command_output import format_size, size_on_disk
from vwm.core.json_files import read_json_object
from vwm.eval.report_figures import REPORT_FILE, report_figures
from vwm.hub.front_matter import read_front_matter
from vwm.hub.weight_hash import hash_weights

MAX_HEADER_BYTES = 2**26


def list_zoo(json: bool = False) -> None:
    """List the worlds that come with vwm, those in the cache of the hub, and published weights that vwm loads.

    Sizes are read from the files, licenses from the model cards, and figures from the reports of vwm eval that lie in
    the bundles. Of published weights, sizes and licenses are those that their publishers state.

    Args:
        json: print one JSON object.
    """
    found = {
        "shipped": [describe_bundle(name, find_local_bundle(name)) for name in shipped_bundles()],
        "cached": [describe_bundle(name, folder) for name, folder in cached_bundles()],
        "published": [weights._asdict() for weights in PUBLISHED_WEIGHTS],
    }
    print(_to_json(found) if json else "\n".join(_format_zoo(found)))


def describe_bundle(name: str, folder: Path) -> dict[str, Any]:
    """Return what a bundle says about itself, without loading it: title, class, size, parameters, license, figures."""
    index = read_json_object(folder / BUNDLE_INDEX_FILE)
    card = folder / "README.md"
    license_name = read_front_matter(card.read_text(encoding="utf-8"))[0].get("license") if card.is_file() else None
    figures, note = _read_figures(folder)
    return {
        "name": name,
        "title": index["settings"]["title"],
        "class": index["_class_name"],
        "fps": index["settings"]["fps"],
        "bytes": size_on_disk(folder),
        "parameters": sum(_count_parameters(file) for file in sorted(folder.glob("*/*.safetensors"))),
        "license": license_name,
        "figures": figures,
        "figures_note": note,
    }


def cached_bundles() -> Iterator[tuple[str, Path]]:
    """Yield name and folder of the worlds in the cache of huggingface_hub, by branch or tag."""
    from huggingface_hub import constants

    for reference in sorted(Path(constants.HF_HUB_CACHE).expanduser().glob("models--*--*/refs/**/*")):
        if not reference.is_file():
            continue
        repository = next(parent for parent in reference.parents if parent.name.startswith("models--"))
        folder = repository / "snapshots" / reference.read_text().strip()
        revision = reference.relative_to(repository / "refs").as_posix()
        index = folder / BUNDLE_INDEX_FILE
        if index.is_file() and isinstance(read_json_object(index).get("settings"), dict):
            name = repository.name.removeprefix("models--").replace("--", "/")
            yield name if revision == "main" else f"{name}@{revision}", folder


def _read_figures(folder: Path) -> tuple[list[dict[str, str]], str]:
    """Return the figures of the report in a bundle, and where they are from or why there are none."""
    file = folder / REPORT_FILE
    if not file.is_file():
        return [], "no report in the bundle"
    report = read_json_object(file)
    source = report["provenance"]
    if source["bundle_hash"] != hash_weights(folder):
        return [], "the report in the bundle is of other weights"
    rows = [{"measure": name, "value": value, "meaning": text} for name, value, text in report_figures(report)]
    date = source["environment"]["date"][:10]
    return rows, f"{report['data']['clips']} clips of {source['data']}, {date}"


def _count_parameters(file: Path) -> int:
    """Count the weights of a safetensors file by its header."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{file}: no safetensors file (its header would have {length} bytes)")
        header = json.loads(opened.read(length))
    return sum(prod(weight["shape"]) for name, weight in header.items() if name != "__metadata__")


def _to_json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False)


def _format_zoo(found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the list."""
    yield "worlds that come with vwm (vwm play NAME):"
    for bundle in found["shipped"]:
        yield from _format_bundle(bundle)
    if found["cached"]:
        yield "\nworlds in the cache of the hub (vwm play NAME):"
        for bundle in found["cached"]:
            yield from _format_bundle(bundle)
    yield "\npublished weights that vwm loads (checked on random weights in their layout):"
    for weights in found["published"]:
        yield f"  {weights['name']}: {weights['kind']}, {weights['parameters']}, {weights['license']}"
        example = f", such as {weights['example']}" if weights["example"] else ""
        yield f"      {weights['layout']}{example}"
        yield f"      {weights['loads_with']}{weights['limits'] and '; ' + weights['limits']}"


def _format_bundle(bundle: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about a bundle."""
    size = f"{format_size(bundle['bytes'])}, {bundle['parameters'] / 1e6:.1f}M parameters"
    license_text = f"license {bundle['license']}" if bundle["license"] else "no license in its card"
    yield f"  {bundle['name']}: {bundle['title']}, {bundle['class']}, {bundle['fps']:g} fps, {size}, {license_text}"
    width = max((len(row["measure"]) for row in bundle["figures"]), default=0)
    for row in bundle["figures"]:
        yield f"      {row['measure']:<{width}}  {row['value']}  ({row['meaning']})"
    yield f"      ({bundle['figures_note']})"
