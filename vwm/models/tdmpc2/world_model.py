"""TD-MPC2's latent world model: encoder, dynamics, reward and termination heads (arXiv 2310.16828).

The dynamics is trained to predict the encoder's latents of the next observations; observations are not reconstructed.

Dimensions: n any number of leading dimensions, s stacked observations, k numbers of a vector, h w pixels, a action
dimensions, d latent size.
"""

from __future__ import annotations

from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.tdmpc2.layers import TDMPC2MLP, make_tdmpc2_linear, sim_norm
from vwm.nn.two_hot import SymlogTwoHot


class TDMPC2WorldModel(ModelMixin, ConfigMixin):
    """Encoder, dynamics, reward head and optional termination head.

    Args:
        action_dims: a.
        vector_size: k for vector observations; None for images.
        image_size: (h, w) of images.
        num_stacked_frames: s, number of most recent observations that are encoded together (paper: 3 images, 1 vector).
        latent_size: d.
        simplex_size: Numbers per simplex of the latent, see ``sim_norm``.
        width: Width of the hidden layers of dynamics and heads.
        encoder_width: Width of the vector encoder.
        encoder_layers: Layers of the vector encoder.
        image_channels: Channels of the image encoder.
        num_bins: Number of bins of the reward distribution.
        symlog_limit: The bins span [-symlog_limit, symlog_limit] in symlog space.
        predict_termination: Whether there is a termination head.

    Raises:
        ValueError: ``simplex_size`` does not divide ``latent_size``, or images are too small for the encoder.
    """

    @register_to_config
    def __init__(
        self,
        action_dims: int = 1,
        vector_size: int | None = None,
        image_size: tuple[int, int] = (64, 64),
        num_stacked_frames: int = 1,
        latent_size: int = 512,
        simplex_size: int = 8,
        width: int = 512,
        encoder_width: int = 256,
        encoder_layers: int = 2,
        image_channels: int = 32,
        num_bins: int = 101,
        symlog_limit: float = 10.0,
        predict_termination: bool = False,
    ) -> None:
        super().__init__()
        self.action_dims = action_dims
        self.vector_size = vector_size
        self.num_stacked_frames = num_stacked_frames
        self.latent_size = latent_size
        self.image_size = (image_size[0], image_size[1])  # JSON files give a list
        self.encoder: nn.Module
        if vector_size is None:
            self.encoder = TDMPC2ImageEncoder(
                self.image_size, num_stacked_frames, image_channels, latent_size=latent_size, simplex_size=simplex_size
            )
        else:
            hidden_widths = [encoder_width] * max(encoder_layers - 1, 1)
            self.encoder = TDMPC2MLP(
                [num_stacked_frames * vector_size],
                hidden_widths=hidden_widths,
                output_size=latent_size,
                simplex=simplex_size,
            )
        self.dynamics = TDMPC2MLP(
            [latent_size, action_dims], hidden_widths=[width, width], output_size=latent_size, simplex=simplex_size
        )
        self.reward_head = TDMPC2MLP([latent_size, action_dims], [width, width], num_bins)
        assert self.reward_head.output is not None
        nn.init.zeros_(self.reward_head.output.weight)
        self.termination_head = TDMPC2MLP([latent_size], [width, width], 1) if predict_termination else None
        self.two_hot = SymlogTwoHot(num_bins, symlog_limit)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode float32 [n..., s, k] or uint8 [n..., s, h, w, 3], the newest last, to latents [n..., d]."""
        if self.vector_size is not None:
            latent: Tensor = self.encoder(frames.flatten(-2).to(next(self.encoder.parameters()).dtype))
            return latent
        return self.encoder(frames.flatten(0, -5)).unflatten(0, frames.shape[:-4])

    def next_latent(self, latent: Tensor, action: Tensor) -> Tensor:
        """Predict the next latents: [n..., d] and [n..., a], which may broadcast -> [n..., d]."""
        next_latent: Tensor = self.dynamics(latent, action)
        return next_latent

    def reward_logits(self, latent: Tensor, action: Tensor) -> Tensor:
        """Return reward logits: [n..., d] and [n..., a], which may broadcast -> [n..., num_bins]."""
        logits: Tensor = self.reward_head(latent, action)
        return logits

    def predict_reward(self, latent: Tensor, action: Tensor) -> Tensor:
        """Return the expected reward [n...]; see ``reward_logits``."""
        return self.two_hot.mean(self.reward_logits(latent, action))

    def termination_logits(self, latent: Tensor) -> Tensor | None:
        """Return the logit of the termination probability, [n..., d] -> [n...]; None without the head."""
        return None if self.termination_head is None else self.termination_head(latent).squeeze(-1)


class TDMPC2ImageEncoder(nn.Module):
    """Four convolutions, followed by a linear layer only where their output does not have the size of the latent.

    Args:
        image_size: (h, w).
        num_stacked_frames: s, number of images, which are stacked as channels.
        channels: Channels of each convolution.
        latent_size, simplex_size: See ``TDMPC2WorldModel``.

    Raises:
        ValueError: Images below 39x39 pixels, or ``simplex_size`` does not divide ``latent_size``.
    """

    KERNELS = (7, 5, 3, 3)
    STRIDES = (2, 2, 2, 1)

    def __init__(
        self, image_size: tuple[int, ...], num_stacked_frames: int, channels: int, latent_size: int, simplex_size: int
    ) -> None:
        super().__init__()
        grid = list(image_size)
        for kernel, stride in zip(self.KERNELS, self.STRIDES, strict=True):
            grid = [(side - kernel) // stride + 1 for side in grid]
        if min(grid) < 1:
            raise ValueError(f"images of {image_size[0]}x{image_size[1]} pixels are too small: at least 39x39")
        widths = [3 * num_stacked_frames] + [channels] * 4
        layers = [nn.Conv2d(widths[i], widths[i + 1], self.KERNELS[i], self.STRIDES[i]) for i in range(4)]
        self.layers = nn.ModuleList(layers)
        conv_size = channels * grid[0] * grid[1]
        self.output = None if conv_size == latent_size else make_tdmpc2_linear(conv_size, latent_size)
        if latent_size % simplex_size:
            raise ValueError(f"latent_size={latent_size} must be divisible by simplex_size={simplex_size}")
        self.simplex_size = simplex_size

    def forward(self, frames: Tensor) -> Tensor:
        """Encode uint8 [b, s, h, w, 3] -> [b, d]."""
        x = frames.permute(0, 1, 4, 2, 3).flatten(1, 2).to(next(self.parameters()).dtype) / 255 - 0.5
        for i, layer in enumerate(self.layers):
            x = layer(x.relu() if i else x)
        x = x.flatten(1)
        return sim_norm(x if self.output is None else self.output(x), self.simplex_size)
