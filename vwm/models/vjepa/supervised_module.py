"""Supervised fine-tuning: an encoder and an attentive probe on its tokens learn the recorded state together.

Legend: b clips, o outputs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch
from vwm.models.vjepa.attentive_probe import AttentiveClassifier
from vwm.models.vjepa.augmentation import RandomResizedCrop
from vwm.models.vjepa.masked_prediction import normalize_features
from vwm.models.vjepa.network_checks import load_pretrained_networks
from vwm.models.vjepa.state_targets import read_state_targets
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.models.vjepa.visualization import pca_rgb_video
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.precision import at_least_float32
from vwm.nn.training_module import TrainingModule


class SupervisedVJEPAModule(TrainingModule):
    """Trains an encoder and a probe on numbers of the state at the last frame of clips.

    ``optimizer.layer_decay`` gives the first layers of the encoder lower learning rates than the last ones; the probe
    has the full rate. At the start of a run, mean and deviation of the numbers are read from the data; they are part of
    the checkpoints.

    Args:
        encoder: the network to fine-tune.
        probe: reads its tokens; its ``classes`` are the outputs.
        state_names: numbers of the state to predict, by the names of the recording.
        optimizer: learning rate and schedule.
        pretrained: a folder with ``encoder`` (an export, or imported weights) to start from; null for random weights.
        freeze_encoder: train the probe alone, for comparison.
        target: ``numbers`` for the squared error of standardized numbers, or ``class``, where the one number of
            ``state_names`` is a class from 0, for cross-entropy.
        augmentation: random crops and flips, of which the labels must not depend; null for none.

    Raises:
        ValueError: the probe does not fit the encoder or the targets, or the pretrained weights do not fit.
    """

    whole_clips = "its encoder attends to all tokens of a clip"

    def __init__(
        self,
        encoder: VideoEncoder,
        probe: AttentiveClassifier,
        state_names: list[str],
        optimizer: OptimizerConfig,
        pretrained: str | None = None,
        freeze_encoder: bool = False,
        target: Literal["numbers", "class"] = "numbers",
        augmentation: RandomResizedCrop | None = None,
    ) -> None:
        super().__init__()
        if probe.config.width != encoder.config.width:
            raise ValueError(
                f"probe.width={probe.config.width} but encoder.width={encoder.config.width}: set them equal"
            )
        outputs = probe.config.classes
        if len(state_names) != (outputs if target == "numbers" else 1):
            raise ValueError(
                f"state_names={state_names} with target={target!r} and probe.classes={outputs}: give one name for each "
                "output to predict numbers, or one name to predict a class"
            )
        if pretrained is not None:
            load_pretrained_networks(pretrained, {"encoder": encoder})
        self.encoder = encoder.requires_grad_(not freeze_encoder)
        self.probe = probe
        self.state_names = list(state_names)
        self.optimizer = optimizer
        self.freeze_encoder = freeze_encoder
        self.target = target
        self.augmentation = augmentation
        count = len(state_names)
        self.register_buffer("state_columns", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("state_mean", torch.zeros(count))
        self.register_buffer("state_std", torch.ones(count))

    def setup(self, stage: str) -> None:
        """Lightning's hook: read the targets' places, means and deviations from the data. Raises ValueError."""
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and data is not None:
            classes = self.probe.config.classes if self.target == "class" else None
            found = read_state_targets(data.path, self.state_names, classes)
            self.state_columns.copy_(found.columns)
            if self.target == "numbers":
                self.state_mean.copy_(found.mean)
                self.state_std.copy_(found.std)

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error of standardized numbers and their R², or cross-entropy and accuracy."""
        outputs, targets = self.predict(batch), self._targets(batch)
        if self.target == "class":
            loss = F.cross_entropy(outputs, targets[:, 0].long())
            return loss, {"accuracy": (outputs.argmax(dim=1) == targets[:, 0]).float().mean()}
        loss = (outputs - targets).square().mean()
        return loss, {"r2": 1 - loss.detach()}

    def predict(self, batch: ClipBatch) -> Tensor:
        """Predict the standardized numbers, or a score for every class, float [b, o]."""
        video = frames_to_float(batch.frames)
        if self.augmentation is not None and self.training:
            assert batch.seed is not None
            video = self.augmentation(video, batch.seed)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            features = self.encoder(video)
        return at_least_float32(self.probe(features))

    def _targets(self, batch: ClipBatch) -> Tensor:
        """The standardized numbers at the last frames of clips, float32 [b, o], or a class [b, 1]."""
        if batch.state is None:
            raise ValueError("the clips have no state: name state in data.fields, and record with `vwm record --state`")
        columns: Tensor = self.state_columns
        return (batch.state[:, -1].index_select(1, columns).float() - self.state_mean) / self.state_std

    def weight_layer(self, name: str) -> int:
        """See ``HasLayers``: embeddings, the encoder's blocks, and the rest, which is the last norm and the probe."""
        depth = len(self.encoder.blocks)
        if name.startswith("encoder.blocks."):
            return 1 + int(name.split(".")[2])
        if name.startswith("encoder.") and not name.startswith(("encoder.norm", "encoder.feature_norms")):
            return 0
        return 1 + depth

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``."""
        return (self.encoder,) if self.freeze_encoder else ()

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule.networks``."""
        return {"encoder": self.encoder, "probe": self.probe}

    def count_tokens(self, batch: ClipBatch) -> int:
        """See ``TrainingModule``."""
        return len(batch.frames) * self.encoder.num_tokens(batch.frames.shape[1])

    @torch.no_grad()
    def sample(self, batch: Any) -> Tensor:
        """Show the first three principal components of the features as colors, uint8 [b, t, H, W, 3]."""
        video = frames_to_float(batch.frames)
        features = normalize_features(self.encoder(video))
        return pca_rgb_video(features, self.encoder.grid(video.shape[1]), tuple(batch.frames.shape[1:4]))
