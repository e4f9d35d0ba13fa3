"""A real environment encoded by a world model, so that an agent trained on the world model's features can act in it.

The simulator takes in every real frame and action as if it had generated that frame itself (``Simulator.observe``), and
its state is observed as it is in imagination. The agent receives the same kind of observation in both and needs no
change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from vwm.core.capabilities import ObservesFrames, ReconstructsFrames
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator, State
from vwm.core.spaces import ObservationSpace
from vwm.core.states import replace_worlds
from vwm.envs.batched_envs import BatchedEnv, EnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.worlds.bundle import load_simulator
from vwm.worlds.world_batch import OBSERVE_FRAME, blank_context, select_observation


@dataclass(frozen=True)
class EncodedEnvSpec(EnvSpec):
    """An environment whose observations are those of a simulator.

    Attributes:
        game: an environment that shows images of the simulator's size (or its vectors) and takes its actions: use the
            size and the action repeat of the recording that the simulator was trained on.
        bundle: folder of the simulator.
        observe: ``"features"`` of its network; ``"latent"``, its latents as vectors; ``"frame"``, the image
            reconstructed by its tokenizer (IRIS, arXiv 2209.00588).
        device: of the simulator; ``auto`` takes a GPU where there is one.
    """

    game: EnvSpec
    bundle: Path
    observe: Literal["features", "latent", "frame"] = "features"
    device: str = "auto"

    @property
    def bare(self) -> EnvSpec:
        """See ``EnvSpec.bare``."""
        return self.game.bare

    def open(self, count: int, seed: int, renderable: bool = False) -> EncodedBatchedEnv:
        """See ``EnvSpec.open``."""
        simulator = load_simulator(self.bundle, self.device)
        return EncodedBatchedEnv(self.game.open(count, seed, renderable), simulator, self.observe, seed)


class EncodedBatchedEnv(BatchedEnv):
    """See ``BatchedEnv``.

    Args:
        inner: the environment itself.
        simulator: the simulator that encodes it.
        observe: see ``EncodedEnvSpec``.
        seed: of the simulator's noise; every episode of every copy has its own.

    Raises:
        ValueError: the simulator does not fit the environment.
    """

    def __init__(self, inner: BatchedEnv, simulator: Simulator, observe: str, seed: int) -> None:
        _check_simulator_fits_env(inner.spaces, simulator)
        self.inner = inner
        self.simulator = simulator
        self.count = inner.count
        self.sight: ObservationEncoder = (
            ReconstructionEncoder(simulator)
            if observe == OBSERVE_FRAME
            else DynamicsObservationEncoder(simulator, observe)
        )
        self.device = simulator.device
        self.seeds = world_seeds(seed, self.count, self.device)
        shape = tuple(self.sight.show(self._blank()).shape[1:])
        self.spaces = EnvSpaces(ObservationSpace.of_shape(shape), inner.spaces.actions)

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        time_step = self.inner.reset()
        self.episodes = torch.zeros(self.count, dtype=torch.int64)
        self.state = self._begin(time_step.observation, torch.ones_like(time_step.is_first))
        return self._shown(time_step)

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        time_step = self.inner.step(action)
        frame, first = time_step.observation.to(self.device), time_step.is_first
        self.state = self.sight.follow(self.state, action.to(self.device), frame)
        if first.any():
            self.episodes = self.episodes + first
            self.state = replace_worlds(first.to(self.device), self._begin(time_step.observation, first), self.state)
        return self._shown(time_step)

    def state_dict(self) -> dict[str, Any]:
        """The game's, and where the world stands."""
        return {"game": self.inner.state_dict(), "world": tree_leaves(self.state), "episodes": self.episodes}

    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """See ``BatchedEnv.load_state_dict``."""
        time_step = self.inner.load_state_dict(state["game"])
        leaves = [leaf.to(self.device) for leaf in state["world"]]
        self.state = tree_unflatten(leaves, tree_structure(self._blank()))
        self.episodes = state["episodes"]
        return self._shown(time_step)

    def render(self) -> NDArray[np.uint8] | None:
        """See ``BatchedEnv.render``: the real picture."""
        return self.inner.render()

    def close(self) -> None:
        """See ``BatchedEnv.close``."""
        self.inner.close()

    def _begin(self, frame: Tensor, first: Tensor) -> State:
        """Episodes of the copies under the mask (bool [count])."""
        seeds = fold_in(self.seeds, self.episodes.to(self.device))
        return self.sight.begin(frame[first].to(self.device), seeds[first.to(self.device)])

    def _blank(self) -> State:
        """Of one world that saw nothing: what states look like."""
        blank = blank_context(self.simulator)[:, 0]
        return self.sight.begin(blank.to(self.device), self.seeds[:1])

    def _shown(self, time_step: TimeStep) -> TimeStep:
        return time_step._replace(observation=self.sight.show(self.state).cpu())


