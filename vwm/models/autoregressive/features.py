"""Features of an autoregressive token world for probing."""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.core.feature_extractor import FeatureExtractor
from vwm.models.autoregressive.dynamics import AutoregressiveDynamics
from vwm.models.autoregressive.simulator import AutoregressiveSimulator
from vwm.nn.block_outputs import capture_block_outputs, default_probe_layer


class AutoregressiveFeatureExtractor(FeatureExtractor):
    """Outputs of a layer of the dynamics at the tokens of frames, under unknown actions; at two thirds by default."""

    def __init__(self, simulator: AutoregressiveSimulator, layer: int | None = None) -> None:
        depth = len(simulator.dynamics.transformer.blocks)
        super().__init__(simulator.networks(), depth, default_probe_layer(depth) if layer is None else layer)
        self.take_clip_size(simulator.spec)

    def tokens(self, video: Tensor) -> Tensor:
        dynamics: AutoregressiveDynamics = self.networks["dynamics"]
        latents = self.networks["tokenizer"].encode(video.to(dynamics.device)).flatten(2)
        state, frames = dynamics.init_state(len(video)), []
        for i in range(latents.shape[1]):
            state = dynamics.with_room(state)
            with capture_block_outputs(dynamics.transformer.blocks, self.layer) as outputs:
                state = dynamics.observe(state, latents[:, i : i + 1], None)
            frames.append(outputs[-1][:, 1:])
        return torch.cat(frames, dim=1)
