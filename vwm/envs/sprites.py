"""Small worlds of moving sprites: videos that obey three laws of physics, and pairs of which one breaks a law.

The pairs measure violation of expectation as IntPhys does (Riochet et al., 2018, arXiv 1803.07616): clips come in
fours, two possible ones and two impossible ones, which are made of the *same* single frames. While the sprite is out of
sight behind a screen, two possible clips show the same picture; there they are cut, and continued by the other one. So
no frame by itself, and no pair of neighbouring frames, tells what is possible: only memory of what was hidden does.

    permanence   a sprite that went behind a screen comes out again, and none comes out where none went in
    continuity   it does not get from one place to another without passing between
    solidity     it bounces off a wall

Worlds are 64 pixels wide and high, flat and without gravity; x is to the right, y downwards, one pixel is 1.

Legend: t frames of a clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vwm.data.episode import Episode

SPRITE_FRAME_SIZE = 64
SPRITE_FPS = 12.0
SUPERSAMPLING = 4
"""Points along a pixel's side by which the share of it that a sprite covers is counted."""

SPRITE_SHAPES = ("circle", "square", "triangle", "diamond", "cross")
SPRITE_COLORS = {
    "red": (225, 45, 45),
    "green": (50, 190, 70),
    "blue": (60, 95, 240),
    "yellow": (240, 215, 50),
    "magenta": (220, 70, 215),
    "cyan": (60, 210, 225),
}
MOTION_DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
SPEED_CLASSES = {"slow": 36.0, "medium": 43.0, "fast": 50.0}
"""Pixels that a sprite goes in a clip."""
CLIP_LENGTHS = range(16, 33)
EMPTY_SCENE_RATE = 0.2
"""Share of possible clips on a stage that nothing enters, where a quadruple has such clips."""
PHYSICAL_PROPERTIES = ("permanence", "continuity", "solidity")
SPRITE_WORLDS = ("moving", *PHYSICAL_PROPERTIES)
SPRITE_STATE_NAMES = ("present", "x", "y", "vx", "vy")
OCCLUDER_COLOR, OCCLUDER_EDGE_COLOR = (70, 62, 58), (40, 34, 32)
BRICK, MORTAR = (150, 80, 58), (196, 178, 160)

FloatImage = NDArray[np.float32]
Rng = np.random.Generator


class PixelBox(NamedTuple):
    """An upright rectangle in whole pixels, right and bottom outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Sprite:
    """What moves: ``radius`` is half its width and height."""

    shape: str
    colour: str
    radius: float


@dataclass(frozen=True)
class SpriteClip:
    """A video and what is known of it.

    Attributes:
        frames: uint8 [t, 64, 64, 3].
        state: float32 [t, 5], see ``SPRITE_STATE_NAMES``; all 0 where there is no sprite.
        labels: shape, colour, direction and speed at its start; "none" where there is no sprite.
    """

    frames: NDArray[np.uint8]
    state: NDArray[np.float32]
    labels: dict[str, Any]

    def episode(self, world: str, **more: Any) -> Episode:
        """As it is stored: the labels are keys of the json."""
        meta = {
            "fps": SPRITE_FPS,
            "source": f"sprites:{world}",
            "state_names": list(SPRITE_STATE_NAMES),
            **self.labels,
            **more,
        }
        return Episode(self.frames, state=self.state, meta=meta)


@dataclass(frozen=True)
class ViolationQuadruple:
    """Two possible clips and two impossible ones of the same single frames.

    Attributes:
        possible, impossible: ``possible[i]`` and ``impossible[i]`` are a pair, equal before the violation.
        violation: the first frame in which the two of each pair differ.
        event: what happens in the impossible ones.
    """

    possible: tuple[SpriteClip, SpriteClip]
    impossible: tuple[SpriteClip, SpriteClip]
    violation: int
    event: str


# ------------------------------------------------------------------------------------------------------ drawing


@dataclass(frozen=True)
class SpriteScene:
    """Where a sprite moves: the ground and walls under it, float32 [64, 64, 3], and the screens in front of it."""

    ground: FloatImage
    screens: tuple[PixelBox, ...] = ()

    def draw(self, sprite: Sprite | None, places: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Frames of a sprite centred at ``places`` [t, 2], uint8 [t, 64, 64, 3]."""
        frames = np.repeat(self.ground[None], len(places), axis=0)
        if sprite is not None:
            colour = np.array(SPRITE_COLORS[sprite.colour], np.float32)
            for frame, (x, y) in zip(frames, places, strict=True):
                under, share = sprite_coverage(sprite, x, y)
                frame[under] += share[..., None] * (colour - frame[under])
        for screen in self.screens:
            left, top, right, bottom = screen
            frames[:, top:bottom, left:right] = OCCLUDER_EDGE_COLOR
            frames[:, top + 1 : bottom - 1, left + 1 : right - 1] = OCCLUDER_COLOR
        return frames.round().astype(np.uint8)


