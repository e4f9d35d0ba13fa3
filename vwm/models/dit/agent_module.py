"""Training an agent's tokens and heads on a world that has learned: Dreamer 4's second phase.

Behaviour cloning and rewards by multi-token prediction, with the dynamics' loss kept (arXiv 2509.24527, section 3.3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vwm.data.clips import ClipBatch
from vwm.models.dit.module import DiTModule
from vwm.models.dit.network import DiT
from vwm.models.dit.policy_heads import PolicyRewardHeads, check_policy_matches_dit
from vwm.models.dit.sampling import make_noisy_context
from vwm.nn.loss_normalizer import LossNormalizer


class DiTAgentModule(DiTModule):
    """Learn what the recorded players do and earn, and go on learning to continue video.

    Policies and outcomes read the features of a frame that has been observed, and here they learn from the same: each
    frame with ``context_noise`` of noise, no more and no less, over a past that has as much. With a clean context that
    is the past of the noisy frames; with a noisy one it costs a pass of its own.

    Args:
        dynamics: the network; with agent tokens.
        policy: the heads that read them.
        **world: see ``DiTModule``; ``pretrained`` names the world that has learned.
    """

    def __init__(self, dynamics: DiT, policy: PolicyRewardHeads, **world: Any) -> None:
        super().__init__(dynamics=dynamics, **world)
        if dynamics.agents is None:
            raise ValueError("dynamics.agent_tokens=0: a policy reads agent tokens, set 1 or more")
        check_policy_matches_dit(policy, dynamics)
        self.policy = policy
        self.scales.update({name: LossNormalizer() for name in ("policy", "future_rewards")})

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what to log."""
        latents = self._latents(batch)
        lead = self._lead(batch, latents)
        observed = make_noisy_context(self.dynamics, latents, torch.randn_like(latents), lead, self.context_noise)
        loss, logs, features = self._denoise(latents, lead, observed if self.context == "clean" else None)
        if self.context == "noisy":
            features = self.dynamics(observed).features
        losses = {"dynamics": loss}
        if self.outcomes is not None:
            losses |= self._outcome_losses(batch, features)
        if batch.rewards is None or batch.actions is None:
            raise ValueError("a policy is cloned from actions and rewards: name them in data.fields")
        cloned = self.policy.losses(features, batch.actions, batch.rewards, batch.labeled)
        losses |= {"policy": cloned.policy, "future_rewards": cloned.rewards}
        logs |= {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        return self._normalized_sum(losses), logs | {"next_action_loss": cloned.next_action}

    def networks(self) -> dict[str, nn.Module]:
        """See ``DiTModule.networks``."""
        return super().networks() | {"policy": self.policy}
