"""A simulator as Gymnasium environments: one world as an ``Env``, a batch of worlds as a ``VectorEnv``.

Importing this module registers ``vwm/World-v0``, and Gymnasium imports it for you where the id names it:

    gymnasium.make("vwm.worlds.gymnasium_env:vwm/World-v0", bundle="runs/coinrun/world")
    gymnasium.make_vec("vwm.worlds.gymnasium_env:vwm/World-v0", num_envs=16, bundle="runs/coinrun/world")

World i of a ``VectorEnv`` seeded with s has exactly the episodes of an ``Env`` seeded with s + i (see
``vwm.worlds.world_batch``). ``vwm.worlds.vector_env_conformance`` checks any ``VectorEnv``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.devices import Precision
from vwm.core.simulator import Simulator
from vwm.worlds.action_spaces import gymnasium_action_space, to_action_tensor
from vwm.worlds.world_batch import WorldBatch, has_frames

WORLD_ID = "vwm/World-v0"

ObservationArray = NDArray[Any]


class SimulatorEnv(gymnasium.Env[ObservationArray, Any]):
    """One world of a simulator.

    Observations are frames, uint8 [h, w, 3], or what a world of vectors shows, float32 [k]; with ``observe="latent"``
    they are latents, with ``observe="features"`` the network's features of the current state, float32 [k]. Actions are
    ``Discrete(size)`` or ``Box(-1, 1, [size])``; composite ones are a ``Dict`` of their parts, or with
    ``flat_actions`` a ``Box`` that stands for them.
    ``reset(options={"start": i})`` starts from the i-th context instead of a random one; its info has the index.

    Args:
        simulator: any simulator; environments may share one, since it holds no state of a world.
        starts: contexts to start from, uint8 [n, t, h, w, 3] or float32 [n, t, k]; by default the simulator's own.
        max_episode_steps: steps after which an episode is truncated; None disables it.
        render_mode: ``"rgb_array"`` lets ``render`` return the current frame.
        observe: ``"frame"``, or ``"latent"`` or ``"features"``, which skip the pixels; see ``WorldBatch``.
        flat_actions: composite actions as a ``Box``, for agents that take no ``Dict``; see ``gymnasium_action_space``.

    Raises:
        ValueError: see ``vwm.worlds.world_batch.WorldBatch``.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (Gymnasium's declaration)

    def __init__(
        self,
        simulator: Simulator,
        starts: Tensor | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        observe: str = "frame",
        flat_actions: bool = False,
    ) -> None:
        self.flat_actions = flat_actions
        self.render_mode = _check_render_mode(render_mode)
        self.simulator = simulator
        self.max_episode_steps = max_episode_steps
        self.worlds = WorldBatch(simulator, 1, starts, max_episode_steps, observe, keep_frames=render_mode is not None)
        self.metadata = {**type(self).metadata, **_env_metadata(simulator)}
        self.observation_space = _observation_space(self.worlds)
        self.action_space = gymnasium_action_space(simulator.spec.actions, flat_actions)
        self.action_parts = None if flat_actions else simulator.spec.actions.parts or None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationArray, dict[str, Any]]:
        """Start an episode; ``seed`` restarts the random generator."""
        super().reset(seed=seed)
        self.worlds.generators = [self.np_random]  # Gymnasium's own
        contexts = self.worlds.reset(start=(options or {}).get("start"))
        return _to_numpy(self.worlds.current.observation)[0], {"start": contexts[0]}

    def step(self, action: Any) -> tuple[ObservationArray, float, bool, bool, dict[str, Any]]:
        """Step once (see ``vwm.worlds.world_batch``): observation, reward, terminated, truncated, info."""
        if not isinstance(self.action_space, spaces.Dict):
            action = np.asarray(action)[None]
        reward = self.worlds.step(to_action_tensor(action, self.worlds.simulator.spec.actions, 1, self.flat_actions))
        current = self.worlds.current
        observation = _to_numpy(current.observation)[0]
        return observation, float(reward[0]), bool(current.terminated[0]), bool(current.truncated[0]), {}

    def render(self) -> NDArray[np.uint8] | None:
        """Return the current frame, uint8 [h, w, 3]; None without a render mode."""
        return None if self.render_mode is None else _to_numpy(self.worlds.current.frames[0])[0]

    def fork(self) -> SimulatorEnv:
        """Return an independent copy that continues exactly as this one would, its generators included."""
        self.worlds.generators = [self.np_random]
        other = copy.copy(self)
        other.worlds = self.worlds.fork()
        other.np_random, other._np_random_seed = other.worlds.generators[0], self._np_random_seed
        other.observation_space, other.action_space = map(_copy_space, (self.observation_space, self.action_space))
        return other


