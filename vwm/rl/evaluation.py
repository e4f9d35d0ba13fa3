"""Evaluation of policies: play episodes and collect their returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

from vwm.core.command_output import progress_bar, show_detail
from vwm.envs.batched_envs import BatchedEnv, EnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import ActingPolicy
from vwm.rl.imagined_returns import Trajectory

T = TypeVar("T")

MAX_TRAJECTORY = 1000
"""Decisions of an episode that are kept as a trajectory."""
MAX_VIDEO_FRAMES = 1000
"""Frames of an episode that are kept for its video."""
PROGRESS_EVERY = 64
"""Steps of the environments between updates of the progress bar's text, since episodes may be long."""


@dataclass(frozen=True)
class EvaluationResult:
    """Returns and lengths of the episodes of an evaluation.

    Attributes:
        returns: float64 [n], undiscounted sums of rewards.
        lengths: int64 [n], in decisions.
        frames: uint8 [t, h, w, 3] of the first episode, or None where the environment has no images.
        trajectories: the first episodes of as many environments as were asked for.
        achievements: share of the episodes that reached each goal, by name; {} where the environment has none.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    frames: NDArray[np.uint8] | None
    trajectories: tuple[Trajectory, ...] = ()
    achievements: Mapping[str, float] = field(default_factory=dict)

    def interval(self, seed: int = 0, num_bootstrap: int = 2000) -> tuple[float, float]:
        """Return the 95% interval of the mean return, by bootstrap over episodes."""
        rng = np.random.default_rng(seed)
        means = rng.choice(self.returns, (num_bootstrap, len(self.returns))).mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        return float(low), float(high)

    @property
    def score(self) -> float | None:
        """Geometric mean of the achievements' shares in percent, each plus 1, less 1 (Crafter, arXiv 2109.06780)."""
        shares = np.array(list(self.achievements.values()))
        return float(np.expm1(np.log1p(100 * shares).mean())) if len(shares) else None


