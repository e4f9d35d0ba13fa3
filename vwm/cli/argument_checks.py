"""Checks of paths on the command line before anything heavy is imported: a mistyped name is reported at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vwm.cli.missing_parts import commands_that_make
from vwm.cli.signatures import REQUIRED, CommandSignature
from vwm.core.bundle_folder import find_local_bundle, shipped_bundles
from vwm.core.suggestions import suggest_sibling
from vwm.hub.bundle_names import find_folder
from vwm.hub.hub_errors import HubError
from vwm.hub.hub_name import parse_hub_name


def check_paths(signature: CommandSignature, arguments: dict[str, Any]) -> None:
    """Check required arguments by their name, which means the same in every command: bundle, run, data.

    Raises:
        BundleError: ``bundle`` is neither a folder, nor the name of a shipped bundle, nor one on the hub.
        FileNotFoundError: the folder of ``run``, or ``data`` on this machine, does not exist.
    """
    checks = {"bundle": _check_bundle, "run": _check_run, "data": check_data}
    if arguments.get("web") or arguments.get("onnx"):  # vwm export of a world, and not of a run
        checks["run"] = _check_bundle
    for parameter in signature.parameters:
        # probe's `bundle` is a text: several of them, and also tokenizers and encoders
        if parameter.default is REQUIRED and parameter.name in checks and arguments[parameter.name]:
            if parameter.name == "bundle" and parameter.annotation != "Path":
                continue
            checks[parameter.name](arguments[parameter.name])


def _check_bundle(bundle: Path) -> None:
    if bundle.is_dir():  # the command itself checks what a folder holds: a world, or a V-JEPA encoder and predictor
        return
    if bundle.as_posix() in shipped_bundles() or parse_hub_name(bundle) is None:
        find_local_bundle(bundle)
    else:
        find_folder(bundle)


def check_folder_or_bundle(key: str, value: str, data: str | None = None) -> None:
    """Raise FileNotFoundError where a config names a trained part that is neither here nor on the hub.

    Args:
        key: the config's key.
        value: the part's folder, the name of a shipped bundle, or a name on the hub.
        data: shards to train on, where they are not the config's; for the advice.
    """
    if Path(value).exists() or value in shipped_bundles():
        return
    hub = ""
    if parse_hub_name(value) is not None:
        try:
            find_folder(value)
            return
        except HubError as error:
            hub = f" ({error})"
    close = suggest_sibling(Path(value), shipped_bundles())
    commands = commands_that_make(value, key.rpartition(".")[2], data)
    raise FileNotFoundError(f"{key}: there is no {value}{close}{hub}; make it first: {commands}")


def _check_run(run: Path) -> None:
    if not run.is_dir():
        raise FileNotFoundError(
            f"{run} is no finished run: there is no such folder{suggest_sibling(run)}; give the folder of a run of "
            f"vwm fit or vwm agent train"
        )


def check_data(data: str | Path) -> None:
    """Raise FileNotFoundError where shards are neither on this machine nor named by a pattern or an address."""
    text = str(data)
    if "://" in text or any(sign in text for sign in "*?[{") or Path(text).exists():
        return
    raise FileNotFoundError(
        f"no shards at {text}: there is no such file or folder{suggest_sibling(Path(text))}; make some with "
        f"vwm record ENV {text} or vwm ingest FOLDER {text}"
    )
