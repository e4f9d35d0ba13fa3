"""Dreamer 4 in PyTorch as a simulator of one task."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_normal
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import FrameTokenizer
from vwm.core.window_simulator import WindowSimulator, WindowState
from vwm.models.dreamer4.network import Dreamer4Dynamics
from vwm.models.dreamer4.reward_head import Dreamer4RewardHead
from vwm.models.dreamer4.sampling import Dreamer4Sampling, check_dreamer4_sampling, sample_shortcut

CONTEXT_NOISE_STREAM = -2
"""Folded into a seed for the noise of past frames."""


class Dreamer4Simulator(WindowSimulator):
    """A tokenizer and the dynamics of a task: see ``Simulator``.

    A step computes keys and values of the past frames once, for all its sampling steps.

    Args:
        tokenizer: encodes and decodes each frame by itself.
        dynamics: the network.
        reward: predicts the reward of a frame from its agent tokens; None without it.
        actions: continuous, of the task.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks or the actions do not fit each other.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("tokenizer", "dynamics", "reward")
    OPTIONAL_NETWORKS: ClassVar[tuple[str, ...]] = ("reward",)
    SAMPLING_CLASS = Dreamer4Sampling

    def __init__(
        self,
        tokenizer: FrameTokenizer,
        dynamics: Dreamer4Dynamics,
        reward: Dreamer4RewardHead | None,
        actions: ActionSpace,
        **rest: Any,
    ) -> None:
        tokenizer.check_latents_of(dynamics.grid, dynamics.channels)
        if actions.kind != "continuous" or not 1 <= actions.size <= dynamics.action_inputs:
            raise ValueError(f"the dynamics takes 1 to {dynamics.action_inputs} continuous actions, got {actions}")
        if reward is not None and (reward.config.width != dynamics.config.width or not len(dynamics.agents)):
            raise ValueError(
                f"the reward head reads agent tokens of width {reward.config.width}, and the dynamics has "
                f"{len(dynamics.agents)} of width {dynamics.config.width}"
            )
        super().__init__(tokenizer, dynamics, actions, **rest)
        self.reward = None if reward is None else reward.eval()

    def check_sampling(self, sampling: Dreamer4Sampling) -> None:
        """See ``NetworkSimulator.check_sampling``."""
        check_dreamer4_sampling(self.dynamics, sampling)

    @property
    def past_frames(self) -> int:
        """See ``WindowSimulator``."""
        return int(self.dynamics.window) - 1

    @property
    def network_action_dims(self) -> int:
        """See ``WindowSimulator``."""
        return int(self.dynamics.action_inputs)

    def to_network_actions(self, actions: Tensor) -> Tensor:
        """See ``WindowSimulator``: the actions of other tasks are 0."""
        return F.pad(actions, (0, self.dynamics.action_inputs - actions.shape[-1]))

    def sample_next(self, state: WindowState, action: Tensor) -> tuple[Tensor, Tensor]:
        """See ``WindowSimulator``."""
        shape, dtype = state.past.latents.shape[1:], state.past.latents.dtype
        seed = fold_in(state.seed, state.position)
        sampled = sample_shortcut(
            self.dynamics,
            state.past,
            action,
            seeded_normal(seed, *shape[1:]).to(dtype),
            seeded_normal(fold_in(seed, CONTEXT_NOISE_STREAM), *shape).to(dtype),
            self.sampling,
        )
        if self.reward is None:
            return sampled.latent, torch.zeros(len(action), device=self.device)
        return sampled.latent, self.reward(sampled.agents.to(self.reward.out.weight.dtype)).float()
