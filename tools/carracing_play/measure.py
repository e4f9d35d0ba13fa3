"""What is seen in a frame of CarRacing, and the key patterns that people press."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import vwm
from vwm.eval.eval_clips import read_eval_clips

PATTERNS = ("coast", "gas", "half gas", "gas and left", "gas and right", "brake", "weave")
FPS, IMAGE_SIZE = 12.5, (64, 64)
DASHBOARD_ROW = 56
CAR_ROWS, CAR_COLUMNS = slice(44, 56), slice(28, 36)
CAR_CENTER = (46.5, 31.5)
MIN_CAR_PIXELS = 4


def read_clips(recording: str, length: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the first clips of the seeded order: uint8 [n, length, h, w, 3], and actions float32 [n, length, 3]."""
    dataset = vwm.open_clips(recording, length, fields=("frames", "actions"), shuffle=True)
    clips = read_eval_clips(dataset, count, IMAGE_SIZE)
    assert clips.actions is not None
    return clips.frames, clips.actions


def key_pattern(name: str, t: int) -> NDArray[np.float32]:
    """Return steer, gas and brake in [-1, 1] at frame ``t`` of a pattern; weaving turns the wheel over every 0.8 s."""
    steer, gas, brake = {
        "coast": (0, 0, 0),
        "gas": (0, 1, 0),
        "half gas": (0, 0.5, 0),
        "gas and left": (-1, 1, 0),
        "gas and right": (1, 1, 0),
        "brake": (0, 0, 1),
        "weave": (1 if t // 10 % 2 else -1, 0.5, 0),
    }[name]
    return np.array([steer, 2 * gas - 1, 2 * brake - 1], np.float32)


@torch.no_grad()
def play_world(
    world: Any, starts: torch.Tensor, pattern: str, seconds: float, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Play from starts of a bundle: uint8 [n, t, h, w, 3], and the number of frames until each run ended, [n]."""
    state, frame = world.reset(starts, seed=seed)
    frames, lasting, lengths = [frame], torch.ones(len(starts), dtype=torch.bool), torch.ones(len(starts)).long()
    for t in range(round(seconds * FPS)):
        action = torch.from_numpy(key_pattern(pattern, t)).expand(len(starts), -1)
        state, output = world.step(state, action)
        frames.append(output.frame)
        lasting &= ~output.terminated
        lengths += lasting
    return torch.stack(frames, dim=1).numpy(), lengths.numpy()


def road_share(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of gray pixels above the dashboard: [t, h, w, 3] -> [t]."""
    red, green, blue = np.moveaxis(frames[:, :DASHBOARD_ROW].astype(int), -1, 0)
    gray = (abs(red - green) < 16) & (abs(green - blue) < 16) & (red > 70) & (red < 140)
    return gray.mean(axis=(1, 2))


def car_is_visible(frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether there are red pixels where the car always is: [t, h, w, 3] -> [t]. Real frames have at least 7."""
    red, green, blue = np.moveaxis(frames[:, CAR_ROWS, CAR_COLUMNS].astype(int), -1, 0)
    return ((red > 110) & (green < 70) & (blue < 70)).sum(axis=(1, 2)) >= MIN_CAR_PIXELS


def observe_run(frames: NDArray[np.uint8]) -> dict[str, list[Any]]:
    """Return the share of road and whether the car is visible in each frame of a run, [t, h, w, 3], as JSON values."""
    return {"road": road_share(frames).round(4).tolist(), "car": car_is_visible(frames).tolist()}


def rate_run(
    run: dict[str, list[Any]], real_runs: list[dict[str, list[Any]]], fps: float, frames: int | None = None
) -> NDArray[np.bool_]:
    """Return for each frame whether it is right: [frames].

    The percentiles of the road are those of all real frames of the same second; later seconds than the real runs have
    are compared with the last second of which there are frames of three runs or more. Where the run ended before
    ``frames`` (the car left the field), that is right from the time on at which the first of the real runs ended.

    Args:
        run: see ``observe_run``, until the run ended.
        real_runs: the same of real runs; those shorter than the longest ended.
        fps: frames a second.
        frames: number of frames to rate; None rates the frames until the run ended.
    """
    road, car = np.array(run["road"]), np.array(run["car"])
    right, bounds = [], (0.0, 1.0)
    for start in range(0, len(road), round(fps)):
        stop = start + round(fps)
        real = [other["road"][start:stop] for other in real_runs if len(other["road"]) >= stop]
        if len(real) >= 3:
            low, high = np.percentile(np.concatenate(real), (1, 99))
            bounds = (low - 0.01, high + 0.01)
        right.append((road[start:stop] >= bounds[0]) & (road[start:stop] <= bounds[1]) & car[start:stop])
    lengths = [len(real["road"]) for real in real_runs]
    first_end = min((length for length in lengths if length < max(lengths)), default=frames)
    after_end = np.arange(len(road), len(road) if frames is None else frames)
    return np.concatenate((*right, after_end >= (first_end or 0)))


def turn_of_view(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimate how far the car turned to the right, in degrees: uint8 [n, h, w, 3] twice -> [n].

    Of all turns about the car and ways forward, the one after which the two frames agree best.
    """
    x, y = (torch.from_numpy(f[:, :DASHBOARD_ROW].astype(np.float32)).movedim(-1, 1) for f in (before, after))
    height, width = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    best, least = torch.zeros(len(x)), torch.full((len(x),), torch.inf)
    for degrees in np.arange(-16, 16.1, 2):
        angle = np.deg2rad(degrees)
        for forward in range(0, 8):
            down, right = rows - CAR_CENTER[0], columns - CAR_CENTER[1]
            source_down = np.cos(angle) * down + np.sin(angle) * right - forward
            source_right = -np.sin(angle) * down + np.cos(angle) * right
            grid = torch.stack(
                (
                    2 * (source_right + CAR_CENTER[1]) / (width - 1) - 1,
                    2 * (source_down + CAR_CENTER[0]) / (height - 1) - 1,
                ),
                dim=-1,
            ).float()
            inside = (grid.abs() <= 1).all(dim=-1)
            inside[CAR_ROWS, CAR_COLUMNS] = False
            moved = F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=True)
            error = ((moved - y).abs().mean(dim=1) * inside).sum(dim=(1, 2)) / inside.sum()
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better, float(degrees), best)
    return best.double().numpy()