class SimulatorVectorEnv(VectorEnv[ObservationArray, Any, NDArray[Any]]):
    """A batch of worlds that one simulator steps at once.

    It behaves as Gymnasium's own ``SyncVectorEnv`` of the same number of ``SimulatorEnv``, in every autoreset mode:
    ``NEXT_STEP`` spends the step after an episode's end on the reset (its action is not used, its reward is 0);
    ``SAME_STEP`` returns the new episode's first frame at once and the old one's last in ``info["final_obs"]``;
    ``DISABLED`` leaves the reset to ``reset(options={"reset_mask": bool [num_envs]})``, which every mode understands.

    Args:
        simulator: any simulator.
        num_envs: number of worlds.
        starts, max_episode_steps, render_mode, observe, flat_actions: see ``SimulatorEnv``.
        autoreset_mode: see above; a member of ``gymnasium.vector.AutoresetMode``, or its value.

    Raises:
        ValueError: see ``vwm.worlds.world_batch.WorldBatch``.
    """

    metadata: dict[str, Any] = dict(SimulatorEnv.metadata)  # noqa: RUF012

    def __init__(
        self,
        simulator: Simulator,
        num_envs: int,
        starts: Tensor | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        observe: str = "frame",
        flat_actions: bool = False,
    ) -> None:
        self.flat_actions = flat_actions
        self.render_mode = _check_render_mode(render_mode)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.worlds = WorldBatch(
            simulator, num_envs, starts, max_episode_steps, observe, keep_frames=render_mode is not None
        )
        self.simulator = simulator
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.metadata = {**type(self).metadata, **_env_metadata(simulator), "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = _observation_space(self.worlds)
        self.single_action_space = gymnasium_action_space(simulator.spec.actions, flat_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each world."""
        return tuple(self.worlds.generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each world's generator."""
        return tuple(self.worlds.seeds)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationArray, dict[str, Any]]:
        """Reset all worlds, or with ``options["reset_mask"]`` (bool [num_envs]) some of them.

        Args:
            seed: s seeds world i with s + i; a list has one seed per world; None leaves the generators as they are.
            options: ``reset_mask``, and ``start``, the index of the context that they all start from.
        """
        options = options or {}
        mask = _reset_mask(options.get("reset_mask"), self.num_envs)
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None:
            self.worlds.seed(seeds, mask)
        infos = self._reset_worlds(mask, {}, options.get("start"))
        return _to_numpy(self.worlds.current.observation), infos

    def step(
        self, actions: Any
    ) -> tuple[ObservationArray, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every world by one frame: observations, rewards, terminations, truncations, infos."""
        ended = self._episodes_ended()
        if self.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            raise ResetNeeded(f"worlds {np.flatnonzero(ended).tolist()} have ended: reset them with a reset_mask")
        space = self.worlds.simulator.spec.actions
        rewards = self.worlds.step(to_action_tensor(actions, space, self.num_envs, self.flat_actions))
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            infos = self._reset_worlds(ended, infos)  # what they were stepped to is dropped
        current, ended_now = self.worlds.current, self._episodes_ended()
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            for world in np.flatnonzero(ended_now):
                final = {"final_obs": _to_numpy(current.observation[world]), "final_info": {}}
                infos = self._add_info(infos, final, int(world))
            infos = self._reset_worlds(ended_now, infos)
        masked_rewards = np.where(ended, 0.0, _to_numpy(rewards).astype(np.float64))
        return (
            _to_numpy(self.worlds.current.observation),
            masked_rewards,
            _to_numpy(current.terminated),
            _to_numpy(current.truncated),
            infos,
        )

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return the current frames; None without a render mode."""
        return None if self.render_mode is None else tuple(_to_numpy(self.worlds.current.frames[0]))

    def fork(self) -> SimulatorVectorEnv:
        """Return an independent copy that continues exactly as this one would, its generators included."""
        other = copy.copy(self)
        other.worlds = self.worlds.fork()
        for name in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
            setattr(other, name, _copy_space(getattr(self, name)))
        return other

    def _episodes_ended(self) -> NDArray[np.bool_]:
        return _to_numpy(self.worlds.current.terminated | self.worlds.current.truncated)

    def _reset_worlds(self, mask: NDArray[np.bool_], infos: dict[str, Any], start: int | None = None) -> dict[str, Any]:
        """Start episodes in the worlds under the mask, and add their infos."""
        for world, context in self.worlds.reset(mask, start).items():
            infos = self._add_info(infos, {"start": context}, world)
        return infos


def make_world(
    bundle: str | os.PathLike[str], device: str = "auto", precision: Precision = "auto", **options: Any
) -> SimulatorEnv:
    """Make one world; ``gymnasium.make("vwm/World-v0", ...)`` calls it.

    Args:
        bundle: folder of a simulator bundle.
        device: ``auto`` uses a GPU where there is one.
        precision: of the dynamics; ``auto`` is bfloat16 on a GPU.
        **options: of ``SimulatorEnv``.
    """
    from vwm.worlds.bundle import load_simulator

    return SimulatorEnv(load_simulator(bundle, device, precision), **options)


def make_worlds(
    bundle: str | os.PathLike[str],
    num_envs: int = 1,
    device: str = "auto",
    precision: Precision = "auto",
    **options: Any,
) -> SimulatorVectorEnv:
    """Make a batch of worlds; ``gymnasium.make_vec("vwm/World-v0", ...)`` calls it; options: ``SimulatorVectorEnv``."""
    from vwm.worlds.bundle import load_simulator

    return SimulatorVectorEnv(load_simulator(bundle, device, precision), num_envs, **options)


# Gymnasium reads a creator's metadata before it calls it.
make_world.metadata = make_worlds.metadata = SimulatorEnv.metadata  # type: ignore[attr-defined]


def register_gymnasium_envs() -> None:
    """Register ``vwm/World-v0`` with Gymnasium; importing this module calls it."""
    if WORLD_ID not in gymnasium.registry:
        gymnasium.register(WORLD_ID, entry_point=f"{__name__}:make_world", vector_entry_point=f"{__name__}:make_worlds")


def _observation_space(worlds: WorldBatch) -> spaces.Space[Any]:
    if worlds.observation_dtype is torch.uint8:
        return spaces.Box(0, 255, worlds.observation_shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, worlds.observation_shape, np.float32)


def _copy_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    _ = space.np_random  # created on first access; without this the copies would each create their own
    return copy.deepcopy(space)


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    return np.array(tensor.cpu())  # a copy: Gymnasium's users keep and change what they are given


def _env_metadata(simulator: Simulator) -> dict[str, Any]:
    return {
        "render_fps": simulator.spec.fps / simulator.spec.frames_per_step,
        "render_modes": ["rgb_array"] if has_frames(simulator) else [],
    }


def _check_render_mode(mode: str | None) -> str | None:
    if mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode={mode!r} must be None or 'rgb_array'; `vwm play` opens a window")
    return mode


def _reset_mask(mask: Any, worlds: int) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(worlds, dtype=bool)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (worlds,) or not mask.any():
        raise ValueError(f"options['reset_mask'] must be a bool array [{worlds}] with a True in it, got {mask!r}")
    return mask


register_gymnasium_envs()
