"""``vwm encode``: shards with tokens beside the video, so that dynamics train without decoding or tokenizing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vwm.data.clips import read_member, read_video
from vwm.data.index import ShardIndex, list_shards, read_index
from vwm.data.shards import ShardWriter
from vwm.data.video import VIDEO_EXTENSIONS
from vwm.nn.patches import to_float
from vwm.tokenizer.interface import VideoTokenizer
from vwm.tokenizer.load import load_tokenizer


def encode(
    shards: str,
    tokenizer: Path = Path("runs/bundle"),
    out: Path = Path("data/encoded"),
    keep_video: bool = True,
    chunk: int = 64,
    device: str = "auto",
) -> None:
    """Write a copy of shards in which every episode also has its tokens (``latents.npy``).

    Run it again to go on where it stopped: shards that are whole are passed over.

    Args:
        shards: what to encode: a folder, a tar, a pattern, or an fsspec address.
        tokenizer: a bundle, or a tokenizer's folder.
        out: the folder to make.
        keep_video: copy the frames too (latent actions are learned from pixels).
        chunk: frames encoded at a time; any number gives the same tokens, since the encoder streams.
        device: "auto" takes a GPU where there is one.
    """
    network = load_tokenizer(tokenizer)
    network.to("cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device)
    _check_recipe(out, network, shards)
    paths = list_shards(shards)
    for path in tqdm(paths, desc="encode", unit="shard"):
        target = out / path.rsplit("/", 1)[-1]
        if not target.exists():
            _encode_shard(path, read_index(path), target, network, keep_video, chunk)
    print(f"{len(paths)} shards in {out}; train on them with --data.fields '[frames, actions, latents]'")


def _check_recipe(out: Path, tokenizer: VideoTokenizer, shards: str) -> None:
    """Refuse to mix the tokens of two tokenizers in one folder."""
    weights = tokenizer.paint.weight.double().sum() + tokenizer.embed.weight.double().sum()
    recipe = {"shards": shards, "fingerprint": float(weights), "codebook_size": tokenizer.codebook_size}
    file = out / "encoding.json"
    if file.is_file() and json.loads(file.read_text()) != recipe:
        raise ValueError(f"{out} holds tokens of another tokenizer or of other shards ({file}): choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".tmp")
    aside.write_text(json.dumps(recipe))
    aside.rename(file)


def _encode_shard(
    path: str, index: ShardIndex, target: Path, tokenizer: VideoTokenizer, keep_video: bool, chunk: int
) -> None:
    video = {"frames.npy", *VIDEO_EXTENSIONS}
    with ShardWriter(target) as writer:
        for entry in tqdm(index.episodes, desc=target.name, unit="episode", leave=False):
            members = {e: where for e, where in entry.members.items() if keep_video or e not in video}
            sample: dict[str, Any] = {"__key__": entry.key}
            # Members are copied byte for byte.
            sample |= {extension: read_member(path, where) for extension, where in members.items()}
            sample["latents.npy"] = encode_episode(tokenizer, read_video(path, entry), chunk)
            writer.write_sample(sample)


@torch.inference_mode()
def encode_episode(tokenizer: VideoTokenizer, frames: NDArray[np.uint8], chunk: int) -> NDArray[np.int32]:
    """Tokens of uint8 [T, H, W, 3], streamed ``chunk`` frames at a time: int32 [T, h, w]."""
    state, parts = tokenizer.init_encoder(1), []
    for start in range(0, len(frames), chunk):
        video = to_float(
            torch.from_numpy(np.array(frames[start : start + chunk]))[None].to(tokenizer.paint.weight.device)
        )
        state, tokens = tokenizer.encode_step(state, video)
        parts.append(tokens[0].cpu().numpy())
    return np.concatenate(parts).astype(np.int32)
