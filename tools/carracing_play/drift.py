"""Drift as ``vwm eval`` measures it, of the game itself, too, which begins at the same places as the worlds.

The frames of each second under held actions are compared with frames of careful driving. Held actions lead the game
itself to places where careful driving seldom is, so that its own distance, not 0, is what a perfect world would have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from game import Frames, start_drive, take_actions
from numpy.typing import NDArray

import vwm
from vwm.eval.drift import SlicedFrechet, action_patterns
from vwm.eval.drift_features import tokenizer_features

SECONDS = (1, 3, 5, 10, 20, 30)
FPS = 12
"""Frames that count as a second, as in ``vwm eval``."""
CONTEXT = 4
"""Frames before the held actions, from which a world starts."""
REFERENCE_DRIVES, REFERENCE_FRAMES = 12, 200


def measure_drift(bundles: list[str], out: Path, starts: int) -> None:
    """Print the mean over patterns of the distances of the game and of worlds to careful driving, by seconds.

    Args:
        bundles: worlds; the last one's tokenizer gives the features.
        out: folder of the frames, which are not made again.
        starts: drives at whose ends actions are held.
    """
    out.mkdir(parents=True, exist_ok=True)
    world = vwm.load(bundles[-1])
    features = tokenizer_features(world, batch_size=32)
    assert features is not None
    careful = [load_or_make(out / f"careful {i}.npy", partial(drive_carefully, i)) for i in range(REFERENCE_DRIVES)]
    compare = SlicedFrechet(features(torch.from_numpy(np.stack(careful))))
    patterns = action_patterns(world.spec.actions, max(SECONDS) * FPS, period=FPS)
    found: dict[str, list[list[float]]] = {name: [] for name in ("the game", *bundles)}
    for name, actions in patterns.items():
        game = [load_or_make(out / f"game {name} {i}.npy", partial(hold_in_game, i, actions)) for i in range(starts)]
        runs = {"the game": [frames[CONTEXT:] for frames in game]}
        contexts = torch.from_numpy(np.stack([frames[:CONTEXT] for frames in game]))
        for i, bundle in enumerate(bundles):
            path = out / f"world {i} {name}.npy"
            runs[bundle] = list(load_or_make(path, partial(hold_in_world, bundle, contexts, actions)))
        for source, lasting in runs.items():
            seconds = [[run[(s - 1) * FPS : s * FPS] for run in lasting if len(run) >= s * FPS] for s in SECONDS]
            clips = [torch.from_numpy(np.stack(parts)) for parts in seconds if parts]
            found[source].append([compare(features(clip)) for clip in clips] + [np.nan] * (len(SECONDS) - len(clips)))
            print(f"{name:10} {source:40} {_cells(found[source][-1])}", flush=True)
    for source, rows in found.items():
        print(f"{'mean':10} {source:40} {_cells(np.nanmean(rows, axis=0))}")


def load_or_make(path: Path, make: Callable[[], Frames]) -> Frames:
    """Return the array in a file, which is made if it is missing."""
    if not path.exists():
        aside = path.with_suffix(".partial.npy")
        np.save(aside, make())
        aside.rename(path)
    frames: Frames = np.load(path)
    return frames


def drive_carefully(seed: int) -> Frames:
    """Follow the road: uint8 [t, 64, 64, 3]."""
    env, drive = start_drive(500_000 + seed, np.random.default_rng(500_000 + seed))
    frames = [next(drive) for _ in range(REFERENCE_FRAMES)]
    env.close()
    return np.stack(frames)


def hold_in_game(seed: int, actions: torch.Tensor) -> Frames:
    """Follow the road to a random place, and then take actions [t, 3]: ``CONTEXT`` frames and those after each action.

    A run that ends is shorter.
    """
    env, drive = start_drive(200_000 + seed, np.random.default_rng(200_000 + seed))
    driven = [next(drive) for _ in range(20 + int(np.random.default_rng(seed).integers(150)))]
    frames = [*driven[-CONTEXT:], *take_actions(env, actions.numpy())]
    env.close()
    return np.stack(frames)


@torch.no_grad()
def hold_in_world(bundle: str, contexts: torch.Tensor, actions: torch.Tensor) -> Frames:
    """Take actions [t, 3] from contexts [n, c, h, w, 3]: uint8 [n, t, h, w, 3]."""
    world = vwm.load(bundle)
    state, _ = world.reset(contexts[:, -world.spec.context_frames :], seed=0)
    frames = []
    for action in actions:
        state, output = world.step(state, action.expand(len(contexts), -1))
        frames.append(output.frame)
    return torch.stack(frames, dim=1).numpy()


def _cells(values: list[float] | NDArray[np.float64]) -> str:
    return "  ".join(f"{s} s: {value:.2f}" for s, value in zip(SECONDS, values, strict=True))
