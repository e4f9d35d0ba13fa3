"""Dreamer 4 in PyTorch as a simulator of one task."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.frame_window import FrameWindow
from vwm.core.frames import frames_to_float
from vwm.core.seeds import fold_in, seeded_normal
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import FrameTokenizer
from vwm.core.window_simulator import WindowSimulator, WindowState
from vwm.models.dreamer4.agent_heads import Dreamer4AgentHead, Dreamer4PolicyHead, Dreamer4RewardHead
from vwm.models.dreamer4.network import Dreamer4Dynamics
from vwm.models.dreamer4.sampling import Dreamer4Sampling, check_dreamer4_sampling, clean_frames, sample_shortcut

CONTEXT_NOISE_STREAM = -2
"""Folded into a seed for the noise of past frames."""


class PolicyMemory(NamedTuple):
    """What the cloned policy remembers: its last frames, and the action that it chose there, float [b, a]."""

    past: FrameWindow
    action: Tensor


class Dreamer4Simulator(WindowSimulator):
    """A tokenizer and the dynamics of a task: see ``Simulator``.

    A step computes keys and values of the past frames once, for all its sampling steps.

    Args:
        tokenizer: encodes and decodes each frame by itself.
        dynamics: the network.
        reward: predicts the reward of a frame from its agent tokens; None without it.
        actions: continuous, of the task.
        trained_policy: the policy that was cloned from the recordings; None without it. It reads the agent tokens that
            the dynamics gives to the frames so far, without noise, and chooses one action.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks or the actions do not fit each other.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("tokenizer", "dynamics", "reward", "trained_policy")
    OPTIONAL_NETWORKS: ClassVar[tuple[str, ...]] = ("reward", "trained_policy")
    SAMPLING_CLASS = Dreamer4Sampling

    def __init__(
        self,
        tokenizer: FrameTokenizer,
        dynamics: Dreamer4Dynamics,
        reward: Dreamer4RewardHead | None,
        actions: ActionSpace,
        trained_policy: Dreamer4PolicyHead | None = None,
        **rest: Any,
    ) -> None:
        tokenizer.check_latents_of(dynamics.grid, dynamics.channels)
        if actions.kind != "continuous" or not 1 <= actions.size <= dynamics.action_inputs:
            raise ValueError(f"the dynamics takes 1 to {dynamics.action_inputs} continuous actions, got {actions}")
        for name, head in (("reward", reward), ("trained_policy", trained_policy)):
            _check_head(name, head, dynamics)
        super().__init__(tokenizer, dynamics, actions, **rest)
        self.reward = None if reward is None else reward.eval()
        self.trained_policy = None if trained_policy is None else trained_policy.eval()

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
        return sampled.latent, self.reward(sampled.agents)

    @property
    def has_trained_policy(self) -> bool:
        """See ``HasTrainedPolicy``."""
        return self.trained_policy is not None

    def init_policy(self, batch: int) -> PolicyMemory:
        """See ``HasTrainedPolicy.init_policy``."""
        weight, size = self.dynamics.spatial_proj.weight, int(self.dynamics.window)
        latents = weight.new_zeros(batch, size, *self.dynamics.grid, self.dynamics.channels)
        actions = weight.new_zeros(batch, size, self.network_action_dims)
        known = torch.zeros(batch, size, dtype=torch.bool, device=self.device)
        return PolicyMemory(FrameWindow(latents, actions, known), actions[:, 0])

    @torch.inference_mode()
    def run_policy(self, memory: PolicyMemory, frames: Tensor) -> tuple[PolicyMemory, Tensor]:
        """See ``HasTrainedPolicy.run_policy``: the policy is deterministic."""
        assert self.trained_policy is not None, "has_trained_policy says whether there is a policy"
        latent = self.tokenizer.encode(frames_to_float(frames[:, None].to(self.device)))[:, 0]
        past = memory.past.append(latent.to(memory.past.latents.dtype), memory.action)
        agents = self.dynamics(past.latents, clean_frames(self.dynamics, past.known), past.actions, past.known)[1]
        chosen = self.trained_policy(agents[:, -1])[:, : self.spec.actions.size]
        return PolicyMemory(past, self.to_network_actions(chosen.to(memory.action.dtype))), chosen.float()


def _check_head(name: str, head: Dreamer4AgentHead | None, dynamics: Dreamer4Dynamics) -> None:
    if head is None:
        return
    if head.width != dynamics.config.width or not len(dynamics.agents):
        raise ValueError(
            f"{name} reads agent tokens of width {head.width}, and the dynamics has {len(dynamics.agents)} of width "
            f"{dynamics.config.width}"
        )
    if isinstance(head, Dreamer4PolicyHead) and head.action_inputs != dynamics.action_inputs:
        raise ValueError(
            f"{name} chooses {head.action_inputs} numbers, and the dynamics takes actions of {dynamics.action_inputs}"
        )
