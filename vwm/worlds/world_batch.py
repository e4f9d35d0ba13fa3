"""A batch of worlds of one simulator, with resets: what its Gymnasium, TorchRL and agent environments share.

World i of a batch seeded with s has exactly the episodes of a single world seeded with s + i, in every interface: each
world owns a generator, which draws the context it starts from and its simulator seed.
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
        state: the simulator's.
        observation: uint8 [n, h, w, 3] or float32 [n, k].
        pictures: the frames, uint8 [n, h, w, 3], alone in a tuple, which is empty where they are not rendered.
        steps: int64 [n], since the episode began.
        terminated, truncated: bool [n].
    """

    state: State
    observation: Tensor
    pictures: tuple[Tensor, ...]
    steps: Tensor
    terminated: Tensor
    truncated: Tensor


class WorldBatch:
    """A batch of worlds.

    Args:
        simulator: any simulator; it holds no state of a world, so several batches may share it.
        count: number of worlds, n.
        starts: contexts to begin from, uint8 [m, t, h, w, 3], or float32 [m, t, k] in a world of vectors; by default
            the simulator's own.
        max_episode_steps: steps after which an episode is truncated; None disables it.
        observe: ``"frame"``, what the simulator shows; ``"latent"``, its latents as vectors, without decoding;
            ``"features"``, its network's features of the current state, likewise.
        renders: keep the pictures also where latents are observed.

    Raises:
        ValueError: there is no context, or one of another size or type; images are requested of a world without
            them; or a number or a name is out of range.
    """

    def __init__(
        self,
        simulator: Simulator,
        count: int,
        starts: Tensor | None = None,
        max_episode_steps: int | None = None,
        observe: str = OBSERVE_FRAME,
        renders: bool = False,
    ) -> None:
        if count < 1:
            raise ValueError(f"num_envs must be 1 or more, got {count}")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be 1 or more, or None for no limit, got {max_episode_steps}")
        if observe not in (OBSERVE_FRAME, OBSERVE_LATENT, OBSERVE_FEATURES):
            raise ValueError(
                f"observe must be {OBSERVE_FRAME!r}, {OBSERVE_LATENT!r} or {OBSERVE_FEATURES!r}, got {observe!r}"
            )
        if observe == OBSERVE_FRAME and simulator.spec.observation.is_latent:
            raise ValueError(
                "this world has no pictures to observe: train it with a decoder (model.decoder), or observe='latent'"
            )
        if renders and not has_frames(simulator):
            raise ValueError("this world has no pictures to render: leave render_mode out")
        self.simulator, self.count, self.max_episode_steps = simulator, count, max_episode_steps
        self.observe, self.renders, self.starts = observe, renders, _resolve_starts(simulator, starts)
        self.observation_shape = self._observation_shape()
        made = [seeding.np_random() for _ in range(count)]
        self.generators, self.seeds = [generator for generator, _ in made], [seed for _, seed in made]
        self._present: WorldBatchState | None = None

    @property
    def observation_dtype(self) -> torch.dtype:
        """uint8 for pictures, else float32."""
        return torch.uint8 if len(self.observation_shape) == 3 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the simulator computes."""
        return self.simulator.device

    @property
    def present(self) -> WorldBatchState:
        """The current state of the worlds. Raises ``gymnasium.error.ResetNeeded`` before the first reset."""
        if self._present is None:
            raise ResetNeeded("the worlds have not begun: call reset() first")
        return self._present

    def seed(self, seeds: Sequence[int | None], mask: NDArray[np.bool_] | None = None) -> None:
        """Restart the worlds' generators.

        Args:
            seeds: one per world; None leaves a generator as it is.
            mask: bool [n], where to do it; everywhere by default.

        Raises:
            ValueError: their number is not that of the worlds.
        """
        if len(seeds) != self.count:
            raise ValueError(f"{len(seeds)} seeds for {self.count} worlds: give one each, or a single integer")
        for world, seed in enumerate(seeds):
            if seed is not None and (mask is None or mask[world]):
                self.generators[world], self.seeds[world] = seeding.np_random(seed)

    def begin(self, mask: NDArray[np.bool_] | None = None, start: int | None = None) -> dict[int, int]:
        """Begin an episode in the worlds under the mask (bool [n]; all by default), and leave the others as they are.

        Every world draws its context and its seed, also where the context is named, so that naming it leaves the rest
        of a run as it was.

        Args:
            mask: see above.
            start: the context of all of them, rather than the drawn ones.

        Returns:
            The number of each one's context, by world.

        Raises:
            ValueError: there is no context of that number.
            gymnasium.error.ResetNeeded: some worlds are asked for, but they never began together.
        """
        if start is not None and not 0 <= start < len(self.starts):
            raise ValueError(f"options['start'] must lie in 0..{len(self.starts) - 1}, got {start}")
        worlds = np.arange(self.count) if mask is None else np.flatnonzero(mask)
        if self._present is None and len(worlds) < self.count:
            raise ResetNeeded("reset all worlds before some of them: call reset() without a mask")
        if not len(worlds):
            return {}
        drawn = [
            (int(g.integers(len(self.starts))), int(g.integers(2**63 - 1))) for g in self._select_generators(worlds)
        ]
        chosen = [index if start is None else start for index, _ in drawn]
        state, frame = self.simulator.reset(self.starts[chosen], torch.tensor([seed for _, seed in drawn]))
        zeros = torch.zeros(len(worlds), dtype=torch.int64, device=frame.device)
        fresh = self._make_state(state, frame, zeros)
        if len(worlds) < self.count:
            begun = torch.from_numpy(np.isin(np.arange(self.count), worlds)).to(zeros.device)
            fresh = replace_worlds(begun, fresh, self.present)
        self._present = fresh
        return dict(zip(worlds.tolist(), chosen, strict=True))

    def step(self, action: Tensor, played: Tensor | None = None) -> Tensor:
        """Step every world by one frame.

        Args:
            action: int64 [n] or float32 [n, size].
            played: bool [n], the worlds that go on, all by default; the others keep their state and get reward 0.

        Returns:
            The rewards, float32 [n]. The rest is in ``present``.
        """
        before = self.present
        decode = self.observe == OBSERVE_FRAME or self.renders
        state, shown = self.simulator.step(before.state, action, decode)
        after = self._make_state(state, shown.frame, before.steps + 1)._replace(terminated=shown.terminated)
        if played is None:
            self._present = after
            return shown.reward
        self._present = merge_states(played, after, before)
        return torch.where(played, shown.reward, torch.zeros_like(shown.reward))

    def restore(self, present: WorldBatchState) -> None:
        """Continue from an earlier value of ``present``."""
        self._present = present

    def fork(self) -> WorldBatch:
        """Return an independent copy that continues exactly as this batch would; the simulator is shared."""
        other = copy.copy(self)  # what is present is a value: it is replaced, never changed
        other.generators, other.seeds = copy.deepcopy(self.generators), list(self.seeds)
        return other

    def _make_state(self, state: State, frame: Tensor | None, steps: Tensor) -> WorldBatchState:
        """Worlds that have not ended, unless by their time limit."""
        observation = select_observation(self.simulator, self.observe, state, frame)
        pictures = (frame,) if self.renders and frame is not None else ()
        ended = torch.zeros_like(steps, dtype=torch.bool)
        late = ended if self.max_episode_steps is None else steps >= self.max_episode_steps
        return WorldBatchState(state, observation, pictures, steps, ended, late)

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
            f"the simulator ships no contexts to begin from: pass starts, {kind}, for example of its training data"
        )
    simulator.check_context(starts)
    return starts
