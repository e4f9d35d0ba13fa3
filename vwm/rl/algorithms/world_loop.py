"""The joint online loop of IRIS (arXiv 2209.00588) and DIAMOND (arXiv 2405.12399): collect, learn the world, imagine.

An epoch collects some decisions with the current policy, and then trains the parts one after the other: the tokenizer
where there is one to train, the world, and the policy in the world's imagination. A loop that begins with a world and
a policy of an offline training also learns from the recording that they were learned from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from vwm.core.blocks import compile_blocks
from vwm.core.checks import check_not_negative, check_positive
from vwm.data.clips import ClipBatch
from vwm.envs.batched_envs import EnvSpec
from vwm.envs.time_step import EnvSpaces
from vwm.nn.training_module import TrainingModule
from vwm.rl.algorithm import StepMetrics, TrainingSetup
from vwm.rl.algorithms.imagination_agent import PART_PAST_ENDS, ImaginationAgent, LoopPart, replayed_clips
from vwm.rl.algorithms.recorded_share import RecordedShare, join_clips
from vwm.rl.online_learning import OnlineLearning, replay_batch_to_device
from vwm.runs.training_runtime import compile_networks


class WorldLoop(OnlineLearning):
    """See the module; the defaults are DIAMOND's for Atari.

    A step is a decision in every environment, or one update, so that a signal stops a training within an epoch, too,
    and a resumed one goes on there. Progress counts decisions; the last one of an epoch counts after its updates.

    Args:
        env: the environment that the agent acts in.
        agent: makes the agent.
        num_envs: copies of the environment that are stepped together.
        prefill: random decisions before the first epoch; 0 collects those of the first epoch with the agent's policy,
            too, which is then evaluated before the first decision.
        epoch_decisions: decisions of an epoch.
        final_epochs: how many epochs of updates follow the last decision, which collect nothing.
        recording: what else the parts learn from; None learns from the replay only.
        replay_capacity, replay_on_disk, replay_memory, env_workers: see ``OnlineLearning``.

    Raises:
        ValueError: a count is out of range.
    """

    policy: ImaginationAgent

    def __init__(
        self,
        env: EnvSpec,
        agent: Callable[[EnvSpaces], ImaginationAgent],
        num_envs: int = 1,
        prefill: int = 5000,
        epoch_decisions: int = 100,
        final_epochs: int = 0,
        recording: RecordedShare | None = None,
        replay_capacity: int = 1_000_000,
        replay_on_disk: bool = False,
        replay_memory: Literal["auto", "host", "device"] = "auto",
        env_workers: int | Literal["auto"] = "auto",
    ) -> None:
        check_positive(epoch_decisions=epoch_decisions)
        check_not_negative(prefill=prefill, final_epochs=final_epochs)
        super().__init__(
            env,
            agent,
            num_envs,
            prefill=prefill,
            replay_capacity=replay_capacity,
            replay_on_disk=replay_on_disk,
            replay_memory=replay_memory,
            env_workers=env_workers,
        )
        self.epoch_decisions = epoch_decisions
        self.final_epochs = final_epochs
        self.recording = recording
        self.evaluates_first = prefill == 0

    @property
    def first_decisions(self) -> int:
        """Number of decisions before the first epoch."""
        return self.prefill or self.epoch_decisions

    def set_up(self, setup: TrainingSetup) -> None:
        """See ``Algorithm.set_up``."""
        super().set_up(setup)
        collected = self.first_decisions // self.num_envs
        if collected < self.policy.batch_length:
            name = "prefill" if self.prefill else "epoch_decisions"
            raise ValueError(
                f"{name}={self.first_decisions} leaves {collected} time steps for each of {self.num_envs} "
                f"environments, and an update takes sequences of {self.policy.batch_length}: raise {name}"
            )
        self.recorded = {} if self.recording is None else self.recording.open(self.policy)
        self.epochs = 0
        self.due: list[tuple[str, int]] = []

    def compile_networks(self) -> None:
        """See ``Algorithm.compile_networks``; of the modules of tokenizer and world the blocks, as in ``vwm fit``."""
        for learner in self.policy.learners.values():
            if isinstance(learner, TrainingModule):
                compile_blocks(learner)
            else:
                compile_networks(learner)

    def step(self) -> StepMetrics:
        """Make one update that is due; where none is, take one decision in every environment."""
        if self.due:
            return {"updates": [self._make_due_update()]}
        self._act()
        self.time_step = self.envs.end_step()
        episodes = self._ended_episodes(self.time_step)
        if self.progress >= min(self.first_decisions + self.epochs * self.epoch_decisions, self.setup.steps):
            self._end_collection()
        return {"episodes": episodes}

    def state_dict(self) -> dict[str, Any]:
        """See ``Algorithm.state_dict``."""
        return {**super().state_dict(), "epochs": self.epochs, "due": list(self.due)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Algorithm.load_state_dict``."""
        super().load_state_dict(state)
        self.epochs = state["epochs"]
        self.due = [(name, count) for name, count in state["due"]]

    def _end_collection(self) -> None:
        """Note the updates of this epoch, and after the last decision those of the final epochs."""
        last = self.epochs + 1 + (self.final_epochs if self.progress >= self.setup.steps else 0)
        while self.epochs < last:
            self.epochs += 1
            counts = {name: part.updates_of(self.epochs) for name, part in self.policy.parts.items()}
            self.due += [(name, count) for name, count in counts.items() if count]
        if self.due:
            self.progress -= self.num_envs

    def _make_due_update(self) -> Mapping[str, float]:
        """Make one update of the part whose turn it is; return what to log."""
        (name, count), *later = self.due
        part, began = self.policy.parts[name], time.perf_counter()
        clips = self._draw_clips(name, part)
        with self.setup.runtime.autocast():
            logs = self.policy.update_part(name, clips)
        self.updates += 1
        self.due = [(name, count - 1), *later] if count > 1 else later
        if not self.due:
            self.progress += self.num_envs
        return {**logs, f"seconds_{name}": time.perf_counter() - began}

    def _draw_clips(self, name: str, part: LoopPart) -> ClipBatch:
        """Draw the clips of an update on the agent's device: from the replay, then those from the recording."""
        recorded = 0 if self.recording is None else self.recording.count_of(part.batch_size)
        count, steps = part.batch_size - recorded, part.frames + 1
        batch = self.replay.sample(count, steps, single_episode=True, past_ends=name == PART_PAST_ENDS)
        clips = replayed_clips(replay_batch_to_device(batch, self.policy.device))
        return join_clips(clips, self.recorded[name].sample_clips(recorded)) if recorded else clips
