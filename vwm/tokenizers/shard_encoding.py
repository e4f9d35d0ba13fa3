"""``vwm encode``: shards with latents beside the video, so that dynamics train without decoding or tokenizing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vwm.core.atomic_files import atomic_write_text
from vwm.core.devices import resolve_device
from vwm.core.frames import frames_to_float
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.frame_reading import read_episode_frames
from vwm.data.shard_index import ShardIndex, list_shards, load_shard_index
from vwm.data.shard_reading import read_bytes
from vwm.data.shards import ShardWriter
from vwm.data.video import VIDEO_EXTENSIONS
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.loading import load_tokenizer


def encode_shards(
    data: str,
    tokenizer: Path = Path("runs/bundle"),
    out: Path = Path("data/encoded"),
    keep_video: bool = True,
    chunk: int = 64,
    device: str = "auto",
) -> None:
    """Write a copy of shards in which every episode also has its latents (``latents.npy``).

    They are tokens, int32 [T, h, w], or continuous, float16 [T, h, w, c]: row i is of frame i. Of a vector a frame
    (``FrameVAE``) the posterior's deviations are kept too (``latents_std.npy``), so that a dynamics can draw latents
    anew in every batch.

    Run it again to go on where it stopped: shards that are whole are passed over.

    Args:
        data: shards to encode: a folder, a tar, a pattern, or an fsspec address.
        tokenizer: a bundle, a tokenizer's folder, or that of a diffusers autoencoder or pipeline.
        out: the folder to make.
        keep_video: copy the frames too (latent actions are learned from pixels).
        chunk: frames encoded at a time; any number gives the same latents, since the encoder streams.
        device: "auto" takes a GPU where there is one.

    Raises:
        ValueError: ``out`` holds latents of something else, two shards have one name, or the tokenizer joins several
            frames in a latent.
    """
    paths = list_shards(data)
    names = [path.rsplit("/", 1)[-1] for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"{data}: several shards are called {max(names, key=names.count)}: encode a folder at a time")
    first = load_shard_index(paths[0]).episodes[0]
    network = load_tokenizer(tokenizer, image_size=(first.height, first.width))
    if network.time_compression > 1:
        raise ValueError(
            f"{tokenizer} makes one latent of {network.time_compression} frames, and encoded shards hold a row a "
            f"frame: take one with time_compression=1, or train on the video itself (--data.fields '[frames, actions]')"
        )
    network.to(resolve_device(device))
    _check_encoding_metadata(out, network, data)
    for path in tqdm(paths, desc="encode", unit="shard"):
        target = out / path.rsplit("/", 1)[-1]
        if not target.exists():
            _encode_shard(path, load_shard_index(path), target, network, keep_video, chunk)
    print(f"{len(paths)} shards in {out}; train on them with --data.fields '[frames, actions, latents]'")


def _check_encoding_metadata(out: Path, tokenizer: VideoTokenizer, shards: str) -> None:
    """Refuse to mix the latents of two tokenizers in one folder."""
    recipe = {"shards": shards, "fingerprint": tokenizer_fingerprint(tokenizer)}
    file = out / "encoding.json"
    if file.is_file() and json.loads(file.read_text()) != recipe:
        raise ValueError(f"{out} holds latents of another tokenizer or of other shards ({file}): choose another --out")
    atomic_write_text(file, json.dumps(recipe))


def tokenizer_fingerprint(tokenizer: VideoTokenizer) -> str:
    """A hash of the class, its settings and its weights: what latents depend on."""
    settings = {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}
    digest = hashlib.blake2b(f"{type(tokenizer).__name__} {json.dumps(settings, sort_keys=True)}".encode())
    for name, weight in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _encode_shard(
    path: str, index: ShardIndex, target: Path, tokenizer: VideoTokenizer, keep_video: bool, chunk: int
) -> None:
    video = {"frames.npy", *VIDEO_EXTENSIONS}
    with ShardWriter(target) as writer:
        for entry in tqdm(index.episodes, desc=target.name, unit="episode", leave=False):
            members = {e: where for e, where in entry.members.items() if keep_video or e not in video}
            sample: dict[str, Any] = {"__key__": entry.key}
            # Members are copied byte for byte.
            sample |= {extension: read_bytes(path, *where) for extension, where in members.items()}
            if isinstance(tokenizer, FrameVAE):
                mean, std = encode_posterior(tokenizer, read_episode_frames(path, entry), chunk)
                sample |= {"latents.npy": mean, "latents_std.npy": std}
            else:
                sample["latents.npy"] = encode_episode(tokenizer, read_episode_frames(path, entry), chunk)
            writer.write_sample(sample)


@torch.inference_mode()
def encode_episode(
    tokenizer: VideoTokenizer, frames: NDArray[np.uint8], chunk: int
) -> NDArray[np.int32] | NDArray[np.float16]:
    """Latents of uint8 [T, H, W, 3], streamed ``chunk`` frames at a time: int32 [T, h, w] or float16 [T, h, w, c]."""
    state, parts = tokenizer.init_encoder(1), []
    for start in range(0, len(frames), chunk):
        video = frames_to_float(torch.from_numpy(np.array(frames[start : start + chunk]))[None].to(tokenizer.device))
        state, latents = tokenizer.encode_step(state, video)
        parts.append(latents[0].cpu().numpy())
    rows = np.concatenate(parts)
    # Of unit deviation, so float16 rounds them by a two-thousandth, far below what a tokenizer loses.
    return rows.astype(np.int32 if tokenizer.codebook_size else np.float16)


@torch.inference_mode()
def encode_posterior(
    tokenizer: FrameVAE, frames: NDArray[np.uint8], chunk: int
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Means and deviations of uint8 [T, H, W, 3], float16 [T, 1, 1, z] each, ``chunk`` frames at a time."""
    pieces = (frames[start : start + chunk] for start in range(0, len(frames), chunk))
    said = [
        tokenizer.posterior(frames_to_float(torch.from_numpy(np.array(p))[None].to(tokenizer.device))) for p in pieces
    ]
    mean, std = (torch.cat(parts, dim=1)[0].cpu().numpy().astype(np.float16) for parts in zip(*said, strict=True))
    return mean, std
