"""What planned episodes look like: paths, a strip of frames, a video.

Legend: n episodes, m of them shown, t time, h w pixels.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vwm.planning.goal_tasks import Frames, GoalTask
from vwm.planning.mpc_policy import TaskRollout

SOLVED_COLOR, FAILED_COLOR = "#3a9a5b", "#d1662b"


def plot_episode_paths(task: GoalTask, run: TaskRollout, shown: int = 24, columns: int = 6) -> Figure:
    """The ways of the first episodes through the first two numbers of the state, each over its task's picture."""
    count = min(shown, len(run.solved))
    rows = -(-count // columns)
    figure = Figure(figsize=(1.7 * columns, 1.9 * rows), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes in grid[count:]:
        axes.axis("off")
    for episode, axes in enumerate(grid[:count]):
        way, colour = (
            run.states[episode, : run.steps[episode] + 1],
            SOLVED_COLOR if run.solved[episode] else FAILED_COLOR,
        )
        picture = task.picture(episode)
        if picture is not None:
            height, width = picture.shape[:2]
            axes.imshow(picture, extent=(0, width, height, 0))
        axes.plot(way[:, 0], way[:, 1], color=colour, linewidth=1.2)
        axes.plot(*way[0, :2], "o", color=colour, markersize=4)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{task.groups()[episode]}, {run.steps[episode]} steps", fontsize=6)
    return figure


def draw_frame_strip(frames: Frames, goal: Frames, shown: int = 10, scale: int = 2) -> Image.Image:
    """One episode, uint8 [t, h, w, 3], at even times, and its goal [h, w, 3] at the right."""
    places = np.linspace(0, len(frames) - 1, min(shown, len(frames))).round().astype(int)
    gap = np.full((goal.shape[0], 4, 3), 255, np.uint8)
    return Image.fromarray(_enlarge(np.concatenate([*frames[places], gap, goal], axis=1), scale))


def tile_episode_video(frames: Frames, goals: Frames, scale: int = 2) -> Frames:
    """Episodes side by side, uint8 [t, m, h, w, 3], above their goals [n, h, w, 3]: uint8 [t, h', w', 3]."""
    below = np.concatenate(list(goals[: frames.shape[1]]), axis=1)
    shown = [np.concatenate([np.concatenate(list(now), axis=1), below], axis=0) for now in frames]
    return np.stack([_enlarge(picture, scale) for picture in shown])


def _enlarge(picture: Frames, scale: int) -> Frames:
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)
