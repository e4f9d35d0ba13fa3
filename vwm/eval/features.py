"""Frozen features of any model of this package, and the two controls that every probe stands beside.

A feature extractor sees the frames of a clip and nothing else: worlds whose actions were labelled are told that these
are unknown, or they would know what the controls cannot see.

Legend: b batch, t time, H W pixels, n tokens of a clip, d width.
"""

from __future__ import annotations

import copy
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from math import log, prod
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from vwm.core.bundle_folder import BundleError
from vwm.core.components import COMPONENT_CONFIG_FILE
from vwm.core.frames import frames_to_float
from vwm.core.tokenizer import VideoTokenizer
from vwm.models.dit.network import DiT
from vwm.models.dit.sampling import observe_latents
from vwm.models.dit.simulator import DiTSimulator
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.simulator import GenieSimulator
from vwm.models.vjepa.frame_encoder import FrameEncoder, load_frame_encoder
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.tokenizers.loading import load_tokenizer
from vwm.worlds.bundle import load_simulator


class FeatureExtractor(ABC):
    """Tokens of clips.

    Args:
        networks: what makes them, frozen.
        layer: of which layer, from 0 or, from the end, -1; None for what the class says is sensible.

    Attributes:
        image_size: (H, W) of the frames; None where any will do.
        frames: a clip length that suits the network.
        depth: layers to choose from; 0 where there is one kind of feature only.
        layer: the layer's number, from 0; None where there is nothing to choose, or for the network's own output.

    Raises:
        ValueError: there is no such layer.
    """

    image_size: tuple[int, int] | None = None
    frames: int = 4

    def __init__(self, networks: dict[str, Any], depth: int = 0, layer: int | None = None) -> None:
        self.networks, self.depth = networks, depth
        if layer is not None and not -depth <= layer < depth:
            there_are = f"layers 0..{depth - 1}" if depth else "no layers to choose from"
            raise ValueError(f"layer={layer}: a {type(self).__name__} has {there_are}")
        self.layer = layer if layer is None else layer % depth

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [b, t, H, W, 3] -> float32 [b, n, d]; those of a clip do not depend on the others.

        Raises:
            ValueError: frames of another size.
        """
        size = (int(frames.shape[2]), int(frames.shape[3]))
        if self.image_size is not None and size != tuple(self.image_size):
            raise ValueError(
                f"the model has frames of {self.image_size[0]}x{self.image_size[1]} pixels, but the data have "
                f"{size[0]}x{size[1]} (height x width): record or ingest the data at the model's size"
            )
        return self.tokens(frames_to_float(frames)).float()

    @abstractmethod
    def tokens(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> [b, n, d]."""

    def at(self, layer: int) -> Self:
        """Of another layer of the same networks. Raises ValueError where there is no such layer."""
        other = copy.copy(self)
        FeatureExtractor.__init__(other, self.networks, self.depth, layer)
        return other

    def fresh(self, seed: int) -> Self:
        """Of the same layer of networks with the same configs that have learned nothing."""
        other = copy.copy(self)
        other.networks = {name: reinitialized_copy(part, seed) for name, part in self.networks.items()}
        return other

    def to(self, device: torch.device | str) -> Self:
        """Move the networks."""
        for part in self.networks.values():
            nn.Module.to(part, device)
        return self


