"""Genie's features for probing."""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.core.feature_extractor import FeatureExtractor
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.simulator import GenieSimulator
from vwm.nn.block_outputs import capture_block_outputs, default_probe_layer


class GenieFeatureExtractor(FeatureExtractor):
    """Outputs of a layer of Genie's dynamics over whole frames; by default at two thirds of the depth.

    Actions are those that the simulator infers itself, where it does.
    """

    def __init__(self, simulator: GenieSimulator, layer: int | None = None) -> None:
        depth = len(simulator.dynamics.transformer.blocks)
        super().__init__(simulator.networks(), depth, default_probe_layer(depth) if layer is None else layer)
        self.take_clip_size(simulator.spec)

    def tokens(self, video: Tensor) -> Tensor:
        dynamics: MaskGITDynamics = self.networks["dynamics"]
        video = video.to(dynamics.device)
        tokens, infers = self.networks["tokenizer"].encode(video).flatten(2), self.networks.get("latent_action")
        actions = infers.infer(video).actions if infers is not None and video.shape[1] > 1 else None
        with capture_block_outputs(dynamics.transformer.blocks, self.layer) as outputs:
            state = dynamics.observe(dynamics.init_state(len(video)), tokens[:, :1], None)
            if video.shape[1] > 1:
                dynamics.observe(state, tokens[:, 1:], actions)
        return torch.cat(outputs, dim=1).flatten(1, 2)