def evaluate_policy(
    policy: ActingPolicy | None,
    env_spec: EnvSpec,
    episodes: int,
    seed: int,
    num_envs: int = 16,
    record_video: bool = False,
    trajectories: int = 0,
) -> EvaluationResult:
    """Play episodes to their end.

    Every environment plays an equal share of the episodes, so that short episodes are not overrepresented.

    Args:
        policy: acts without exploring; None takes random actions.
        env_spec: the environment.
        episodes: number of episodes.
        seed: of the environment and of everything the policy draws; torch's generators are left as they were.
        num_envs: environments that are stepped together, at most.
        record_video: keep the first episode's images.
        trajectories: number of environments whose first episode is kept.

    Raises:
        ValueError: ``episodes`` is below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be 1 or more, got {episodes}")
    count = min(episodes, num_envs)
    envs = (env_spec.unwrapped if policy is None else env_spec).open(count, seed, renderable=record_video)
    tally = _EpisodeTally([episodes // count + (i < episodes % count) for i in range(count)])
    recorder = _TrajectoryRecorder(min(trajectories, count))
    frames: list[NDArray[np.uint8]] = []
    bar = progress_bar(total=episodes, desc="evaluation", unit="episode", leave=False)
    # torch.manual_seed seeds every GPU, too: a training there would draw the same again after each evaluation.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        time_step = envs.reset()
        carry = None if policy is None else policy.init_carry(count)
        steps = 0
        while not tally.complete:
            if record_video and not tally.returns[0] and len(frames) < MAX_VIDEO_FRAMES:
                frame = envs.render()
                frames += [] if frame is None else [frame]
            if policy is None:
                action = sample_random_actions(envs.spaces, count)
            else:
                action, carry, _ = policy.act(carry, time_step_to_device(time_step, policy.device), explore=False)
            before, time_step = time_step, envs.step(action)
            recorder.add(before, action, time_step)
            bar.update(tally.add(time_step, envs))
            steps += 1
            if steps % PROGRESS_EVERY == 0:
                show_detail(bar, f"{steps * count} decisions")
    bar.close()
    envs.close()
    return replace(
        tally.result(np.stack(frames) if frames else None),
        trajectories=tuple(recorder.result()),
    )


class _EpisodeTally:
    """Returns and lengths of the episodes of each environment, of which its share counts.

    Args:
        shares: number of episodes that each environment contributes.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self.shares = shares
        self.returns: list[list[float]] = [[] for _ in shares]
        self.lengths: list[list[int]] = [[] for _ in shares]
        self.achievements: list[list[dict[str, bool]]] = [[] for _ in shares]
        self.current_return = np.zeros(len(shares))
        self.current_length = np.zeros(len(shares), np.int64)

    @property
    def complete(self) -> bool:
        """Whether every environment has played its share."""
        return all(len(returns) >= share for returns, share in zip(self.returns, self.shares, strict=True))

    def add(self, time_step: TimeStep, envs: BatchedEnv) -> int:
        """Add a time step of every environment; return how many episodes that count have ended."""
        self.current_return += time_step.reward.numpy()
        self.current_length += ~time_step.is_first.numpy()
        counted = 0
        ended = np.flatnonzero(time_step.is_last.numpy())
        achievements = envs.achievements() if len(ended) else []
        for i in ended:
            self.achievements[i].append(achievements[i])
            self.returns[i].append(float(self.current_return[i]))
            self.lengths[i].append(int(self.current_length[i]))
            self.current_return[i] = 0
            self.current_length[i] = 0
            counted += len(self.returns[i]) <= self.shares[i]
        return counted

    def result(self, frames: NDArray[np.uint8] | None) -> EvaluationResult:
        """Return the episodes that count, in the order of the environments."""
        returns, lengths = self._counted(self.returns), self._counted(self.lengths)
        achievements = self._counted(self.achievements)
        names = dict.fromkeys(name for episode in achievements for name in episode)
        shares = {name: float(np.mean([episode.get(name, False) for episode in achievements])) for name in names}
        return EvaluationResult(np.array(returns), np.array(lengths), frames, achievements=shares)

    def _counted(self, of_envs: Sequence[Sequence[T]]) -> list[T]:
        return [x for values, share in zip(of_envs, self.shares, strict=True) for x in values[:share]]


class _TrajectoryRecorder:
    """The first episode of each of the first environments, up to ``MAX_TRAJECTORY`` decisions.

    Args:
        count: number of environments.
    """

    def __init__(self, count: int) -> None:
        self.steps: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = [[] for _ in range(count)]
        self.last: list[torch.Tensor | None] = [None] * count
        self.ended = [False] * count

    def add(self, before: TimeStep, action: torch.Tensor, after: TimeStep) -> None:
        """Add a decision of every environment."""
        for i, steps in enumerate(self.steps):
            if not self.ended[i]:
                steps.append((before.observation[i].cpu(), action[i].cpu(), after.reward[i].cpu()))
                self.last[i] = after.observation[i].cpu()
                self.ended[i] = bool(after.is_last[i]) or len(steps) == MAX_TRAJECTORY

    def result(self) -> list[Trajectory]:
        """Return the trajectories."""
        found = []
        for steps, last in zip(self.steps, self.last, strict=True):
            observations, actions, rewards = (torch.stack(parts) for parts in zip(*steps, strict=True))
            found.append(Trajectory(torch.cat((observations, last[None])), actions, rewards))  # type: ignore[index]
        return found


def sample_random_actions(spaces: EnvSpaces, count: int) -> torch.Tensor:
    """Draw uniform actions, one per environment, from torch's generator."""
    if spaces.actions.kind == "discrete":
        return torch.randint(spaces.actions.size, (count,))
    return torch.rand(count, spaces.actions.size) * 2 - 1


def time_step_to_device(time_step: TimeStep, device: torch.device) -> TimeStep:
    """Move a time step's tensors to a device."""
    return tree_map(lambda x: x.to(device), time_step)
