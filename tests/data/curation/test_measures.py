"""Measures and default limits: what ffmpeg's sources show is kept or removed as a person would."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from video_sources import Frames, compressed, source

from vwm.data.curation.filters import CLIP_MEASURES, FILTERS, find_removing_filter, make_curation
from vwm.data.curation.measures import measure_frames, preview_size

DEFAULTS = {name: FILTERS[name].default for name in CLIP_MEASURES}


def with_text(frames: Frames, text: str = "Where are we going tonight?", size: int = 14) -> Frames:
    font = ImageFont.load_default(size)

    def drawn(frame: Frames) -> Frames:
        image = Image.fromarray(frame)
        ImageDraw.Draw(image).text((60, 155), text, fill="white", font=font, stroke_width=1, stroke_fill="black")
        return np.asarray(image)

    return np.stack([drawn(frame) for frame in frames])


def faded(frames: Frames) -> Frames:
    """A still picture that becomes 40 levels brighter, by less than two levels a frame."""
    levels = np.linspace(0, 40, len(frames))[:, None, None, None]
    return (frames[:1] * 0.6 + levels).astype(np.uint8)


def small_ball(frames: Frames) -> Frames:
    """A small white ball that crosses a black field, as in Pong."""
    field = np.zeros_like(frames)
    for number in range(len(field)):
        field[number, 80:86, 20 + 6 * number : 26 + 6 * number] = 255
    field[:, 90:170, 5:9] = 200
    return field


def equally_bright(frames: Frames) -> Frames:
    """A green square that moves over a red field of the same luma."""
    field = np.empty_like(frames)
    field[:] = (196, 0, 0)
    for number in range(len(field)):
        field[number, 60:100, 10 + 5 * number : 50 + 5 * number] = (0, 100, 0)
    return field


KEPT: dict[str, Callable[[], Frames]] = {
    "a test picture with moving parts": lambda: source("testsrc2="),
    "a slow zoom": lambda: source("mandelbrot=start_scale=2:"),
    "moving cells": lambda: source("cellauto=seed=2:"),
    "a slow fade": lambda: faded(source("smptehdbars=", 2)[:1].repeat(25, axis=0)),
    "colors that are equally bright": lambda: equally_bright(source("color=black:")),
    "a ball on black": lambda: small_ball(source("color=black:", 25)),
}


@pytest.mark.parametrize("name", KEPT)
def test_moving_pictures_pass_the_filters_of_black_and_frozen_frames_and_text(name: str) -> None:
    scores = measure_frames(KEPT[name](), CLIP_MEASURES, rate=24)
    has_flow = "fade" not in name and "bright" not in name  # flow is that of the luma
    limits = DEFAULTS if has_flow else {n: DEFAULTS[n] for n in ("black", "frozen", "text")}
    assert find_removing_filter(scores, limits) is None, scores


@pytest.mark.parametrize("quality", [18, 35])
def test_a_still_picture_is_frozen_and_without_motion_however_it_is_compressed(quality: int) -> None:
    still = source("mandelbrot=start_scale=2:", 1).repeat(25, axis=0)
    noise = np.random.default_rng(0).integers(-2, 3, still.shape)
    frames = compressed((still + noise).clip(0, 255).astype(np.uint8), quality)
    scores = measure_frames(frames, CLIP_MEASURES, rate=24)
    assert scores["frozen"] > DEFAULTS["frozen"] and scores["motion"] < DEFAULTS["motion"]
    assert scores["black"] == 0


def test_black_frames_are_counted_with_their_noise_and_a_picture_with_one_bright_spot_is_not_black() -> None:
    black = np.random.default_rng(0).integers(0, 30, (10, 180, 320, 3), dtype=np.uint8)
    black[:3] = source("testsrc2=", 3)
    black[3, 50:54, 60:64] = 200
    assert measure_frames(black, ["black"]) == {"black": 0.6}
    assert find_removing_filter({"black": 1.0, "frozen": 1.0}, DEFAULTS) == "black"


def test_frozen_is_the_share_of_frames_that_show_nothing_new() -> None:
    moving = source("testsrc2=", 21)
    moving[11:] = moving[10]
    assert measure_frames(moving, ["frozen"]) == {"frozen": 0.5}


def test_motion_is_the_speed_of_a_pan_in_widths_a_second() -> None:
    texture = np.random.default_rng(0).integers(0, 256, (23, 50, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(texture).resize((400, 184), Image.Resampling.BICUBIC))
    pan = np.stack([picture[:180, 2 * k : 2 * k + 320] for k in range(25)])
    motion = measure_frames(pan, ["motion"], rate=24)["motion"]
    assert motion == pytest.approx(2 * 24 / 320, rel=0.15)
    assert measure_frames(pan, ["motion"], rate=12)["motion"] == pytest.approx(motion / 2, rel=1e-4)


@pytest.mark.parametrize("description", ["mandelbrot=start_scale=2:", "zoneplate=kx2=3:ky2=4:kt=1:", "color=black:"])
def test_a_subtitle_is_measured_as_text_and_its_background_is_not(description: str) -> None:
    frames = source(description)
    plain, subtitled = (measure_frames(f, ["text"])["text"] for f in (frames, with_text(frames)))
    assert plain < 0.25 * DEFAULTS["text"]
    assert DEFAULTS["text"] < subtitled < 0.08  # the line covers 190 x 13 of 320 x 180 pixels: 4%


def test_larger_frames_are_measured_as_smaller_ones() -> None:
    frames = source("testsrc2=", 13)
    large = frames.repeat(3, axis=1).repeat(3, axis=2)
    assert measure_frames(large, CLIP_MEASURES) == measure_frames(frames, CLIP_MEASURES)


@pytest.mark.parametrize(
    ("frame", "shard", "expected"),
    [((1080, 1920), (64, 64), (320, 320)), ((90, 160), (64, 64), (90, 90)), ((720, 1280), (90, 160), (180, 320))],
)
def test_previews_have_the_shape_of_the_shards_frames_and_are_never_enlarged(
    frame: tuple[int, int], shard: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert preview_size(frame, *shard) == expected


def test_nothing_is_asked_for_by_default_and_names_and_limits_are_checked() -> None:
    assert make_curation(None, None, None) is None
    settings = make_curation(None, ["motion"], ["frozen=0.8", "black", "duplicates"])
    assert settings is not None and settings.measures == ["black", "frozen", "motion"]
    assert settings.limits == {"black": 0.9, "duplicates": 16, "frozen": 0.8} and settings.compares_clips
    for measure, remove, message in (
        (["motoin"], None, "did you mean motion"),
        (None, ["blakc"], "did you mean black"),
        (None, ["black=2"], "from 0 to 1, got '2'"),
        (None, ["black=x"], "from 0 to 1, got 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_curation(None, measure, remove)
    with pytest.raises(ValueError, match="--shots must be detect"):
        make_curation("detct", None, None)
