"""Weights of other projects that vwm loads in their published layout.

A test compares the layouts with what the loaders support. Licenses, and the sizes of V-JEPA, are those that the
publishers state; parameters of autoencoders were counted on diffusers' classes with the published settings. No test
downloads the weights.
"""

from __future__ import annotations

from typing import NamedTuple


class PublishedWeights(NamedTuple):
    """A published layout that vwm loads."""

    name: str
    layout: str
    """A class of diffusers or transformers, or the kind of checkpoint."""
    kind: str
    parameters: str
    license: str
    example: str
    """A repository on the hub or a file that has it; empty where none was checked."""
    loads_with: str
    limits: str = ""


_DIFFUSERS = "--tokenizer {}, of vwm fit, encode and ingest; vwm.tokenizers.load_tokenizer"
_WORLD = "vwm import-world {} FOLDER OUT"
_IMPORT = "python tools/import_vjepa.py {} OUT"

PUBLISHED_WEIGHTS = (
    PublishedWeights(
        name="Stable Diffusion VAE",
        layout="AutoencoderKL",
        kind="tokenizer, frame by frame",
        parameters="84M",
        license="MIT (sd-vae-ft-mse)",
        example="stabilityai/sd-vae-ft-mse",
        loads_with=_DIFFUSERS.format("NAME"),
    ),
    PublishedWeights(
        name="Wan 2.1 and 2.2 VAE",
        layout="AutoencoderKLWan",
        kind="tokenizer, 4 frames a latent",
        parameters="127M (2.1), 705M (2.2)",
        license="Apache 2.0",
        example="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        loads_with=_DIFFUSERS.format("NAME"),
    ),
    PublishedWeights(
        name="CogVideoX VAE",
        layout="AutoencoderKLCogVideoX",
        kind="tokenizer, 4 frames a latent",
        parameters="216M",
        license="2B: Apache 2.0; 5B: CogVideoX license",
        example="zai-org/CogVideoX-2b",
        loads_with=_DIFFUSERS.format("NAME"),
    ),
    PublishedWeights(
        name="Cosmos tokenizer",
        layout="AutoencoderKLCosmos",
        kind="tokenizer, 4 or 8 frames a latent",
        parameters="106M",
        license="NVIDIA Open Model License",
        example="nvidia/Cosmos-1.0-Diffusion-7B-Text2World",
        loads_with=_DIFFUSERS.format("NAME"),
    ),
    PublishedWeights(
        name="HunyuanVideo VAE",
        layout="AutoencoderKLHunyuanVideo",
        kind="tokenizer, 4 frames a latent",
        parameters="246M",
        license="Tencent Hunyuan Community License",
        example="",
        loads_with=_DIFFUSERS.format("NAME"),
    ),
    PublishedWeights(
        name="HunyuanVideo 1.5 VAE",
        layout="AutoencoderKLHunyuanVideo15",
        kind="tokenizer, 4 frames a latent",
        parameters="1.3B",
        license="Tencent Hunyuan Community License",
        example="",
        loads_with=_DIFFUSERS.format("NAME"),
    ),
    PublishedWeights(
        name="LTX-Video VAE",
        layout="AutoencoderKLLTXVideo",
        kind="tokenizer, 8 frames a latent",
        parameters="419M (default settings)",
        license="LTX-Video licenses, by version",
        example="",
        loads_with=_DIFFUSERS.format("NAME"),
        limits="decodes whole clips only: the published decoders are not causal",
    ),
    PublishedWeights(
        name="Representation autoencoders (RAE)",
        layout="AutoencoderRAE",
        kind="tokenizer, frame by frame",
        parameters="113M (default settings)",
        license="that of the weights",
        example="",
        loads_with=_DIFFUSERS.format("NAME"),
        limits="encoders of dinov2 and mae; requires transformers",
    ),
    PublishedWeights(
        name="TAEHV",
        layout="TAEHV decoder (.safetensors, .pth)",
        kind="fast decoder of the latents of Wan, CogVideoX, HunyuanVideo 1.5 and LTX",
        parameters="9.8M (Wan 2.1)",
        license="MIT",
        example="",
        loads_with="vwm.tokenizers.video_vae.TinyDecoderTokenizer",
    ),
    PublishedWeights(
        name="DINOv2 and others of timm",
        layout="timm vision transformer (.safetensors)",
        kind="encoder of frames",
        parameters="by model",
        license="that of the weights",
        example="",
        loads_with="python tools/import_timm.py MODEL FILE OUT",
    ),
    PublishedWeights(
        name="V-JEPA",
        layout="official checkpoint (.pth.tar)",
        kind="encoder and predictor",
        parameters="300M to 630M",
        license="CC BY-NC 4.0",
        example="",
        loads_with=_IMPORT.format("FILE"),
    ),
    PublishedWeights(
        name="V-JEPA 2",
        layout="official checkpoint (.pt)",
        kind="encoder, predictor and attentive probes",
        parameters="300M to 1B",
        license="MIT",
        example="",
        loads_with=_IMPORT.format("FILE"),
    ),
    PublishedWeights(
        name="V-JEPA 2 (transformers)",
        layout="VJEPA2Model, VJEPA2ForVideoClassification",
        kind="encoder, predictor and classifier",
        parameters="300M to 1B",
        license="MIT",
        example="facebook/vjepa2-vitl-fpc64-256",
        loads_with=_IMPORT.format("NAME"),
    ),
    PublishedWeights(
        name="V-JEPA 2.1",
        layout="official checkpoint (.pt)",
        kind="encoder and predictor",
        parameters="80M to 2B",
        license="MIT",
        example="",
        loads_with=f"{_IMPORT.format('FILE')} --image-size 384",
    ),
    PublishedWeights(
        name="V-JEPA 2-AC",
        layout="official checkpoint (.pt)",
        kind="world of robot arms, in representation space",
        parameters="1B and 300M",
        license="MIT",
        example="",
        loads_with=_WORLD.format("vjepa"),
        limits="no images: for planning; tools/import_vjepa.py gives its networks for training",
    ),
    PublishedWeights(
        name="Oasis 500M",
        layout="vit-l-20 and oasis500m (.safetensors, .pt)",
        kind="world: Minecraft by keys and mouse, 360x640",
        parameters="229M and 608M",
        license="MIT",
        example="Etched/oasis-500m",
        loads_with=_WORLD.format("oasis"),
    ),
    PublishedWeights(
        name="DIAMOND, Atari",
        layout="atari_100k/models/GAME.pt",
        kind="26 worlds of Atari games with rewards, ends and a policy, 64x64",
        parameters="14M each",
        license="MIT",
        example="eloialonso/diamond",
        loads_with=f"{_WORLD.format('diamond')} --variant GAME",
    ),
    PublishedWeights(
        name="DIAMOND, Counter-Strike",
        layout="csgo/model/csgo.pt",
        kind="world: Counter-Strike by keys and mouse, 150x280",
        parameters="331M and 51M",
        license="MIT",
        example="eloialonso/diamond",
        loads_with=f"{_WORLD.format('diamond')} --variant csgo",
    ),
    PublishedWeights(
        name="Dreamer 4 in PyTorch",
        layout="tokenizer_ckpt.pt and dynamics_ckpt.pt",
        kind="worlds: 30 control tasks, 128x128",
        parameters="21M and 43M (default settings)",
        license="MIT",
        example="nicklashansen/dreamer4",
        loads_with=_WORLD.format("dreamer4"),
    ),
    PublishedWeights(
        name="mmbench2",
        layout="tokenizer.pt and dynamics.pt",
        kind="worlds: 210 control tasks with rewards and a cloned policy, 224x224",
        parameters="100M and 250M",
        license="MIT",
        example="nicklashansen/mmbench2-models",
        loads_with=_WORLD.format("dreamer4"),
    ),
    PublishedWeights(
        name="Waypoint 1",
        layout="config.yaml, model.safetensors, encoder.safetensors and decoder.safetensors",
        kind="world: by keyboard, mouse and text, 360x640",
        parameters="2.3B",
        license="Apache 2.0",
        example="Overworld/Waypoint-1-Small",
        loads_with=_WORLD.format("waypoint"),
        limits="of a text it takes the embedding",
    ),
)
