"""Recorded clips among those that an agent has collected, in the updates of a joint loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vwm.data.clips import ClipBatch
from vwm.envs.time_step import EnvSpaces
from vwm.rl.algorithms.imagination_agent import PART_PAST_ENDS, ImaginationAgent
from vwm.worlds.context_sampler import ContextSampler


@dataclass(frozen=True)
class RecordedShare:
    """The share of every update's clips that comes from a recording, as in RLPD (arXiv 2302.02948): half of them.

    Attributes:
        data: the recording; see ``vwm.data.datamodule.VideoDataModule``. It is not copied into replay.
        fraction: of the clips of an update, at least one of which is from the replay.
        rewarded_fraction: of the recorded clips that the policy's rollouts start from, those that are drawn among clips
            soon followed by a reward; see ``ContextSampler``.

    Raises:
        ValueError: a fraction is out of range.
    """

    data: str
    fraction: float = 0.5
    rewarded_fraction: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"recording.fraction must lie between 0 and 1, got {self.fraction}: set recording=null to learn from "
                "the replay only"
            )

    def count_of(self, batch_size: int) -> int:
        """Return how many of the clips of an update are recorded."""
        return min(round(self.fraction * batch_size), batch_size - 1)

    def open(self, agent: ImaginationAgent) -> Mapping[str, ContextSampler]:
        """Open the recording for each part of an agent.

        Raises:
            ValueError: the recording has no episode that is long enough, no rewards, or other frames or actions than
                the agent's environment.
        """
        samplers = {
            name: ContextSampler(
                self.data,
                part.frames,
                agent.imagination_horizon,
                self.rewarded_fraction if name == "policy" else 0.0,
                outcomes=True,
                past_ends=name == PART_PAST_ENDS,
            )
            for name, part in agent.parts.items()
        }
        for sampler in samplers.values():
            check_recording_fits(sampler.sample_clips(1), agent.spaces, self.data)
        return samplers


def check_recording_fits(clips: ClipBatch, spaces: EnvSpaces, data: str) -> None:
    """Raise ValueError unless recorded clips have rewards, and the frames and actions of environments."""
    if clips.actions is None or clips.rewards is None:
        raise ValueError(f"recording.data={data} has no {'rewards' if clips.rewards is None else 'actions'}")
    shape, kind = tuple(clips.frames.shape[2:]), clips.actions.dtype
    if shape != spaces.observation.shape or kind != spaces.actions.dtype:
        raise ValueError(
            f"recording.data={data} has frames {list(shape)} and actions {kind}, the environment "
            f"{list(spaces.observation.shape)} and {spaces.actions.dtype}: record that environment at its size"
        )


def join_clips(replayed: ClipBatch, recorded: ClipBatch) -> ClipBatch:
    """Return replayed and, after them, recorded clips as one batch on the device of the replayed ones.

    A recording that does not say where episodes terminated has none that did; the actions of the replay are all known.
    """
    ends = torch.zeros(recorded.frames.shape[:2], dtype=torch.bool)
    pairs = {
        "frames": recorded.frames,
        "actions": recorded.actions,
        "rewards": recorded.rewards,
        "terminated": ends if recorded.terminated is None else recorded.terminated,
    }
    joined: dict[str, Tensor] = {}
    for name, of_recording in pairs.items():
        of_replay = getattr(replayed, name)
        assert of_recording is not None
        joined[name] = torch.cat((of_replay, of_recording.to(of_replay)))
    if recorded.labeled is not None:
        known = torch.ones(len(replayed.frames), dtype=torch.bool)
        joined["labeled"] = torch.cat((known, recorded.labeled)).to(replayed.frames.device)
    return ClipBatch(**joined)
