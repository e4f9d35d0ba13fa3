"""Simulators on disk: a folder in diffusers' pipeline layout that anyone may pass on.

``model_index.json`` names the parts and settings, each part is a subfolder with ``config.json`` and safetensors, and
``starts/`` holds contexts to begin from as PNG strips, or as safetensors in a world of vectors. Loading runs no code
from the folder and unpickles nothing: a bundle can only name classes of this package, and of packages whose families
are registered.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import ModelMixin
from diffusers import __version__ as diffusers_version
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import vwm
from vwm.core.atomic_files import atomic_folder
from vwm.core.bundle_folder import BUNDLE_INDEX_FILE, BundleError, find_bundle
from vwm.core.components import ComponentError, load_component, public_module, resolve_network_class, save_component
from vwm.core.devices import resolve_device
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.spaces import ActionSpace
from vwm.worlds.families import UnknownFamilyError, find_simulator_class

VECTOR_STARTS_FILE = "vectors.safetensors"


def save_simulator(
    simulator: NetworkSimulator, path: str | os.PathLike[str], card: str = "", half: bool = False
) -> None:
    """Write a bundle (aside, then renamed over what was there).

    Args:
        simulator: the world.
        path: the folder to make.
        card: text of its README.md.
        half: store the weights in float16, in half the space.

    Raises:
        BundleError: ``path`` exists and is not a bundle; nothing is overwritten.
    """
    target = Path(path)
    if target.exists() and not (target / BUNDLE_INDEX_FILE).is_file() and (target.is_file() or any(target.iterdir())):
        raise BundleError(f"{target} exists and is no bundle (it has no {BUNDLE_INDEX_FILE}): choose another folder")
    with atomic_folder(target) as aside:
        index: dict[str, Any] = {
            "_class_name": type(simulator).__name__,
            "_diffusers_version": diffusers_version,
            "_vwm_version": vwm.__version__,
            "settings": {
                "title": simulator.spec.title,
                "fps": simulator.spec.fps,
                "context_frames": simulator.spec.context_frames,
                "actions": asdict(simulator.spec.actions),
                "sampling": simulator.sampling._asdict(),
            },
        }
        networks = simulator.networks()
        for name in simulator.NETWORK_NAMES:
            part = networks.get(name)
            index[name] = [None, None] if part is None else [public_module(type(part)), type(part).__name__]
            if part is not None:
                save_component(part, aside / name, half)
        if simulator.starts is not None:
            _save_starts(simulator.starts, aside / "starts")
        (aside / "README.md").write_text(
            card or f"# {simulator.spec.title}\n\nA vwm world. {_usage_text(simulator, target.name)}\n"
        )
        (aside / BUNDLE_INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _usage_text(simulator: NetworkSimulator, name: str) -> str:
    if simulator.spec.observation.is_image:
        return f"From the folder that it lies in, play it: `vwm play ./{name}`."
    return f"It has no pictures to play in. From the folder that it lies in: `vwm.load_simulator({name!r})`."


def load_simulator(
    path: str | os.PathLike[str],
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> NetworkSimulator:
    """Load a bundle.

    Args:
        path: the folder, or the name of a world that comes with vwm (``coinrun``, ``carracing``, ``two_rooms``).
        device: ``auto`` takes a GPU where there is one.
        dtype: of the dynamics' weights. float32 keeps a batch of worlds equal to each alone; ``auto`` takes bfloat16
            where the machine multiplies it natively, which more than halves a step's time and is what the player
            does. What turns pictures into latents and back stays in float32.

    Raises:
        BundleError: missing, broken or foreign; the message says which file and what about it.
    """
    folder = find_bundle(path)
    index = _read_index(folder)
    kind = _simulator_class(folder, index)
    parts: dict[str, Any] = {name: _load_part(folder, name, index.get(name)) for name in kind.NETWORK_NAMES}
    for name in kind.NETWORK_NAMES:
        if parts[name] is None and name not in kind.OPTIONAL_NETWORKS:
            raise BundleError(f"{folder / BUNDLE_INDEX_FILE}: part {name!r} is missing")
    try:
        settings = index["settings"]
        frames = int(settings["context_frames"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder / BUNDLE_INDEX_FILE}: settings are not understood ({error!r})") from error
    starts = _load_starts(folder / "starts", frames)
    try:
        saved = settings["actions"]
        actions = ActionSpace(**{**saved, "names": tuple(saved["names"]), "rest": tuple(saved.get("rest", ()))})
        simulator = kind(
            **parts,
            actions=actions,
            fps=float(settings["fps"]),
            sampling=kind.SAMPLING_CLASS(**settings["sampling"]),
            context_frames=frames,
            title=str(settings["title"]),
            starts=starts,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder / BUNDLE_INDEX_FILE}: settings are not understood ({error!r})") from error
    device = resolve_device(device)
    if dtype == "auto":
        dtype = torch.bfloat16 if _supports_bfloat16(device) else torch.float32
    return simulator.to(device, dtype)


def _supports_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / BUNDLE_INDEX_FILE
    try:
        index = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise BundleError(f"{file}: not JSON ({error})") from error
    if not isinstance(index, dict):
        raise BundleError(f"{file}: must be an object with the parts of a world, got {type(index).__name__}")
    return index


def _simulator_class(folder: Path, index: dict[str, Any]) -> type[NetworkSimulator]:
    name = index.get("_class_name")
    try:
        return find_simulator_class(str(name))
    except UnknownFamilyError as error:
        raise BundleError(
            f"{folder / BUNDLE_INDEX_FILE}: holds a {name!r}, which this version of vwm ({vwm.__version__}) cannot "
            f"simulate: {error}"
        ) from error


def _load_part(folder: Path, name: str, spec: Any) -> ModelMixin | None:
    """One part, its keys checked one by one. Only classes of this package can be named."""
    if spec is None or spec == [None, None]:
        return None
    if not (isinstance(spec, list) and len(spec) == 2 and all(isinstance(s, str) for s in spec)):
        raise BundleError(f"{folder / BUNDLE_INDEX_FILE}: {name} must be [module, class], got {spec!r}")
    module, class_name = spec
    try:
        return load_component(
            folder / name, resolve_network_class(module, class_name, f"{folder / BUNDLE_INDEX_FILE}: {name}")
        )
    except ComponentError as error:
        raise BundleError(str(error)) from error


def _save_starts(starts: Tensor, folder: Path) -> None:
    """uint8 [n, t, h, w, 3] as n PNG strips, the frames side by side; float32 [n, t, k] as a tensor."""
    folder.mkdir()
    if starts.ndim == 3:
        save_file({"starts": starts.cpu().contiguous()}, folder / VECTOR_STARTS_FILE)
        return
    for i, clip in enumerate(starts.cpu().numpy()):
        Image.fromarray(np.concatenate(list(clip), axis=1)).save(folder / f"{i:03d}.png", optimize=True)


def _load_starts(folder: Path, frames: int) -> Tensor | None:
    if (folder / VECTOR_STARTS_FILE).is_file():
        try:
            return load_file(folder / VECTOR_STARTS_FILE)["starts"]
        except (KeyError, SafetensorError) as error:
            raise BundleError(f"{folder / VECTOR_STARTS_FILE}: not contexts of vectors ({error!r})") from error
    files = sorted(folder.glob("*.png"))
    if not files:
        return None
    clips = []
    for file in files:
        with Image.open(file) as image:
            strip = np.array(image.convert("RGB"))
        if strip.shape[1] % frames:
            raise BundleError(f"{file}: {strip.shape[1]} pixels wide, which {frames} frames do not divide")
        clips.append(np.stack(np.split(strip, frames, axis=1)))
    return torch.from_numpy(np.stack(clips))
