"""Training a video tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.clips import ClipBatch
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.precision import at_least_float32
from vwm.nn.quantize import code_counts, perplexity
from vwm.nn.training_module import TrainingModule
from vwm.tokenizers.adversarial import AdversarialLoss
from vwm.tokenizers.perceptual import PerceptualLoss


class TokenizerModule(TrainingModule):
    """Reconstruct clips through a bottleneck.

    Args:
        tokenizer: the network.
        optimizer: learning rate and schedule.
        l1_weight: weight of the absolute error, which is added to the squared error and keeps small sprites sharp.
        perceptual: a distance of pretrained features, which is added to both.
        adversarial: a discriminator against which the tokenizer trains, for textures. It is trained with the tokenizer,
            by the same optimizer, and is not exported.
    """

    progress_bar: ClassVar[Mapping[str, str]] = MappingProxyType({"psnr": "psnr"})
    whole_clips = "tokenizers convolve over, or attend to, whole clips"

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        optimizer: OptimizerConfig,
        l1_weight: float = 0.0,
        perceptual: PerceptualLoss | None = None,
        adversarial: AdversarialLoss | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.optimizer = optimizer
        self.l1_weight = l1_weight
        self.perceptual = perceptual
        self.adversarial = adversarial
        if adversarial is not None and not hasattr(tokenizer, "last_layer"):
            raise ValueError(
                f"an adversarial loss requires the last_layer of its tokenizer, a {type(tokenizer).__name__}"
            )

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and values to log."""
        video = self._video(batch)
        out = self.tokenizer(video)
        shown = at_least_float32(out.video)
        squared = F.mse_loss(shown, video)
        # A signal of range 2 and mean squared error m: PSNR = 10 log10(4 / m).
        logs = {"psnr": 10 * torch.log10(4 / squared.detach()), "penalty": out.penalty}
        loss = squared + self.l1_weight * F.l1_loss(shown, video)
        if self.perceptual is not None:
            logs["perceptual"] = self.perceptual(shown, video)
            loss = loss + logs["perceptual"]
        if self.adversarial is not None and self.training:
            against, more = self.adversarial(shown, video, loss, self.tokenizer.last_layer, self.global_step)
            loss, logs = loss + against, logs | more
        return loss + out.penalty, logs | self._latent_metrics(out.latents)

    def _latent_metrics(self, latents: Tensor) -> dict[str, Tensor]:
        if self.tokenizer.codebook_size:
            return {"perplexity": perplexity(code_counts(latents, self.tokenizer.codebook_size))}
        return {"latent_std": latents.detach().float().std()}

    def on_train_batch_start(self, batch: ClipBatch, index: int) -> None:
        """Lightning's hook: initialize the tokenizer from the first batch."""
        if self.global_step == 0 and index == 0:
            self.tokenizer.initialize_from_data(self._video(batch))

    def _video(self, batch: ClipBatch) -> Tensor:
        """Return the frames of a batch as the tokenizer takes them, with the type of its weights."""
        return frames_to_float(batch.frames).to(self.tokenizer.dtype)

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule``."""
        return {"tokenizer": self.tokenizer}

    def whole_weights(self) -> tuple[nn.Parameter, ...]:
        """See ``TrainingModule``: the layer in which the gradients of two losses are compared during the loss."""
        return () if self.adversarial is None else (self.tokenizer.last_layer,)

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """See ``TrainingModule``: the batch's reconstruction."""
        return video_to_uint8(self.tokenizer(self._video(batch)).video)
