"""Figures of planned episodes: paths, a strip of frames, a video.

Legend: n episodes, m of them shown, t time, h w pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vwm.planning.goal_task import Frames, GoalTask
from vwm.planning.mpc_policy import TaskRollout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOLVED_COLOR, FAILED_COLOR = "#3a9a5b", "#d1662b"


def plot_episode_paths(task: GoalTask, rollout: TaskRollout, max_episodes: int = 24, columns: int = 6) -> Figure:
    """Plot the first two state variables of the first episodes over time, each on its task's background image."""
    count = min(max_episodes, len(rollout.solved))
    rows = -(-count // columns)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.7 * columns, 1.9 * rows), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes in grid[count:]:
        axes.axis("off")
    for episode, axes in enumerate(grid[:count]):
        path = rollout.states[episode, : rollout.steps[episode] + 1]
        color = SOLVED_COLOR if rollout.solved[episode] else FAILED_COLOR
        background = task.background(episode)
        if background is not None:
            height, width = background.shape[:2]
            axes.imshow(background, extent=(0, width, height, 0))
        axes.plot(path[:, 0], path[:, 1], color=color, linewidth=1.2)
        axes.plot(*path[0, :2], "o", color=color, markersize=4)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{task.groups()[episode]}, {rollout.steps[episode]} steps", fontsize=6)
    return figure


def draw_frame_strip(frames: Frames, goal: Frames, max_frames: int = 10, scale: int = 2) -> Image.Image:
    """Draw evenly spaced frames of one episode, uint8 [t, h, w, 3], and its goal [h, w, 3] at the right."""
    indices = np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).round().astype(int)
    gap = np.full((goal.shape[0], 4, 3), 255, np.uint8)
    return Image.fromarray(_enlarge(np.concatenate([*frames[indices], gap, goal], axis=1), scale))


def tile_episode_video(frames: Frames, goals: Frames, scale: int = 2) -> Frames:
    """Tile episodes, uint8 [t, m, h, w, 3], above their goals [n, h, w, 3]; return uint8 [t, h', w', 3]."""
    goal_row = np.concatenate(list(goals[: frames.shape[1]]), axis=1)
    tiled = [np.concatenate([np.concatenate(list(now), axis=1), goal_row], axis=0) for now in frames]
    return np.stack([_enlarge(frame, scale) for frame in tiled])


def _enlarge(frame: Frames, scale: int) -> Frames:
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)
