"""What a world keeps of the frames that an agent sees in real environments, for agents that observe them through it.

Legend: n environments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator, State
from vwm.core.states import replace_worlds
from vwm.envs.time_step import TimeStep
from vwm.rl.algorithms.encoded_env import DynamicsObservationEncoder, ObservationEncoder, ReconstructionEncoder
from vwm.worlds.world_batch import OBSERVE_FRAME, blank_context


class WorldMemory(NamedTuple):
    """What is kept of each environment: the state after its frames so far, and the last action taken [n, ...].

    The state is the world's, or its tokenizer's where frames are observed.

    The state was computed with the weights that the world had when the frames were seen: where it learns in between,
    frames within its attention window are remembered as they were seen then.
    """

    state: State
    action: Tensor


class ObservedWorld:
    """Takes real frames into a world's state and observes that, as ``EncodedEnvSpec`` does with a world from a bundle.

    Args:
        simulator: the world; its weights may change between two frames.
        observe: ``"features"``, ``"latent"``, or ``"frame"``, reconstructed by its tokenizer from all frames of the
            episode so far, as generated frames are.

    Raises:
        ValueError: the world cannot observe frames, or has no tokenizer to reconstruct them.
    """

    def __init__(self, simulator: Simulator, observe: str) -> None:
        self.simulator = simulator
        self.encoder: ObservationEncoder = (
            ReconstructionEncoder(simulator)
            if observe == OBSERVE_FRAME
            else DynamicsObservationEncoder(simulator, observe)
        )

    def init_memory(self, batch: int) -> WorldMemory:
        """Return the memory before the first frame, which the first time step of an episode replaces."""
        blank = blank_context(self.simulator)[:, 0].to(self.simulator.device)
        seeds = world_seeds(0, batch, self.simulator.device)
        state = self.encoder.init_state(blank.expand(batch, *blank.shape[1:]), seeds)
        actions = self.simulator.spec.actions.flat
        return WorldMemory(state, torch.zeros(batch, *actions.shape, dtype=actions.dtype, device=self.simulator.device))

    def add(self, memory: WorldMemory, time_step: TimeStep) -> tuple[WorldMemory, Tensor]:
        """Take the frames of a time step in; return the memory and the observations [n, k].

        The noise of an episode's frames has a seed of its own, from torch's generator.
        """
        frame, first = time_step.observation, time_step.is_first
        state = memory.state
        if not first.all():
            action = self.simulator.spec.actions.from_flat(memory.action)
            state = self.encoder.update_state(state, action, frame)
        if first.any():
            seeds = torch.randint(2**63 - 1, (int(first.sum()),)).to(frame.device)
            begun = self.encoder.init_state(frame[first], seeds)
            state = begun if first.all() else replace_worlds(first, begun, state)
        return memory._replace(state=state), self.encoder.observation(state)
