"""Commands that write shards: record, ingest, import and encode; and convert, which reads them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from killing import Command
from results import folder_bytes
from trainings import prepare_data, prepare_export, record_argv

from vwm.data.converting import convert_dataset
from vwm.data.importing import import_dataset
from vwm.data.video_encoding import write_video

TESTS = Path(__file__).parents[2] / "tests"
sys.path.append(str(TESTS))
RECORDINGS = TESTS / "data" / "importers"
"""Small data sets of other projects, one folder a format."""


def copy_recording(name: str) -> Callable[[Path], None]:
    """Return what puts a data set of the tests where it is imported from."""

    def prepare(source: Path) -> None:
        shutil.copytree(RECORDINGS / name, source)

    return prepare


def write_pictures(source: Path) -> None:
    from drawer_episodes import grey_frames
    from PIL import Image

    for number in range(2):
        (source / f"walk{number}").mkdir(parents=True)
        for t, frame in enumerate(grey_frames(number)):
            Image.fromarray(frame).save(source / f"walk{number}" / f"{t}.png")


def write_rocket_match(source: Path) -> None:
    from rocket_matches import write_match

    write_match(source, {})


def write_tars(source: Path) -> None:
    prepare_two_cameras(source.parent / "before")
    convert_dataset("webdataset", source.parent / "before" / "data", source, workers=0)


IMPORTED: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "lerobot": (copy_recording("lerobot_v3"), ["--cameras", "front,wrist", "--size", "16"]),
    "diamond": (copy_recording("diamond"), []),
    "rlds": (copy_recording("rlds/toy_drawer"), ["--cameras", "image"]),
    "images": (write_pictures, []),
    "webdataset": (write_tars, ["--cameras", "front,wrist"]),
    "rocket-science": (write_rocket_match, ["--cameras", "p0,p2"]),
}


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


def import_command(kind: str) -> Command:
    """Return the command that imports a data set of the tests."""
    write, options = IMPORTED[kind]

    def prepare(home: Path) -> None:
        write(home / "source")

    def argv(home: Path) -> list[str]:
        paths = [str(home / "source"), str(home / "data")]
        return ["import", kind, *paths, *options, "--workers", "0", "--episodes-per-shard", "1"]

    return Command(prepare, argv, folder_bytes)


def prepare_two_cameras(home: Path) -> None:
    cameras = ["front", "wrist"]
    import_dataset("lerobot", RECORDINGS / "lerobot_v3", home / "data", cameras, 16, episodes_per_shard=1, workers=0)


def convert_argv(kind: str) -> Callable[[Path], list[str]]:
    """Return the arguments of the conversion to a format."""
    return lambda home: ["convert", kind, str(home / "data"), str(home / "out"), "--workers", "0"]


COMMANDS = {
    "record": Command(lambda home: None, record_argv, folder_bytes),
    "ingest": Command(prepare_videos, ingest_argv, folder_bytes),
    **{f"import {kind}": import_command(kind) for kind in IMPORTED},
    **{
        f"convert {kind}": Command(prepare_two_cameras, convert_argv(kind), folder_bytes)
        for kind in ("lerobot", "webdataset")
    },
    "encode": Command(prepare_tokenizer, encode_argv, folder_bytes),
}
