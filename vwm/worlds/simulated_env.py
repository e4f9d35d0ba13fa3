"""Learned worlds as environments: any exported simulator is an environment for any agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from vwm.core.devices import Precision
from vwm.core.simulator import Simulator
from vwm.core.spaces import ObservationSpace
from vwm.envs.batched_envs import BatchedEnv, EnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.worlds.bundle import load_simulator
from vwm.worlds.context_sampler import ContextSampler
from vwm.worlds.ensemble import EnsembleSimulator
from vwm.worlds.gymnasium_env import SimulatorVectorEnv
from vwm.worlds.world_batch import WorldBatch, WorldBatchState


@dataclass(frozen=True)
class SimulatedEnvSpec(EnvSpec):
    """The world of a bundle as an environment.

    Attributes:
        bundle: folder of the bundle.
        data: shards whose clips are the contexts that episodes start from; by default the contexts in the bundle.
        contexts: number of clips from ``data``, evenly spaced over it.
        rewarded_fraction: fraction of the contexts that are chosen among those followed by a reward within the time
            limit, so that an untrained agent encounters rewards (0.5 in Dreamer 4).
        time_limit: decisions after which an episode is truncated. A learned world drifts from the real one with every
            step; a short limit keeps an agent where it is still accurate.
        observe: ``"frame"``, images (or vectors) as in the real environment; ``"latent"``, the world's own latents;
            ``"features"``, its network's features of the current state. An agent that learned on latents or features
            acts in a real environment through ``vwm.rl.algorithms.encoded_env``.
        ensemble_bundles: bundles of worlds that were trained on the same environment with other seeds; their
            disagreement with this one measures its uncertainty, see ``EnsembleSimulator``.
        uncertainty_penalty, uncertainty_limit: see ``EnsembleSimulator``.
        device: of the simulator; ``auto`` uses a GPU where there is one.
        precision: of its dynamics; ``auto`` is bfloat16 on a GPU.
    """

    bundle: Path
    data: str | None = None
    contexts: int = 512
    rewarded_fraction: float = 0.0
    time_limit: int | None = 64
    observe: Literal["frame", "latent", "features"] = "frame"
    ensemble_bundles: tuple[Path, ...] = ()
    uncertainty_penalty: float = 0.0
    uncertainty_limit: float | None = None
    device: str = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_ensemble_settings(self.ensemble_bundles, self.uncertainty_penalty, self.uncertainty_limit)

    @property
    def is_simulated(self) -> bool:
        """See ``EnvSpec.is_simulated``."""
        return True

    def open(self, count: int, seed: int, renderable: bool = False) -> SimulatedBatchedEnv:
        """See ``EnvSpec.open``."""
        simulator, starts = self._simulator_and_contexts()
        return SimulatedBatchedEnv(simulator, count, seed, starts, self.time_limit, self.observe)

    def vector_env(self, count: int, seed: int) -> SimulatorVectorEnv:
        """See ``EnvSpec.vector_env``; the worlds step as one batch."""
        simulator, starts = self._simulator_and_contexts()
        env = SimulatorVectorEnv(
            simulator, count, starts, self.time_limit, AutoresetMode.SAME_STEP, observe=self.observe, flat_actions=True
        )
        env.reset(seed=seed)
        return env

    def _simulator_and_contexts(self) -> tuple[Simulator, Tensor | None]:
        bundles = (self.bundle, *self.ensemble_bundles)
        members = [load_simulator(bundle, self.device, self.precision) for bundle in bundles]
        simulator: Simulator = members[0]
        if self.ensemble_bundles:
            simulator = EnsembleSimulator(members, self.uncertainty_penalty, self.uncertainty_limit)
        if self.rewarded_fraction and (self.data is None or self.time_limit is None):
            raise ValueError(
                f"rewarded_fraction={self.rewarded_fraction:g} requires rewards of data within the time limit: "
                "set data and time_limit"
            )
        if self.data is None:
            return simulator, None
        horizon = (self.time_limit or 0) * simulator.spec.frames_per_step
        sampler = ContextSampler(
            self.data, simulator.spec.context_frames, horizon, self.rewarded_fraction, actions=False
        )
        return simulator, sampler.evenly_spaced(self.contexts)


def check_ensemble_settings(
    bundles: Sequence[Path], uncertainty_penalty: float, uncertainty_limit: float | None
) -> None:
    """Raise ValueError where uncertainty is penalized or limited, but there is no other world to measure it."""
    if not bundles and (uncertainty_penalty or uncertainty_limit is not None):
        raise ValueError(
            f"uncertainty_penalty={uncertainty_penalty:g} and uncertainty_limit={uncertainty_limit} require an "
            "ensemble: add the bundles of other worlds"
        )


class SimulatedBatchedEnv(BatchedEnv):
    """See ``BatchedEnv``.

    Args:
        simulator: any simulator.
        count: number of worlds.
        seed: of all their random numbers.
        starts: contexts to start from; by default the simulator's own.
        time_limit, observe: see ``SimulatedEnvSpec``.
    """

    def __init__(
        self,
        simulator: Simulator,
        count: int,
        seed: int,
        starts: Tensor | None = None,
        time_limit: int | None = None,
        observe: str = "frame",
    ) -> None:
        self.worlds = WorldBatch(simulator, count, starts, time_limit, observe)
        self.count = count
        self.seed = seed
        shape = self.worlds.observation_shape
        self.spaces = EnvSpaces(ObservationSpace.of_shape(shape), simulator.spec.actions.flat)

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        seeds = np.random.SeedSequence([self.seed, self.count]).generate_state(self.count)
        self.worlds.seed([int(seed) for seed in seeds])
        self.worlds.reset()
        return self._time_step(torch.zeros(self.count), torch.ones(self.count, dtype=torch.bool))

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        ended = self.worlds.current.terminated | self.worlds.current.truncated
        taken = self.worlds.simulator.spec.actions.from_flat(action.to(self.worlds.device))
        reward = self.worlds.step(taken, active=~ended)
        if ended.any():
            self.worlds.reset(ended.cpu().numpy())
        return self._time_step(reward, ended)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every world and its generator."""
        generators = [generator.bit_generator.state for generator in self.worlds.generators]
        return {"current": tree_leaves(self.worlds.current), "generators": generators, "reward": self.reward}

    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """See ``BatchedEnv.load_state_dict``."""
        if len(state["generators"]) != self.count:
            raise ValueError(f"the state is of {len(state['generators'])} worlds, these are {self.count}")
        self.reset()
        current, spec = tree_flatten(self.worlds.current)
        leaves = [saved.to(fresh) for saved, fresh in zip(state["current"], current, strict=True)]
        restored: WorldBatchState = tree_unflatten(leaves, spec)
        self.worlds.restore(restored)
        for generator, saved in zip(self.worlds.generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        return self._time_step(state["reward"], restored.steps == 0)

    def render(self) -> NDArray[np.uint8] | None:
        """See ``BatchedEnv.render``."""
        frame = self.worlds.current.observation
        return frame[0].cpu().numpy() if self.spaces.observation.is_image else None

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _time_step(self, reward: Tensor, is_first: Tensor) -> TimeStep:
        self.reward = reward.cpu().float()
        current = self.worlds.current
        ends = [flags.cpu() for flags in (is_first, current.terminated | current.truncated, current.terminated)]
        return TimeStep(current.observation.cpu(), self.reward, *ends)
