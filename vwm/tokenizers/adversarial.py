"""An adversarial loss for autoencoders of video (VQGAN, arXiv 2012.09841, section 3.1).

Legend: b batch, t time, H W pixels, h w the discriminator's grid of patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class PatchDiscriminator(nn.Sequential):
    """Real or not, a judgement a patch and frame: float [b, 3, t, H, W] -> [b, 1, t, h, w].

    PatchGAN (arXiv 1611.07004, section 3.2) with kernels over three frames.

    Args:
        width: channels of the first layer; they double from layer to layer.
        layers: each halves height and width.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        parts: list[nn.Module] = []
        channels = 3
        for layer in range(layers):
            out = width * 2**layer
            parts.append(nn.Conv3d(channels, out, (3, 4, 4), stride=(1, 2, 2), padding=1))
            if layer:
                parts.append(nn.GroupNorm(1, out))  # knows nothing of the batch, unlike batch norm
            parts.append(nn.LeakyReLU(0.2))
            channels = out
        super().__init__(*parts, nn.Conv3d(channels, 1, 3, padding=1))


class AdversarialLoss(nn.Module):
    """The losses of the autoencoder and of its discriminator, to be summed and minimised by one optimizer.

    The usual two optimizers take turns, and a trainer then counts two steps for each step of the autoencoder: half
    as many are trained, clipping is off, and resuming has to know whose turn it was. One sum does the same, since
    neither part of it has a gradient in the other's weights: the autoencoder is judged by a discriminator whose weights
    are detached, and the discriminator is shown detached pictures.

    Args:
        weight: of the adversarial loss, once it is scaled to the reconstruction loss.
        start: optimizer steps before it begins; until then the autoencoder learns colours and shapes.
        width: channels of the discriminator's first layer.
        layers: of the discriminator.
    """

    def __init__(self, weight: float = 0.5, start: int = 10_000, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.weight, self.start = weight, start
        self.discriminator = PatchDiscriminator(width, layers)

    def forward(
        self, shown: Tensor, video: Tensor, reconstruction: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What to add to the loss, and what to log.

        Args:
            shown: what the autoencoder made, float [b, t, 3, H, W] in [-1, 1].
            video: what it should have been.
            reconstruction: the loss so far, scalar.
            last_layer: the autoencoder's last weight.
            step: optimizer steps so far.
        """
        if step < self.start:
            # Nothing, but with a gradient (of zero), which data-parallel training expects of every weight.
            return sum((p.sum() * 0 for p in self.discriminator.parameters()), video.new_zeros(())), {}
        real, fake = (x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d) for x in (video, shown))
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        generator = -functional_call(self.discriminator, frozen, (fake,)).float().mean()
        scale = adaptive_weight(reconstruction, generator, last_layer)
        judged_real, judged_fake = self.discriminator(torch.cat((real, fake.detach()))).float().chunk(2)
        discriminator = (F.relu(1 - judged_real).mean() + F.relu(1 + judged_fake).mean()) / 2
        logs = {"adversarial": generator.detach(), "discriminator": discriminator.detach(), "adversarial_scale": scale}
        return self.weight * scale * generator + discriminator, logs


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """The ratio of the two losses' gradients in the last layer, at most 10,000 (VQGAN, eq. 7)."""
    ours = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()
    theirs = torch.autograd.grad(generator, last_layer, retain_graph=True)[0].norm()
    return (ours / (theirs + 1e-6)).clamp(max=1e4).detach()
