"""The wrappers that recording and agents share: action repeat, actions in [-1, 1], images of one size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vwm.core.spaces import ObservationSpace
from vwm.envs.action_spec import read_action_spec
from vwm.envs.env_ids import make_env


class EnvOutcome(NamedTuple):
    """Result of one action: the sum of the rewards while it was held, and whether the episode ended."""

    reward: float
    terminated: bool
    truncated: bool


class WrappedEnv:
    """One Gymnasium environment.

    Args:
        env_id: see ``make_env``.
        options: arguments of its constructor.
        size: side of the images in pixels.
        action_repeat: steps of the environment for which an action is held. Atari repeats inside its emulator
            (option ``frameskip``); ``repeat_action_probability`` (sticky actions) stays what the id says.
        images: observe images: its own, or what it renders where its observations are not images.
        renderable: ``render`` will be called, also where the observations are vectors.

    Attributes:
        actions: its actions.
        observations: images of ``size``, or vectors.
        raw: the last observation as the environment returned it.
        achievements: whether the episode has reached each of its goals, by name; see ``read_achievements``.

    Raises:
        ImportError, ValueError: see ``make_env``; or its spaces are not supported.
    """

    def __init__(
        self,
        env_id: str,
        options: Mapping[str, Any],
        size: int,
        action_repeat: int = 1,
        images: bool = False,
        renderable: bool = False,
    ) -> None:
        atari = env_id.startswith("ALE/")
        options = {"frameskip": action_repeat, **options} if atari else dict(options)
        self.env_id = env_id
        self.size = size
        self.action_repeat = 1 if atari else action_repeat
        self.env = make_env(env_id, options)
        self.has_image_observations = is_image_space(self.env.observation_space)
        render_modes = self.env.metadata.get("render_modes") or ()
        self.renders = not self.has_image_observations and (images or (renderable and "rgb_array" in render_modes))
        if self.renders:
            self.env.close()
            self.env = make_env(env_id, {**options, "render_mode": "rgb_array"})
        self.actions = read_action_spec(env_id, self.env)
        self.observations = self._observation_space(images)
        self.raw: Any = None
        self.achievements: dict[str, bool] = {}

    def reset(self, seed: int | None = None) -> None:
        """Start an episode; without a seed the environment's generator continues."""
        self.raw, _ = self.env.reset(seed=seed)
        self.achievements = {}

    def step(self, action: Any) -> EnvOutcome:
        """Hold an action (see ``EnvActionSpec.to_env``) for ``action_repeat`` steps or until the end."""
        env_action = self.actions.to_env(action)
        total = 0.0
        for steps_left in reversed(range(self.action_repeat)):
            with rendering_disabled(self.env.unwrapped) if steps_left else contextlib.nullcontext():
                self.raw, reward, terminated, truncated, info = self.env.step(env_action)
            total += float(reward)
            for name, reached in read_achievements(info).items():
                self.achievements[name] = reached or self.achievements.get(name, False)
            if terminated or truncated:
                if self.raw is None:  # the episode ended in a step that did not render
                    self.raw = self.env.unwrapped._render("state_pixels")
                break
        return EnvOutcome(total, bool(terminated), bool(truncated))

    def observe(self) -> NDArray[Any]:
        """Return the current observation: uint8 [size, size, 3] or float32 [k]."""
        if self.observations.is_image:
            return resize_frame(self._full_size_image(), self.size, self.size)
        return np.asarray(spaces.utils.flatten(self.env.observation_space, self.raw), np.float32)

    def render(self) -> NDArray[np.uint8] | None:
        """Return the current image in its own size, or None where there is none."""
        return self._full_size_image() if self.has_image_observations or self.renders else None

    def close(self) -> None:
        """Release what the environment holds."""
        self.env.close()

    def _full_size_image(self) -> NDArray[np.uint8]:
        image = np.asarray(self.raw if self.has_image_observations else self.env.render())
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"{self.env_id}: renders {image.dtype} {image.shape}, not RGB (uint8 [height, width, 3])")
        return image

    def _observation_space(self, images: bool) -> ObservationSpace:
        if images or self.has_image_observations:
            return ObservationSpace.image(self.size, self.size)
        flat = spaces.utils.flatten_space(self.env.observation_space)
        if not isinstance(flat, spaces.Box) or len(flat.shape) != 1:
            raise ValueError(
                f"{self.env_id}: has observation space {self.env.observation_space}; agents observe images or "
                "vectors. pixels: true observes what it renders."
            )
        return ObservationSpace.vector(int(flat.shape[0]))


def read_achievements(info: Mapping[str, Any]) -> dict[str, bool]:
    """Return what the ``info`` of a step says about the goals of the episode, by name; {} where it says nothing.

    The names are those that environments use: ``achievements`` counts each goal (Crafter), ``success`` or
    ``is_success`` is of the step (Meta-World, Gymnasium-Robotics).
    """
    counts = info.get("achievements")
    if isinstance(counts, Mapping):
        return {str(name): bool(count) for name, count in counts.items()}
    found = info.get("success", info.get("is_success"))
    return {} if found is None else {"success": bool(np.all(found))}


def resize_frame(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize an image uint8 [H, W, 3] by averaging areas; enlarging repeats pixels."""
    from PIL import Image

    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))


def is_image_space(space: Any) -> bool:
    """Whether a Gymnasium space holds RGB images, uint8 [h, w, 3]."""
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()
    return getattr(space, "dtype", None) == np.uint8 and len(shape) == 3 and shape[-1] == 3


@contextlib.contextmanager
def rendering_disabled(env: Any) -> Iterator[None]:
    """Let CarRacing step without rendering, which takes 99% of its time; the simulation does not depend on it."""
    if not hasattr(env, "car"):
        yield
        return
    env._render = lambda mode: None
    try:
        yield
    finally:
        del env._render