def sprite_coverage(sprite: Sprite, x: float, y: float) -> tuple[tuple[slice, slice], FloatImage]:
    """Rows and columns around a sprite centred at (x, y), and the share of each pixel there that it covers."""
    columns, rows = (
        slice(max(int(at - sprite.radius), 0), min(int(at + sprite.radius) + 1, SPRITE_FRAME_SIZE)) for at in (x, y)
    )
    u = ((np.arange(columns.start * SUPERSAMPLING, columns.stop * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - x)[
        None
    ] / sprite.radius
    v = ((np.arange(rows.start * SUPERSAMPLING, rows.stop * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - y)[
        :, None
    ] / sprite.radius
    inside = (np.abs(u) <= 1) & (np.abs(v) <= 1)
    if sprite.shape == "circle":
        inside &= u**2 + v**2 <= 1
    elif sprite.shape == "triangle":
        inside &= np.abs(u) <= (v + 1) / 2
    elif sprite.shape == "diamond":
        inside &= np.abs(u) + np.abs(v) <= 1
    elif sprite.shape == "cross":
        inside &= (np.abs(u) <= 0.4) | (np.abs(v) <= 0.4)
    pixels = inside.reshape(rows.stop - rows.start, SUPERSAMPLING, columns.stop - columns.start, SUPERSAMPLING)
    return (rows, columns), pixels.mean(axis=(1, 3), dtype=np.float32)


def sample_background(rng: Rng) -> FloatImage:
    """A dull ground, plain or textured: float32 [64, 64, 3]."""
    base = rng.uniform(105, 165) + rng.uniform(-12, 12, 3)
    y, x = np.mgrid[:SPRITE_FRAME_SIZE, :SPRITE_FRAME_SIZE]
    kind, period = rng.integers(4), int(rng.integers(4, 9))
    if kind == 0:
        pattern = np.zeros((SPRITE_FRAME_SIZE, SPRITE_FRAME_SIZE))
    elif kind == 1:
        pattern = np.where((x // period + y // period) % 2, 9.0, -9.0)
    elif kind == 2:
        across = (x, y, x + y)[rng.integers(3)]
        pattern = 10 * np.sin(2 * np.pi * across / period)
    else:
        pattern = np.kron(rng.uniform(-12, 12, (SPRITE_FRAME_SIZE // 4, SPRITE_FRAME_SIZE // 4)), np.ones((4, 4)))
    return (base + pattern[..., None]).astype(np.float32)


def draw_wall(ground: FloatImage, wall: PixelBox) -> FloatImage:
    """The ground with a brick wall on it."""
    built = ground.copy()
    rows = np.arange(wall.top, wall.bottom)
    bricks = np.where((rows % 4 == 0)[:, None, None], MORTAR, BRICK)
    built[wall.top : wall.bottom, wall.left : wall.right] = bricks
    return built


# ------------------------------------------------------------------------------------------------------- motion


def straight_track(start: ArrayLike, velocity: ArrayLike, frames: int) -> NDArray[np.float64]:
    """x, y, vx, vy of what nothing stops: float64 [t, 4]."""
    v = np.asarray(velocity, float)
    places = np.asarray(start, float) + np.arange(frames)[:, None] * v
    return np.concatenate([places, np.broadcast_to(v, places.shape)], axis=1)


def reflect_track(track: NDArray[np.float64], contact: float) -> NDArray[np.float64]:
    """A track that a wall throws back where its centre would pass x = ``contact``: [t, 4], moving along x."""
    turned = track.copy()
    beyond = np.sign(track[0, 2]) * (track[:, 0] - contact) > 0
    turned[beyond, 0] = 2 * contact - track[beyond, 0]
    turned[beyond, 2] *= -1
    return turned


def render_sprite_clip(stage: SpriteScene, sprite: Sprite | None, track: NDArray[np.float64], speed: str) -> SpriteClip:
    """The clip of a sprite on its track; of the empty stage without a sprite."""
    frames = stage.draw(sprite, track[:, :2])
    state = np.zeros((len(track), 5), np.float32)
    if sprite is None:
        none = {"shape": "none", "colour": "none", "direction": "none", "speed_class": "none", "speed": 0.0}
        return SpriteClip(frames, state, none)
    state[:, 0], state[:, 1:] = 1, track
    vx, vy = track[0, 2:]
    labels = {
        "shape": sprite.shape,
        "colour": sprite.colour,
        "direction": direction_name(vx, vy),
        "speed_class": speed,
        "speed": round(float(np.hypot(vx, vy)), 4),
    }
    return SpriteClip(frames, state, labels)


def direction_name(vx: float, vy: float) -> str:
    """The nearest of the eight directions; y is downwards."""
    return MOTION_DIRECTIONS[round(float(np.arctan2(vy, vx)) / (np.pi / 4)) % 8]


# ------------------------------------------------------------------------------------------------------- events


def make_quadruple(law: str, rng: Rng, frames: int) -> ViolationQuadruple:
    """Four clips about one law: ``make_permanence_pair``, ``make_continuity_pair`` or ``make_solidity_pair``.

    Args:
        law: the one that the impossible ones break.
        rng: decides everything else.
        frames: of a clip, 16 to 32.

    Raises:
        ValueError: no such law, or a length that its events do not fit.
    """
    _check_world_and_length(law, PHYSICAL_PROPERTIES, frames)
    a, b, cuts, event = POSSIBLE_PAIR_MAKERS[law](rng, frames)
    turn = int(rng.integers(8))
    return swap_frames(transform_clip(a, turn), transform_clip(b, turn), cuts, event)


def make_possible_clip(world: str, rng: Rng, frames: int) -> SpriteClip:
    """One clip of a world in which its law holds; ``make_moving_clip`` shows one sprite that goes straight.

    Raises:
        ValueError: no such world, or a length that its events do not fit.
    """
    _check_world_and_length(world, SPRITE_WORLDS, frames)
    if world == "moving":
        return make_moving_clip(rng, frames)
    if world == "solidity" and (kind := rng.integers(3)) > 0:  # what walls and screens are, seen apart
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
    """Exchange the frames from ``cuts[0]`` until before ``cuts[1]`` between two possible clips."""
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


def transform_clip(clip: SpriteClip, turn: int) -> SpriteClip:
    """One of the eight ways to lay a square on itself: transposed (4), mirrored up and down (2), left and right (1)."""
    frames, state = clip.frames, clip.state.copy()
    there = state[:, 0] == 1
    if turn & 4:
        frames, state = frames.swapaxes(1, 2), state[:, [0, 2, 1, 4, 3]]
    for bit, axis, place in ((2, 1, 2), (1, 2, 1)):
        if turn & bit:
            frames = np.flip(frames, axis)
            state[there, place] = SPRITE_FRAME_SIZE - state[there, place]
            state[:, place + 2] *= -1
    labels = clip.labels
    if there[0]:
        labels = {**labels, "direction": direction_name(*state[0, 3:])}
    return replace(clip, frames=np.ascontiguousarray(frames), state=state, labels=labels)


def sample_sprite(rng: Rng, radius: float) -> Sprite:
    """Of any shape and colour."""
    return Sprite(
        SPRITE_SHAPES[rng.integers(len(SPRITE_SHAPES))], list(SPRITE_COLORS)[rng.integers(len(SPRITE_COLORS))], radius
    )


def sample_speed(rng: Rng, frames: int) -> tuple[str, float]:
    """A class of speeds, and pixels a frame."""
    speed = list(SPEED_CLASSES)[rng.integers(len(SPEED_CLASSES))]
    return speed, SPEED_CLASSES[speed] / (frames - 1)


def make_moving_clip(rng: Rng, frames: int) -> SpriteClip:
    """A sprite that goes straight in one of eight directions and stays in the picture."""
    radius = float(rng.uniform(4, 6))
    speed, v = sample_speed(rng, frames)
    angle = rng.integers(8) * np.pi / 4
    velocity = v * np.array([np.cos(angle), np.sin(angle)])
    way = velocity * (frames - 1)
    low, high = radius - np.minimum(way, 0), SPRITE_FRAME_SIZE - radius - np.maximum(way, 0)
    track = straight_track(rng.uniform(low, high), velocity, frames)
    return render_sprite_clip(SpriteScene(sample_background(rng)), sample_sprite(rng, radius), track, speed)


PossiblePair = tuple[SpriteClip, SpriteClip, tuple[int, int], str]
"""Two possible clips, where to cut them, and what the impossible ones then show."""


def make_permanence_pair(rng: Rng, frames: int) -> PossiblePair:
    """A sprite passes behind a screen; on the same stage, none does."""
    radius = float(rng.uniform(4, 5))
    speed, v = sample_speed(rng, frames)
    y, middle = rng.uniform(14, SPRITE_FRAME_SIZE - 14), SPRITE_FRAME_SIZE / 2 + rng.uniform(-2, 2)
    screen = _occluder_box(middle, radius + v + rng.uniform(0, 2), y, radius + int(rng.integers(3, 8)))
    stage, sprite = SpriteScene(sample_background(rng), (screen,)), sample_sprite(rng, radius)
    track = _crossing_track(middle, y, v, frames)
    cut = _occluded_frames(track, radius, screen)[0]
    return (
        render_sprite_clip(stage, sprite, track, speed),
        render_sprite_clip(stage, None, track, speed),
        (cut, frames),
        "vanishes or appears",
    )


def make_continuity_pair(rng: Rng, frames: int) -> PossiblePair:
    """A sprite passes behind two screens with a gap between them; or one of two lanes behind one screen."""
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
    stage, sprite = SpriteScene(sample_background(rng), screens), sample_sprite(rng, radius)
    track = _crossing_track(middle, y, v, frames)
    first, second = (_occluded_frames(track, radius, screen) for screen in screens)
    cuts = first[0], second[-1] + 1
    return (
        render_sprite_clip(stage, sprite, track, speed),
        render_sprite_clip(stage, None, track, speed),
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
    stage, sprite = SpriteScene(sample_background(rng), (screen,)), sample_sprite(rng, radius)
    tracks = [_crossing_track(middle, y, v, frames) for y in lanes]
    a, b = (render_sprite_clip(stage, sprite, track, speed) for track in tracks)
    return a, b, (_occluded_frames(tracks[0], radius, screen)[0], frames), "changes its lane unseen"


def make_solidity_pair(rng: Rng, frames: int, wall: bool = True, screen: bool = True) -> PossiblePair:
    """A sprite meets a wall behind a screen, from one side or from the other.

    Without the wall it goes on to the other side; without the screen it is seen where they meet.
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
        v *= 0.8  # the way to the wall and back begins further out
        ground = draw_wall(ground, PixelBox(middle - half, 0, middle + half, SPRITE_FRAME_SIZE))
    front = _occluder_box(middle, contact + radius + 1.5 * v, y, radius + int(rng.integers(2, 5)))
    stage, sprite = SpriteScene(ground, (front,) if screen else ()), sample_sprite(rng, radius)
    start = wall * contact + v * (frames - 1) / 2  # halfway through the clip it is at the wall, or in the middle
    clips = []
    for side in (-1, 1):
        track = straight_track((middle + side * start, y), (-side * v, 0), frames)
        clips.append(
            render_sprite_clip(stage, sprite, reflect_track(track, middle + side * contact) if wall else track, speed)
        )
    return clips[0], clips[1], (frames // 2, frames), "passes through the wall"


POSSIBLE_PAIR_MAKERS: dict[str, Callable[[Rng, int], PossiblePair]] = {
    "permanence": make_permanence_pair,
    "continuity": make_continuity_pair,
    "solidity": make_solidity_pair,
}


def _crossing_track(middle: float, y: float, v: float, frames: int) -> NDArray[np.float64]:
    """Rightwards, past ``middle`` halfway through the clip."""
    return straight_track((middle - v * (frames - 1) / 2, y), (v, 0), frames)


def _occluder_box(x: float, half_width: float, y: float, half_height: float) -> PixelBox:
    """The smallest box of whole pixels around the given one, within the picture."""
    left, top = int(np.floor(x - half_width)), int(np.floor(y - half_height))
    right, bottom = int(np.ceil(x + half_width)), int(np.ceil(y + half_height))
    return PixelBox(max(left, 0), max(top, 0), min(right, SPRITE_FRAME_SIZE), min(bottom, SPRITE_FRAME_SIZE))


def _occluded_frames(track: NDArray[np.float64], radius: float, screen: PixelBox) -> list[int]:
    """Frames in which a screen covers all of the sprite."""
    inside = (track[:, 0] - radius >= screen.left) & (track[:, 0] + radius <= screen.right)
    return [int(i) for i in np.flatnonzero(inside)]
