"""TD-MPC2's world: latents that foretell themselves, rewards and ends, and nothing to be seen (arXiv 2310.16828).

The model is trained to land, by its own dynamics, on the latents of what was observed next; no observation is ever
reconstructed.

Legend: n any number of leading dimensions, s observations of a window, k numbers of a vector, h w pixels, a dimensions
of an action, d width of a latent.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.models.tdmpc2.layers import TDMPC2MLP, make_tdmpc2_linear, sim_norm
from vwm.nn.two_hot import SymlogTwoHot


class TDMPC2WorldModel(ModelMixin, ConfigMixin):
    """Encoder, dynamics, reward and, for worlds that end, termination.

    Args:
        action_dims: a.
        vector_size: k, where vectors are observed; None for pictures.
        image_size: (h, w) of the pictures.
        frames: s, the last observations that are encoded together (the paper: 3 of pictures, 1 of vectors).
        latent: d.
        simplex: numbers a simplex of the latent.
        width: of the hidden layers.
        encoder_width, encoder_layers: of the encoder of vectors.
        channels: of the encoder of pictures.
        bins, reach: of the reward, in symlog space.
        ends: whether there is a termination head.

    Raises:
        ValueError: latents that do not divide into simplices, or pictures too small for the encoder.
    """

    @register_to_config
    def __init__(
        self,
        action_dims: int = 1,
        vector_size: int | None = None,
        image_size: tuple[int, int] = (64, 64),
        frames: int = 1,
        latent: int = 512,
        simplex: int = 8,
        width: int = 512,
        encoder_width: int = 256,
        encoder_layers: int = 2,
        channels: int = 32,
        bins: int = 101,
        reach: float = 10.0,
        ends: bool = False,
    ) -> None:
        super().__init__()
        self.action_dims, self.vector_size, self.frames, self.latent = action_dims, vector_size, frames, latent
        self.image_size = (image_size[0], image_size[1])  # a list where it comes from a file
        self.encoder: nn.Module
        if vector_size is None:
            self.encoder = TDMPC2ImageEncoder(self.image_size, frames, channels, latent, simplex)
        else:
            self.encoder = TDMPC2MLP(
                [frames * vector_size], [encoder_width] * max(encoder_layers - 1, 1), latent, simplex
            )
        self.dynamics = TDMPC2MLP([latent, action_dims], [width, width], latent, simplex)
        self.reward_head = TDMPC2MLP([latent, action_dims], [width, width], bins)
        assert self.reward_head.output is not None
        nn.init.zeros_(self.reward_head.output.weight)
        self.termination_head = TDMPC2MLP([latent], [width, width], 1) if ends else None
        self.two_hot = SymlogTwoHot(bins, reach)

    def encode(self, window: Tensor) -> Tensor:
        """Float32 [n..., s, k] or uint8 [n..., s, h, w, 3], the newest last -> latents [n..., d]."""
        if self.vector_size is not None:
            numbers: Tensor = self.encoder(window.flatten(-2).to(self.two_hot.values.dtype))
            return numbers
        return self.encoder(window.flatten(0, -5)).unflatten(0, window.shape[:-4])

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        """Where actions lead: [n..., d] and [n..., a], which may broadcast -> [n..., d]."""
        after: Tensor = self.dynamics(latent, action)
        return after

    def reward_logits(self, latent: Tensor, action: Tensor) -> Tensor:
        """What actions earn: [n..., d] and [n..., a], which may broadcast -> [n..., bins]."""
        logits: Tensor = self.reward_head(latent, action)
        return logits

    def reward(self, latent: Tensor, action: Tensor) -> Tensor:
        """The reward expected, [n...]."""
        return self.two_hot.mean(self.reward_logits(latent, action))

    def end_logits(self, latent: Tensor) -> Tensor | None:
        """Log-odds that a world has ended where it stands: [n..., d] -> [n...]; None without the head."""
        return None if self.termination_head is None else self.termination_head(latent).squeeze(-1)


class TDMPC2ImageEncoder(nn.Module):
    """Four convolutions; a matrix follows only where what they make is not as wide as the latent.

    Args:
        image_size: (h, w).
        frames: s pictures, which are channels of one.
        channels: of each convolution.
        latent, simplex: see ``TDMPC2WorldModel``.

    Raises:
        ValueError: too small pictures.
    """

    KERNELS, STRIDES = (7, 5, 3, 3), (2, 2, 2, 1)

    def __init__(self, image_size: tuple[int, ...], frames: int, channels: int, latent: int, simplex: int) -> None:
        super().__init__()
        sides = list(image_size)
        for kernel, stride in zip(self.KERNELS, self.STRIDES, strict=True):
            sides = [(side - kernel) // stride + 1 for side in sides]
        if min(sides) < 1:
            raise ValueError(f"pictures of {image_size[0]}x{image_size[1]} are too small to encode: 39x39 or more")
        widths = [3 * frames] + [channels] * 4
        layers = [nn.Conv2d(widths[i], widths[i + 1], self.KERNELS[i], self.STRIDES[i]) for i in range(4)]
        self.layers = nn.ModuleList(layers)
        made = channels * sides[0] * sides[1]
        self.output = None if made == latent else make_tdmpc2_linear(made, latent)
        if latent % simplex:
            raise ValueError(f"latents of {latent} numbers do not divide into simplices of {simplex}")
        self.simplex = simplex

    def forward(self, window: Tensor) -> Tensor:
        """uint8 [b, s, h, w, 3] -> [b, d]."""
        x = window.permute(0, 1, 4, 2, 3).flatten(1, 2).to(next(self.parameters()).dtype) / 255 - 0.5
        for i, layer in enumerate(self.layers):
            x = layer(x.relu() if i else x)
        x = x.flatten(1)
        return sim_norm(x if self.output is None else self.output(x), self.simplex)


def random_shift(window: Tensor, reach: int = 3) -> Tensor:
    """Shift each window of pictures by up to ``reach`` pixels, the edges repeated (DrQ-v2, arXiv 2107.09645).

    The numbers come from torch's generator; all pictures of a window move alike.

    Args:
        window: uint8 [b, s, h, w, 3].
        reach: in pixels, each way.
    """
    batch, _, height, width, _ = window.shape
    moved = torch.randint(-reach, reach + 1, (2, batch, 1), device=window.device)
    rows = (torch.arange(height, device=window.device) + moved[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=window.device) + moved[1]).clamp(0, width - 1)
    worlds = torch.arange(batch, device=window.device)[:, None, None]
    # Indices on both sides of a slice put their own dimensions first: [b, h, w, s, 3].
    return window[worlds, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
