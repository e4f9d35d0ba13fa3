"""Bundles: simulators on disk, as folders in diffusers' pipeline layout that can be shared.

``model_index.json`` names the networks and settings, each network is a subfolder with ``config.json`` and safetensors,
and ``starts/`` holds starting contexts as PNG strips, or as safetensors where observations are vectors. Loading runs no
code from the folder and unpickles nothing: a bundle can only name classes of this package, and of packages whose
families are registered.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch

from vwm.core.atomic_files import atomic_folder
from vwm.core.bundle_folder import BUNDLE_INDEX_FILE, BundleError, check_no_outside_link
from vwm.core.captured_steps import CUDAGraphs
from vwm.core.components import ComponentError, load_component, public_module, resolve_network_class, save_component
from vwm.core.devices import Precision, resolve_device, resolve_precision
from vwm.core.json_files import read_json_object
from vwm.core.network_base import DIFFUSERS_VERSION, ModelMixin
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.version import VERSION
from vwm.hub.bundle_names import find_bundle
from vwm.worlds.bundle_settings import read_bundle_settings
from vwm.worlds.bundle_starts import load_starts, save_starts
from vwm.worlds.families import UnknownFamilyError, find_simulator_class

MAX_INDEX_BYTES = 2**20


def save_simulator(
    simulator: NetworkSimulator, path: str | os.PathLike[str], card: str = "", float16: bool = False
) -> None:
    """Write a bundle, in a folder next to ``path`` that is then renamed over what was there.

    Args:
        simulator: to save.
        path: the folder to write.
        card: text of its README.md.
        float16: store the weights in float16, which halves the size.

    Raises:
        BundleError: ``path`` exists and is not a bundle; nothing is overwritten.
    """
    target = Path(path)
    if target.exists() and not (target / BUNDLE_INDEX_FILE).is_file() and (target.is_file() or any(target.iterdir())):
        raise BundleError(f"{target} exists and is no bundle (it has no {BUNDLE_INDEX_FILE}): choose another folder")
    with atomic_folder(target) as temporary:
        index: dict[str, Any] = {
            "_class_name": type(simulator).__name__,
            "_diffusers_version": DIFFUSERS_VERSION,
            "_vwm_version": VERSION,
            "settings": {
                "title": simulator.spec.title,
                "fps": simulator.spec.fps,
                "context_frames": simulator.spec.context_frames,
                "actions": simulator.spec.actions.to_json(),
                "sampling": simulator.sampling._asdict(),
            },
        }
        networks = simulator.networks()
        for name in simulator.NETWORK_NAMES:
            network = networks.get(name)
            index[name] = [None, None] if network is None else [public_module(type(network)), type(network).__name__]
            if network is not None:
                save_component(network, temporary / name, float16)
        if simulator.starts is not None:
            save_starts(simulator.starts, temporary)
        (temporary / "README.md").write_text(
            card or f"# {simulator.spec.title}\n\nA vwm world. {_usage_text(simulator, target.name)}\n"
        )
        (temporary / BUNDLE_INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _usage_text(simulator: NetworkSimulator, name: str) -> str:
    if simulator.spec.observation.is_image:
        return f"Play it from its parent folder: `vwm play ./{name}`."
    return f"It shows no images. Load it from its parent folder: `vwm.load({name!r})`."


def load_simulator(
    path: str | os.PathLike[str],
    device: str | torch.device = "auto",
    dtype: torch.dtype | Precision = torch.float32,
    accelerate: Literal["auto", "none"] = "auto",
    revision: str | None = None,
) -> NetworkSimulator:
    """Load a bundle.

    Args:
        path: the folder, or the name of a bundle that comes with vwm (``boxing``, ``carracing``, ``coinrun``,
            ``freeway``, ``two_rooms``), or one on the hub: ``org/name``, or ``org/name@revision``. A folder of that
            name wins over the hub.
        device: ``auto`` uses a GPU where there is one.
        dtype: of the dynamics' weights; ``auto`` is bfloat16 on a GPU. In float32, a simulation in a batch equals the
            same one alone. Encoders and decoders stay in float32, and so do the sums of a sampler.
        accelerate: ``auto`` captures steps as CUDA graphs on a GPU, in bfloat16 with compiled transformer blocks;
            ``none`` computes every step plainly. In float32 the frames are the same.
        revision: a branch, a tag or a commit of a bundle on the hub; by default ``main``.

    Raises:
        BundleError: the bundle is missing, broken or foreign; the message names the file and what is wrong with it.
    """
    folder = find_bundle(path, revision)
    index = _read_index(folder)
    kind = _simulator_class(folder, index)
    networks: dict[str, Any] = {name: _load_network(folder, name, index.get(name)) for name in kind.NETWORK_NAMES}
    for name in kind.NETWORK_NAMES:
        if networks[name] is None and name not in kind.OPTIONAL_NETWORKS:
            raise BundleError(f"{folder / BUNDLE_INDEX_FILE}: part {name!r} is missing")
    settings = read_bundle_settings(folder / BUNDLE_INDEX_FILE, index)
    unknown = set(settings.sampling) - set(kind.SAMPLING_CLASS._fields)
    if unknown:
        raise BundleError(
            f"{folder / BUNDLE_INDEX_FILE}: settings.sampling has no {sorted(unknown)[0]}; it has: "
            f"{', '.join(kind.SAMPLING_CLASS._fields)}"
        )
    try:
        simulator = kind(
            **networks,
            actions=settings.actions,
            fps=settings.fps,
            sampling=kind.SAMPLING_CLASS(**settings.sampling),
            context_frames=settings.context_frames,
            title=settings.title,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder / BUNDLE_INDEX_FILE}: settings: {error}") from error
    simulator.starts = load_starts(folder, settings.context_frames, simulator.spec.context)
    device = resolve_device(device)
    dtype = resolve_precision(dtype, device) if isinstance(dtype, str) else dtype
    simulator = simulator.to(device, dtype)
    if accelerate == "none" or device.type != "cuda":
        return simulator
    return simulator.accelerate(CUDAGraphs(), compiler="inductor" if dtype == torch.bfloat16 else None)


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / BUNDLE_INDEX_FILE
    check_no_outside_link(file, folder)
    return read_json_object(file, MAX_INDEX_BYTES, BundleError)


def _simulator_class(folder: Path, index: dict[str, Any]) -> type[NetworkSimulator]:
    name = str(index.get("_class_name"))[:100]
    try:
        return find_simulator_class(name)
    except UnknownFamilyError as error:
        raise BundleError(
            f"{folder / BUNDLE_INDEX_FILE}: holds a {name!r}, which this version of vwm ({VERSION}) cannot "
            f"simulate: {error}"
        ) from error


def _load_network(folder: Path, name: str, spec: Any) -> ModelMixin | None:
    """Load one network, with every key of its weights checked; None for an optional one that is absent."""
    if spec is None or spec == [None, None]:
        return None
    if not (isinstance(spec, list) and len(spec) == 2 and all(isinstance(s, str) for s in spec)):
        raise BundleError(f"{folder / BUNDLE_INDEX_FILE}: {name} must be [module, class], got {spec!r}")
    module, class_name = spec
    check_no_outside_link(folder / name, folder)
    try:
        return load_component(
            folder / name, resolve_network_class(module, class_name, f"{folder / BUNDLE_INDEX_FILE}: {name}")
        )
    except ComponentError as error:
        raise BundleError(str(error)) from error
