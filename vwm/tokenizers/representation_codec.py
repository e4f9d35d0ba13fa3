"""A representation autoencoder (arXiv 2510.11690): a frozen encoder, and a decoder that is trained to invert it.

Latents are the features of a network that was trained to represent what is seen, not to reconstruct it, each token
normalized to zero mean and unit variance. A dynamics model over them predicts in that space, and the decoder shows it.

Legend: b batch, t time, H W pixels, h w grid of latents, n = h w, d width of the features, w' width of the decoder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.components import COMPONENT_CONFIG_FILE, ComponentError, load_component, resolve_network_class
from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import TokenizerOutput, VideoTokenizer
from vwm.hub.bundle_names import find_folder
from vwm.nn.clip_draws import draw_normal_like, draw_uniform
from vwm.nn.pixels import unpatchify
from vwm.nn.space_time import TransformerState
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates


class RepresentationCodec(VideoTokenizer):
    """Encode each frame by a frozen network; decode with a causal transformer over frames.

    Args:
        encoder: folder of the network, or of an export with an ``encoder``: a ``TimmEncoder``, or an encoder of
            V-JEPA. Its class and settings take the folder's place in the config, and its weights are saved with the
            codec, so that the folder is needed no more.
        encoder_class: public path of the class of the network, if there is no folder.
        encoder_settings: arguments of that class.
        width, depth, heads: of the decoder.
        window: number of frames that the decoder's attention spans.
        time_every: every ``time_every``-th layer of the decoder attends over time, the others within a frame.
        noise: in training, normal noise of a standard deviation uniform in [0, ``noise``] is added to the normalized
            latents of each clip, so that the decoder tolerates latents that were predicted.
        latents_mean, latents_std: see ``CausalVAE``.

    Raises:
        ComponentError: the folder holds no such network.
        ValueError: neither or both of folder and class are given, or the grid does not divide the frames into squares.
    """

    @register_to_config
    def __init__(
        self,
        encoder: str | None = None,
        encoder_class: str | None = None,
        encoder_settings: dict[str, Any] | None = None,
        width: int = 384,
        depth: int = 8,
        heads: int = 6,
        window: int = 4,
        time_every: int = 4,
        noise: float = 0.0,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if (encoder is None) == (encoder_class is None):
            raise ValueError(f"give either encoder or encoder_class, got {encoder!r} and {encoder_class!r}")
        self.representation = _make(str(encoder_class), encoder_settings) if encoder is None else _load(encoder)
        self.representation.requires_grad_(False)
        kind = f"{type(self.representation).__module__.rpartition('.')[0]}.{type(self.representation).__name__}"
        settings = {name: value for name, value in self.representation.config.items() if not name.startswith("_")}
        self.register_to_config(encoder=None, encoder_class=kind, encoder_settings=settings)
        self.image_size = tuple(self.representation.image_size)
        self.grid = tuple(self.representation.spatial_grid)
        self.channels = int(self.representation.width)
        self.noise = noise
        self.patch_size = self.image_size[0] // self.grid[0]
        if tuple(side * self.patch_size for side in self.grid) != self.image_size:
            raise ValueError(
                f"a grid of {list(self.grid)} does not divide frames of {list(self.image_size)} into squares"
            )
        self.embed = nn.Linear(self.channels, width)
        self.decoder = VideoTransformer(width=width, depth=depth, heads=heads, window=window, time_every=time_every)
        self.paint = nn.Linear(width, 3 * self.patch_size**2)
        self.register_buffer("coordinates", grid_coordinates(*self.grid), persistent=False)
        self.register_latent_statistics(self.channels, latents_mean, latents_std)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last layer, for losses that are scaled by their gradients in it."""
        return self.paint.weight

    def train(self, mode: bool = True) -> Self:
        """Set the decoder's mode; the encoder stays in evaluation mode."""
        super().train(mode)
        self.representation.eval()
        return self

    def forward(self, video: Tensor) -> TokenizerOutput:
        """Encode and decode float [b, t, 3, H, W] in [-1, 1]. In training mode, noise is added to the latents."""
        latents = self.encode(video)
        shown = latents
        if self.training and self.noise:
            scale = self.noise * draw_uniform((len(latents), 1, 1, 1, 1), latents.device)
            shown = latents + scale.to(latents.dtype) * draw_normal_like(latents)
        return TokenizerOutput(self.decode(shown), latents, video.new_zeros(()))

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> float [b, t, h, w, d]."""
        self.check_video(video)
        if not video.shape[1]:
            return video.new_zeros(len(video), 0, *self.grid, self.channels)
        features = self.representation(video.flatten(0, 1)[:, None])
        features = F.layer_norm(features, (self.channels,)).unflatten(1, self.grid).unflatten(0, video.shape[:2])
        return (features - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, h, w, d] -> float [b, t, 3, H, W]."""
        return self._paint(self.decoder(self._tokens(latents), self.coordinates))

    def init_encoder(self, batch: int) -> tuple[()]:
        """Return the empty state: each frame is encoded by itself."""
        return ()

    def init_decoder(self, batch: int) -> TransformerState:
        """Return the state of the decoder before the first frame."""
        return self.decoder.init_state(batch, len(self.coordinates))

    def encode_step(self, state: tuple[()], video: Tensor) -> tuple[tuple[()], Tensor]:
        """Encode the next frames; return the state and their latents."""
        return state, self.encode(video)

    def decode_step(self, state: TransformerState, latents: Tensor) -> tuple[TransformerState, Tensor]:
        """Decode the next latents; return the state and their frames."""
        x, state = self.decoder.step(self._tokens(latents), state, self.coordinates)
        return state, self._paint(x)

    def _tokens(self, latents: Tensor) -> Tensor:
        return self.embed((latents * self.std + self.mean).flatten(2, 3))

    def _paint(self, x: Tensor) -> Tensor:
        return unpatchify(self.paint(x), self.patch_size, self.grid[0])


def _load(path: str | os.PathLike[str]) -> Any:
    folder = find_folder(path)
    for candidate in (folder / "encoder", folder):
        if (candidate / COMPONENT_CONFIG_FILE).is_file():
            return _check(load_component(candidate), candidate)
    raise ComponentError(
        f"no encoder at {folder}: it has no encoder/{COMPONENT_CONFIG_FILE}; make one with "
        "tools/import_timm.py or tools/import_vjepa.py, or export a V-JEPA training"
    )


def _make(kind: str, settings: dict[str, Any] | None) -> Any:
    module, _, name = kind.rpartition(".")
    return _check(resolve_network_class(module, name, "encoder_class")(**(settings or {})), Path(kind))


def _check(network: Any, where: Path) -> Any:
    missing = next((name for name in ("spatial_grid", "image_size", "width") if not hasattr(network, name)), None)
    if missing is not None:
        raise ComponentError(f"{where} holds a {type(network).__name__}, which is no encoder of frames: no {missing}")
    return network
