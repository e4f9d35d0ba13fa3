"""``vwm fit --encode-ahead``: encode the data once before a training, instead of in every step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vwm.core.command_output import format_size, size_on_disk
from vwm.core.folder_lock import FolderInUseError
from vwm.data.datamodule import VideoDataModule
from vwm.data.mixtures import DataPath
from vwm.nn.training_module import TrainingModule
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.loading import load_tokenizer
from vwm.tokenizers.shard_encoding import tokenizer_fingerprint, write_encoded_shards

WAIT_SECONDS = 2.0
"""Time between two looks at a folder into which another process encodes."""


def encode_data_ahead(module: TrainingModule, data: Any, config: Any, run: Path) -> None:
    """Let a training read latents that are encoded once, in a folder next to its shards.

    The folder, ``NAME_latents_FINGERPRINT``, also holds the video, from which bundles take their starts, and is used by
    every run with the same data and tokenizer. Shards that are complete and whose source has not changed are kept.
    Where several processes train together, one encodes and the others wait.

    Args:
        module: has a frozen tokenizer, which was loaded from a folder.
        data: the data module; its paths and fields are changed.
        config: ``data.init_args`` of the config that the run saves; they are changed, too.
        run: folder of the run, in which latents of data at remote addresses or of patterns are kept.

    Raises:
        ValueError: the training has no frozen tokenizer of a folder, or reads no frames that could be encoded.
    """
    folder, tokenizer = frozen_tokenizer_folder(module, data), module.frozen_tokenizer
    if folder is None or tokenizer is None:
        raise ValueError(
            "encode_ahead encodes the frames of a training whose frozen tokenizer was loaded from a folder, and this "
            "one has none, or reads latents already: leave it out"
        )
    if next(tokenizer.parameters(), torch.empty(0)).is_meta:  # of a sharded training, in all processes but the first
        with torch.device("cpu"):
            tokenizer = load_tokenizer(folder, grid=tokenizer.grid)
    fingerprint = tokenizer_fingerprint(tokenizer)[:8]
    for name in ("path", "val_path"):
        shards = getattr(data, name)
        if shards is None:
            continue
        several = [shards] if isinstance(shards, str) else list(shards)
        outs = []
        for number, path in enumerate(several):
            local = Path(path)
            kept = local.resolve().parent if local.is_dir() else run
            remote_name = f"{name}{number}" if len(several) > 1 else name
            out = kept / f"{local.name if local.is_dir() else remote_name}_latents_{fingerprint}"
            _encode_or_wait(path, Path(folder), out)
            print(f"training on latents in {out} ({format_size(size_on_disk(out))})")
            outs.append(str(out))
        found: DataPath = outs[0] if isinstance(shards, str) else outs
        if isinstance(shards, Mapping):  # each keeps its weight
            found = dict(zip(outs, shards.values(), strict=True))
        setattr(data, name, found)
        config[name] = found
    latents = ["latents", "latents_std"] if isinstance(tokenizer, FrameVAE) else ["latents"]
    kept_fields = [field for field in data.fields if field != "frames" or module.reads_frames]
    data.fields = config["fields"] = [*kept_fields, *latents]


def frozen_tokenizer_folder(module: Any, data: Any) -> str | None:
    """Return the folder of a frozen tokenizer that would encode frames in every step; None where there is none."""
    folder = getattr(module, "tokenizer_folder", None)
    if folder is None or not isinstance(data, VideoDataModule) or "latents" in data.fields:
        return None
    return str(folder) if "frames" in data.fields else None


def _encode_or_wait(shards: str, tokenizer: Path, out: Path) -> None:
    waits = False
    while True:
        try:
            write_encoded_shards(shards, tokenizer, out)
            return
        except FolderInUseError:
            if not waits:
                print(f"waiting for another process that encodes into {out}")
            waits = True
            time.sleep(WAIT_SECONDS)
