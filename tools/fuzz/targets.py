"""What is read from outside: each target makes a valid input once, mutates it for a case, and reads it as users do."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from mutations import mutate_bytes, mutate_value
from PIL import Image

from vwm.cli.config_checks import check_config_arguments
from vwm.core.spaces import ActionSpace
from vwm.data.action_files import read_action_file
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.episode import Episode
from vwm.data.inspection import inspect_dataset
from vwm.data.shard_index import load_shard_index, shard_index_path
from vwm.data.shards import ShardWriter
from vwm.data.video import decode_frames, probe_video
from vwm.data.video_encoding import encode_video
from vwm.play.images import decode_upload
from vwm.play.messages import parse_message
from vwm.runs.checkpoints import read_checkpoint, write_checkpoint
from vwm.runs.run_folder import RunFolder
from vwm.runs.saved_config import read_saved_config
from vwm.worlds.bundle import load_simulator, save_simulator

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[np.random.Generator, Path], None]


class Target(NamedTuple):
    """``prepare`` writes the valid input into a folder; ``run`` reads a mutation of it."""

    prepare: Callable[[Path], None]
    run: Run


def _case_folder(home: Path) -> Path:
    folder = home / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _nothing(home: Path) -> None:
    torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------------------- shards


def _prepare_shard(home: Path) -> None:
    _nothing(home)
    rng = np.random.default_rng(0)
    with ShardWriter(home / "data" / "shard-000000.tar") as writer:
        for number in range(3):
            frames = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
            actions = rng.integers(0, 4, 12) if number < 2 else rng.uniform(-1, 1, (12, 2)).astype(np.float32)
            rewards = rng.random(12).astype(np.float32)
            writer.write(f"00000{number}", Episode(frames, actions, rewards, meta={"fps": 15}), raw=number != 1)


def _run_shard(rng: np.random.Generator, home: Path) -> None:
    folder = _case_folder(home)
    shard = folder / "shard-000000.tar"
    data = (home / "data" / shard.name).read_bytes()
    if rng.random() < 0.5:
        shard.write_bytes(mutate_bytes(rng, data))
    else:
        shard.write_bytes(_mutate_members(rng, data))
    if rng.random() < 0.5:  # with the index of the shard as it was, which is as old as the shard
        shutil.copy(shard_index_path(home / "data" / shard.name), folder)
    _read_data(folder, rng)


def _mutate_members(rng: np.random.Generator, data: bytes) -> bytes:
    """Change the content or the name of members, in a tar that is whole."""
    file = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=file, mode="w") as new:
        members = old.getmembers()
        chosen = int(rng.integers(len(members)))
        for i, member in enumerate(members):
            content = old.extractfile(member).read()  # type: ignore[union-attr]
            if i == chosen:
                if member.name.endswith("json"):
                    content = json.dumps(mutate_value(rng, json.loads(content))).encode()
                elif rng.random() < 0.8:
                    content = mutate_bytes(rng, content)
                else:
                    member.name = str(
                        rng.choice(["a", "a.b.c", "000000.mp4", "/etc/x.json", "../x.frames.npy", "é.npy"])
                    )
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _read_data(folder: Path, rng: np.random.Generator) -> None:
    output, sys.stdout = sys.stdout, io.StringIO()
    try:
        inspect_dataset(str(folder))
    finally:
        sys.stdout = output
    clips = make_clip_dataset(str(folder), 4, fields=("frames", "actions", "rewards"))
    for _ in range(4):
        clips[int(rng.integers(len(clips)))]


def _run_index(rng: np.random.Generator, home: Path) -> None:
    folder = _case_folder(home)
    shard = folder / "shard-000000.tar"
    shutil.copy(home / "data" / shard.name, shard)
    sidecar = Path(shard_index_path(shard))
    text = Path(shard_index_path(home / "data" / shard.name)).read_text()
    if rng.random() < 0.3:
        sidecar.write_bytes(mutate_bytes(rng, text.encode()))
    else:
        sidecar.write_text(json.dumps(mutate_value(rng, json.loads(text))))
    load_shard_index(str(shard))
    _read_data(folder, rng)


# ------------------------------------------------------------------------------------------------------------- videos


def _prepare_video(home: Path) -> None:
    _nothing(home)
    frames = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    (home / "whole.mp4").write_bytes(encode_video(frames, 15))


def _run_video(rng: np.random.Generator, home: Path) -> None:
    data = mutate_bytes(rng, (home / "whole.mp4").read_bytes())
    count = probe_video(data, "a.mp4")["frames"]
    decode_frames(data, [0, count - 1], "a.mp4", "pyav" if rng.random() < 0.5 else "auto")


def _run_actions(rng: np.random.Generator, home: Path) -> None:
    folder = _case_folder(home)
    if rng.random() < 0.5:
        file = io.BytesIO()
        np.save(file, rng.uniform(-1, 1, (20, 2)) if rng.random() < 0.5 else rng.integers(0, 5, 20))
        (folder / "a.actions.npy").write_bytes(mutate_bytes(rng, file.getvalue()))
    else:
        rows = "\n".join(f"{x:.2f},{-x:.2f}" for x in rng.random(20))
        (folder / "a.actions.csv").write_bytes(mutate_bytes(rng, f"gas,brake\n{rows}\n".encode()))
    read_action_file(folder / "a.mp4")


def _run_upload(rng: np.random.Generator, home: Path) -> None:
    file = io.BytesIO()
    picture = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    picture.save(file, str(rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP"])))
    decode_upload(mutate_bytes(rng, file.getvalue()), (16, 16))


# ------------------------------------------------------------------------------------------------- bundles, checkpoints


BUNDLES = ("genie", "dit", "jepa", "composite", "vectors")


def _prepare_bundle(home: Path) -> None:
    _nothing(home)
    sys.path.insert(0, str(ROOT / "tests"))
    from factories import composite_parts, diffusion_world, genie, jepa_world
    from latent_worlds import rssm_world

    save_simulator(genie(), home / "genie")
    save_simulator(diffusion_world(), home / "dit")
    save_simulator(jepa_world(), home / "jepa")
    save_simulator(diffusion_world(action_parts=composite_parts()), home / "composite")
    vectors = rssm_world((5,), classes=0, cell="norm_gru")
    vectors.starts = torch.randn(3, 4, 5)
    save_simulator(vectors, home / "vectors")


def _run_bundle(rng: np.random.Generator, home: Path) -> None:
    folder = _case_folder(home) / "bundle"
    shutil.copytree(home / str(rng.choice(BUNDLES)), folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    file = files[int(rng.integers(len(files)))]
    if file.suffix == ".json" and rng.random() < 0.8:
        file.write_text(json.dumps(mutate_value(rng, json.loads(file.read_text()))))
    elif rng.random() < 0.1:
        file.unlink()
    else:
        file.write_bytes(mutate_bytes(rng, file.read_bytes()))
    world = load_simulator(folder, device="cpu")
    if world.starts is not None:
        state, _ = world.reset(world.starts[:1], 0)
        space = world.spec.actions
        world.step(state, torch.zeros((1, *space.shape), dtype=space.dtype))


def _prepare_checkpoint(home: Path) -> None:
    _nothing(home)
    state = {"state_dict": {"weight": torch.zeros(8, 8)}, "global_step": 3, "names": ["a", "b"]}
    write_checkpoint(home / "last.ckpt", state)


def _run_checkpoint(rng: np.random.Generator, home: Path) -> None:
    file = _case_folder(home) / "last.ckpt"
    file.write_bytes(mutate_bytes(rng, (home / "last.ckpt").read_bytes()))
    read_checkpoint(file)


# --------------------------------------------------------------------------------------------------- configs, messages


def _config_files() -> list[Path]:
    return sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "base:" not in path.read_text())


def _run_config(rng: np.random.Generator, home: Path) -> None:
    folder = _case_folder(home)
    files = _config_files()
    original = files[int(rng.integers(len(files)))]
    text = original.read_text()
    if rng.random() < 0.3:
        (folder / "config.yaml").write_bytes(mutate_bytes(rng, text.encode()))
    else:
        (folder / "config.yaml").write_text(yaml.safe_dump(mutate_value(rng, yaml.safe_load(text))))
    with contextlib.suppress(ValueError):
        read_saved_config(RunFolder(folder))
    command = "agent train" if original.parent.name == "agents" else "fit"
    check_config_arguments(command, ["-c", str(folder / "config.yaml")])


def _run_message(rng: np.random.Generator, home: Path) -> None:
    message = [
        {"type": "reset", "start": 0, "seed": 3}, {"type": "step", "action": 1}, {"type": "step", "action": [0.5, -1]},
        {"type": "undo", "steps": 3}, {"type": "record", "command": "start", "format": "mp4"},
    ][int(rng.integers(5))]  # fmt: skip
    text = json.dumps(mutate_value(rng, message))
    if rng.random() < 0.3:
        text = mutate_bytes(rng, text.encode()).decode(errors="surrogateescape")
    parse_message(text, ActionSpace("discrete", 4) if rng.random() < 0.5 else ActionSpace("continuous", 2), 3)


TARGETS = {
    "shard": Target(_prepare_shard, _run_shard),
    "index": Target(_prepare_shard, _run_index),
    "video": Target(_prepare_video, _run_video),
    "actions": Target(_nothing, _run_actions),
    "upload": Target(_nothing, _run_upload),
    "bundle": Target(_prepare_bundle, _run_bundle),
    "checkpoint": Target(_prepare_checkpoint, _run_checkpoint),
    "config": Target(_nothing, _run_config),
    "message": Target(_nothing, _run_message),
}
