"""Readers of an environment's own state, with a name for every number.

An environment provides its state by two attributes: ``state``, float [S], and ``state_names``, one per number. For
environments without them, readers exist for Atari RAM, MuJoCo joints, the car of CarRacing, and vector observations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RAM_BYTES = 128

RAM_NAMES: dict[str, dict[str, int]] = {
    "Boxing": {
        "clock": 17,
        "player_score": 18,
        "enemy_score": 19,
        "player_x": 32,
        "enemy_x": 33,
        "player_y": 34,
        "enemy_y": 35,
    },
    "Breakout": {"player_x": 72, "blocks_hit": 77, "score": 84, "ball_x": 99, "ball_y": 101},
    "Freeway": {"player_y": 14, "score": 103, **{f"car_{i}_x": 108 + i for i in range(10)}},
    "MsPacman": {
        "sue_x": 6,
        "inky_x": 7,
        "pinky_x": 8,
        "blinky_x": 9,
        "player_x": 10,
        "fruit_x": 11,
        "sue_y": 12,
        "inky_y": 13,
        "pinky_y": 14,
        "blinky_y": 15,
        "player_y": 16,
        "fruit_y": 17,
        "ghosts_count": 19,
        "player_direction": 56,
        "dots_eaten": 119,
        "score": 120,
        "lives": 123,
    },
    "Pong": {
        "enemy_score": 13,
        "player_score": 14,
        "enemy_x": 45,
        "player_x": 46,
        "ball_x": 49,
        "enemy_y": 50,
        "player_y": 51,
        "ball_y": 54,
    },
    "Seaquest": {
        **{f"enemy_{i}_x": 30 + i for i in range(4)},
        "lives": 59,
        "divers_collected": 62,
        "player_x": 70,
        "player_direction": 86,
        "player_y": 97,
        "oxygen": 102,
        "player_missile_x": 103,
    },
    "SpaceInvaders": {
        "missiles_y": 9,
        "invaders_left": 17,
        "enemies_y": 24,
        "enemies_x": 26,
        "player_x": 28,
        "lives": 73,
        "score": 104,
    },
}
"""Addresses of quantities in the console's memory, from the annotations of the Atari Annotated RAM Interface
(Anand et al., 2019, arXiv 1906.08226; github.com/mila-iqia/atari-representation-learning)."""

CAR_STATE_NAMES = (
    "x",
    "y",
    "angle",
    "vx",
    "vy",
    "angular_velocity",
    "forward_speed",
    "lateral_speed",
    "steering_angle",
)

OBSERVATION_NAMES: dict[str, tuple[str, ...]] = {
    "CartPole": ("cart_x", "cart_velocity", "pole_angle", "pole_angular_velocity"),
    "Pendulum": ("cos_angle", "sin_angle", "angular_velocity"),
    "MountainCar": ("x", "velocity"),
    "MountainCarContinuous": ("x", "velocity"),
    "Acrobot": ("cos_angle_1", "sin_angle_1", "cos_angle_2", "sin_angle_2", "angular_velocity_1", "angular_velocity_2"),
}


@dataclass(frozen=True)
class StateReader:
    """Reads the state of an environment.

    Attributes:
        names: one per number.
        read: maps the last observation to the current state, float32 [S].
    """

    names: tuple[str, ...]
    read: Callable[[Any], NDArray[np.float32]]


def make_state_reader(name: str, env: Any, observation: Any) -> StateReader:
    """Find the reader for an environment that was just reset.

    Args:
        name: id of the environment.
        env: the unwrapped environment.
        observation: its first observation.

    Raises:
        ValueError: it does not provide a state, or one of another size than its names.
    """
    state = _match_state_reader(name.rpartition("/")[-1].rpartition(":")[-1].partition("-v")[0], env, observation)
    if state is None:
        raise ValueError(
            f"{name}: has no known state (known: Atari RAM, MuJoCo, CarRacing's car, vector observations, and "
            "games with the attributes state and state_names); record without --state"
        )
    values = state.read(observation)
    if values.shape != (len(state.names),):
        raise ValueError(f"{name}: state has shape {list(values.shape)}, but there are {len(state.names)} state_names")
    return state


def _match_state_reader(short: str, env: Any, observation: Any) -> StateReader | None:
    if hasattr(env, "state_names") and hasattr(env, "state"):
        return StateReader(tuple(map(str, env.state_names)), lambda _: np.array(env.state, np.float32))
    if hasattr(env, "ale"):
        return StateReader(atari_ram_names(short), lambda _: np.array(env.ale.getRAM(), np.float32))
    if hasattr(env, "data") and hasattr(env.data, "qpos"):
        parts = {"qpos": env.data.qpos.size, "qvel": env.data.qvel.size}
        names = tuple(f"{part}_{i}" for part, size in parts.items() for i in range(size))
        return StateReader(names, lambda _: np.concatenate([env.data.qpos, env.data.qvel]).astype(np.float32))
    if getattr(env, "car", None) is not None:
        return StateReader(CAR_STATE_NAMES, lambda _: read_car_state(env.car))
    if isinstance(observation, np.ndarray) and observation.ndim == 1:
        count = observation.size
        names = OBSERVATION_NAMES.get(short, ())
        names = names if len(names) == count else tuple(f"observation_{i}" for i in range(count))
        return StateReader(names, lambda current: np.array(current, np.float32))
    return None


def atari_ram_names(short: str) -> tuple[str, ...]:
    """Name the 128 bytes of an Atari game's RAM: known names, else ``ram_0`` to ``ram_127``.

    >>> atari_ram_names("Pong")[48:52]
    ('ram_48', 'ball_x', 'enemy_y', 'player_y')
    """
    known = {byte: name for name, byte in RAM_NAMES.get(short, {}).items()}
    return tuple(known.get(i, f"ram_{i}") for i in range(RAM_BYTES))


def read_car_state(car: Any) -> NDArray[np.float32]:
    """Read the state of CarRacing's car, float32 [9], see :data:`CAR_STATE_NAMES`.

    Its position and heading on the track are not visible, because the image turns with the car; its speeds along its
    own axes (lateral to the right) and the angle of the front wheels are.
    """
    hull = car.hull
    vx, vy = hull.linearVelocity
    cos, sin = math.cos(hull.angle), math.sin(hull.angle)
    forward, lateral = cos * vy - sin * vx, cos * vx + sin * vy
    steering = car.wheels[0].joint.angle
    return np.array([*hull.position, hull.angle, vx, vy, hull.angularVelocity, forward, lateral, steering], np.float32)
