"""What an agent earns in a game that it does not learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map
from tqdm import tqdm

from vwm.envs.batched_envs import EnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import ActingPolicy

MAX_VIDEO_FRAMES = 1000
"""Frames of an episode that are kept to be shown."""
PROGRESS_EVERY = 64
"""Decisions of each copy after which the progress bar says how many were taken: an episode may be long."""


@dataclass(frozen=True)
class EvaluationResult:
    """What some episodes came to.

    Attributes:
        returns: float64 [n], the undiscounted sum of rewards.
        lengths: int64 [n], decisions.
        frames: uint8 [t, h, w, 3], the first episode, or None where the game has no pictures.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    frames: NDArray[np.uint8] | None

    def interval(self, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
        """The 95% interval of the mean return, by bootstrap over episodes."""
        rng = np.random.default_rng(seed)
        means = rng.choice(self.returns, (draws, len(self.returns))).mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        return float(low), float(high)


def evaluate_policy(
    agent: ActingPolicy | None, game: EnvSpec, episodes: int, seed: int, side_by_side: int = 16, video: bool = False
) -> EvaluationResult:
    """Play episodes to their end.

    Every copy of the game plays its share of the episodes, so that short ones do not count for more.

    Args:
        agent: who plays, without exploring; None plays at random.
        game: what is played.
        episodes: how many.
        seed: of the game and of whatever the agent draws; torch's generators are left as they were.
        side_by_side: copies of the game at most.
        video: keep the first episode's pictures.

    Raises:
        ValueError: there is nothing to play.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be 1 or more, got {episodes}")
    count = min(episodes, side_by_side)
    environments = (game.bare if agent is None else game).open(count, seed, draws=video)
    shares = [episodes // count + (copy < episodes % count) for copy in range(count)]
    returns: list[list[float]] = [[] for _ in range(count)]
    lengths: list[list[int]] = [[] for _ in range(count)]
    frames: list[NDArray[np.uint8]] = []
    bar = tqdm(total=episodes, desc="evaluation", unit="episode", leave=False, disable=None)
    # torch.manual_seed seeds every GPU, too: a training there would draw the same again after each evaluation.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        moment = environments.reset()
        carry = None if agent is None else agent.init_carry(count)
        total, length, steps = np.zeros(count), np.zeros(count, np.int64), 0
        while any(len(r) < share for r, share in zip(returns, shares, strict=True)):
            if video and not returns[0] and len(frames) < MAX_VIDEO_FRAMES:
                picture = environments.render()
                frames += [] if picture is None else [picture]
            if agent is None:
                action = sample_random_actions(environments.spaces, count)
            else:
                acted = agent.act(carry, time_step_to_device(moment, agent.device), explore=False)
                action, carry = acted.action, acted.carry
            moment = environments.step(action)
            total += moment.reward.numpy()
            length += ~moment.is_first.numpy()
            steps += 1
            if steps % PROGRESS_EVERY == 0:
                bar.set_postfix_str(f"{steps * count} decisions")
            for copy in np.flatnonzero(moment.is_last.numpy()):
                returns[copy].append(float(total[copy]))
                lengths[copy].append(int(length[copy]))
                total[copy], length[copy] = 0, 0
                bar.update(len(returns[copy]) <= shares[copy])
    bar.close()
    environments.close()
    played = [(r[:share], n[:share]) for r, n, share in zip(returns, lengths, shares, strict=True)]
    return EvaluationResult(
        np.array([x for r, _ in played for x in r]),
        np.array([x for _, n in played for x in n]),
        np.stack(frames) if frames else None,
    )


def sample_random_actions(spaces: EnvSpaces, count: int) -> torch.Tensor:
    """One action an environment, each alike likely, drawn from torch's generator."""
    if spaces.actions.kind == "discrete":
        return torch.randint(spaces.actions.size, (count,))
    return torch.rand(count, spaces.actions.size) * 2 - 1


def time_step_to_device(moment: TimeStep, device: torch.device) -> TimeStep:
    """The moment's tensors there."""
    return tree_map(lambda x: x.to(device), moment)
