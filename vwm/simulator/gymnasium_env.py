"""Gymnasium faces of a simulator: one world as an ``Env``, a batch of worlds as a ``VectorEnv``.

Importing this module registers ``vwm/World-v0``, and Gymnasium imports it for you where the id names it:

    gymnasium.make("vwm.simulator.gymnasium_env:vwm/World-v0", bundle="runs/coinrun/world")
    gymnasium.make_vec("vwm.simulator.gymnasium_env:vwm/World-v0", num_envs=16, bundle="runs/coinrun/world")

World i of a ``VectorEnv`` that is seeded with s lives exactly as an ``Env`` that is seeded with s + i: each world owns
a generator, which draws the context it starts from and its simulator seed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vwm.nn.state import merge, select
from vwm.simulator.interface import ActionSpace, Simulator, State

WORLD_ID = "vwm/World-v0"

Frames = NDArray[np.uint8]


class _Entrance:
    """Where worlds begin.

    Args:
        simulator: the worlds' simulator.
        starts: uint8 [n, t, h, w, 3], contexts to begin from; by default the simulator's own.

    Raises:
        ValueError: there is no context, or one of another size or type; or the world has no pictures.
    """

    def __init__(self, simulator: Simulator, starts: Tensor | None) -> None:
        starts = getattr(simulator, "starts", None) if starts is None else starts
        if starts is None:
            raise ValueError(
                "the simulator ships no contexts to begin from: pass starts, uint8 [n, t, h, w, 3], for example clips "
                "of its training data"
            )
        simulator.check_context(starts)
        if not simulator.decodes:
            raise ValueError("this world has no pictures to observe: train it with a decoder (model.decoder)")
        self.simulator, self.starts = simulator, starts

    def enter(
        self, generators: Sequence[np.random.Generator], start: int | None = None
    ) -> tuple[State, Frames, list[dict[str, Any]]]:
        """Begin one world a generator.

        Args:
            generators: each draws its world's context and seed, always both, so that naming the context leaves the
                rest of a run as it was.
            start: the context of all of them, rather than the drawn ones.

        Returns:
            The worlds' state, their first frames [b, h, w, 3], and an info each.
        """
        drawn = [(int(g.integers(len(self.starts))), int(g.integers(2**63 - 1))) for g in generators]
        if start is not None and not 0 <= start < len(self.starts):
            raise ValueError(f"options['start'] must lie in 0..{len(self.starts) - 1}, got {start}")
        chosen = [index if start is None else start for index, _ in drawn]
        state, frame = self.simulator.reset(self.starts[chosen], torch.tensor([seed for _, seed in drawn]))
        return state, _numpy(frame), [{"start": index} for index in chosen]


class SimulatorEnv(gymnasium.Env[Frames, Any]):
    """One world of a simulator.

    Observations are frames, uint8 [h, w, 3]; actions are ``Discrete(size)`` or ``Box(-1, 1, [size])``.
    ``reset(options={"start": i})`` begins from the i-th context instead of a random one; its info says which it was.

    Args:
        simulator: any simulator; environments may share one, since it holds no state of a world.
        starts: contexts to begin from, uint8 [n, t, h, w, 3]; by default the simulator's own.
        max_episode_steps: steps after which an episode is truncated; None never does.
        render_mode: ``"rgb_array"`` lets ``render`` return the current frame.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (Gymnasium's declaration)

    def __init__(
        self,
        simulator: Simulator,
        starts: Tensor | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.simulator, self.max_episode_steps = simulator, _limit(max_episode_steps)
        self.render_mode = _render_mode(render_mode)
        self.metadata = {**type(self).metadata, "render_fps": simulator.fps}
        self.observation_space, self.action_space = _observations(simulator), _actions(simulator.actions)
        self._entrance = _Entrance(simulator, starts)
        self._state: State | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frames, dict[str, Any]]:
        """Begin an episode; ``seed`` restarts the generator of everything that is random."""
        super().reset(seed=seed)
        self._state, frames, infos = self._entrance.enter([self.np_random], (options or {}).get("start"))
        self._frame, self._steps = frames[0], 0
        return self._frame.copy(), infos[0]

    def step(self, action: Any) -> tuple[Frames, float, bool, bool, dict[str, Any]]:
        """One frame on: observation, reward, terminated, truncated, info."""
        if self._state is None:
            raise ResetNeeded("call reset() before step()")
        self._state, shown = self.simulator.step(self._state, _tensor(np.asarray(action)[None], self.simulator.actions))
        self._frame, self._steps = _numpy(shown.frame)[0], self._steps + 1
        truncated = self._steps == self.max_episode_steps
        return self._frame.copy(), float(shown.reward[0]), bool(shown.terminated[0]), truncated, {}

    def render(self) -> Frames | None:
        """The current frame, uint8 [h, w, 3]; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._state is None:
            raise ResetNeeded("call reset() before render()")
        return self._frame.copy()


class SimulatorVectorEnv(VectorEnv[Frames, Any, NDArray[Any]]):
    """A batch of worlds that one simulator steps at once.

    It behaves as Gymnasium's own ``SyncVectorEnv`` of as many ``SimulatorEnv``, in every autoreset mode:
    ``NEXT_STEP`` spends the step after an episode's end on the reset (its action is not used, its reward is 0);
    ``SAME_STEP`` returns the new episode's first frame at once and the old one's last in ``info["final_obs"]``;
    ``DISABLED`` leaves it to ``reset(options={"reset_mask": bool [num_envs]})``, which every mode understands.

    Args:
        simulator: any simulator.
        num_envs: number of worlds.
        starts, max_episode_steps, render_mode: see ``SimulatorEnv``.
        autoreset_mode: see above; a member of ``gymnasium.vector.AutoresetMode``, or its value.
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
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be 1 or more, got {num_envs}")
        self.simulator, self.num_envs, self.max_episode_steps = simulator, num_envs, _limit(max_episode_steps)
        self.render_mode, self.autoreset_mode = _render_mode(render_mode), AutoresetMode(autoreset_mode)
        self.metadata = {
            **type(self).metadata,
            "render_fps": simulator.fps,
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space, self.single_action_space = _observations(simulator), _actions(simulator.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._entrance = _Entrance(simulator, starts)
        self._generators, self._seeds = map(list, zip(*(seeding.np_random() for _ in range(num_envs)), strict=True))
        self._state: State | None = None

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Each world's generator."""
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each world's generator."""
        return tuple(self._seeds)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Begin all worlds, or with ``options["reset_mask"]`` (bool [num_envs]) some of them.

        Args:
            seed: s seeds world i with s + i; a list has one seed a world; None goes on with the generators.
            options: ``reset_mask``, and ``start``, the number of the context that they all begin from.
        """
        options = options or {}
        mask = _mask(options.get("reset_mask"), self.num_envs)
        if self._state is None and not mask.all():
            raise ResetNeeded("reset all worlds before some of them: call reset() without a reset_mask")
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} worlds: give one each, or a single integer")
        for world, world_seed in enumerate(seeds or []):
            if world_seed is not None and mask[world]:
                self._generators[world], self._seeds[world] = seeding.np_random(world_seed)
        if mask.all():
            self._steps, self._done = np.zeros(self.num_envs, dtype=np.int64), np.zeros(self.num_envs, dtype=bool)
        infos = self._enter(mask, options.get("start"))
        return self._frames.copy(), infos

    def step(
        self, actions: Any
    ) -> tuple[Frames, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One frame on in every world: observations, rewards, terminations, truncations, infos."""
        if self._state is None:
            raise ResetNeeded("call reset() before step()")
        ended = self._done
        if self.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            raise ResetNeeded(f"worlds {np.flatnonzero(ended).tolist()} have ended: reset them with a reset_mask")
        self._state, shown = self.simulator.step(self._state, _tensor(actions, self.simulator.actions))
        self._frames, self._steps = _numpy(shown.frame), self._steps + 1
        rewards = np.where(ended, 0.0, _numpy(shown.reward).astype(np.float64))
        terminated = _numpy(shown.terminated) & ~ended
        truncated = (self._steps == self.max_episode_steps) & ~ended
        self._done = terminated | truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and ended.any():
            infos = self._enter(ended)  # what they were stepped to is dropped
        elif self.autoreset_mode is AutoresetMode.SAME_STEP and self._done.any():
            for world in np.flatnonzero(self._done):
                final = {"final_obs": self._frames[world].copy(), "final_info": {}}
                infos = self._add_info(infos, final, int(world))
            infos = self._enter(self._done, infos=infos)
        return self._frames.copy(), rewards, terminated, truncated, infos

    def render(self) -> tuple[Frames, ...] | None:
        """The current frames; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._state is None:
            raise ResetNeeded("call reset() before render()")
        return tuple(self._frames.copy())

    def _enter(
        self, mask: NDArray[np.bool_], start: int | None = None, infos: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Begin the worlds under the mask and leave the others as they are; returns what there is to say of them."""
        worlds = np.flatnonzero(mask)
        state, frames, said = self._entrance.enter([self._generators[w] for w in worlds], start)
        if len(worlds) == self.num_envs:
            self._state, self._frames = state, frames
        else:
            # Merging wants a whole batch: each fresh world stands at its place, copies of some world at the others.
            place = torch.from_numpy((mask.cumsum() - 1).clip(min=0))
            device = _device(state)
            self._state = merge(torch.from_numpy(mask).to(device), select(state, place.to(device)), self._state)
            self._frames[worlds] = frames
        self._steps[worlds], self._done[worlds] = 0, False
        infos = {} if infos is None else infos
        for world, info in zip(worlds, said, strict=True):
            infos = self._add_info(infos, info, int(world))
        return infos


def make_world(bundle: str | os.PathLike[str], device: str = "auto", **options: Any) -> SimulatorEnv:
    """What ``gymnasium.make("vwm/World-v0", ...)`` calls.

    Args:
        bundle: folder of a simulator bundle.
        device: ``auto`` takes a GPU where there is one.
        **options: of ``SimulatorEnv``.
    """
    from vwm.simulator.bundle import load_simulator

    return SimulatorEnv(load_simulator(bundle, device), **options)


def make_worlds(
    bundle: str | os.PathLike[str], num_envs: int = 1, device: str = "auto", **options: Any
) -> SimulatorVectorEnv:
    """What ``gymnasium.make_vec("vwm/World-v0", ...)`` calls; the options are those of ``SimulatorVectorEnv``."""
    from vwm.simulator.bundle import load_simulator

    return SimulatorVectorEnv(load_simulator(bundle, device), num_envs, **options)


# Gymnasium reads a creator's metadata before it calls it.
make_world.metadata = make_worlds.metadata = SimulatorEnv.metadata  # type: ignore[attr-defined]


def register() -> None:
    """Make ``vwm/World-v0`` known to Gymnasium; importing this module does it."""
    if WORLD_ID not in gymnasium.registry:
        gymnasium.register(WORLD_ID, entry_point=f"{__name__}:make_world", vector_entry_point=f"{__name__}:make_worlds")


def _observations(simulator: Simulator) -> spaces.Space[Any]:
    return spaces.Box(0, 255, (*simulator.image_size, 3), np.uint8)


def _actions(space: ActionSpace) -> spaces.Space[Any]:
    if space.kind == "discrete":
        return spaces.Discrete(space.size)
    return spaces.Box(-1.0, 1.0, (space.size,), np.float32)


def _tensor(actions: Any, space: ActionSpace) -> Tensor:
    """A batch of actions as the simulator takes them."""
    return torch.as_tensor(np.asarray(actions, dtype=np.int64 if space.kind == "discrete" else np.float32))


def _numpy(tensor: Tensor | None) -> NDArray[Any]:
    assert tensor is not None, "a step with decode=True shows a frame"
    return np.array(tensor.cpu())  # a copy: Gymnasium's users keep and change what they are given


def _device(state: State) -> torch.device:
    return tree_leaves(state)[0].device


def _limit(steps: int | None) -> int | None:
    if steps is not None and steps < 1:
        raise ValueError(f"max_episode_steps must be 1 or more, or None for no limit, got {steps}")
    return steps


def _render_mode(mode: str | None) -> str | None:
    if mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode={mode!r} must be None or 'rgb_array'; `vwm play` opens a window")
    return mode


def _mask(mask: Any, worlds: int) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(worlds, dtype=bool)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (worlds,) or not mask.any():
        raise ValueError(f"options['reset_mask'] must be a bool array [{worlds}] with a True in it, got {mask!r}")
    return mask


register()
