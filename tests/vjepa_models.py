"""Small V-JEPA networks shared by tests, in float64, with large weights so that attention is not uniform."""

from __future__ import annotations

import math

import torch
from factories import randomize

from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.video_encoder import VideoEncoder

SIZE, PATCH, FRAMES, WIDTH, DEPTH, HEADS = (16, 24), 8, 8, 48, 3, 4
AC_WIDTH, AC_HEADS, AC_DEPTH = 56, 2, 3
"""Heads of 28 channels: 8 of them for each axis, and 4 that are not rotated."""
KINDS = {
    "rope": {},
    "tiled-rope": {"tiled_rope": True},
    "sincos": {"positions": "sincos"},
    "sincos-uniform": {"positions": "sincos", "uniform_power": True},
    "swiglu": {"mlp": "swiglu"},
    "imagenet": {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)},
    "2.1": {"modality_embeddings": True, "feature_layers": [0], "rope_reference_grid": (5, 5)},
}


def enlarge(network: torch.nn.Module) -> torch.nn.Module:
    """Randomize constant weights, and scale linear layers so that their outputs have the scale of their inputs."""
    randomize(network)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.div_(module.weight.std() * module.in_features**0.5)
    return network.double()


def encoder(**changes) -> VideoEncoder:
    torch.manual_seed(0)
    sizes = {"image_size": SIZE, "patch_size": PATCH, "frames": FRAMES, "width": WIDTH, "depth": DEPTH, "heads": HEADS}
    return enlarge(VideoEncoder(**(sizes | changes)))


def predictor(**changes) -> MaskedPredictor:
    torch.manual_seed(1)
    sizes = {"image_size": SIZE, "patch_size": PATCH, "frames": FRAMES, "width": 24, "depth": 2, "heads": 2}
    return enlarge(MaskedPredictor(encoder_width=WIDTH, **(sizes | changes)))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, total: int, *counts: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Disjoint random sets of token indices for each clip, int64 [batch, count] per count."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(total, generator=generator) for _ in range(batch)])
    return orders[:, : sum(counts)].split(counts, dim=1)


def published_weights() -> dict[str, torch.Tensor]:
    """Random weights of V-JEPA 2-AC's predictor by their published names, for the encoder above."""
    sizes = {"predictor_embed": (AC_WIDTH, WIDTH), "predictor_proj": (WIDTH, AC_WIDTH)}
    sizes |= {"action_encoder": (AC_WIDTH, 7), "state_encoder": (AC_WIDTH, 7)}
    sizes |= {"extrinsics_encoder": (AC_WIDTH, 6), "predictor_norm": (AC_WIDTH,)}
    for block in (f"predictor_blocks.{number}" for number in range(AC_DEPTH)):
        sizes |= {f"{block}.norm1": (AC_WIDTH,), f"{block}.norm2": (AC_WIDTH,)}
        sizes |= {f"{block}.attn.qkv": (3 * AC_WIDTH, AC_WIDTH), f"{block}.attn.proj": (AC_WIDTH, AC_WIDTH)}
        sizes |= {f"{block}.mlp.fc1": (4 * AC_WIDTH, AC_WIDTH), f"{block}.mlp.fc2": (AC_WIDTH, 4 * AC_WIDTH)}
    weights = {}
    for seed, (name, size) in enumerate(sizes.items()):
        weights[f"module.{name}.weight"] = random(*size, seed=seed) / math.sqrt(size[-1] if len(size) > 1 else 1)
        weights[f"module.{name}.bias"] = random(size[0], seed=100 + seed)
    return weights


def published_ac_checkpoint(patch_size: int = 128) -> dict[str, object]:
    """A checkpoint in the layout of ``vjepa2-ac-vitg.pt``, narrow and with few and large patches."""
    torch.manual_seed(0)
    network = enlarge(
        VideoEncoder(image_size=(256, 256), patch_size=patch_size, frames=64, width=192, depth=1, heads=3)
    )
    width, sizes = 96, {"predictor_embed": (96, 192), "predictor_proj": (192, 96), "predictor_norm": (96,)}
    sizes |= {"action_encoder": (width, 7), "state_encoder": (width, 7), "extrinsics_encoder": (width, 6)}
    sizes |= {"predictor_blocks.0.norm1": (width,), "predictor_blocks.0.norm2": (width,)}
    sizes |= {"predictor_blocks.0.attn.qkv": (3 * width, width), "predictor_blocks.0.attn.proj": (width, width)}
    sizes |= {"predictor_blocks.0.mlp.fc1": (4 * width, width), "predictor_blocks.0.mlp.fc2": (width, 4 * width)}
    weights = {}
    for seed, (name, size) in enumerate(sizes.items()):
        weights[f"module.{name}.weight"] = random(*size, seed=seed).float() / math.sqrt(
            size[-1] if len(size) > 1 else 1
        )
        weights[f"module.{name}.bias"] = random(size[0], seed=100 + seed).float()
    encoder_weights = {f"module.backbone.{name}": weight for name, weight in network.float().state_dict().items()}
    return {"encoder": encoder_weights, "target_encoder": encoder_weights, "predictor": weights, "epoch": 315}
