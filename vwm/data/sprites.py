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

SIDE = 64
FPS = 12.0
FINE = 4
"""Points along a pixel's side by which the share of it that a sprite covers is counted."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = {
    "red": (225, 45, 45),
    "green": (50, 190, 70),
    "blue": (60, 95, 240),
    "yellow": (240, 215, 50),
    "magenta": (220, 70, 215),
    "cyan": (60, 210, 225),
}
DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
SPEEDS = {"slow": 36.0, "medium": 43.0, "fast": 50.0}
"""Pixels that a sprite goes in a clip."""
FRAMES = range(16, 33)
EMPTY = 0.2
"""Share of possible clips on a stage that nothing enters, where a quadruple has such clips."""
PROPERTIES = ("permanence", "continuity", "solidity")
WORLDS = ("moving", *PROPERTIES)
STATE_NAMES = ("present", "x", "y", "vx", "vy")
SCREEN, SCREEN_EDGE = (70, 62, 58), (40, 34, 32)
BRICK, MORTAR = (150, 80, 58), (196, 178, 160)

Pixels = NDArray[np.float32]
Draw = np.random.Generator


class Box(NamedTuple):
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
class Clip:
    """A video and what is known of it.

    Attributes:
        frames: uint8 [t, 64, 64, 3].
        state: float32 [t, 5], see ``STATE_NAMES``; all 0 where there is no sprite.
        labels: shape, colour, direction and speed at its start; "none" where there is no sprite.
    """

    frames: NDArray[np.uint8]
    state: NDArray[np.float32]
    labels: dict[str, Any]

    def episode(self, world: str, **more: Any) -> Episode:
        """As it is stored: the labels are keys of the json."""
        meta = {"fps": FPS, "source": f"sprites:{world}", "state_names": list(STATE_NAMES), **self.labels, **more}
        return Episode(self.frames, state=self.state, meta=meta)


@dataclass(frozen=True)
class Quadruple:
    """Two possible clips and two impossible ones of the same single frames.

    Attributes:
        possible, impossible: ``possible[i]`` and ``impossible[i]`` are a pair, equal before the violation.
        violation: the first frame in which the two of each pair differ.
        event: what happens in the impossible ones.
    """

    possible: tuple[Clip, Clip]
    impossible: tuple[Clip, Clip]
    violation: int
    event: str


# ------------------------------------------------------------------------------------------------------ drawing


@dataclass(frozen=True)
class Stage:
    """Where a sprite moves: the ground and walls under it, float32 [64, 64, 3], and the screens in front of it."""

    ground: Pixels
    screens: tuple[Box, ...] = ()

    def draw(self, sprite: Sprite | None, places: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Frames of a sprite centred at ``places`` [t, 2], uint8 [t, 64, 64, 3]."""
        frames = np.repeat(self.ground[None], len(places), axis=0)
        if sprite is not None:
            colour = np.array(COLOURS[sprite.colour], np.float32)
            for frame, (x, y) in zip(frames, places, strict=True):
                under, share = coverage(sprite, x, y)
                frame[under] += share[..., None] * (colour - frame[under])
        for screen in self.screens:
            left, top, right, bottom = screen
            frames[:, top:bottom, left:right] = SCREEN_EDGE
            frames[:, top + 1 : bottom - 1, left + 1 : right - 1] = SCREEN
        return frames.round().astype(np.uint8)


def coverage(sprite: Sprite, x: float, y: float) -> tuple[tuple[slice, slice], Pixels]:
    """Rows and columns around a sprite centred at (x, y), and the share of each pixel there that it covers."""
    columns, rows = (slice(max(int(at - sprite.radius), 0), min(int(at + sprite.radius) + 1, SIDE)) for at in (x, y))
    u = ((np.arange(columns.start * FINE, columns.stop * FINE) + 0.5) / FINE - x)[None] / sprite.radius
    v = ((np.arange(rows.start * FINE, rows.stop * FINE) + 0.5) / FINE - y)[:, None] / sprite.radius
    inside = (np.abs(u) <= 1) & (np.abs(v) <= 1)
    if sprite.shape == "circle":
        inside &= u**2 + v**2 <= 1
    elif sprite.shape == "triangle":
        inside &= np.abs(u) <= (v + 1) / 2
    elif sprite.shape == "diamond":
        inside &= np.abs(u) + np.abs(v) <= 1
    elif sprite.shape == "cross":
        inside &= (np.abs(u) <= 0.4) | (np.abs(v) <= 0.4)
    pixels = inside.reshape(rows.stop - rows.start, FINE, columns.stop - columns.start, FINE)
    return (rows, columns), pixels.mean(axis=(1, 3), dtype=np.float32)


