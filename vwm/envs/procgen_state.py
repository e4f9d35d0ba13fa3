"""Read the state of a Procgen game from its saved bytes (``callmethod("get_state")``).

The order of the fields is that of the ``serialize`` methods in Procgen's C++ (github.com/openai/procgen,
``procgen/src``: ``game.cpp``, ``basic-abstract-game.cpp``, ``entity.cpp``, ``grid.h``, ``games/coinrun.cpp``): 32-bit
words, little-endian as the machine is, and strings and lists behind their lengths. Every game there shares the part
that is read here. The parse is checked by the version and the name at its start and, for CoinRun, by the mark at its
end, so that another layout stops with an error and not with wrong numbers.

Lengths are in tiles of the level, y is upward; velocities in tiles per step of the game.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROCGEN_STATE_VERSION = 0
PROCGEN_END_MARK = 0xCAFECAFE
PLAYER_ENTITY_KIND = 0

HEADER_WORDS = 12 + 5  # the options, then the range of levels and the kind of game
STEP_WORDS = 15  # reward, ends, action, seeds of levels, times
ENTITY_WORDS = 31
X, Y, VX, VY, RX, RY, KIND = range(7)
ROTATION, REFLECTED = 13, 15

COINRUN_WALLS = (15, 16)
COINRUN_DANGERS = (2, 5)  # saws and walking enemies: touching one is death

POSE_NAMES = ("x", "y", "vx", "vy")
EXTRA_STATE_NAMES: dict[str, tuple[str, ...]] = {
    "coinrun": ("on_ground", "facing_right", "danger_in_view", "danger_dx", "danger_dy"),
    "caveflyer": ("rotation",),
}


@dataclass
class _WordReader:
    """Reads 32-bit words; the caller knows whether a word is a float or an integer."""

    data: bytes
    at: int = 0

    def take(self, count: int) -> NDArray[np.int32]:
        if count < 0 or self.at + 4 * count > len(self.data):
            raise ValueError(f"the state ends after {len(self.data)} bytes, {count} words were expected at {self.at}")
        words = np.frombuffer(self.data, "<i4", count, self.at)
        self.at += 4 * count
        return words

    def integer(self) -> int:
        return int(self.take(1)[0])

    def floats(self, count: int) -> NDArray[np.float32]:
        return self.take(count).view("<f4")

    def string(self) -> bytes:
        length = self.integer()
        if length < 0 or self.at + length > len(self.data):
            raise ValueError(f"a string of {length} bytes at {self.at} of {len(self.data)}")
        self.at += length
        return self.data[self.at - length : self.at]

    def skip_rng(self) -> None:
        self.take(1)
        self.string()


@dataclass(frozen=True)
class _LevelState:
    """Objects of the level: agent float32 [31], entities int32 [n, 31], grid int32 [height, width]."""

    agent: NDArray[np.float32]
    entities: NDArray[np.int32]
    grid: NDArray[np.int32]
    center: NDArray[np.float32]
    visibility: float
    remainder: _WordReader


def procgen_state_names(game: str) -> tuple[str, ...]:
    """Return the names of the values of :func:`read_procgen_state` for a game; lengths in tiles, y is upward.

    ``danger_dx`` and ``danger_dy`` lead from the agent to the nearest saw or enemy that the frame shows; both are 0
    where it shows none (``danger_in_view`` is 0 then).
    """
    return POSE_NAMES + EXTRA_STATE_NAMES.get(game, ())


def check_procgen_options(game: str, options: dict[str, Any]) -> None:
    """Raise ValueError for options with which Procgen cannot save its state (it would end the process).

    Raises:
        ValueError: assets drawn at random.
    """
    if options.get("use_generated_assets"):
        raise ValueError(
            f"procgen:{game}: Procgen cannot save its state with use_generated_assets; record without that option, "
            f"or without --state"
        )


def read_procgen_state(game: str, data: bytes) -> NDArray[np.float32]:
    """Parse the saved bytes of one environment: float32 [S], in the order of :func:`procgen_state_names`.

    Raises:
        ValueError: the bytes are not in the known order (another version of Procgen).
    """
    try:
        level = _parse(game, data)
        agent = level.agent
        values = [*agent[[X, Y, VX, VY]]]
        if game == "coinrun":
            values += _coinrun_state(level)
        elif game == "caveflyer":
            values.append(agent[ROTATION])
    except ValueError as error:
        raise ValueError(
            f"procgen:{game}: its saved state cannot be read ({error}); this is known for procgen 0.10. Record "
            f"without --state"
        ) from error
    return np.array(values, np.float32)


def _parse(game: str, data: bytes) -> _LevelState:
    words = _WordReader(data)
    version, name = words.integer(), words.string().decode(errors="replace")
    if version != PROCGEN_STATE_VERSION or name != game:
        raise ValueError(f"version {version} of {name!r}, expected version {PROCGEN_STATE_VERSION} of {game!r}")
    words.take(HEADER_WORDS)
    words.skip_rng()  # that deals out levels
    words.skip_rng()  # of the level
    words.take(STEP_WORDS + 1)  # and the grid's size
    entities = words.take(words.integer() * ENTITY_WORDS).reshape(-1, ENTITY_WORDS)
    (players,) = np.nonzero(entities[:, KIND] == PLAYER_ENTITY_KIND)
    if not len(players):
        raise ValueError(f"no player among {len(entities)} entities")
    words.take(14)  # background and controls
    center = words.floats(2)
    words.take(3)
    words.skip_rng()  # of assets
    words.take(3 + 4)  # the level's size, the scale of the picture
    visibility = float(words.floats(2)[0])
    width, height = words.integer(), words.integer()
    cells = words.take(words.integer())
    if width < 1 or height < 1 or width * height != len(cells):
        raise ValueError(f"a grid of {width}x{height} in {len(cells)} cells")
    agent = entities[players[0]].view("<f4")
    if not np.isfinite(agent[[X, Y, VX, VY]]).all():
        raise ValueError(f"a player at {agent[[X, Y]].tolist()}")
    return _LevelState(agent, entities, cells.reshape(height, width), center, visibility, words)


def _coinrun_state(level: _LevelState) -> list[float]:
    """Return on_ground, facing_right, and the position of the nearest visible danger."""
    words, agent = level.remainder, level.agent
    words.take(4)
    on_crate = words.integer()
    words.take(2)
    if (end := words.integer() & 0xFFFFFFFF) != PROCGEN_END_MARK or words.at != len(words.data):
        raise ValueError(f"it ends with {end:#x} and {len(words.data) - words.at} bytes more")
    # The game's own flag refers to the state before the step, that is to the previous frame.
    feet = int(np.floor(agent[Y] - agent[RY] - 0.01))
    sides = [int(np.floor(agent[X] + side * (agent[RX] - 0.01))) for side in (-1, 1)]
    ground = bool(on_crate) or any(_is_wall(level.grid, x, feet) for x in sides)
    dangers = level.entities[np.isin(level.entities[:, KIND], COINRUN_DANGERS)].view("<f4")
    visible = (np.abs(dangers[:, [X, Y]] - level.center) <= level.visibility / 2).all(axis=1)
    offsets = dangers[visible][:, [X, Y]] - agent[[X, Y]]
    nearest = offsets[np.argmin((offsets**2).sum(axis=1))] if len(offsets) else np.zeros(2)
    return [
        float(ground and agent[VY] <= 0),
        float(agent.view("<i4")[REFLECTED] == 0),
        float(len(offsets) > 0),
        *map(float, nearest),
    ]


def _is_wall(grid: NDArray[np.int32], x: int, y: int) -> bool:
    inside = 0 <= y < grid.shape[0] and 0 <= x < grid.shape[1]
    return not inside or grid[y, x] in COINRUN_WALLS
