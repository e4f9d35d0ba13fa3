"""Implement ``vwm encode``: add latents to shards, so that dynamics train without decoding and tokenizing video."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.core.atomic_files import atomic_write_text, remove_folder_leftovers
from vwm.core.checks import check_positive
from vwm.core.command_output import format_command, format_count, print_output, progress_bar
from vwm.core.devices import resolve_device
from vwm.core.folder_lock import lock_folder
from vwm.core.frames import frames_to_float
from vwm.core.json_files import read_json_object
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.clip_models import ClipAdditions, extend_sample
from vwm.data.data_set_checks import ENCODING_FILE
from vwm.data.shard_index import ShardIndex, is_shard_complete, list_shards, load_shard_index
from vwm.data.shards import ShardWriter
from vwm.data.video_formats import VIDEO_EXTENSIONS
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

    Latents are tokens, int32 [T, h, w], or continuous, float16 [T, h, w, c]; row i belongs to frame i. Of a tokenizer
    with k frames per latent there are 1 + (T - 1) // k rows: row 0 holds frame 0, row i the frames k (i - 1) + 1 to
    k i, and up to k - 1 last frames fill no latent. Actions and rewards stay one per frame; the metadata
    (``frames_per_latent``) say how clips cut both. For a
    ``FrameVAE`` the standard deviations of the posterior are also saved (``latents_std.npy``), so that a dynamics model
    can sample latents in each batch.

    An interrupted run is continued by running it again: complete shards are skipped, and a shard whose source has
    changed since is encoded again.

    Args:
        data: shards to encode: a folder, a tar, a pattern, or an fsspec address.
        tokenizer: a bundle, or the folder of a tokenizer, a diffusers autoencoder or a diffusers pipeline.
        out: the output folder.
        keep_video: also copy the frames, from which latent actions are learned; ``--no-keep-video`` leaves them out.
        chunk: frames encoded at a time. All values give the same latents, because the encoder streams.
        device: where to compute; see ``resolve_device``.

    Raises:
        ValueError: ``out`` holds latents of another tokenizer or of other shards, or two shards have the same name.
    """
    paths = write_encoded_shards(data, tokenizer, out, keep_video, chunk, device)
    print_output(
        out, format_count(len(paths), "shard"), format_training_on_latents(out, tokenizer, paths[0], keep_video)
    )


def format_training_on_latents(data: Path, tokenizer: Path, shard: str, keep_video: bool = True) -> str:
    """Return the command that trains on encoded shards, with the fields that one of them, or its source, has."""
    members = load_shard_index(shard).episodes[0].members
    fields = [*(["frames"] if keep_video else []), *(["actions"] if "actions.npy" in members else []), "latents"]
    words = ("fit", "-c", "CONFIG", "--data", data, "--tokenizer", tokenizer)
    return format_command(*words, "--data.fields", f"[{', '.join(fields)}]")


def write_encoded_shards(
    data: str, tokenizer: Path, out: Path, keep_video: bool = True, chunk: int = 64, device: str = "auto"
) -> list[str]:
    """Encode as ``encode_shards`` does, without a word; return the shards that were to be encoded."""
    check_positive(chunk=chunk)
    paths = list_shards(data)
    names = [path.rsplit("/", 1)[-1] for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{data}: several shards are called {max(names, key=names.count)}: encode one folder at a time"
        )
    if out.resolve() in {Path(path).resolve().parent for path in paths if "://" not in path}:
        raise ValueError(f"--out {out} is the folder of the shards to encode: choose another folder")
    first = load_shard_index(paths[0]).episodes[0]
    network = load_tokenizer(tokenizer, image_size=(first.height, first.width))
    network.to(resolve_device(device))
    with lock_folder(out, "encoding"):
        remove_folder_leftovers(out)
        sources = _check_encoding_metadata(out, network, data)
        for path in progress_bar(paths, desc="encode", unit="shard"):
            target, index = out / path.rsplit("/", 1)[-1], load_shard_index(path)
            if sources.get(target.name) != index.hash or not is_shard_complete(target):
                _encode_shard(path, index, target, network, keep_video, chunk)
                sources[target.name] = index.hash
                _write_encoding_metadata(out, network, data, sources)
    return paths


