"""A real environment encoded by a world model, so that an agent trained on the world model's features can act in it.

The simulator updates its state with every real frame and action as if it had generated that frame itself
(``ObservesFrames.observe``). The agent observes this state as it does in imagination, so that it needs no change.
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
from vwm.envs.held_actions import HeldActionEnv
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.worlds.bundle import load_simulator
from vwm.worlds.world_batch import OBSERVE_FRAME, blank_context, select_observation


@dataclass(frozen=True)
class EncodedEnvSpec(EnvSpec):
    """An environment whose observations are those of a simulator.

    Where a step of the simulator shows k frames, each action is held for k decisions of the environment.

    Attributes:
        env: an environment that shows images of the simulator's size (or its vectors) and takes its actions: use the
            size and the action repeat of the recording that the simulator was trained on.
        bundle: folder of the simulator.
        observe: ``"features"`` of its network; ``"latent"``, its latents as vectors; ``"frame"``, the image
            reconstructed by its tokenizer (IRIS, arXiv 2209.00588).
        device: of the simulator; ``auto`` takes a GPU where there is one.
    """

    env: EnvSpec
    bundle: Path
    observe: Literal["features", "latent", "frame"] = "features"
    device: str = "auto"

    @property
    def unwrapped(self) -> EnvSpec:
        """See ``EnvSpec.unwrapped``."""
        return self.env.unwrapped

    def open(self, count: int, seed: int, renderable: bool = False) -> EncodedBatchedEnv:
        """See ``EnvSpec.open``."""
        simulator = load_simulator(self.bundle, self.device)
        frames = simulator.spec.frames_per_step
        env = (
            self.env.open(count, seed, renderable)
            if frames == 1
            else HeldActionEnv(self.env, frames, count, seed, renderable)
        )
        return EncodedBatchedEnv(env, simulator, self.observe, seed)


class EncodedBatchedEnv(BatchedEnv):
    """See ``BatchedEnv``.

    Args:
        env: copies of the environment itself, which show as many frames per step as the simulator.
        simulator: the simulator that encodes it.
        observe: see ``EncodedEnvSpec``.
        seed: of the simulator's noise; every episode of every copy has its own.

    Raises:
        ValueError: the simulator does not fit the environment.
    """

    def __init__(self, env: BatchedEnv, simulator: Simulator, observe: str, seed: int) -> None:
        _check_simulator_fits_env(env, simulator)
        self.env = env
        self.simulator = simulator
        self.count = env.count
        self.encoder: ObservationEncoder = (
            ReconstructionEncoder(simulator)
            if observe == OBSERVE_FRAME
            else DynamicsObservationEncoder(simulator, observe)
        )
        self.device = simulator.device
        self.seeds = world_seeds(seed, self.count, self.device)
        shape = tuple(self.encoder.observation(self._blank_state()).shape[1:])
        self.spaces = EnvSpaces(ObservationSpace.of_shape(shape), env.spaces.actions)

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        time_step = self.env.reset()
        self.episodes = torch.zeros(self.count, dtype=torch.int64)
        self.state = self._init_states(time_step.observation, torch.ones_like(time_step.is_first))
        return self._encode_observation(time_step)

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        time_step = self.env.step(action)
        frame, first = time_step.observation.to(self.device), time_step.is_first
        taken = self.simulator.spec.actions.from_flat(action.to(self.device))
        self.state = self.encoder.update_state(self.state, taken, frame)
        if first.any():
            self.episodes = self.episodes + first
            self.state = replace_worlds(
                first.to(self.device), self._init_states(time_step.observation, first), self.state
            )
        return self._encode_observation(time_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the environments, that of the simulator, and the number of the current episodes."""
        return {"env": self.env.state_dict(), "simulator": tree_leaves(self.state), "episodes": self.episodes}

    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """See ``BatchedEnv.load_state_dict``."""
        time_step = self.env.load_state_dict(state["env"])
        leaves = [leaf.to(self.device) for leaf in state["simulator"]]
        self.state = tree_unflatten(leaves, tree_structure(self._blank_state()))
        self.episodes = state["episodes"]
        return self._encode_observation(time_step)

    def achievements(self) -> list[dict[str, bool]]:
        """See ``BatchedEnv.achievements``."""
        return self.env.achievements()

    def render(self) -> NDArray[np.uint8] | None:
        """See ``BatchedEnv.render``: the real image."""
        return self.env.render()

    def close(self) -> None:
        """See ``BatchedEnv.close``."""
        self.env.close()

    def _init_states(self, frame: Tensor, first: Tensor) -> State:
        """Return states of new episodes of the copies under the mask (bool [count])."""
        if self.env.frames_per_step > 1:
            frame = frame[:, -1]
        seeds = fold_in(self.seeds, self.episodes.to(self.device))
        return self.encoder.init_state(frame[first].to(self.device), seeds[first.to(self.device)])

    def _blank_state(self) -> State:
        """Return the state of one world after a blank frame, as a template of states."""
        blank = blank_context(self.simulator)[:, 0]
        return self.encoder.init_state(blank.to(self.device), self.seeds[:1])

    def _encode_observation(self, time_step: TimeStep) -> TimeStep:
        return time_step._replace(observation=self.encoder.observation(self.state).cpu())


