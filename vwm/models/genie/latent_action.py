"""The latent action model (Genie, section 2.1): which of a few actions led from each frame to the next?

An encoder sees both frames and names the change with one code; a decoder sees only the past and the code and must
paint the next frame. What the past does not tell has to go through the code, and so the code becomes an action.

Legend: b batch, t time, H W pixels, n tokens a frame, d width, k number of actions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.nn.pixels import patch_grid, patchify, unpatchify
from vwm.nn.quantize import Codebook, Quantizer
from vwm.nn.space_time import SpaceTimeTransformer


class LatentActionOutput(NamedTuple):
    """indices int64 [b, t-1] (``indices[:, i]`` leads from frame i to i+1), codes [b, t-1, d], commitment loss."""

    indices: Tensor
    codes: Tensor
    commitment: Tensor


class LatentActionModel(ModelMixin, ConfigMixin):
    """Infers actions from video without labels.

    Args:
        image_size: (height, width) in pixels.
        patch_size: side of a patch (Genie: 16).
        codebook: number of actions (VQ) or FSQ levels, e.g. ``8`` or ``[2, 2, 2]``.
        width: d.
        depth: blocks in the encoder, and again in the decoder.
        heads: attention heads.
        window: frames that time attention spans.
        code_width: dimension of a VQ code.
        decoder_context: ``"past"`` (the paper: every earlier frame) or ``"first"``: only the first frame, so that all
            later motion must come through the actions (a remedy where actions collapse).
        spread: with FSQ, weight of the loss that keeps every bit of the actions in use.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        patch_size: int = 16,
        codebook: Codebook = [2, 2, 2],  # noqa: B006 (read only; a list because configs are JSON)
        width: int = 256,
        depth: int = 4,
        heads: int = 8,
        window: int = 16,
        code_width: int = 32,
        decoder_context: str = "past",
        spread: float = 0.01,
    ) -> None:
        super().__init__()
        if decoder_context not in ("past", "first"):
            raise ValueError(f"decoder_context={decoder_context!r} must be 'past' or 'first'")
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.patch_size = patch_size
        self.decoder_context = decoder_context
        self.grid = patch_grid(self.image_size, patch_size)
        tokens, pixels = self.grid[0] * self.grid[1], 3 * patch_size**2
        self.embed = nn.Linear(pixels, width)
        self.encoder_places = nn.Parameter(torch.randn(tokens + 1, width) * 0.02)
        self.encoder = SpaceTimeTransformer(width, depth, heads, window)
        self.quantizer = Quantizer(width, codebook, code_width, spread)
        self.decoder_embed = nn.Linear(pixels, width)
        self.decoder_places = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.decoder = SpaceTimeTransformer(width, depth, heads, window)
        self.paint = nn.Linear(width, pixels)
        nn.init.zeros_(self.paint.weight)
        nn.init.zeros_(self.paint.bias)

    @property
    def num_actions(self) -> int:
        """k."""
        return self.quantizer.size

    def infer(self, video: Tensor) -> LatentActionOutput:
        """The actions between the frames of float [b, t >= 2, 3, H, W] in [-1, 1]."""
        if video.shape[1] < 2:
            raise ValueError(f"an action lies between two frames, got a video of shape {list(video.shape)}")
        patches = self.embed(patchify(video, self.patch_size))
        # One more token a frame gathers what changed since the frame before.
        x = torch.cat((patches.new_zeros(*patches.shape[:2], 1, patches.shape[-1]), patches), dim=2)
        change = self.encoder(x + self.encoder_places)[:, 1:, 0]
        codes, indices, commitment = self.quantizer(change)
        return LatentActionOutput(indices, codes, commitment)

    def predict(self, video: Tensor, codes: Tensor) -> Tensor:
        """The next frame of each: [b, t, 3, H, W], the codes that follow each [b, t, d] -> [b, t, 3, H, W].

        The network paints the change against the last frame it sees, so that untrained it copies that frame and
        the whole of its learning goes into what moves.
        """
        seen = video if self.decoder_context == "past" else video[:, :1].expand_as(video)
        x = self.decoder_embed(patchify(seen, self.patch_size)) + self.decoder_places + codes[:, :, None]
        return seen + unpatchify(self.paint(self.decoder(x)), self.patch_size, self.grid[0])

    def forward(self, video: Tensor) -> tuple[Tensor, LatentActionOutput]:
        """[b, t, 3, H, W] -> the predicted frames 1..t-1 as [b, t-1, 3, H, W], and the actions they were given."""
        actions = self.infer(video)
        return self.predict(video[:, :-1], actions.codes), actions
