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
    """The world of a bundle.

    Attributes:
        bundle: its folder.
        data: shards whose clips are the contexts that episodes begin from; by default the bundle's own starts.
        contexts: clips that are drawn from ``data``, evenly over it.
        relevant: share of the contexts that are drawn from moments alone after which something was earned within the
            time limit, so that an agent that knows nothing yet comes across rewards (Dreamer 4 takes a half).
        time_limit: decisions after which an episode is truncated. A learned world drifts from the real one with every
            step; a short limit keeps an agent where it is still right.
        observe: ``"frame"``, the pictures (or vectors) of the real game; ``"latent"``, the world's own latents;
            ``"features"``, what its network makes of the present. An agent that learned on these two sees a real game
            through ``vwm.rl.algorithms.encoded_env``.
        others: bundles of worlds that learned the same game otherwise (from another seed): where they disagree with
            this one, none of them is to be trusted; see ``EnsembleSimulator``.
        penalty, limit: what disagreement costs, and where it ends an episode.
        device: of the simulator; ``auto`` uses a GPU where there is one.
    """

    bundle: Path
    data: str | None = None
    contexts: int = 512
    relevant: float = 0.0
    time_limit: int | None = 64
    observe: Literal["frame", "latent", "features"] = "frame"
    others: tuple[Path, ...] = ()
    penalty: float = 0.0
    limit: float | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_ensemble_settings(self.others, self.penalty, self.limit)

    def open(self, count: int, seed: int, renderable: bool = False) -> SimulatedBatchedEnv:
        """See ``EnvSpec.open``."""
        simulator, starts = self._world()
        return SimulatedBatchedEnv(simulator, count, seed, starts, self.time_limit, self.observe)

    def vector_env(self, count: int, seed: int) -> SimulatorVectorEnv:
        """See ``EnvSpec.vector_env``; the worlds step as one batch."""
        simulator, starts = self._world()
        made = SimulatorVectorEnv(
            simulator, count, starts, self.time_limit, AutoresetMode.SAME_STEP, observe=self.observe
        )
        made.reset(seed=seed)
        return made

    def _world(self) -> tuple[Simulator, Tensor | None]:
        simulator: Simulator = load_simulator(self.bundle, self.device)
        if self.others:
            members = [simulator, *(load_simulator(other, self.device) for other in self.others)]
            simulator = EnsembleSimulator(members, self.penalty, self.limit)
        if self.relevant and (self.data is None or self.time_limit is None):
            raise ValueError(
                f"relevant={self.relevant:g} requires rewards of data within the time limit: set data and time_limit"
            )
        if self.data is None:
            return simulator, None
        limit = self.time_limit or 0
        drawn = ContextSampler(self.data, simulator.spec.context_frames, limit, self.relevant, actions=False)
        return simulator, drawn.spread(self.contexts)


def check_ensemble_settings(others: Sequence[Path], penalty: float, limit: float | None) -> None:
    """Raise ValueError where disagreement is penalized but there is no other world."""
    if not others and (penalty or limit is not None):
        raise ValueError(f"penalty={penalty:g} and limit={limit} are of disagreement: name other worlds in others")


class SimulatedBatchedEnv(BatchedEnv):
    """See ``BatchedEnv``.

    Args:
        simulator: any.
        count: worlds.
        seed: of all that they draw.
        starts: contexts to begin from; the simulator's own by default.
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
        self.count, self.seed = count, seed
        shape = self.worlds.observation_shape
        self.spaces = EnvSpaces(ObservationSpace.of_shape(shape), simulator.spec.actions)

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        seeds = np.random.SeedSequence([self.seed, self.count]).generate_state(self.count)
        self.worlds.seed([int(seed) for seed in seeds])
        self.worlds.begin()
        return self._time_step(torch.zeros(self.count), torch.ones(self.count, dtype=torch.bool))

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        over = self.worlds.present.terminated | self.worlds.present.truncated
        reward = self.worlds.step(action.to(self.worlds.device), played=~over)
        if over.any():
            self.worlds.begin(over.cpu().numpy())
        return self._time_step(reward, over)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every world and its generator."""
        generators = [generator.bit_generator.state for generator in self.worlds.generators]
        return {"present": tree_leaves(self.worlds.present), "generators": generators, "reward": self.reward}

    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """See ``BatchedEnv.load_state_dict``."""
        if len(state["generators"]) != self.count:
            raise ValueError(f"the state is of {len(state['generators'])} worlds, these are {self.count}")
        self.reset()
        present, spec = tree_flatten(self.worlds.present)
        leaves = [saved.to(fresh) for saved, fresh in zip(state["present"], present, strict=True)]
        restored: WorldBatchState = tree_unflatten(leaves, spec)
        self.worlds.restore(restored)
        for generator, kept in zip(self.worlds.generators, state["generators"], strict=True):
            generator.bit_generator.state = kept
        return self._time_step(state["reward"], restored.steps == 0)

    def render(self) -> NDArray[np.uint8] | None:
        """See ``BatchedEnv.render``."""
        picture = self.worlds.present.observation
        return picture[0].cpu().numpy() if self.spaces.observation.is_image else None

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _time_step(self, reward: Tensor, is_first: Tensor) -> TimeStep:
        self.reward = reward.cpu().float()
        here = self.worlds.present
        ends = [flags.cpu() for flags in (is_first, here.terminated | here.truncated, here.terminated)]
        return TimeStep(here.observation.cpu(), self.reward, *ends)
