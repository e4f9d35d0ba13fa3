"""An adversarial loss for autoencoders of video (VQGAN, arXiv 2012.09841, section 3.1).

Legend: b batch, t time, H W pixels, h w the discriminator's grid of patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import mean_over_ranks


class PatchDiscriminator(nn.Sequential):
    """Classify patches of frames as real or reconstructed: float [b, 3, t, H, W] -> logits [b, 1, t, h, w].

    PatchGAN (arXiv 1611.07004, section 3.2) with kernels over three frames.

    Args:
        width: channels of the first layer; they double in each layer.
        layers: number of layers; each halves height and width.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        parts: list[nn.Module] = []
        channels = 3
        for layer in range(layers):
            out = width * 2**layer
            parts.append(nn.Conv3d(channels, out, (3, 4, 4), stride=(1, 2, 2), padding=1))
            if layer:
                parts.append(nn.GroupNorm(1, out))  # unlike batch norm, independent of the other clips
            parts.append(nn.LeakyReLU(0.2))
            channels = out
        super().__init__(*parts, nn.Conv3d(channels, 1, 3, padding=1))


class AdversarialLoss(nn.Module):
    """Adversarial loss of an autoencoder plus the loss of its discriminator, minimized by a single optimizer.

    With the usual two alternating optimizers, Lightning counts two steps per step of the autoencoder and disables
    gradient clipping, and a resumed run has to know which optimizer is next. The sum of both losses is equivalent,
    because neither has a gradient with respect to the weights of the other network: the discriminator's weights are
    detached in the autoencoder's loss, and the reconstruction is detached in the discriminator's loss.

    Args:
        weight: weight of the adversarial loss, relative to the reconstruction loss (see ``adaptive_weight``).
        start_step: optimizer step at which the loss starts; until then the autoencoder learns colors and shapes.
        width: channels of the discriminator's first layer.
        layers: number of layers of the discriminator.
    """

    def __init__(self, weight: float = 0.5, start_step: int = 10_000, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.weight = weight
        self.start_step = start_step
        self.discriminator = PatchDiscriminator(width, layers)

    def forward(
        self, reconstructed: Tensor, video: Tensor, reconstruction: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to add, and values to log.

        Args:
            reconstructed: output of the autoencoder, float [b, t, 3, H, W] in [-1, 1].
            video: its target.
            reconstruction: the reconstruction loss, scalar.
            last_layer: last weight of the autoencoder.
            step: optimizer steps so far.
        """
        if step < self.start_step:
            # Zero, with a gradient for every weight, which data-parallel training requires.
            return sum((p.sum() * 0 for p in self.discriminator.parameters()), video.new_zeros(())), {}
        real, fake = (
            x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d) for x in (video, reconstructed)
        )
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        generator = -at_least_float32(functional_call(self.discriminator, frozen, (fake,))).mean()
        scale = adaptive_weight(reconstruction, generator, last_layer)
        real_logits, fake_logits = at_least_float32(self.discriminator(torch.cat((real, fake.detach())))).chunk(2)
        discriminator = (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2
        logs = {"adversarial": generator.detach(), "discriminator": discriminator.detach(), "adversarial_scale": scale}
        return self.weight * scale * generator + discriminator, logs


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the gradient norms in the last layer of two losses of the global batch, <= 10,000 (VQGAN, eq. 7)."""
    gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, generator)]
    reconstruction_norm, generator_norm = (mean_over_ranks(gradient).norm() for gradient in gradients)
    return (reconstruction_norm / (generator_norm + 1e-6)).clamp(max=1e4).detach()
