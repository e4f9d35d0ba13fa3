"""Moving sprites: drawing them, their tracks, and the clips that result.

Scenes are 64 pixels wide and high, flat and without gravity; x is to the right, y is downward, one pixel is 1.

Legend: t frames of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vwm.data.episode import Episode

SPRITE_FRAME_SIZE = 64
SPRITE_FPS = 12.0
SUPERSAMPLING = 4
"""Sample points along a pixel's side, from which a sprite's coverage of the pixel is counted."""

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
    """A moving shape; ``radius`` is half its width and height, in pixels."""

    shape: str
    color: str
    radius: float


@dataclass(frozen=True)
class SpriteClip:
    """A video with its state and labels.

    Attributes:
        frames: uint8 [t, 64, 64, 3].
        state: float32 [t, 5], see ``SPRITE_STATE_NAMES``; all 0 where there is no sprite.
        labels: shape, color, direction and speed at its start; "none" where there is no sprite.
    """

    frames: NDArray[np.uint8]
    state: NDArray[np.float32]
    labels: dict[str, Any]

    def episode(self, world: str, **more: Any) -> Episode:
        """Make the episode that is stored: the labels become keys of its JSON."""
        meta = {
            "fps": SPRITE_FPS,
            "source": f"sprites:{world}",
            "state_names": list(SPRITE_STATE_NAMES),
            **self.labels,
            **more,
        }
        return Episode(self.frames, state=self.state, meta=meta)


@dataclass(frozen=True)
class SpriteScene:
    """A scene of sprites: ground and walls behind them, float32 [64, 64, 3], and the screens in front of them."""

    ground: FloatImage
    screens: tuple[PixelBox, ...] = ()

    def draw(self, sprite: Sprite | None, positions: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Draw frames of a sprite centered at ``positions`` [t, 2], uint8 [t, 64, 64, 3]."""
        frames = np.repeat(self.ground[None], len(positions), axis=0)
        if sprite is not None:
            color = np.array(SPRITE_COLORS[sprite.color], np.float32)
            for frame, (x, y) in zip(frames, positions, strict=True):
                region, coverage = sprite_coverage(sprite, x, y)
                frame[region] += coverage[..., None] * (color - frame[region])
        for screen in self.screens:
            left, top, right, bottom = screen
            frames[:, top:bottom, left:right] = OCCLUDER_EDGE_COLOR
            frames[:, top + 1 : bottom - 1, left + 1 : right - 1] = OCCLUDER_COLOR
        return frames.round().astype(np.uint8)


def sprite_coverage(sprite: Sprite, x: float, y: float) -> tuple[tuple[slice, slice], FloatImage]:
    """Return rows and columns around a sprite centered at (x, y), and the fraction of each pixel that it covers."""
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
    """Draw a gray ground, plain or textured: float32 [64, 64, 3]."""
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
    """Draw a brick wall on a copy of the ground."""
    walled = ground.copy()
    rows = np.arange(wall.top, wall.bottom)
    bricks = np.where((rows % 4 == 0)[:, None, None], MORTAR, BRICK)
    walled[wall.top : wall.bottom, wall.left : wall.right] = bricks
    return walled


def straight_track(start: ArrayLike, velocity: ArrayLike, frames: int) -> NDArray[np.float64]:
    """Return x, y, vx, vy of uniform motion: float64 [t, 4]."""
    v = np.asarray(velocity, float)
    positions = np.asarray(start, float) + np.arange(frames)[:, None] * v
    return np.concatenate([positions, np.broadcast_to(v, positions.shape)], axis=1)


def reflect_track(track: NDArray[np.float64], contact: float) -> NDArray[np.float64]:
    """Reflect a track along x at a wall, where its center would pass x = ``contact``: [t, 4]."""
    reflected = track.copy()
    beyond = np.sign(track[0, 2]) * (track[:, 0] - contact) > 0
    reflected[beyond, 0] = 2 * contact - track[beyond, 0]
    reflected[beyond, 2] *= -1
    return reflected


def render_sprite_clip(scene: SpriteScene, sprite: Sprite | None, track: NDArray[np.float64], speed: str) -> SpriteClip:
    """Render the clip of a sprite on its track, or of the empty scene where ``sprite`` is None."""
    frames = scene.draw(sprite, track[:, :2])
    state = np.zeros((len(track), 5), np.float32)
    if sprite is None:
        no_labels = {"shape": "none", "color": "none", "direction": "none", "speed_class": "none", "speed": 0.0}
        return SpriteClip(frames, state, no_labels)
    state[:, 0], state[:, 1:] = 1, track
    vx, vy = track[0, 2:]
    labels = {
        "shape": sprite.shape,
        "color": sprite.color,
        "direction": direction_name(vx, vy),
        "speed_class": speed,
        "speed": round(float(np.hypot(vx, vy)), 4),
    }
    return SpriteClip(frames, state, labels)


def direction_name(vx: float, vy: float) -> str:
    """Name the nearest of the eight directions; y is downward."""
    return MOTION_DIRECTIONS[round(float(np.arctan2(vy, vx)) / (np.pi / 4)) % 8]


def transform_clip(clip: SpriteClip, symmetry: int) -> SpriteClip:
    """Apply a symmetry of the square: bits transpose (4), mirror vertically (2), mirror horizontally (1)."""
    frames, state = clip.frames, clip.state.copy()
    present = state[:, 0] == 1
    if symmetry & 4:
        frames, state = frames.swapaxes(1, 2), state[:, [0, 2, 1, 4, 3]]
    for bit, axis, column in ((2, 1, 2), (1, 2, 1)):
        if symmetry & bit:
            frames = np.flip(frames, axis)
            state[present, column] = SPRITE_FRAME_SIZE - state[present, column]
            state[:, column + 2] *= -1
    labels = clip.labels
    if present[0]:
        labels = {**labels, "direction": direction_name(*state[0, 3:])}
    return replace(clip, frames=np.ascontiguousarray(frames), state=state, labels=labels)
