"""Read DIAMOND's published weights: 26 worlds of Atari games with their policies, and one of Counter-Strike.

A checkpoint holds the weights of ``denoiser``, ``rew_end_model``, ``actor_critic`` and, of Counter-Strike,
``upsampler``. Sizes are read from the ``config/agent`` next to them, where it was downloaded, and are otherwise the
published ones. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from vwm.core.family import PublishedWorld
from vwm.core.network_base import ModelMixin
from vwm.core.published_files import as_state_dict, read_published_weights
from vwm.core.suggestions import suggest
from vwm.core.weight_mapping import PretrainedWeightsError, StateDict, get_weight, load_mapped_weights
from vwm.data.importers.csgo_actions import CSGO_COLUMNS, csgo_action_space
from vwm.models.diamond.denoiser import DiamondDenoiser
from vwm.models.diamond.games import ATARI_ACTIONS, atari_action_space
from vwm.models.diamond.outcome_model import DiamondOutcomeModel
from vwm.models.diamond.policy_network import DiamondPolicyNetwork
from vwm.models.diamond.sampling import DiamondSampling
from vwm.models.diamond.simulator import DiamondSimulator
from vwm.models.diamond.upsampler import DiamondUpsampler
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer

CSGO_VARIANTS = ("csgo", "csgo-quality")
"""Counter-Strike with the published settings for speed, and for quality."""
ATARI_FOLDERS = ("atari_100k/models", "models", ".")
CSGO_FOLDERS = ("csgo/model", "model", ".")
ATARI_ORIGIN = (
    "DIAMOND's world of {}, with its model of rewards and terminations and its policy, published by Alonso et al. "
    "(arXiv 2405.12399) as eloialonso/diamond."
)
CSGO_ORIGIN = "DIAMOND's world of Counter-Strike: Global Offensive, published by Alonso et al. as eloialonso/diamond."
LICENSE = "mit"
FPS = 15.0
"""At which the authors play them."""


def load_published_diamond(source: Path, variant: str = "") -> PublishedWorld:
    """Load a published world.

    Args:
        source: the ``.pt`` file, or a folder as on the hub, with ``atari_100k/models`` or ``csgo/model``.
        variant: a game, such as ``Breakout``, or one of ``CSGO_VARIANTS``; by default the name of the file, or the only
            one that the folder holds.

    Raises:
        ValueError: there is no such world; or a file is missing or broken, or weights are missing, not used or of
            another shape.
    """
    file, variant = find_checkpoint(Path(source), variant)
    weights = as_state_dict(read_published_weights(file), str(file))
    parts = {name: take_part(weights, name) for name in ("denoiser", "upsampler", "rew_end_model", "actor_critic")}
    if weights:
        listed = ", ".join(sorted(weights)[:8])
        raise PretrainedWeightsError(f"{file}: not used: {listed}: these are no weights of DIAMOND's networks")
    settings = read_settings(file, "csgo" if variant in CSGO_VARIANTS else "default")
    if variant in CSGO_VARIANTS:
        simulator = _csgo_simulator(file, parts, settings, variant)
        simulator.starts = read_spawns(file.parent.parent / "spawn", simulator.spec.context.image_size)
        return PublishedWorld(simulator=simulator, license=LICENSE, origin=CSGO_ORIGIN)
    simulator = _atari_simulator(file, parts, settings, variant)
    return PublishedWorld(simulator=simulator, license=LICENSE, origin=ATARI_ORIGIN.format(variant))


def find_checkpoint(source: Path, variant: str) -> tuple[Path, str]:
    """Return the file of a world and the world's name. Raises ValueError where there is none, or several."""
    known = (*ATARI_ACTIONS, *CSGO_VARIANTS)
    if source.is_file():
        name = variant or source.stem
        return source, name
    if variant and variant not in known:
        raise ValueError(f"DIAMOND has no world {variant!r}{suggest(variant, known)}. It has: {', '.join(known)}")
    candidates = [
        (source / folder / f"{name.partition('-')[0]}.pt", name)
        for name in ([variant] if variant else known)
        for folder in (CSGO_FOLDERS if name in CSGO_VARIANTS else ATARI_FOLDERS)
    ]
    found = {file: name for file, name in reversed(candidates) if file.is_file()}
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise ValueError(f"{source} holds {', '.join(sorted(set(found.values())))}: name one as the variant")
    wanted = f"{variant}.pt" if variant else ".pt file of a world"
    raise PretrainedWeightsError(
        f"{source}: there is no {wanted} in {', '.join(ATARI_FOLDERS)} or {', '.join(CSGO_FOLDERS)}: download it there"
    )


def take_part(weights: StateDict, name: str) -> StateDict:
    """Remove the weights of a network from a checkpoint and return them, without the network's name."""
    keys = [key for key in weights if key.startswith(f"{name}.")]
    return {key.removeprefix(f"{name}."): weights.pop(key) for key in keys}


def read_settings(file: Path, agent: str) -> dict[str, Any]:
    """Read the sizes of the networks from ``config/agent`` next to a checkpoint's folder; empty where it has none.

    Returns:
        What the file ``AGENT.yaml`` holds, and as ``image_size`` the size of frames that ``config/env`` states.

    Raises:
        PretrainedWeightsError: a file cannot be read.
    """
    folder = file.parent.parent / "config"
    settings = _read_yaml(folder / "agent" / f"{agent}.yaml")
    env = _read_yaml(folder / "env" / ("csgo.yaml" if agent == "csgo" else "atari.yaml"))
    size = env.get("train", {}).get("size") if isinstance(env.get("train"), Mapping) else None
    return settings if size is None else {**settings, "image_size": size}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        read = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PretrainedWeightsError(f"{path}: cannot be read ({error})") from error
    if not isinstance(read, dict):
        raise PretrainedWeightsError(f"{path}: holds no settings")
    return read