def _check_encoding_metadata(out: Path, tokenizer: VideoTokenizer, shards: str) -> dict[str, str]:
    """Return the hash of the source of each encoded shard, by file name.

    Raises:
        ValueError: the folder has latents of another tokenizer or of other shards.
    """
    file = out / ENCODING_FILE
    if not file.is_file():
        _write_encoding_metadata(out, tokenizer, shards, {})
        return {}
    found = read_json_object(file)
    if (found.get("shards"), found.get("fingerprint")) != (shards, tokenizer_fingerprint(tokenizer)):
        raise ValueError(f"{out} holds latents of another tokenizer or of other shards ({file}): choose another --out")
    sources: dict[str, str] = found.get("sources", {})
    return sources


def _write_encoding_metadata(out: Path, tokenizer: VideoTokenizer, shards: str, sources: dict[str, str]) -> None:
    write_latents_metadata(out, shards, tokenizer_fingerprint(tokenizer), sources)


def write_latents_metadata(
    out: Path, source: str | Path, fingerprint: str, sources: Mapping[str, str] | None = None
) -> None:
    """Write ``encoding.json``, by which readers tell whether data sets hold latents of one tokenizer.

    Args:
        out: folder of the encoded shards.
        source: shards or videos that were encoded.
        fingerprint: see ``tokenizer_fingerprint``.
        sources: hash of the source of each shard, by file name, of ``vwm encode``.
    """
    metadata = {"shards": str(source), "fingerprint": fingerprint, "sources": dict(sources or {})}
    atomic_write_text(out / ENCODING_FILE, json.dumps(metadata, indent=1) + "\n")


def tokenizer_fingerprint(tokenizer: VideoTokenizer) -> str:
    """Return a hash of everything that latents depend on: the class of the tokenizer, its config and its weights."""
    settings = {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}
    digest = hashlib.blake2b(f"{type(tokenizer).__name__} {json.dumps(settings, sort_keys=True)}".encode())
    for name, weight in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _encode_shard(
    path: str, index: ShardIndex, target: Path, tokenizer: VideoTokenizer, keep_video: bool, chunk: int
) -> None:
    encode = partial(encode_clip, tokenizer, chunk=chunk)
    with ShardWriter(target) as writer:
        for entry in progress_bar(index.episodes, desc=target.name, unit="episode", leave=False):
            sample = extend_sample(path, entry, [encode])
            if not keep_video:
                for extension in ("frames.npy", *VIDEO_EXTENSIONS):
                    sample.pop(extension, None)
            writer.write_sample(sample)


def encode_clip(tokenizer: VideoTokenizer, frames: NDArray[np.uint8], chunk: int = 64) -> ClipAdditions:
    """Encode uint8 [T, H, W, 3] to the latents of a sample, and the metadata that readers of them require."""
    meta: dict[str, Any] = {}
    if tokenizer.time_compression > 1:
        count, height, width, _ = frames.shape
        meta = {"frames": count, "height": height, "width": width, "frames_per_latent": tokenizer.time_compression}
    if isinstance(tokenizer, FrameVAE):
        mean, std = encode_posterior(tokenizer, frames, chunk)
        return ClipAdditions({"latents.npy": mean, "latents_std.npy": std}, meta)
    return ClipAdditions({"latents.npy": encode_episode(tokenizer, frames, chunk)}, meta)


@torch.inference_mode()
def encode_episode(
    tokenizer: VideoTokenizer, frames: NDArray[np.uint8], chunk: int
) -> NDArray[np.int32] | NDArray[np.float16]:
    """Encode uint8 [T, H, W, 3], ``chunk`` frames at a time, to int32 [T', h, w] or float16 [T', h, w, c]."""
    state, parts = tokenizer.init_encoder(1), []
    for start in range(0, len(frames), chunk):
        video = frames_to_float(torch.from_numpy(np.array(frames[start : start + chunk]))[None].to(tokenizer.device))
        state, latents = tokenizer.encode_step(state, video)
        parts.append(latents[0].cpu().numpy())
    rows = np.concatenate(parts)
    # Latents have unit standard deviation. Rounding errors of float16 are far below the errors of a tokenizer.
    return rows.astype(np.int32 if tokenizer.codebook_size else np.float16)


@torch.inference_mode()
def encode_posterior(
    tokenizer: FrameVAE, frames: NDArray[np.uint8], chunk: int
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return posterior means and standard deviations of uint8 [T, H, W, 3], float16 [T, 1, 1, z] each."""
    chunks = (torch.from_numpy(np.array(frames[i : i + chunk]))[None] for i in range(0, len(frames), chunk))
    posteriors = [tokenizer.posterior(frames_to_float(x.to(tokenizer.device))) for x in chunks]
    mean, std = (torch.cat(parts, dim=1)[0].cpu().numpy().astype(np.float16) for parts in zip(*posteriors, strict=True))
    return mean, std
