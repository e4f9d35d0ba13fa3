"""Train the agent tokens and policy heads of a trained model, the second phase of Dreamer 4.

Behavior cloning and reward prediction by multi-token prediction, with the dynamics loss kept (arXiv 2509.24527, section
3.3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vwm.data.clips import ClipBatch
from vwm.hub.bundle_names import find_folder
from vwm.models.dit.module import DiTModule, load_pretrained_heads
from vwm.models.dit.network import DiT
from vwm.models.dit.policy_heads import PolicyRewardHeads, check_policy_matches_dit
from vwm.models.dit.sampling import check_task, make_noisy_context
from vwm.nn.action_pooling import check_actions_after_latents
from vwm.nn.clip_draws import draw_normal_like
from vwm.nn.loss_normalizer import LossNormalizer


class DiTAgentModule(DiTModule):
    """Learn to predict recorded actions and rewards while continuing to train the dynamics.

    In play, policies and outcome heads receive the features of observed frames. They are trained on the same features:
    every frame, and its past, has exactly ``context_noise`` of noise. With a clean context this is the past of the
    noisy frames; with a noisy context it costs an additional pass.

    Args:
        dynamics: the network, with agent tokens.
        policy: heads on the agent tokens.
        task: of clips that do not say theirs (``data.fields`` without ``task``), and of the simulator by default.
        pretrained: the trained model; see ``DiTModule``. One that has as many agent tokens also initializes ``policy``.
        **world: see ``DiTModule``.

    Raises:
        ValueError: the network has no agent tokens, or the heads do not fit it.
    """

    def __init__(
        self, dynamics: DiT, policy: PolicyRewardHeads, pretrained: str | None = None, task: int = 0, **world: Any
    ) -> None:
        super().__init__(dynamics=dynamics, pretrained=pretrained, **world)
        if dynamics.agents is None:
            raise ValueError("dynamics.agent_tokens=0: a policy reads agent tokens, set it to 1 or more")
        check_policy_matches_dit(policy, dynamics)
        if pretrained is not None:
            load_pretrained_heads(policy, dynamics, find_folder(pretrained), "policy")
        self.policy = policy
        self.sampling = self.sampling._replace(task=task)
        check_task(dynamics, task)
        self.scales.update({name: LossNormalizer() for name in ("policy", "future_rewards")})

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and values to log."""
        latents = self._latents(batch)
        action_embedding = self._action_embedding(batch, latents)
        observed = make_noisy_context(
            self.dynamics, latents, draw_normal_like(latents), action_embedding, self.context_noise
        )._replace(task=self._tasks(batch, latents))
        loss, logs, features = self._denoise(latents, action_embedding, observed if self.context == "clean" else None)
        if self.context == "noisy":
            features = self.dynamics(observed).features
        losses = {"dynamics": loss}
        if self.outcomes is not None:
            losses |= self._outcome_losses(batch, features)
        if batch.rewards is None or batch.actions is None:
            raise ValueError("behavior cloning needs actions and rewards: name them in data.fields")
        check_actions_after_latents(batch.actions, features.shape[1], self.dynamics.frames_per_latent)
        cloned = self.policy.losses(features, batch.actions, batch.rewards, batch.labeled)
        losses |= {"policy": cloned.policy, "future_rewards": cloned.rewards}
        logs |= {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        return self._normalized_sum(losses), logs | {"next_action_loss": cloned.next_action}

    def _tasks(self, batch: ClipBatch, latents: Tensor) -> Tensor | None:
        """Return the task of every latent, int64 [b, t]; None for a network without tasks."""
        number = self.dynamics.config.num_tasks
        if not number:
            return None
        shape = latents.shape[:2]
        if batch.task is None:
            return torch.full(shape, self.sampling.task, device=latents.device)
        if self.checks_values(latents) and batch.task.max() >= number:
            raise ValueError(
                f"a clip has task {int(batch.task.max())}, and dynamics.num_tasks={number}: set it to the number of "
                "data sets in data.path"
            )
        return batch.task[:, None].expand(shape)

    def networks(self) -> dict[str, nn.Module]:
        """See ``DiTModule.networks``."""
        return super().networks() | {"policy": self.policy}