class ObservationEncoder(Protocol):
    """Encodes an environment's frames into states (see ``vwm.core.states``), and these into observations."""

    def begin(self, frame: Tensor, seed: Tensor) -> State:
        """States of episodes that begin with frames [n, ...]; seeds int64 [n]."""
        ...

    def follow(self, state: State, action: Tensor, frame: Tensor) -> State:
        """The states after actions [n, ...], which led to frames [n, ...]."""
        ...

    def show(self, state: State) -> Tensor:
        """Observations [n, ...]."""
        ...


class DynamicsObservationEncoder:
    """Encodes by the simulator's dynamics, which takes real frames like generated ones.

    Args:
        simulator: a simulator that can ``observe``.
        observe: ``"features"`` or ``"latent"``.

    Raises:
        ValueError: the simulator cannot observe frames.
    """

    def __init__(self, simulator: Simulator, observe: str) -> None:
        if not isinstance(simulator, ObservesFrames):
            raise ValueError(
                f"{type(simulator).__name__} cannot take in frames that it did not draw: observe='frame' needs none"
            )
        self.simulator = simulator
        self.observe = observe

    def begin(self, frame: Tensor, seed: Tensor) -> State:
        """See ``ObservationEncoder``."""
        return self.simulator.reset(frame[:, None], seed)[0]

    def follow(self, state: State, action: Tensor, frame: Tensor) -> State:
        """See ``ObservationEncoder``."""
        return self.simulator.observe(state, action, frame)

    def show(self, state: State) -> Tensor:
        """See ``ObservationEncoder``."""
        return select_observation(self.simulator, self.observe, state, None)


class ReconstructionState(NamedTuple):
    """The state of the reconstruction, and the last picture, uint8 [n, h, w, 3]."""

    sides: State
    frame: Tensor


class ReconstructionEncoder:
    """Encodes and decodes by the simulator's tokenizer alone.

    Args:
        simulator: a simulator with a tokenizer.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, simulator: Simulator) -> None:
        if not isinstance(simulator, ReconstructsFrames):
            raise ValueError(f"{type(simulator).__name__} has no tokenizer to reconstruct frames: observe its features")
        self.simulator = simulator

    def begin(self, frame: Tensor, seed: Tensor) -> ReconstructionState:
        """See ``ObservationEncoder``."""
        return self._draw(None, frame)

    def follow(self, state: ReconstructionState, action: Tensor, frame: Tensor) -> ReconstructionState:
        """See ``ObservationEncoder``."""
        return self._draw(state.sides, frame)

    def show(self, state: ReconstructionState) -> Tensor:
        """See ``ObservationEncoder``."""
        return state.frame

    def _draw(self, sides: State | None, frame: Tensor) -> ReconstructionState:
        sides, shown = self.simulator.reconstruct(frame[:, None], sides)
        return ReconstructionState(sides, shown[:, 0])


def reconstruct_frames(simulator: Simulator, frames: Tensor) -> Tensor:
    """Reconstruct frames from an episode's start, uint8 [n, t, h, w, 3], as ``ReconstructionEncoder`` does one by one.

    A simulator without a tokenizer returns them unchanged.
    """
    return simulator.reconstruct(frames)[1] if isinstance(simulator, ReconstructsFrames) else frames


def _check_simulator_fits_env(spaces: EnvSpaces, simulator: Simulator) -> None:
    wanted = simulator.spec.context.shape
    if spaces.observation.shape != wanted:
        raise ValueError(
            f"the game shows {list(spaces.observation.shape)}, the world sees {list(wanted)}: give the game the size "
            f"(and pixels: true) of the recording that the world learned from"
        )
    mine, theirs = simulator.spec.actions, spaces.actions
    if (mine.kind, mine.size) != (theirs.kind, theirs.size):
        raise ValueError(f"the game takes {theirs.size} {theirs.kind} actions, the world {mine.size} {mine.kind} ones")
