"""The latent action model (Genie, arXiv 2402.15391, section 2.1), which infers actions between frames.

An encoder sees both frames and describes the change by one code, or by a few numbers (a Gaussian bottleneck: AdaWorld,
arXiv 2503.18938). A decoder sees only the past and the code, and
predicts the next frame. Information that the past does not contain has to pass through the code, which
therefore represents the action.

Legend: b batch, t time, H W pixels, n tokens per frame, d width, k number of actions, a dimensions of continuous ones.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.core.spaces import ActionSpace
from vwm.nn.categorical_codebook import CategoricalCodebook
from vwm.nn.context_parallel import (
    ContextGroup,
    DividedFrames,
    divide_frames,
    join_frames,
    own_frames,
)
from vwm.nn.frame_pairs import FramePairEmbedding
from vwm.nn.gaussian_bottleneck import GaussianBottleneck
from vwm.nn.pixels import patch_grid, patchify, unpatchify
from vwm.nn.quantize import Codebook, Quantizer
from vwm.nn.space_time import SpaceTimeTransformer
from vwm.nn.tensor_parallel import TensorGroup, divide_blocks


class LatentActionOutput(NamedTuple):
    """The actions between frames; ``actions[:, i]`` leads from frame i to i+1.

    Attributes:
        actions: int64 [b, t-1], indices of codes; continuous ones are float [b, t-1, a] in [-1, 1].
        codes: [b, t-1, d], for the decoder.
        loss: of the bottleneck: commitment to the codes, or divergence from the prior.
    """

    actions: Tensor
    codes: Tensor
    loss: Tensor


class LatentActionModel(ModelMixin, ConfigMixin):
    """Infer actions from video without labels.

    Args:
        image_size: (height, width) in pixels.
        patch_size: side of a patch (Genie: 16).
        codebook: number of actions (VQ) or FSQ levels, e.g. ``8`` or ``[2, 2, 2]``.
        width: d.
        depth: number of blocks in the encoder, and in the decoder.
        heads: number of attention heads.
        window: number of frames that temporal attention spans.
        code_width: dimension of a VQ code.
        decoder_context: ``"past"`` (the paper: all earlier frames) or ``"first"``: only the first frame, so that all
            later motion has to be encoded in the actions (prevents collapsed actions).
        spread_weight: with FSQ, weight of the loss that keeps all dimensions of the codes in use.
        action_dims: a; above 0, actions are continuous, and there is no codebook. The dynamics then takes
            ``num_actions`` = a with ``continuous: true``.
        kl_weight: weight of the divergence of continuous actions from their prior; see ``GaussianBottleneck``.
        chosen_by: ``"distance"`` (the nearest code of a VQ codebook, or FSQ) or ``"class"``: a classifier, which labels
            of some clips can train, chooses one of ``codebook`` codes (see ``CategoricalCodebook``).
        sees: what the encoder reads of a frame: ``"patches"``, or ``"pairs"``: a convolutional network sees each frame
            with the one before it, and finds small movements sooner. Requires a power of two as patch size.
        action_names: display names of the actions, where labels gave them a meaning (see ``ActionLabels``); None
            where their meaning is yet to be seen.

    Raises:
        ValueError: an unknown ``decoder_context``, a value out of range, or names that do not fit the actions.

    Attributes:
        context_group: the processes over which frames of clips are divided; None computes all frames here.
    """

    context_group: ContextGroup | None = None

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
        spread_weight: float = 0.01,
        action_dims: int = 0,
        kl_weight: float = 2e-4,
        chosen_by: Literal["distance", "class"] = "distance",
        sees: Literal["patches", "pairs"] = "patches",
        action_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        if chosen_by == "class" and not isinstance(codebook, int):
            raise ValueError(f"chosen_by=class requires a number of codes: codebook={codebook} has levels")
        if decoder_context not in ("past", "first"):
            raise ValueError(f"decoder_context={decoder_context!r} must be 'past' or 'first'")
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.patch_size = patch_size
        self.decoder_context = decoder_context
        self.grid = patch_grid(self.image_size, patch_size)
        tokens = self.grid[0] * self.grid[1]
        patch_values = 3 * patch_size**2
        self.embed = nn.Linear(patch_values, width) if sees == "patches" else FramePairEmbedding(patch_size, width)
        self.encoder_places = nn.Parameter(torch.empty(tokens + 1, width).normal_(std=0.02))
        self.encoder = SpaceTimeTransformer(width=width, depth=depth, heads=heads, window=window)
        self.quantizer: GaussianBottleneck | CategoricalCodebook | Quantizer
        if action_dims:
            self.quantizer = GaussianBottleneck(width=width, dims=action_dims, kl_weight=kl_weight)
        elif chosen_by == "class" and isinstance(codebook, int):
            self.quantizer = CategoricalCodebook(width, codebook)
        else:
            self.quantizer = Quantizer(width, codebook, code_width=code_width, spread_weight=spread_weight)
        if action_names and len(action_names) != self.num_actions:
            raise ValueError(f"action_names={action_names} must be one for each of {self.num_actions} actions")
        self.action_names = tuple(action_names or ())
        self.decoder_embed = nn.Linear(patch_values, width)
        self.decoder_places = nn.Parameter(torch.empty(tokens, width).normal_(std=0.02))
        self.decoder = SpaceTimeTransformer(width=width, depth=depth, heads=heads, window=window)
        self.paint = nn.Linear(width, patch_values)
        nn.init.zeros_(self.paint.weight)
        nn.init.zeros_(self.paint.bias)

    @property
    def num_actions(self) -> int:
        """Number of actions, k; of their dimensions, a, where they are continuous."""
        return self.quantizer.size

    @property
    def continuous(self) -> bool:
        """Whether actions are numbers instead of indices."""
        return isinstance(self.quantizer, GaussianBottleneck)

    @property
    def action_space(self) -> ActionSpace:
        """The actions, by name or number; continuous ones rest at the median of the data."""
        names = self.action_names or tuple(f"action {i}" for i in range(self.num_actions))
        if isinstance(self.quantizer, GaussianBottleneck):
            return ActionSpace("continuous", self.num_actions, names, latent=True, rest=self.quantizer.rest)
        return ActionSpace("discrete", self.num_actions, names, latent=True)

    def infer(self, video: Tensor) -> LatentActionOutput:
        """Infer the actions between the frames of a video, float [b, t >= 2, 3, H, W] in [-1, 1].

        Raises:
            ValueError: the video has only one frame.
        """
        return self.quantize(self.encode_changes(video))

    def encode_changes(self, video: Tensor) -> Tensor:
        """Encode the changes between the frames of a video, as ``infer`` takes it: [b, t-1, d]. Raises as it does."""
        if video.shape[1] < 2:
            raise ValueError(f"an action is inferred between two frames, got a video of shape {list(video.shape)}")
        division = divide_frames(self.context_group, video.shape[1])
        patches = self._embed(video, division)
        # An additional token per frame collects the change since the previous frame.
        x = torch.cat((patches.new_zeros(*patches.shape[:2], 1, patches.shape[-1]), patches), dim=2)
        return join_frames(self.encoder(x + self.encoder_places, division=division)[:, :, 0], division)[:, 1:]

    def _embed(self, video: Tensor, division: DividedFrames | None) -> Tensor:
        """Tokens of each frame, [b, t, n, d], of those of this process."""
        if isinstance(self.embed, FramePairEmbedding):
            return own_frames(self.embed(video), division)
        tokens: Tensor = self.embed(patchify(own_frames(video, division), self.patch_size))
        return tokens

    def quantize(self, changes: Tensor) -> LatentActionOutput:
        """Choose the actions for encoded changes, [b, t-1, d]."""
        codes, actions, loss = self.quantizer(changes)
        return LatentActionOutput(actions, codes, loss)

    def score_codes(self, changes: Tensor) -> Tensor:
        """Return the logits of the codes of encoded changes: [b, t-1, d] -> [b, t-1, k].

        Raises:
            ValueError: codes are not chosen by a classifier.
        """
        if not isinstance(self.quantizer, CategoricalCodebook):
            raise ValueError("only codes of a classifier have logits: set latent_action.chosen_by to class")
        return self.quantizer.scores(changes)

    def predict(self, video: Tensor, codes: Tensor) -> Tensor:
        """Predict the next frame of each frame: [b, t, 3, H, W] and codes [b, t, d] -> [b, t, 3, H, W].

        The network predicts the difference to the last frame that it sees, so that initially it copies that frame.
        """
        context = video if self.decoder_context == "past" else video[:, :1].expand_as(video)
        division = divide_frames(self.context_group, video.shape[1])
        context, codes = own_frames(context, division), own_frames(codes, division)
        x = self.decoder_embed(patchify(context, self.patch_size)) + self.decoder_places + codes[:, :, None]
        x = self.paint(self.decoder(x, division=division))
        return join_frames(context + unpatchify(x, self.patch_size, self.grid[0]), division)

    def share_clips(self, group: ContextGroup) -> None:
        """Divide the frames of clips over processes, which get the same clips.

        Raises:
            ValueError: the codebook is VQ, whose unused codes each process replaces by draws of its own.
        """
        self._count_vectors_once(group, f"context_parallel={group.size}")
        self.context_group = group

    def divide_weights(self, group: TensorGroup) -> None:
        """Divide the weights of layers over processes, which get the same clips; after ``share_clips``.

        Raises:
            ValueError: the codebook is VQ, or heads and hidden units do not divide evenly.
        """
        context = self.context_group or ContextGroup(1, 0)
        same = ContextGroup(context.size * group.size, context.rank * group.size + group.rank)
        self._count_vectors_once(same, f"tensor_parallel={group.size}")
        divide_blocks((self,), group)

    def _count_vectors_once(self, group: ContextGroup, setting: str) -> None:
        """Count vectors that several processes quantize once in statistics."""
        if isinstance(self.quantizer, Quantizer) and isinstance(self.config.codebook, int):
            raise ValueError(
                f"{setting} requires equal codes in all processes, and those of "
                f"latent_action.codebook={self.config.codebook} (VQ) differ: give FSQ levels, such as [2, 2, 2]"
            )
        if not isinstance(self.quantizer, CategoricalCodebook):
            self.quantizer.context_group = group

    def forward(self, video: Tensor) -> tuple[Tensor, LatentActionOutput]:
        """Infer actions and predict from them: [b, t, 3, H, W] -> frames 1..t-1 [b, t-1, 3, H, W], and the actions."""
        actions = self.infer(video)
        return self.predict(video[:, :-1], actions.codes), actions
