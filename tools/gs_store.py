"""Write checkpoints to Google Cloud Storage and read them and shards back, on an emulator of it.

    uv pip install gcsfs gcp-storage-emulator 'setuptools<81'
    python tools/gs_store.py

The emulator speaks the JSON API and runs in this process. Compared are checkpoints, with another process that writes
beside this one, and the batches of a training with those of the local disk.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gcp_storage_emulator.server import create_server  # type: ignore[import-not-found]

from vwm.core.remote_files import open_file_system
from vwm.data import Episode, ShardWriter, VideoDataModule
from vwm.runs.checkpoint_folders import CheckpointFolders

PORT = 9023
RUN, SHARDS = "gs://bucket/runs/world", "gs://bucket/shards"
SAVE_NEXT = """
import sys, torch
from vwm.runs.checkpoint_folders import CheckpointFolders
folders = CheckpointFolders(sys.argv[1])
folders.save(11, {"state_dict": {"weight": torch.ones(3)}, "global_step": 11})
folders.wait()
"""


def main() -> None:
    logging.disable(logging.ERROR)  # gcsfs says for every call that it has no credentials to ask for the kind of bucket
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://localhost:{PORT}"
    server = create_server("localhost", PORT, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        check_checkpoints()
        check_batches()
    finally:
        server.stop()


def check_checkpoints() -> None:
    """Save five checkpoints, keep two of them and every fourth step, and see what others write."""
    folders = CheckpointFolders(RUN, keep=2, keep_every_n_steps=4)
    for step in (2, 4, 6, 8, 9):
        folders.save(step, {"state_dict": {"weight": torch.full((500,), float(step))}, "global_step": step})
    folders.wait()
    state = CheckpointFolders(RUN).load()
    equal = bool((state["state_dict"]["weight"] == 9).all())
    print(f"checkpoints kept: {CheckpointFolders(RUN).steps()}; the last one loads with equal weights: {equal}")
    subprocess.run([sys.executable, "-W", "ignore", "-c", SAVE_NEXT, RUN], check=True, stderr=subprocess.DEVNULL)
    print(f"after a save by another process: {CheckpointFolders(RUN).steps()}")


def check_batches() -> None:
    """Compare an epoch of batches with those of the local disk."""
    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp())
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for episode in range(6):
            writer.write(f"episode-{episode}", Episode(rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)))
    for file in folder.iterdir():
        open_file_system(SHARDS).put_file(str(file), f"{SHARDS}/{file.name}")
    local, stored = (read_epoch(path) for path in (str(folder), SHARDS))
    equal = len(local) == len(stored) and all(torch.equal(a, b) for a, b in zip(local, stored, strict=True))
    print(f"{len(stored)} batches from {SHARDS}, all equal to those of the local disk: {equal}")


def read_epoch(path: str) -> list[Any]:
    """Return the frames of all batches of an epoch."""
    fields = {"clip_length": 4, "batch_size": 4, "val_fraction": 0.0, "workers": 0}
    data = VideoDataModule(path=path, fields=["frames"], **fields)  # type: ignore[arg-type]
    data.setup("fit")
    return [batch.frames for batch in data.train_dataloader()]


if __name__ == "__main__":
    main()
