"""Commands that write shards: record, ingest and encode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from killing import Command
from results import folder_bytes
from trainings import prepare_data, prepare_export, record_argv

from vwm.data.video_encoding import write_video


def prepare_videos(home: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "abc":
        write_video(home / "videos" / f"{name}.mp4", rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), 15)


def ingest_argv(home: Path) -> list[str]:
    return ["ingest", str(home / "videos"), str(home / "data"), "--workers", "0", "--videos-per-shard", "1"]


def prepare_tokenizer(home: Path) -> None:
    prepare_data(home)
    prepare_export("tokenizer", home)


def encode_argv(home: Path) -> list[str]:
    tokenizer = ["--tokenizer", str(home / "tokenizer" / "out")]
    return ["encode", str(home / "data"), *tokenizer, "-o", str(home / "latents"), "--device", "cpu"]


COMMANDS = {
    "record": Command(lambda home: None, record_argv, folder_bytes),
    "ingest": Command(prepare_videos, ingest_argv, folder_bytes),
    "encode": Command(prepare_tokenizer, encode_argv, folder_bytes),
}
