"""A batch of worlds of one simulator, with resets: what its Gymnasium, TorchRL and agent environments share.

World i of a batch seeded with s has exactly the episodes of a single world seeded with s + i, in every interface: each
world has a random generator of its own, which draws the context it starts from and its simulator seed.

Where a simulator's step shows k frames, so does a step here: the action is held for k frames, the observation is the
last of them, and the reward is the sum. It is an environment with a frame skip of k.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.capabilities import ProvidesFeatures
from vwm.core.simulator import Simulator, State
from vwm.core.states import merge_states, replace_worlds

OBSERVE_FRAME, OBSERVE_LATENT, OBSERVE_FEATURES = "frame", "latent", "features"


class WorldBatchState(NamedTuple):
    """The current state of the worlds; the first dimension of every tensor is the world.

    Attributes:
        state: of the simulator.
        observation: uint8 [n, h, w, 3] or float32 [n, k].
        frames: (uint8 [n, h, w, 3],), or an empty tuple where frames are not kept.
        steps: int64 [n], steps since the episode started.
        terminated, truncated: bool [n].
    """

    state: State
    observation: Tensor
    frames: tuple[Tensor, ...]
    steps: Tensor
    terminated: Tensor
    truncated: Tensor


class WorldBatch:
    """A batch of worlds.

    Args:
        simulator: any simulator; it holds no state of a world, so several batches may share it.
        num_worlds: n.
        starts: contexts to start from, uint8 [m, t, h, w, 3], or float32 [m, t, k] in a world of vectors; by default
            the simulator's own.
        max_episode_steps: steps after which an episode is truncated; None disables it.
        observe: ``"frame"``, what the simulator shows; ``"latent"``, its latents as vectors, without decoding;
            ``"features"``, its network's features of the current state, likewise.
        keep_frames: decode and keep frames also where latents or features are observed.

    Raises:
        ValueError: there is no context, or one of another size or type; images are requested of a world without
            them; or a number or a name is out of range.
    """

    def __init__(
        self,
        simulator: Simulator,
        num_worlds: int,
        starts: Tensor | None = None,
        max_episode_steps: int | None = None,
        observe: str = OBSERVE_FRAME,
        keep_frames: bool = False,
    ) -> None:
        if num_worlds < 1:
            raise ValueError(f"num_envs must be 1 or more, got {num_worlds}")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be 1 or more, or None for no limit, got {max_episode_steps}")
        if observe not in (OBSERVE_FRAME, OBSERVE_LATENT, OBSERVE_FEATURES):
            raise ValueError(
                f"observe must be {OBSERVE_FRAME!r}, {OBSERVE_LATENT!r} or {OBSERVE_FEATURES!r}, got {observe!r}"
            )
        if observe == OBSERVE_FRAME and simulator.spec.observation.is_latent:
            raise ValueError(
                "this world has no images to observe: train it with a decoder (model.decoder), or observe='latent'"
            )
        if keep_frames and not has_frames(simulator):
            raise ValueError("this world has no images to render: leave render_mode out")
        self.simulator = simulator
        self.num_worlds = num_worlds
        self.max_episode_steps = max_episode_steps
        self.observe = observe
        self.keep_frames = keep_frames
        self.starts = _resolve_starts(simulator, starts)
        self.observation_shape = self._observation_shape()
        seeded = [seeding.np_random() for _ in range(num_worlds)]
        self.generators = [generator for generator, _ in seeded]
        self.seeds = [seed for _, seed in seeded]
        self._current: WorldBatchState | None = None

    @property
    def observation_dtype(self) -> torch.dtype:
        """uint8 for images, else float32."""
        return torch.uint8 if len(self.observation_shape) == 3 else torch.float32

    @property
    def device(self) -> torch.device:
        """Device of the simulator."""
        return self.simulator.device

    @property
    def current(self) -> WorldBatchState:
        """The current state of the worlds. Raises ``gymnasium.error.ResetNeeded`` before the first reset."""
        if self._current is None:
            raise ResetNeeded("the worlds have not been reset: call reset() first")
        return self._current

    def seed(self, seeds: Sequence[int | None], mask: NDArray[np.bool_] | None = None) -> None:
        """Restart the worlds' generators.

        Args:
            seeds: one per world; None leaves a generator as it is.
            mask: bool [n], where to do it; everywhere by default.

        Raises:
            ValueError: their number is not that of the worlds.
        """
        if len(seeds) != self.num_worlds:
            raise ValueError(f"{len(seeds)} seeds for {self.num_worlds} worlds: give one each, or a single integer")
        for world, seed in enumerate(seeds):
            if seed is not None and (mask is None or mask[world]):
                self.generators[world], self.seeds[world] = seeding.np_random(seed)

    def reset(self, mask: NDArray[np.bool_] | None = None, start: int | None = None) -> dict[int, int]:
        """Start an episode in the worlds under the mask (bool [n]; all by default), and leave the others as they are.

        Every world draws a context and a seed, also where ``start`` replaces the context, so that later episodes do not
        depend on ``start``.

        Args:
            mask: see above.
            start: index of the context of all of them; by default each draws its own.

        Returns:
            The index of the context, by world.

        Raises:
            ValueError: there is no context with that index.
            gymnasium.error.ResetNeeded: a mask selects some worlds, but they were never reset together.
        """
        if start is not None and not 0 <= start < len(self.starts):
            raise ValueError(f"options['start'] must lie in 0..{len(self.starts) - 1}, got {start}")
        worlds = np.arange(self.num_worlds) if mask is None else np.flatnonzero(mask)
        if self._current is None and len(worlds) < self.num_worlds:
            raise ResetNeeded("reset all worlds before some of them: call reset() without a mask")
        if not len(worlds):
            return {}
        drawn = [
            (int(g.integers(len(self.starts))), int(g.integers(2**63 - 1))) for g in self._select_generators(worlds)
        ]
        chosen = [index if start is None else start for index, _ in drawn]
        state, frame = self.simulator.reset(self.starts[chosen], torch.tensor([seed for _, seed in drawn]))
        zeros = torch.zeros(len(worlds), dtype=torch.int64, device=frame.device)
        new_state = self._make_state(state, frame, zeros)
        if len(worlds) < self.num_worlds:
            selected = torch.from_numpy(np.isin(np.arange(self.num_worlds), worlds)).to(zeros.device)
            new_state = replace_worlds(selected, new_state, self.current)
        self._current = new_state
        return dict(zip(worlds.tolist(), chosen, strict=True))

    def step(self, action: Tensor, active: Tensor | None = None) -> Tensor:
        """Step every world once: by one frame, or ``spec.frames_per_step`` of them.

        Args:
            action: int64 [n] or float32 [n, size].
            active: bool [n], the worlds that are stepped, all by default; the others keep their state and get reward 0.

        Returns:
            The rewards, float32 [n]. The rest is in ``current``.
        """
        before = self.current
        decode = self.observe == OBSERVE_FRAME or self.keep_frames
        state, output = self.simulator.step(before.state, action, decode)
        after = self._make_state(state, output.last_frame, before.steps + 1)._replace(terminated=output.terminated)
        if active is None:
            self._current = after
            return output.reward
        self._current = merge_states(active, after, before)
        return torch.where(active, output.reward, torch.zeros_like(output.reward))

    def restore(self, state: WorldBatchState) -> None:
        """Continue from an earlier value of ``current``."""
        self._current = state

    def fork(self) -> WorldBatch:
        """Return an independent copy that continues exactly as this batch would; the simulator is shared."""
        other = copy.copy(self)  # the current state is a value: it is replaced, never changed in place
        other.generators = copy.deepcopy(self.generators)
        other.seeds = list(self.seeds)
        return other

    def _make_state(self, state: State, frame: Tensor | None, steps: Tensor) -> WorldBatchState:
        """Return the state of worlds that have not terminated, but may be truncated by the time limit."""
        observation = select_observation(self.simulator, self.observe, state, frame)
        frames = (frame,) if self.keep_frames and frame is not None else ()
        terminated = torch.zeros_like(steps, dtype=torch.bool)
        truncated = terminated if self.max_episode_steps is None else steps >= self.max_episode_steps
        return WorldBatchState(state, observation, frames, steps, terminated, truncated)

    def _observation_shape(self) -> tuple[int, ...]:
        """Return the shape of one observation; that of latents and features is read from a reset."""
        if self.observe != OBSERVE_FRAME:
            return tuple(
                select_observation(self.simulator, self.observe, *self.simulator.reset(self.starts[:1])).shape[1:]
            )
        return self.simulator.spec.observation.shape

    def _select_generators(self, worlds: NDArray[np.int64]) -> list[np.random.Generator]:
        return [self.generators[world] for world in worlds]


def select_observation(simulator: Simulator, observe: str, state: State, frame: Tensor | None) -> Tensor:
    """Select the observation of worlds [n, ...]: the frame that the last step returned, or a part of the state.

    Raises:
        ValueError: the state does not keep that.
    """
    if observe == OBSERVE_LATENT:
        return simulator.flatten_latents(simulator.latent(state))
    if observe == OBSERVE_FEATURES:
        if not isinstance(simulator, ProvidesFeatures):
            raise ValueError(f"{type(simulator).__name__} keeps no features: observe its frames or latents")
        return simulator.features(state)
    assert frame is not None, "a step with decode=True shows a frame"
    return frame


def blank_context(simulator: Simulator) -> Tensor:
    """Return one blank context frame, from which the structure of states can be read: [1, 1, ...]."""
    return torch.zeros(1, 1, *simulator.spec.context.shape, dtype=simulator.spec.context.dtype)


def has_frames(simulator: Simulator) -> bool:
    """Whether the simulator shows images, rather than vectors or nothing."""
    return simulator.spec.observation.is_image


def _resolve_starts(simulator: Simulator, starts: Tensor | None) -> Tensor:
    starts = simulator.starts if starts is None else starts
    if starts is None:
        space = simulator.spec.context
        kind = "uint8 [n, t, h, w, 3]" if space.is_image else f"float32 [n, t, {space.shape[0]}]"
        raise ValueError(
            f"the simulator has no contexts to start from: pass starts, {kind}, for example of its training data"
        )
    simulator.check_context(starts)
    return starts
