"""Learning while acting: act, store in replay, update; what all agents with a replay buffer share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from vwm.core.captured_steps import make_capture_backend
from vwm.core.checks import check_positive
from vwm.core.network_simulator import NetworkSimulator
from vwm.envs.batched_envs import BatchedEnv, EnvSpec, GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.envs.worker_envs import WorkerEnvs
from vwm.nn.fused_adam import fuse_adam_on_cuda
from vwm.rl.agent import Agent, PolicyCarry, ReplayBatch
from vwm.rl.algorithm import Algorithm, StepMetrics, TrainingSetup
from vwm.rl.evaluation import sample_random_actions, time_step_to_device
from vwm.rl.replay_buffer import ReplayBuffer
from vwm.rl.replay_priorities import SequencePriorities
from vwm.rl.replay_storage import bytes_of_field

DEVICE_MEMORY_SHARE = 0.4
"""Largest share of a device's free memory that replay takes by itself; the rest is for networks and their updates."""


class OnlineLearning(Algorithm):
    """An agent that alternately acts in environments and learns from a replay buffer.

    Progress counts decisions over all environments. An update logs ``seconds``, next to what the agent logs.

    Args:
        env: the environment that the agent acts in.
        agent: makes the agent; a class that takes the environment's spaces first.
        num_envs: copies of the environment that are stepped together.
        prefill: random decisions before the first update.
        pretrain_updates: updates before the first decision that is not random.
        updates_per_decision: the replay ratio divided by batch size times length.
        replay_capacity: time steps that the replay buffer holds.
        replay_on_disk: keep the replay buffer in files rather than in memory.
        replay_memory: where observations and extras are kept and read: ``host``; ``device``, the agent's; ``auto``
            takes the device where it is a GPU, observations are images, and they need at most ``DEVICE_MEMORY_SHARE``
            of its free memory. Results do not depend on it.
        env_workers: processes that step the environments while the agent learns, at most one for each; 0 steps them in
            this process. ``auto`` takes them where the agent learns on a GPU. Results do not depend on it.

    Raises:
        ValueError: a count is out of range.
    """

    supports_runtime = True

    def __init__(
        self,
        env: EnvSpec,
        agent: Callable[[EnvSpaces], Agent],
        num_envs: int = 1,
        prefill: int = 1000,
        pretrain_updates: int = 0,
        updates_per_decision: float = 1.0,
        replay_capacity: int = 1_000_000,
        replay_on_disk: bool = False,
        replay_memory: Literal["auto", "host", "device"] = "auto",
        env_workers: int | Literal["auto"] = "auto",
    ) -> None:
        check_positive(num_envs=num_envs, replay_capacity=replay_capacity)
        if env_workers != "auto" and env_workers < 0:
            raise ValueError(f"env_workers must be 0 or more, or auto, got {env_workers}")
        if replay_on_disk and replay_memory == "device":
            raise ValueError("replay_on_disk keeps the replay buffer in files: set replay_memory=host, or auto")
        if prefill < 0 or pretrain_updates < 0 or updates_per_decision < 0:
            raise ValueError(
                f"prefill, pretrain_updates and updates_per_decision must be 0 or more, got {prefill}, "
                f"{pretrain_updates}, {updates_per_decision}"
            )
        self.env = env
        self.make_agent = agent
        self.num_envs = num_envs
        self.prefill = prefill
        self.pretrain_updates = pretrain_updates
        self.updates_per_decision = updates_per_decision
        self.replay_capacity = replay_capacity
        self.replay_on_disk = replay_on_disk
        self.replay_memory = replay_memory
        self.env_workers = env_workers

    def set_up(self, setup: TrainingSetup) -> None:
        """See ``Algorithm.set_up``."""
        self.setup = setup
        self.envs: BatchedEnv = self._open_envs(setup)
        self.policy: Agent = self.make_agent(self.envs.spaces).to(setup.device)
        fuse_adam_on_cuda(*self.policy.optimizers().values())
        self._accelerate()
        self._check_batch_length(setup.steps)
        scratch, device = setup.folder.path / "replay_scratch", self._replay_device(self.policy)
        self.replay = self._make_replay(self.policy, setup, scratch, device)
        self.carry: PolicyCarry = self.policy.init_carry(self.num_envs)
        self.time_step: TimeStep | None = None
        self.progress = 0
        self.updates = 0
        self.updates_due = 0.0
        self.returns = torch.zeros(self.num_envs)
        self.lengths = torch.zeros(self.num_envs)
        self._set_total_updates()

    def _check_batch_length(self, steps: int) -> None:
        """Raise ValueError where no sequence of the agent's length is ever in the replay buffer."""
        for name, total in (("replay_capacity", self.replay_capacity), ("steps", steps)):
            longest = total // self.num_envs
            if longest < self.policy.batch_length and self.updates_per_decision:
                raise ValueError(
                    f"batch_length: an update takes sequences of {self.policy.batch_length} time steps, and {name}="
                    f"{total} leaves {longest} for each of {self.num_envs} environments: nothing would be learned"
                )

    def step(self) -> StepMetrics:
        """Take one decision in every environment, then make the updates that are due."""
        self._act()
        updates = self._learn()
        self.time_step = self.envs.end_step()
        return {"episodes": self._ended_episodes(self.time_step), "updates": updates}

    def state_dict(self) -> dict[str, Any]:
        """See ``Algorithm.state_dict``; the replay buffer is written to files, of which only new ones."""
        return {
            "policy": self.policy.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.policy.optimizers().items()},
            "progress": self.progress,
            "updates": self.updates,
            "updates_due": self.updates_due,
            "carry": tree_leaves(self.carry),
            "envs": self.envs.state_dict(),
            "replay": self.replay.save(self._replay_folder(self.setup)),
            "episodes": (self.returns, self.lengths),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Algorithm.load_state_dict``."""
        self.policy.load_state_dict(state["policy"])
        for name, optimizer in self.policy.optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self._accelerate()
        self.progress = state["progress"]
        self.updates = state["updates"]
        self.updates_due = state["updates_due"]
        structure = tree_structure(self.policy.init_carry(self.num_envs))
        self.carry = tree_unflatten([leaf.to(self.policy.device) for leaf in state["carry"]], structure)
        self.replay.load(self._replay_folder(self.setup), state["replay"])
        self.returns, self.lengths = state["episodes"]
        self.time_step = self.envs.load_state_dict(state["envs"])
        self._set_total_updates()

    def prune_files(self) -> None:
        """Delete replay files that the checkpoint that was saved or loaded last does not need."""
        self.replay.prune(self._replay_folder(self.setup))

    def close(self) -> None:
        """See ``Algorithm.close``."""
        self.envs.close()

    def build_policy(self, setup: TrainingSetup) -> Agent:
        """See ``Algorithm.build_policy``."""
        envs = self.env.open(1, setup.seed)
        envs.close()
        return self.make_agent(envs.spaces).to(setup.device)

    def export_simulator(
        self, setup: TrainingSetup, policy: Agent, state: Mapping[str, Any], title: str, fps: float, contexts: int
    ) -> NetworkSimulator:
        """See ``Algorithm.export_simulator``; the contexts are drawn from the replay buffer of the last checkpoint."""
        simulator = policy.simulator(title, fps)
        with TemporaryDirectory(dir=setup.folder.path) as scratch_folder:
            replay = self.load_replay(setup, policy, state, Path(scratch_folder))
            batch = replay.sample(contexts, simulator.spec.context_frames, single_episode=True)
            simulator.starts = batch.observation
        return simulator

    def load_replay(
        self, setup: TrainingSetup, policy: Agent, state: Mapping[str, Any], scratch_folder: Path
    ) -> ReplayBuffer:
        """Load the replay buffer of a checkpoint, leaving the run's own files as they are.

        Args:
            setup: of the run.
            policy: as ``build_policy`` made it.
            state: as ``state_dict`` returned it.
            scratch_folder: for the time steps, where the run keeps them in files.
        """
        replay = self._make_replay(policy, setup, scratch_folder)
        replay.load(self._replay_folder(setup), state["replay"])
        return replay

    @torch.no_grad()
    def _act(self) -> None:
        """Take one decision in every environment; what follows does not depend on when its result is there."""
        current = self.envs.reset() if self.time_step is None else self.time_step
        on_device = time_step_to_device(current, self.policy.device)
        if self.progress < self.prefill:
            random = sample_random_actions(self.envs.spaces, self.num_envs).to(self.policy.device)
            output = self.policy.observe(self.carry, on_device, random)
        else:
            output = self.policy.act(self.carry, on_device, explore=True)
        action = output.action.cpu()
        self.carry = output.carry
        self.replay.add(current, action, output.extras)
        self.envs.begin_step(action)
        self.progress += self.num_envs

    def _ended_episodes(self, step: TimeStep) -> list[Mapping[str, float]]:
        self.returns = torch.where(step.is_first, 0, self.returns) + step.reward
        self.lengths = torch.where(step.is_first, 0, self.lengths + 1)
        ended = step.is_last.nonzero().flatten().tolist()
        return [{"return": float(self.returns[i]), "length": float(self.lengths[i])} for i in ended]

    def _learn(self) -> list[Mapping[str, float]]:
        """Make the updates that are due; return the logs of each."""
        agent = self.policy
        if self.progress < self.prefill or not self.replay.can_sample(agent.batch_length):
            return []
        self.updates_due += self.num_envs * self.updates_per_decision + (0 if self.updates else self.pretrain_updates)
        rows: list[Mapping[str, float]] = []
        while self.updates_due >= 1:
            self.updates_due -= 1
            self.updates += 1
            rows.append(self._update(agent))
        return rows

    def _update(self, agent: Agent) -> Mapping[str, float]:
        if agent.priorities is None:
            batch = self.replay.sample(agent.batch_size, agent.batch_length, agent.single_episode, agent.context_steps)
        else:
            batch = self.replay.sample_by_priority(agent.batch_size)
        began = time.perf_counter()
        with self.setup.runtime.autocast():
            output = agent.update(replay_batch_to_device(batch, agent.device))
        if output.indices is not None:
            extras = {name: _to_float32(value) for name, value in output.extras.items()}
            self.replay.update_extras(output.indices, extras)
        if output.priorities is not None:
            self.replay.update_priorities(batch, _to_float32(output.priorities))
        return {**output.logs, "seconds": time.perf_counter() - began}

    def _open_envs(self, setup: TrainingSetup) -> BatchedEnv:
        on_gpu = setup.device.type == "cuda"
        automatic = max(1, (os.cpu_count() or 2) - 1) if on_gpu else 0
        workers = automatic if self.env_workers == "auto" else self.env_workers
        if workers and isinstance(self.env, GymnasiumEnvSpec):
            return WorkerEnvs(self.env, self.num_envs, setup.seed, min(workers, self.num_envs))
        return self.env.open(self.num_envs, setup.seed)

    def _accelerate(self) -> None:
        """Capture acting and updates where that is wanted; loading changes what optimizers hold."""
        self.policy.accelerate(make_capture_backend(self.setup.accelerate, self.setup.device))

    def _set_total_updates(self) -> None:
        """Tell the agent how many updates the whole run makes."""
        prefilled = self.prefill * self.updates_per_decision
        self.policy.set_total_updates(
            self.pretrain_updates + int(self.setup.steps * self.updates_per_decision - prefilled)
        )

    def _make_replay(
        self, agent: Agent, setup: TrainingSetup, scratch_folder: Path, device: torch.device | None = None
    ) -> ReplayBuffer:
        folder = scratch_folder if self.replay_on_disk else None
        priorities = None
        if agent.priorities is not None:
            size = self.replay_capacity // self.num_envs
            priorities = SequencePriorities(
                self.num_envs, size, agent.batch_length, agent.root_step, config=agent.priorities
            )
        return ReplayBuffer(
            self.replay_capacity, self.num_envs, agent.spaces, agent.extras, setup.seed, folder, device, priorities
        )

    def _replay_device(self, agent: Agent) -> torch.device | None:
        """Return the device that keeps observations and extras; None for the host."""
        if self.replay_memory != "auto":
            return agent.device if self.replay_memory == "device" else None
        space = agent.spaces.observation
        if self.replay_on_disk or agent.device.type != "cuda" or not space.is_image:
            return None
        fields = [(space.shape, space.dtype), *agent.extras.values()]
        needed = sum(bytes_of_field(self.replay_capacity, shape, dtype) for shape, dtype in fields)
        free, _ = torch.cuda.mem_get_info(agent.device)
        return agent.device if needed <= DEVICE_MEMORY_SHARE * free else None

    @staticmethod
    def _replay_folder(setup: TrainingSetup) -> Path:
        return setup.folder.checkpoints / "replay"


def replay_batch_to_device(batch: ReplayBatch, device: torch.device) -> ReplayBatch:
    """Move a batch's tensors to a device; the indices stay."""

    def move(leaf: Tensor) -> Tensor:
        return leaf.to(device, non_blocking=True)

    return batch._replace(
        **{name: tree_map(move, value) for name, value in batch._asdict().items() if name != "indices"}
    )


def _to_float32(values: Tensor) -> Tensor:
    """Undo autocast: NumPy, in which replay stores, has no bfloat16."""
    return values.float() if values.dtype == torch.bfloat16 else values