def reinitialized_copy(part: ModelMixin, seed: int) -> ModelMixin:
    """A network of the same class and config with new weights; torch's own generator stays as it was."""
    # Not from_config, which takes the class's default for whatever was given by position.
    names = inspect.signature(type(part).__init__).parameters
    settings = {name: value for name, value in part.config.items() if name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(part)(**settings)
    made.eval().requires_grad_(False)
    return nn.Module.to(made, next(iter(part.state_dict().values())).device)


class PixelFeatureExtractor(FeatureExtractor):
    """The control that has no model: the pixels of space-time patches.

    Args:
        tubelet: frames that a token spans.
        patch_size: side of the square that it spans.
    """

    def __init__(self, tubelet: int, patch_size: tuple[int, int]) -> None:
        super().__init__({})
        self.tubelet, self.patch_size = tubelet, patch_size

    @classmethod
    def like(cls, tokens: int, frames: int, image_size: tuple[int, int]) -> PixelFeatureExtractor:
        """With as many tokens a clip as a model has, or as near to that as patches of equal size come.

        Args:
            tokens: n of the model.
            frames: t.
            image_size: (H, W).
        """
        sides = (_divisors(frames), _divisors(image_size[0]), _divisors(image_size[1]))

        def unlike(spans: tuple[int, ...]) -> tuple[float, float, int]:
            found = frames * prod(image_size) / prod(spans)
            return abs(log(found / tokens)), abs(log(spans[1] / spans[2])), spans[0]

        tubelet, height, width = min(product(*sides), key=unlike)
        return cls(tubelet, (height, width))

    def tokens(self, video: Tensor) -> Tensor:
        p, q = self.patch_size
        return rearrange(video, "b (t r) c (h p) (w q) -> b (t h w) (r p q c)", r=self.tubelet, p=p, q=q)


class EncoderFeatureExtractor(FeatureExtractor):
    """A V-JEPA encoder's output; a layer's number takes that layer's instead."""

    def __init__(self, encoder: FrameEncoder, layer: int | None = None) -> None:
        super().__init__({"encoder": encoder}, len(encoder.blocks) if isinstance(encoder, VideoEncoder) else 0, layer)
        self.image_size = encoder.image_size
        if isinstance(encoder, VideoEncoder):
            self.frames = encoder.frames

    def tokens(self, video: Tensor) -> Tensor:
        encoder: Any = self.networks["encoder"]
        video = video.to(encoder.device)
        return encoder(video) if self.layer is None else encoder.layers(video, [self.layer])[0]


class TokenizerFeatureExtractor(FeatureExtractor):
    """A tokenizer's latents; of a discrete one, the codes that its tokens stand for."""

    def __init__(self, tokenizer: VideoTokenizer, layer: int | None = None) -> None:
        super().__init__({"tokenizer": tokenizer}, 0, layer)
        self.image_size = tokenizer.image_size
        if tokenizer.time_compression > 1:
            self.frames = 1 + tokenizer.time_compression  # the first latent is of the first frame alone

    def tokens(self, video: Tensor) -> Tensor:
        tokenizer: Any = self.networks["tokenizer"]
        latents = tokenizer.encode(video.to(tokenizer.device))
        if tokenizer.codebook_size:
            latents = tokenizer.quantizer.lookup(latents)
        return rearrange(latents, "b t h w d -> b (t h w) d")


class GenieFeatureExtractor(FeatureExtractor):
    """What a layer of Genie's dynamics makes of whole frames; by default at two thirds of the depth.

    Actions are those that the world infers itself, where it does.
    """

    def __init__(self, simulator: GenieSimulator, layer: int | None = None) -> None:
        depth = len(simulator.dynamics.transformer.blocks)
        super().__init__(simulator.networks(), depth, default_probe_layer(depth) if layer is None else layer)
        self.image_size = simulator.spec.context.image_size

    def tokens(self, video: Tensor) -> Tensor:
        dynamics: MaskGITDynamics = self.networks["dynamics"]
        video = video.to(dynamics.device)
        tokens, infers = self.networks["tokenizer"].encode(video).flatten(2), self.networks.get("latent_action")
        actions = infers.infer(video).indices if infers is not None and video.shape[1] > 1 else None
        with capture_block_outputs(dynamics.transformer.blocks, self.layer) as seen:
            state = dynamics.observe(dynamics.init_state(len(video)), tokens[:, :1], None)
            if video.shape[1] > 1:
                dynamics.observe(state, tokens[:, 1:], actions)
        return torch.cat(seen, dim=1).flatten(1, 2)


class DiTFeatureExtractor(FeatureExtractor):
    """What a layer of a diffusion world makes of frames; by default at two thirds of the depth.

    The frames have the noise that the past has in play, the same noise for every clip.
    """

    def __init__(self, simulator: DiTSimulator, layer: int | None = None) -> None:
        depth = len(simulator.dynamics.transformer.blocks)
        networks = {name: part for name, part in simulator.networks().items() if name not in ("outcomes", "policy")}
        super().__init__(networks, depth, default_probe_layer(depth) if layer is None else layer)
        self.image_size, self.context_noise = simulator.spec.context.image_size, simulator.sampling.context_noise

    def tokens(self, video: Tensor) -> Tensor:
        dynamics: DiT = self.networks["dynamics"]
        batch, frames = video.shape[:2]
        latents = self.networks["tokenizer"].encode(video.to(dynamics.device))
        lead, seed = (
            dynamics.embed_previous_actions(None, batch, frames),
            torch.zeros(batch, dtype=torch.int64, device=dynamics.device),
        )
        with capture_block_outputs(dynamics.transformer.blocks, self.layer) as seen:
            observe_latents(dynamics, dynamics.init_state(batch), latents, lead, seed, self.context_noise)
        return torch.cat(seen, dim=1)[:, :, dynamics.registers : len(dynamics.places)].flatten(1, 2)


@contextmanager
def capture_block_outputs(blocks: nn.ModuleList, layer: int | None) -> Iterator[list[Tensor]]:
    """Collect what one of the blocks puts out, [b, t, n, d] a call, while the block of the with-statement runs."""
    assert layer is not None
    seen: list[Tensor] = []
    hook = blocks[layer].register_forward_hook(
        lambda _module, _inputs, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        yield seen
    finally:
        hook.remove()


def default_probe_layer(depth: int) -> int:
    """The layer that ends the first two thirds: where generative networks know most of a scene, as a rule."""
    return max(round(depth * 2 / 3), 1) - 1


def load_feature_extractor(
    path: str | os.PathLike[str], layer: int | None = None, image_size: tuple[int, int] | None = None
) -> FeatureExtractor:
    """Features of whatever a folder holds.

    Args:
        path: a bundle with a V-JEPA ``encoder/``, a world (or the name of a shipped one), or a tokenizer.
        layer: see ``FeatureExtractor``.
        image_size: (H, W) of the data, for published autoencoders, which suit any.

    Raises:
        ValueError: the folder holds nothing of that kind, or something broken; or there is no such layer.
    """
    folder = Path(path)
    if (folder / "encoder" / COMPONENT_CONFIG_FILE).is_file():
        return EncoderFeatureExtractor(load_frame_encoder(str(folder)), layer)
    if not (folder / "model_index.json").is_file():
        try:
            return TokenizerFeatureExtractor(load_tokenizer(folder, image_size), layer)
        except FileNotFoundError:
            pass  # perhaps the name of a shipped world
    try:
        simulator = load_simulator(folder, "cpu")
    except BundleError as error:
        if (folder / "model_index.json").is_file():
            raise
        raise ValueError(
            f"{folder} holds nothing to probe: neither a V-JEPA bundle (encoder/{COMPONENT_CONFIG_FILE}), nor a world "
            f"(model_index.json), nor a tokenizer ({COMPONENT_CONFIG_FILE}). Make one from a training run: "
            f"vwm export RUN -o {folder}"
        ) from error
    if isinstance(simulator, GenieSimulator):
        return GenieFeatureExtractor(simulator, layer)
    if isinstance(simulator, DiTSimulator):
        return DiTFeatureExtractor(simulator, layer)
    raise ValueError(f"{folder} holds a {type(simulator).__name__}, whose features nobody has named yet")


def _divisors(number: int) -> Sequence[int]:
    return [i for i in range(1, number + 1) if number % i == 0]
