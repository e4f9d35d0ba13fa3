"""The module of a config on the meta device, where 30 billion weights need no memory, and a batch for it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vwm.core.bundle_folder import find_local_folder
from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.clips import ClipBatch
from vwm.data.datamodule import VideoDataModule
from vwm.nn.training_module import TrainingModule
from vwm.tokenizers.loading import given_tokenizer, load_tokenizer
from vwm.train.fit import FitCLI


class MissingTokenizer(VideoTokenizer):
    """Stands for a tokenizer that is not trained yet: the form of its latents, and no weights.

    Args:
        grid, channels, codebook_size, time_compression: see ``VideoTokenizer``.
    """

    @register_to_config
    def __init__(self, grid: tuple[int, int], channels: int, codebook_size: int, time_compression: int) -> None:
        super().__init__()
        self.grid = grid
        self.image_size = grid
        self.channels = channels
        self.codebook_size = codebook_size
        self.time_compression = time_compression

    def _refuse(self, *_: Any) -> Any:
        raise ValueError("this tokenizer is not trained yet: data.fields must hold latents")

    forward = encode = decode = init_encoder = init_decoder = encode_step = decode_step = _refuse  # type: ignore[assignment]


class MetaCLI(FitCLI):
    """Makes the module of a config on the meta device, and its data module, without a trainer.

    Attributes:
        module: the module, in training mode.
        notes: what was left out.
    """

    module: TrainingModule
    notes: list[str]

    def before_instantiate_classes(self) -> None:
        """Leave out Lightning's checks of this machine: the training runs on another one."""

    def instantiate_classes(self) -> None:
        """Make the module and the data module."""
        self.notes = []
        arguments = self.config["model"]["init_args"]
        if arguments.get("pretrained"):
            arguments["pretrained"] = None
        folder = arguments.get("tokenizer")
        tokenizer = self._tokenizer(str(folder)) if isinstance(folder, str | Path) else None
        with torch.device("meta"), given_tokenizer(tokenizer):
            made = self.parser.instantiate(self.config)
        self.module = made["model"].to("meta").train()
        self.datamodule: VideoDataModule = made["data"]

    def _tokenizer(self, folder: str) -> VideoTokenizer:
        """Load a trained tokenizer; where there is none yet, return what has the form of its latents."""
        dynamics = self.config["model"]["init_args"]["dynamics"]["init_args"]
        grid = tuple(dynamics.get("grid") or (1, dynamics.get("tokens_per_frame") or 1))
        if find_local_folder(folder).is_dir():
            return load_tokenizer(folder, grid=grid)
        self.notes.append(f"{folder} is not there: counted without a tokenizer, as if the data held latents")
        size = dynamics.get("codebook_size") or 0
        return MissingTokenizer(grid, dynamics.get("channels") or 0, size, dynamics.get("frames_per_latent") or 1)


def make_meta_batch(module: TrainingModule, data: VideoDataModule, clips: int) -> Any:
    """Return a batch as the module gets it in training, on the meta device, with all that its config reads.

    Raises:
        ValueError: the module does not say how large its frames are.
    """
    tokenizer = module.latent_tokenizer
    names = set(data.fields)
    if isinstance(tokenizer, MissingTokenizer) or "latents" in names:
        names = (names | {"latents"}) - ({"frames"} if not module.reads_frames else set())
    per_latent = module.frames_per_latent
    frames = data.clip_length
    latents = 1 + (frames - 1) // per_latent
    steps = latents * per_latent if data.frames_per_latent or "latents" in names else frames
    made: dict[str, Tensor] = {"seed": torch.arange(clips)}
    if "frames" in names:
        made["frames"] = torch.zeros(clips, frames, *_image_size(module), 3, dtype=torch.uint8)
    if "latents" in names:
        assert tokenizer is not None
        made["latents"] = _latents(tokenizer, clips, latents)
    if "actions" in names:
        made |= _actions(module, clips, steps)
    if "rewards" in names:
        made["rewards"] = torch.zeros(clips, steps)
    if "terminated" in names:
        made["terminated"] = torch.zeros(clips, steps, dtype=torch.bool)
    if "state" in names:
        made["state"] = torch.zeros(clips, frames, int(getattr(module, "state_size", 1)))
    batch = module.on_before_batch_transfer(ClipBatch(**made), 0)
    return _to_meta(batch)


def _latents(tokenizer: VideoTokenizer, clips: int, latents: int) -> Tensor:
    if tokenizer.codebook_size:
        return torch.zeros(clips, latents, *tokenizer.grid, dtype=torch.int64)
    return torch.zeros(clips, latents, *tokenizer.grid, tokenizer.channels)


def _actions(module: TrainingModule, clips: int, steps: int) -> dict[str, Tensor]:
    """Make actions of the space that a network of the module embeds; none where there is none."""
    for network in module.modules():
        space = getattr(getattr(network, "embed_action", None), "space", None) or getattr(network, "action_space", None)
        if space is not None:
            is_discrete = space.kind == "discrete"
            shape = (clips, steps) if is_discrete else (clips, steps, space.size)
            return {"actions": torch.zeros(shape, dtype=torch.int64 if is_discrete else torch.float32)}
    return {}


def _image_size(module: nn.Module) -> tuple[int, int]:
    for network in module.modules():
        size = getattr(getattr(network, "config", None), "image_size", None)
        if size is not None:
            return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
    raise ValueError(f"{type(module).__name__} does not say how large its frames are: no network has an image_size")


def _to_meta(value: Any) -> Any:
    """Move every tensor of a batch to the meta device."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, list | tuple):
        parts = [_to_meta(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: _to_meta(getattr(value, field.name)) for field in fields(value)})
    return value
