"""Training the latent action model alone, before the dynamics, which then learns under actions that keep their meaning.

Codes that are learned from video alone stand for whatever moves most. A few labeled clips tell which difference is an
action (LAOM, arXiv 2502.00379).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.data.clips import ClipBatch
from vwm.models.genie.latent_action import LatentActionModel
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.precision import at_least_float32
from vwm.nn.quantize import code_counts, perplexity
from vwm.nn.training_module import TrainingModule, known_actions


@dataclass
class ActionLabels:
    """Which code a recorded action is to have, in the clips whose actions are known (``data.labeled_fraction``).

    Attributes:
        codes: for each recorded discrete action, its code; several actions may share one.
        weight: of the cross-entropy of the codes, which is added to the error of the predicted frames.
    """

    codes: list[int]
    weight: float = 0.1


class LatentActionModule(TrainingModule):
    """Learn the actions between frames; ``GenieModule`` takes the result as ``pretrained_actions``.

    Args:
        latent_action: the network.
        optimizer: learning rate and schedule.
        labels: learns from the actions of labeled clips, too; null learns from video alone. They require
            ``chosen_by: class``.

    Raises:
        ValueError: labels where no classifier chooses the codes, or of codes that do not exist.
    """

    progress_bar: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"gain": "lam_gain", "actions": "action_perplexity", "right": "label_accuracy"}
    )

    def __init__(
        self, latent_action: LatentActionModel, optimizer: OptimizerConfig, labels: ActionLabels | None = None
    ) -> None:
        super().__init__()
        self.latent_action = latent_action
        self.optimizer = optimizer
        self.labels = labels
        if labels is not None and latent_action.config.chosen_by != "class":
            raise ValueError("labels require codes that a classifier chooses: set latent_action.chosen_by to class")
        if labels is not None and not all(0 <= code < latent_action.num_actions for code in labels.codes):
            raise ValueError(f"labels.codes={labels.codes} must be codes, 0 to {latent_action.num_actions - 1}")

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and what to log."""
        video = frames_to_float(batch.frames)
        changes = self.latent_action.encode_changes(video)
        actions = self.latent_action.quantize(changes)
        predicted = self.latent_action.predict(video[:, :-1], actions.codes)
        reconstruction = F.mse_loss(at_least_float32(predicted), video[:, 1:])
        copied = F.mse_loss(video[:, :-1], video[:, 1:])
        logs = {"lam_loss": reconstruction.detach(), "lam_gain": 1 - reconstruction.detach() / copied.clamp(min=1e-8)}
        if not self.latent_action.continuous:
            logs["action_perplexity"] = perplexity(code_counts(actions.actions, self.latent_action.num_actions))
        loss = reconstruction + actions.loss
        if self.labels is not None:
            cross_entropy, logs["label_accuracy"] = self._label_loss(batch, changes)
            logs["label_loss"] = cross_entropy.detach()
            loss = loss + self.labels.weight * cross_entropy
        return loss, logs

    def _label_loss(self, batch: ClipBatch, changes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and accuracy of the codes of labeled clips; 0 where a batch has none."""
        assert self.labels is not None
        if batch.actions is None:
            raise ValueError("labels need actions: add actions to data.fields, or set labels to null")
        target = torch.tensor(self.labels.codes, device=changes.device)[batch.actions[:, :-1]]
        known = known_actions(batch, target.shape[1])
        weight = torch.ones_like(target, dtype=torch.float32) if known is None else known.float()
        scores = self.latent_action.score_codes(changes)
        per_action = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        count = weight.sum().clamp(min=1)
        return (per_action * weight).sum() / count, ((scores.argmax(-1) == target) * weight).sum() / count

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule``."""
        return {"latent_action": self.latent_action}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """See ``TrainingModule``: each frame, predicted from those before it and the inferred action."""
        video = frames_to_float(batch.frames)
        predicted, _ = self.latent_action(video)
        return video_to_uint8(torch.cat((video[:, :1], predicted), dim=1))