def _section(settings: Mapping[str, Any], name: str, names: Mapping[str, str], where: Path) -> dict[str, Any]:
    """Return constructor arguments of a network from a section of the settings, by the names that the two use."""
    section = settings.get(name) or {}
    inner = section.get("inner_model") or {} if isinstance(section, Mapping) else {}
    if not isinstance(section, Mapping) or not isinstance(inner, Mapping):
        raise PretrainedWeightsError(f"{where}: config/agent: {name} holds no settings")
    given = {**section, **inner}
    arguments = {ours: given[theirs] for theirs, ours in names.items() if given.get(theirs) is not None}
    return {
        name: [bool(x) for x in value] if name in ("attention", "halve") and isinstance(value, list) else value
        for name, value in arguments.items()
    }


_SIZES = {"cond_channels": "condition_width", "depths": "depths", "channels": "channels", "attn_depths": "attention"}
_DENOISER = {
    **_SIZES,
    "num_steps_conditioning": "past_frames",
    "sigma_data": "sigma_data",
    "sigma_offset_noise": "offset_noise",
}
_OUTCOMES = {**_SIZES, "lstm_dim": "lstm_width"}
_POLICY = {"lstm_dim": "lstm_width", "channels": "channels", "down": "halve"}


def _load_network(kind: Any, arguments: Mapping[str, Any], weights: StateDict, where: str) -> Any:
    try:
        network: ModelMixin = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise PretrainedWeightsError(f"{where}: config: {error}") from error
    target = network.denoiser if isinstance(network, DiamondUpsampler) else network
    load_mapped_weights(target, weights, lambda name: [name], where)
    return network.eval().requires_grad_(False)


def _atari_simulator(file: Path, parts: dict[str, StateDict], settings: dict[str, Any], game: str) -> DiamondSimulator:
    if parts["upsampler"]:
        raise PretrainedWeightsError(f"{file}: has an upsampler: it is of Counter-Strike, set variant=csgo")
    embedding = get_weight(parts["denoiser"], "inner_model.act_emb.0.weight", f"{file}, denoiser")
    size = settings.get("image_size", 64)
    image_size = tuple(size) if isinstance(size, list) else (size, size)
    shared = {"num_actions": len(embedding)}
    framed = {**shared, "image_size": image_size}
    dynamics = _load_network(
        DiamondDenoiser,
        shared | _section(settings, "denoiser", _DENOISER, file),
        parts["denoiser"],
        f"{file}, denoiser",
    )
    others: dict[str, Any] = {}
    for name, kind, names in (
        ("rew_end_model", DiamondOutcomeModel, _OUTCOMES),
        ("actor_critic", DiamondPolicyNetwork, _POLICY),
    ):
        where = f"{file}, {name}"
        others[name] = _load_network(kind, framed | _section(settings, name, names, file), parts[name], where)
    return DiamondSimulator(
        tokenizer=PixelTokenizer(image_size=image_size, pixel_std=1.0),
        dynamics=dynamics,
        outcomes=others["rew_end_model"],
        actions=atari_action_space(game, len(embedding)),
        trained_policy=others["actor_critic"],
        title=game,
        fps=FPS,
    )


CSGO_DENOISER = {
    "num_actions": CSGO_COLUMNS,
    "action_columns": True,
    "condition_width": 2048,
    "channels": [128, 256, 512, 1024],
    "attention": [False, False, True, True],
    "offset_noise": 0.1,
    "noisy_past": True,
}


def _csgo_simulator(file: Path, parts: dict[str, StateDict], settings: dict[str, Any], name: str) -> DiamondSimulator:
    for part in ("rew_end_model", "actor_critic"):
        if parts[part]:
            raise PretrainedWeightsError(f"{file}: has a {part}, which Counter-Strike's world has not: set the game")
    quality = {"steps": 10, "order": 1} if name == "csgo-quality" else {}
    upsampler = _section(settings, "upsampler", {**_DENOISER, "upsampling_factor": "factor"}, file) | quality
    if "image_size" in settings:
        upsampler["image_size"] = tuple(settings["image_size"])
    tokenizer = _load_network(DiamondUpsampler, upsampler, parts["upsampler"], f"{file}, upsampler")
    denoiser = CSGO_DENOISER | _section(settings, "denoiser", _DENOISER, file)
    return DiamondSimulator(
        tokenizer=tokenizer,
        dynamics=_load_network(DiamondDenoiser, denoiser, parts["denoiser"], f"{file}, denoiser"),
        outcomes=None,
        actions=csgo_action_space(),
        title="Counter-Strike: Global Offensive",
        fps=FPS,
        sampling=DiamondSampling(steps=3 if quality else 1, past_noise=0.005),
    )


def read_spawns(folder: Path, image_size: tuple[int, int]) -> Tensor | None:
    """Read the published starts of Counter-Strike, uint8 [n, t, H, W, 3]; None where they were not downloaded.

    Raises:
        PretrainedWeightsError: a file is broken, or of frames of another size.
    """
    starts = []
    for file in sorted(folder.glob("*/full_res.npy")):
        try:
            frames = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise PretrainedWeightsError(f"{file}: cannot be read ({error})") from error
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (3, *image_size):
            raise PretrainedWeightsError(
                f"{file}: must be uint8 [t, 3, {image_size[0]}, {image_size[1]}], got {frames.dtype} "
                f"{list(frames.shape)}"
            )
        starts.append(torch.from_numpy(frames).permute(0, 2, 3, 1))
    if len({len(start) for start in starts}) > 1:
        raise PretrainedWeightsError(f"{folder}: the starts have different numbers of frames")
    return torch.stack(starts) if starts else None
