"""Sprite worlds: videos that obey three laws of physics, and pairs of which one breaks a law.

The pairs measure violation of expectation as IntPhys does (Riochet et al., 2018, arXiv 1803.07616): clips come in
fours, two possible ones and two impossible ones, which consist of the *same* single frames. While the sprite is hidden
behind a screen, two possible clips show the same image; there they are cut, and continued by the other one. Therefore
no single frame and no pair of neighboring frames shows what is possible: only memory of what was hidden does.

    permanence   a sprite that went behind a screen comes out again, and none comes out where none went in
    continuity   it does not get from one place to another without passing between
    solidity     it bounces off a wall
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vwm.envs.sprites import (
    SPRITE_COLORS,
    SPRITE_FRAME_SIZE,
    SPRITE_SHAPES,
    PixelBox,
    Rng,
    Sprite,
    SpriteClip,
    SpriteScene,
    draw_wall,
    reflect_track,
    render_sprite_clip,
    sample_background,
    straight_track,
    transform_clip,
)

PHYSICAL_PROPERTIES = ("permanence", "continuity", "solidity")
SPRITE_WORLDS = ("moving", *PHYSICAL_PROPERTIES)
CLIP_LENGTHS = range(16, 33)
EMPTY_SCENE_RATE = 0.2
"""Fraction of possible clips without a sprite, where a quadruple has such clips."""
SPEED_CLASSES = {"slow": 36.0, "medium": 43.0, "fast": 50.0}
"""Pixels that a sprite moves in a clip."""


@dataclass(frozen=True)
class ViolationQuadruple:
    """Two possible clips and two impossible ones of the same single frames.

    Attributes:
        possible, impossible: ``possible[i]`` and ``impossible[i]`` are a pair, equal before the violation.
        violation: the first frame in which the two of each pair differ.
        event: what happens in the impossible clips.
    """

    possible: tuple[SpriteClip, SpriteClip]
    impossible: tuple[SpriteClip, SpriteClip]
    violation: int
    event: str


def make_quadruple(law: str, rng: Rng, frames: int) -> ViolationQuadruple:
    """Make four clips about one law: ``make_permanence_pair``, ``make_continuity_pair`` or ``make_solidity_pair``.

    Args:
        law: the one that the impossible clips break.
        rng: draws everything else.
        frames: length of a clip, 16 to 32.

    Raises:
        ValueError: there is no such law, or the length does not fit its events.
    """
    _check_world_and_length(law, PHYSICAL_PROPERTIES, frames)
    a, b, cuts, event = POSSIBLE_PAIR_MAKERS[law](rng, frames)
    symmetry = int(rng.integers(8))
    return swap_frames(transform_clip(a, symmetry), transform_clip(b, symmetry), cuts, event)


def make_possible_clip(world: str, rng: Rng, frames: int) -> SpriteClip:
    """Make one clip of a world in which its law holds; world ``moving`` shows one sprite in uniform motion.

    Raises:
        ValueError: there is no such world, or the length does not fit its events.
    """
    _check_world_and_length(world, SPRITE_WORLDS, frames)
    if world == "moving":
        return make_moving_clip(rng, frames)
    if world == "solidity" and (kind := rng.integers(3)) > 0:  # show walls and screens separately
        a, b, _, _ = make_solidity_pair(rng, frames, wall=kind == 1, screen=kind == 2)
    else:
        a, b, _, _ = POSSIBLE_PAIR_MAKERS[world](rng, frames)
    return transform_clip(b if rng.random() < EMPTY_SCENE_RATE else a, int(rng.integers(8)))


def _check_world_and_length(world: str, known: tuple[str, ...], frames: int) -> None:
    if world not in known:
        raise ValueError(f"there is no world {world!r} here, only {', '.join(known)}")
    if frames not in CLIP_LENGTHS:
        raise ValueError(f"clips have {CLIP_LENGTHS.start} to {CLIP_LENGTHS.stop - 1} frames, got {frames}")


def swap_frames(a: SpriteClip, b: SpriteClip, cuts: tuple[int, int], event: str) -> ViolationQuadruple:
    """Exchange the frames ``cuts[0]`` to ``cuts[1]`` (exclusive) between two possible clips."""
    start, stop = cuts
    assert (a.frames[start] == b.frames[start]).all(), "the cut would be seen"
    assert stop == len(a.frames) or (a.frames[stop - 1] == b.frames[stop - 1]).all(), "the second cut would be seen"

    def exchanged(one: SpriteClip, other: SpriteClip) -> SpriteClip:
        frames, state = one.frames.copy(), one.state.copy()
        frames[start:stop], state[start:stop] = other.frames[start:stop], other.state[start:stop]
        return SpriteClip(frames, state, one.labels if one.labels["shape"] != "none" else other.labels)

    impossible = exchanged(a, b), exchanged(b, a)
    (differing,) = np.nonzero((a.frames != impossible[0].frames).any(axis=(1, 2, 3)))
    return ViolationQuadruple((a, b), impossible, int(differing[0]), event)


def sample_sprite(rng: Rng, radius: float) -> Sprite:
    """Draw a shape and a color."""
    return Sprite(
        SPRITE_SHAPES[rng.integers(len(SPRITE_SHAPES))], list(SPRITE_COLORS)[rng.integers(len(SPRITE_COLORS))], radius
    )


def sample_speed(rng: Rng, frames: int) -> tuple[str, float]:
    """Draw a speed class and return it with its pixels per frame."""
    speed = list(SPEED_CLASSES)[rng.integers(len(SPEED_CLASSES))]
    return speed, SPEED_CLASSES[speed] / (frames - 1)


def make_moving_clip(rng: Rng, frames: int) -> SpriteClip:
    """Make a clip of a sprite that moves in one of eight directions and stays in the image."""
    radius = float(rng.uniform(4, 6))
    speed, v = sample_speed(rng, frames)
    angle = rng.integers(8) * np.pi / 4
    velocity = v * np.array([np.cos(angle), np.sin(angle)])
    displacement = velocity * (frames - 1)
    low = radius - np.minimum(displacement, 0)
    high = SPRITE_FRAME_SIZE - radius - np.maximum(displacement, 0)
    track = straight_track(rng.uniform(low, high), velocity, frames)
    return render_sprite_clip(SpriteScene(sample_background(rng)), sample_sprite(rng, radius), track, speed)


PossiblePair = tuple[SpriteClip, SpriteClip, tuple[int, int], str]
"""Two possible clips, where to cut them, and what the impossible clips then show."""


def make_permanence_pair(rng: Rng, frames: int) -> PossiblePair:
    """Make a clip of a sprite that passes behind a screen, and one of the same scene without a sprite."""
    radius = float(rng.uniform(4, 5))
    speed, v = sample_speed(rng, frames)
    y, middle = rng.uniform(14, SPRITE_FRAME_SIZE - 14), SPRITE_FRAME_SIZE / 2 + rng.uniform(-2, 2)
    screen = _occluder_box(middle, radius + v + rng.uniform(0, 2), y, radius + int(rng.integers(3, 8)))
    scene, sprite = SpriteScene(sample_background(rng), (screen,)), sample_sprite(rng, radius)
    track = _crossing_track(middle, y, v, frames)
    cut = _occluded_frames(track, radius, screen)[0]
    return (
        render_sprite_clip(scene, sprite, track, speed),
        render_sprite_clip(scene, None, track, speed),
        (cut, frames),
        "vanishes or appears",
    )


def make_continuity_pair(rng: Rng, frames: int) -> PossiblePair:
    """Make clips of a sprite that passes behind two screens with a gap, or in one of two lanes behind one screen."""
    return (_make_gap_pair if rng.integers(2) else _make_lanes_pair)(rng, frames)


def _make_gap_pair(rng: Rng, frames: int) -> PossiblePair:
    radius = float(rng.uniform(3.5, 4))
    speed, v = sample_speed(rng, frames)
    y, middle, gap = (
        rng.uniform(14, SPRITE_FRAME_SIZE - 14),
        SPRITE_FRAME_SIZE / 2 + rng.uniform(-1, 1),
        rng.uniform(8, 10) / 2,
    )
    half, above = radius + v / 2 + 0.5, radius + int(rng.integers(3, 8))
    screens = tuple(_occluder_box(middle + side * (gap + half), half, y, above) for side in (-1, 1))
    scene, sprite = SpriteScene(sample_background(rng), screens), sample_sprite(rng, radius)
    track = _crossing_track(middle, y, v, frames)
    first, second = (_occluded_frames(track, radius, screen) for screen in screens)
    cuts = first[0], second[-1] + 1
    return (
        render_sprite_clip(scene, sprite, track, speed),
        render_sprite_clip(scene, None, track, speed),
        cuts,
        "does not cross the gap",
    )


def _make_lanes_pair(rng: Rng, frames: int) -> PossiblePair:
    radius = float(rng.uniform(4, 5))
    speed, v = sample_speed(rng, frames)
    middle = SPRITE_FRAME_SIZE / 2 + rng.uniform(-2, 2)
    lanes = SPRITE_FRAME_SIZE / 2 - rng.uniform(10, 16), SPRITE_FRAME_SIZE / 2 + rng.uniform(10, 16)
    screen = _occluder_box(
        middle, radius + v + rng.uniform(0, 2), SPRITE_FRAME_SIZE / 2, SPRITE_FRAME_SIZE / 2 - int(rng.integers(1, 5))
    )
    scene, sprite = SpriteScene(sample_background(rng), (screen,)), sample_sprite(rng, radius)
    tracks = [_crossing_track(middle, y, v, frames) for y in lanes]
    a, b = (render_sprite_clip(scene, sprite, track, speed) for track in tracks)
    return a, b, (_occluded_frames(tracks[0], radius, screen)[0], frames), "changes its lane unseen"


def make_solidity_pair(rng: Rng, frames: int, wall: bool = True, screen: bool = True) -> PossiblePair:
    """Make clips of a sprite that meets a wall behind a screen, from one side and from the other.

    Without the wall it continues to the other side; without the screen the contact is visible.
    """
    radius = float(rng.uniform(4, 5))
    speed, v = sample_speed(rng, frames)
    y, middle, half = (
        rng.uniform(16, SPRITE_FRAME_SIZE - 16),
        SPRITE_FRAME_SIZE // 2 + int(rng.integers(-1, 2)),
        int(rng.integers(1, 3)),
    )
    contact = half + radius
    ground = sample_background(rng)
    if wall:
        v *= 0.8  # the path to the wall and back begins further out
        ground = draw_wall(ground, PixelBox(middle - half, 0, middle + half, SPRITE_FRAME_SIZE))
    front = _occluder_box(middle, contact + radius + 1.5 * v, y, radius + int(rng.integers(2, 5)))
    scene, sprite = SpriteScene(ground, (front,) if screen else ()), sample_sprite(rng, radius)
    start = wall * contact + v * (frames - 1) / 2  # halfway through the clip it is at the wall, or in the middle
    clips = []
    for side in (-1, 1):
        track = straight_track((middle + side * start, y), (-side * v, 0), frames)
        clips.append(
            render_sprite_clip(scene, sprite, reflect_track(track, middle + side * contact) if wall else track, speed)
        )
    return clips[0], clips[1], (frames // 2, frames), "passes through the wall"


POSSIBLE_PAIR_MAKERS: dict[str, Callable[[Rng, int], PossiblePair]] = {
    "permanence": make_permanence_pair,
    "continuity": make_continuity_pair,
    "solidity": make_solidity_pair,
}


def _crossing_track(middle: float, y: float, v: float, frames: int) -> NDArray[np.float64]:
    """Return uniform motion to the right, past ``middle`` halfway through the clip."""
    return straight_track((middle - v * (frames - 1) / 2, y), (v, 0), frames)


def _occluder_box(x: float, half_width: float, y: float, half_height: float) -> PixelBox:
    """Return the smallest box of whole pixels around the given one, within the image."""
    left, top = int(np.floor(x - half_width)), int(np.floor(y - half_height))
    right, bottom = int(np.ceil(x + half_width)), int(np.ceil(y + half_height))
    return PixelBox(max(left, 0), max(top, 0), min(right, SPRITE_FRAME_SIZE), min(bottom, SPRITE_FRAME_SIZE))


def _occluded_frames(track: NDArray[np.float64], radius: float, screen: PixelBox) -> list[int]:
    """Return the frames in which a screen covers the whole sprite."""
    inside = (track[:, 0] - radius >= screen.left) & (track[:, 0] + radius <= screen.right)
    return [int(i) for i in np.flatnonzero(inside)]