class ObservationEncoder(Protocol):
    """Encodes an environment's frames into states (see ``vwm.core.states``), and states into observations."""

    def init_state(self, frame: Tensor, seed: Tensor) -> State:
        """Return states of episodes that begin with frames [n, ...]; seeds int64 [n]."""
        ...

    def update_state(self, state: State, action: Tensor, frame: Tensor) -> State:
        """Return the states after actions [n, ...], which led to frames [n, ...], or to k frames each, [n, k, ...]."""
        ...

    def observation(self, state: State) -> Tensor:
        """Return observations [n, ...]."""
        ...


class DynamicsObservationEncoder:
    """Encodes by the simulator's dynamics, which treats real frames like generated ones.

    Args:
        simulator: a simulator that can ``observe``.
        observe: ``"features"`` or ``"latent"``.

    Raises:
        ValueError: the simulator cannot observe frames.
    """

    def __init__(self, simulator: Simulator, observe: str) -> None:
        if not isinstance(simulator, ObservesFrames):
            raise ValueError(
                f"{type(simulator).__name__} cannot observe frames that it did not generate: set observe='frame', "
                "which needs only its tokenizer"
            )
        self.simulator = simulator
        self.observe = observe

    def init_state(self, frame: Tensor, seed: Tensor) -> State:
        """See ``ObservationEncoder``."""
        return self.simulator.reset(frame[:, None], seed)[0]

    def update_state(self, state: State, action: Tensor, frame: Tensor) -> State:
        """See ``ObservationEncoder``."""
        return self.simulator.observe(state, action, frame)

    def observation(self, state: State) -> Tensor:
        """See ``ObservationEncoder``."""
        return select_observation(self.simulator, self.observe, state, None)


class ReconstructionState(NamedTuple):
    """The tokenizer's state, and the last reconstructed frame, uint8 [n, h, w, 3]."""

    tokenizer: State
    frame: Tensor


class ReconstructionEncoder:
    """Reconstructs frames by the simulator's tokenizer alone.

    Args:
        simulator: a simulator with a tokenizer.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, simulator: Simulator) -> None:
        if not isinstance(simulator, ReconstructsFrames):
            raise ValueError(f"{type(simulator).__name__} has no tokenizer to reconstruct frames: observe its features")
        self.simulator = simulator

    def init_state(self, frame: Tensor, seed: Tensor) -> ReconstructionState:
        """See ``ObservationEncoder``."""
        return self._reconstruct(None, frame[:, None])

    def update_state(self, state: ReconstructionState, action: Tensor, frame: Tensor) -> ReconstructionState:
        """See ``ObservationEncoder``."""
        return self._reconstruct(state.tokenizer, frame if self.simulator.spec.frames_per_step > 1 else frame[:, None])

    def observation(self, state: ReconstructionState) -> Tensor:
        """See ``ObservationEncoder``."""
        return state.frame

    def _reconstruct(self, tokenizer: State | None, frames: Tensor) -> ReconstructionState:
        tokenizer, frames = self.simulator.reconstruct(frames, tokenizer)
        return ReconstructionState(tokenizer, frames[:, -1])


def reconstruct_frames(simulator: Simulator, frames: Tensor) -> Tensor:
    """Reconstruct frames from an episode's start, uint8 [n, t, h, w, 3], as ``ReconstructionEncoder`` does one by one.

    A simulator without a tokenizer returns them unchanged.
    """
    return simulator.reconstruct(frames)[1] if isinstance(simulator, ReconstructsFrames) else frames


def _check_simulator_fits_env(env: BatchedEnv, simulator: Simulator) -> None:
    spaces = env.spaces
    if simulator.spec.frames_per_step != env.frames_per_step:
        raise ValueError(
            f"the world shows {simulator.spec.frames_per_step} frames per step, the environment {env.frames_per_step}: "
            "open it with EncodedEnvSpec"
        )
    expected = simulator.spec.context.shape
    if spaces.observation.shape != expected:
        raise ValueError(
            f"the environment shows {list(spaces.observation.shape)}, the world takes {list(expected)}: give the "
            "environment the size (and pixels: true) of the recording that the world was trained on"
        )
    given, trained = spaces.actions, simulator.spec.actions.flat
    if (given.kind, given.size) != (trained.kind, trained.size):
        raise ValueError(
            f"the environment takes {given.size} {given.kind} actions, the world {trained.size} {trained.kind} ones"
        )