def draw_ground(rng: Draw) -> Pixels:
    """A dull ground, plain or textured: float32 [64, 64, 3]."""
    base = rng.uniform(105, 165) + rng.uniform(-12, 12, 3)
    y, x = np.mgrid[:SIDE, :SIDE]
    kind, period = rng.integers(4), int(rng.integers(4, 9))
    if kind == 0:
        pattern = np.zeros((SIDE, SIDE))
    elif kind == 1:
        pattern = np.where((x // period + y // period) % 2, 9.0, -9.0)
    elif kind == 2:
        across = (x, y, x + y)[rng.integers(3)]
        pattern = 10 * np.sin(2 * np.pi * across / period)
    else:
        pattern = np.kron(rng.uniform(-12, 12, (SIDE // 4, SIDE // 4)), np.ones((4, 4)))
    return (base + pattern[..., None]).astype(np.float32)


def build_wall(ground: Pixels, wall: Box) -> Pixels:
    """The ground with a brick wall on it."""
    built = ground.copy()
    rows = np.arange(wall.top, wall.bottom)
    bricks = np.where((rows % 4 == 0)[:, None, None], MORTAR, BRICK)
    built[wall.top : wall.bottom, wall.left : wall.right] = bricks
    return built


# ------------------------------------------------------------------------------------------------------- motion


def straight(start: ArrayLike, velocity: ArrayLike, frames: int) -> NDArray[np.float64]:
    """x, y, vx, vy of what nothing stops: float64 [t, 4]."""
    v = np.asarray(velocity, float)
    places = np.asarray(start, float) + np.arange(frames)[:, None] * v
    return np.concatenate([places, np.broadcast_to(v, places.shape)], axis=1)


def bounced(track: NDArray[np.float64], contact: float) -> NDArray[np.float64]:
    """A track that a wall throws back where its centre would pass x = ``contact``: [t, 4], moving along x."""
    turned = track.copy()
    beyond = np.sign(track[0, 2]) * (track[:, 0] - contact) > 0
    turned[beyond, 0] = 2 * contact - track[beyond, 0]
    turned[beyond, 2] *= -1
    return turned


def film(stage: Stage, sprite: Sprite | None, track: NDArray[np.float64], speed: str) -> Clip:
    """The clip of a sprite on its track; of the empty stage without a sprite."""
    frames = stage.draw(sprite, track[:, :2])
    state = np.zeros((len(track), 5), np.float32)
    if sprite is None:
        none = {"shape": "none", "colour": "none", "direction": "none", "speed_class": "none", "speed": 0.0}
        return Clip(frames, state, none)
    state[:, 0], state[:, 1:] = 1, track
    vx, vy = track[0, 2:]
    labels = {
        "shape": sprite.shape,
        "colour": sprite.colour,
        "direction": direction(vx, vy),
        "speed_class": speed,
        "speed": round(float(np.hypot(vx, vy)), 4),
    }
    return Clip(frames, state, labels)


def direction(vx: float, vy: float) -> str:
    """The nearest of the eight directions; y is downwards."""
    return DIRECTIONS[round(float(np.arctan2(vy, vx)) / (np.pi / 4)) % 8]


# ------------------------------------------------------------------------------------------------------- events


def make_quadruple(law: str, rng: Draw, frames: int) -> Quadruple:
    """Four clips about one law: ``permanence``, ``continuity`` or ``solidity``.

    Args:
        law: the one that the impossible ones break.
        rng: decides everything else.
        frames: of a clip, 16 to 32.

    Raises:
        ValueError: no such law, or a length that its events do not fit.
    """
    _check(law, PROPERTIES, frames)
    a, b, cuts, event = EVENTS[law](rng, frames)
    turn = int(rng.integers(8))
    return recombine(turned(a, turn), turned(b, turn), cuts, event)


def make_possible(world: str, rng: Draw, frames: int) -> Clip:
    """One clip of a world in which its law holds; ``moving`` shows one sprite that goes straight.

    Raises:
        ValueError: no such world, or a length that its events do not fit.
    """
    _check(world, WORLDS, frames)
    if world == "moving":
        return moving(rng, frames)
    if world == "solidity" and (kind := rng.integers(3)) > 0:  # what walls and screens are, seen apart
        a, b, _, _ = solidity(rng, frames, wall=kind == 1, screen=kind == 2)
    else:
        a, b, _, _ = EVENTS[world](rng, frames)
    return turned(b if rng.random() < EMPTY else a, int(rng.integers(8)))


def _check(world: str, known: tuple[str, ...], frames: int) -> None:
    if world not in known:
        raise ValueError(f"there is no world {world!r} here, only {', '.join(known)}")
    if frames not in FRAMES:
        raise ValueError(f"clips have {FRAMES.start} to {FRAMES.stop - 1} frames, got {frames}")


def recombine(a: Clip, b: Clip, cuts: tuple[int, int], event: str) -> Quadruple:
    """Exchange the frames from ``cuts[0]`` until before ``cuts[1]`` between two possible clips."""
    start, stop = cuts
    assert (a.frames[start] == b.frames[start]).all(), "the cut would be seen"
    assert stop == len(a.frames) or (a.frames[stop - 1] == b.frames[stop - 1]).all(), "the second cut would be seen"

    def exchanged(one: Clip, other: Clip) -> Clip:
        frames, state = one.frames.copy(), one.state.copy()
        frames[start:stop], state[start:stop] = other.frames[start:stop], other.state[start:stop]
        return Clip(frames, state, one.labels if one.labels["shape"] != "none" else other.labels)

    impossible = exchanged(a, b), exchanged(b, a)
    (differing,) = np.nonzero((a.frames != impossible[0].frames).any(axis=(1, 2, 3)))
    return Quadruple((a, b), impossible, int(differing[0]), event)


def turned(clip: Clip, turn: int) -> Clip:
    """One of the eight ways to lay a square on itself: transposed (4), mirrored up and down (2), left and right (1)."""
    frames, state = clip.frames, clip.state.copy()
    there = state[:, 0] == 1
    if turn & 4:
        frames, state = frames.swapaxes(1, 2), state[:, [0, 2, 1, 4, 3]]
    for bit, axis, place in ((2, 1, 2), (1, 2, 1)):
        if turn & bit:
            frames = np.flip(frames, axis)
            state[there, place] = SIDE - state[there, place]
            state[:, place + 2] *= -1
    labels = clip.labels
    if there[0]:
        labels = {**labels, "direction": direction(*state[0, 3:])}
    return replace(clip, frames=np.ascontiguousarray(frames), state=state, labels=labels)


def draw_sprite(rng: Draw, radius: float) -> Sprite:
    """Of any shape and colour."""
    return Sprite(SHAPES[rng.integers(len(SHAPES))], list(COLOURS)[rng.integers(len(COLOURS))], radius)


def draw_speed(rng: Draw, frames: int) -> tuple[str, float]:
    """A class of speeds, and pixels a frame."""
    speed = list(SPEEDS)[rng.integers(len(SPEEDS))]
    return speed, SPEEDS[speed] / (frames - 1)


def moving(rng: Draw, frames: int) -> Clip:
    """A sprite that goes straight in one of eight directions and stays in the picture."""
    radius = float(rng.uniform(4, 6))
    speed, v = draw_speed(rng, frames)
    angle = rng.integers(8) * np.pi / 4
    velocity = v * np.array([np.cos(angle), np.sin(angle)])
    way = velocity * (frames - 1)
    low, high = radius - np.minimum(way, 0), SIDE - radius - np.maximum(way, 0)
    track = straight(rng.uniform(low, high), velocity, frames)
    return film(Stage(draw_ground(rng)), draw_sprite(rng, radius), track, speed)


Event = tuple[Clip, Clip, tuple[int, int], str]
"""Two possible clips, where to cut them, and what the impossible ones then show."""


def permanence(rng: Draw, frames: int) -> Event:
    """A sprite passes behind a screen; on the same stage, none does."""
    radius = float(rng.uniform(4, 5))
    speed, v = draw_speed(rng, frames)
    y, middle = rng.uniform(14, SIDE - 14), SIDE / 2 + rng.uniform(-2, 2)
    screen = _screen(middle, radius + v + rng.uniform(0, 2), y, radius + int(rng.integers(3, 8)))
    stage, sprite = Stage(draw_ground(rng), (screen,)), draw_sprite(rng, radius)
    track = _through(middle, y, v, frames)
    cut = _hidden(track, radius, screen)[0]
    return film(stage, sprite, track, speed), film(stage, None, track, speed), (cut, frames), "vanishes or appears"


def continuity(rng: Draw, frames: int) -> Event:
    """A sprite passes behind two screens with a gap between them; or one of two lanes behind one screen."""
    return (_gap if rng.integers(2) else _lanes)(rng, frames)


def _gap(rng: Draw, frames: int) -> Event:
    radius = float(rng.uniform(3.5, 4))
    speed, v = draw_speed(rng, frames)
    y, middle, gap = rng.uniform(14, SIDE - 14), SIDE / 2 + rng.uniform(-1, 1), rng.uniform(8, 10) / 2
    half, above = radius + v / 2 + 0.5, radius + int(rng.integers(3, 8))
    screens = tuple(_screen(middle + side * (gap + half), half, y, above) for side in (-1, 1))
    stage, sprite = Stage(draw_ground(rng), screens), draw_sprite(rng, radius)
    track = _through(middle, y, v, frames)
    first, second = (_hidden(track, radius, screen) for screen in screens)
    cuts = first[0], second[-1] + 1
    return film(stage, sprite, track, speed), film(stage, None, track, speed), cuts, "does not cross the gap"


def _lanes(rng: Draw, frames: int) -> Event:
    radius = float(rng.uniform(4, 5))
    speed, v = draw_speed(rng, frames)
    middle = SIDE / 2 + rng.uniform(-2, 2)
    lanes = SIDE / 2 - rng.uniform(10, 16), SIDE / 2 + rng.uniform(10, 16)
    screen = _screen(middle, radius + v + rng.uniform(0, 2), SIDE / 2, SIDE / 2 - int(rng.integers(1, 5)))
    stage, sprite = Stage(draw_ground(rng), (screen,)), draw_sprite(rng, radius)
    tracks = [_through(middle, y, v, frames) for y in lanes]
    a, b = (film(stage, sprite, track, speed) for track in tracks)
    return a, b, (_hidden(tracks[0], radius, screen)[0], frames), "changes its lane unseen"


def solidity(rng: Draw, frames: int, wall: bool = True, screen: bool = True) -> Event:
    """A sprite meets a wall behind a screen, from one side or from the other.

    Without the wall it goes on to the other side; without the screen it is seen where they meet.
    """
    radius = float(rng.uniform(4, 5))
    speed, v = draw_speed(rng, frames)
    y, middle, half = rng.uniform(16, SIDE - 16), SIDE // 2 + int(rng.integers(-1, 2)), int(rng.integers(1, 3))
    contact = half + radius
    ground = draw_ground(rng)
    if wall:
        v *= 0.8  # the way to the wall and back begins further out
        ground = build_wall(ground, Box(middle - half, 0, middle + half, SIDE))
    front = _screen(middle, contact + radius + 1.5 * v, y, radius + int(rng.integers(2, 5)))
    stage, sprite = Stage(ground, (front,) if screen else ()), draw_sprite(rng, radius)
    start = wall * contact + v * (frames - 1) / 2  # halfway through the clip it is at the wall, or in the middle
    clips = []
    for side in (-1, 1):
        track = straight((middle + side * start, y), (-side * v, 0), frames)
        clips.append(film(stage, sprite, bounced(track, middle + side * contact) if wall else track, speed))
    return clips[0], clips[1], (frames // 2, frames), "passes through the wall"


EVENTS: dict[str, Callable[[Draw, int], Event]] = {
    "permanence": permanence,
    "continuity": continuity,
    "solidity": solidity,
}


def _through(middle: float, y: float, v: float, frames: int) -> NDArray[np.float64]:
    """Rightwards, past ``middle`` halfway through the clip."""
    return straight((middle - v * (frames - 1) / 2, y), (v, 0), frames)


def _screen(x: float, half_width: float, y: float, half_height: float) -> Box:
    """The smallest box of whole pixels around the given one, within the picture."""
    left, top = int(np.floor(x - half_width)), int(np.floor(y - half_height))
    right, bottom = int(np.ceil(x + half_width)), int(np.ceil(y + half_height))
    return Box(max(left, 0), max(top, 0), min(right, SIDE), min(bottom, SIDE))


def _hidden(track: NDArray[np.float64], radius: float, screen: Box) -> list[int]:
    """Frames in which a screen covers all of the sprite."""
    inside = (track[:, 0] - radius >= screen.left) & (track[:, 0] + radius <= screen.right)
    return [int(i) for i in np.flatnonzero(inside)]
