"""``vwm import-world``: from the files of a published world to a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vwm.core.command_output import format_command, print_output
from vwm.core.family import WorldFamily
from vwm.core.suggestions import suggest
from vwm.data.video import decode_frames
from vwm.data.video_formats import VIDEO_EXTENSIONS
from vwm.eval.model_card import card_metadata, world_card
from vwm.hub.front_matter import with_front_matter
from vwm.worlds.bundle import save_simulator
from vwm.worlds.families import world_families

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp")


def import_world(
    kind: str,
    source: Path,
    out: Path,
    variant: str = "",
    starts: list[str] | None = None,
    context: int | None = None,
    title: str | None = None,
    float16: bool = False,
) -> None:
    """Make a bundle of the weights that the authors of a world publish, which every command then opens.

    The files are downloaded before, from where their authors publish them; vwm zoo lists the worlds. No code in them
    is executed, and every weight must have its name and shape. The license of the weights is shown, and stated in the
    bundle's model card.

    Args:
        kind: the family of the world, such as oasis.
        source: folder with the published files, or the file of a world that has one.
        out: folder of the bundle.
        variant: which of several worlds, where a family has several.
        starts: images and videos to start from, or folders of them; they are resized to the world's frames. Without
            any, the world is started from frames of your own.
        context: frames of each start; by default what the world's authors use. Images require 1.
        title: of the world.
        float16: store the weights in float16, which halves the size.

    Raises:
        ValueError: there is no such kind or variant; or a file is missing, broken or not of the published layout.
    """
    found = _find_publisher(kind).load_published(source, variant)
    simulator = found.simulator
    spec = simulator.spec
    frames = spec.context_frames if context is None else context
    simulator.spec = replace(spec, title=title or spec.title, context_frames=frames)
    if starts:
        simulator.starts = read_start_files([Path(path) for path in starts], frames, spec.context.image_size)
    elif simulator.starts is not None:
        simulator.starts = _last_frames(simulator.starts, frames)
    card = with_front_matter(world_card(simulator, found.origin), card_metadata(simulator, found.license))
    save_simulator(simulator, out, card, float16)
    print(f"license of the weights: {found.license}. {found.origin}")
    print_output(out, "a world", format_command("play", out) if simulator.spec.observation.is_image else None)


def read_start_files(paths: list[Path], frames: int, image_size: tuple[int, int]) -> Tensor:
    """Read contexts to start from, one of each image or video.

    Args:
        paths: files, and folders of files.
        frames: of each context: an image is one, and of a video the first ones are taken.
        image_size: (H, W) to which they are resized.

    Returns:
        uint8 [m, t, h, w, 3].

    Raises:
        ValueError: a path holds no image or video, or a file has fewer frames.
    """
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    files = [file for file in files if _extension(file) in (*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)]
    if not files:
        raise ValueError(f"{', '.join(map(str, paths))}: no image or video to start from")
    return torch.stack([_read_start(file, frames, image_size) for file in files])


def _read_start(file: Path, frames: int, image_size: tuple[int, int]) -> Tensor:
    if _extension(file) in VIDEO_EXTENSIONS:
        pictures = [Image.fromarray(frame) for frame in decode_frames(file, range(frames), str(file))]
    elif frames == 1:
        try:
            pictures = [Image.open(file).convert("RGB")]
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{file}: cannot be read as an image ({error})") from error
    else:
        raise ValueError(f"{file} is one frame, and a context has {frames}: give videos, or context=1")
    height, width = image_size
    resized = [picture.resize((width, height), Image.Resampling.BILINEAR) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in resized]))


def _last_frames(starts: Tensor, frames: int) -> Tensor:
    """Return the last frames of the published starts. Raises ValueError where they have fewer."""
    if starts.shape[1] < frames:
        raise ValueError(f"the published starts have {starts.shape[1]} frames, not {frames}: give starts or context")
    return starts[:, -frames:]


def _find_publisher(kind: str) -> WorldFamily:
    """Return the family of a name that has published worlds. Raises ValueError."""
    families = {family.name: family for family in world_families() if family.published_files}
    if kind not in families:
        listed = "; ".join(f"{name} ({family.published_files})" for name, family in families.items())
        raise ValueError(f"there is no published world {kind!r}{suggest(kind, families)}. There are: {listed}")
    return families[kind]


def _extension(file: Path) -> str:
    return file.suffix.lower().removeprefix(".")
