"""A diffusion transformer's features for probing."""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.core.feature_extractor import FeatureExtractor
from vwm.models.dit.network import DiT
from vwm.models.dit.sampling import observe_latents
from vwm.models.dit.simulator import DiTSimulator
from vwm.nn.block_outputs import capture_block_outputs, default_probe_layer


class DiTFeatureExtractor(FeatureExtractor):
    """Outputs of a layer of a diffusion transformer; by default at two thirds of the depth.

    The frames have the noise that the past has in play, the same noise for every clip.
    """

    def __init__(self, simulator: DiTSimulator, layer: int | None = None) -> None:
        depth = len(simulator.dynamics.transformer.blocks)
        networks = {name: part for name, part in simulator.networks().items() if name not in ("outcomes", "policy")}
        super().__init__(networks, depth, default_probe_layer(depth) if layer is None else layer)
        self.take_clip_size(simulator.spec)
        self.context_noise = simulator.sampling.context_noise

    def tokens(self, video: Tensor) -> Tensor:
        dynamics: DiT = self.networks["dynamics"]
        latents = self.networks["tokenizer"].encode(video.to(dynamics.device))
        batch, frames = latents.shape[:2]
        unknown = dynamics.embed_previous_actions(None, batch, frames)
        seed = torch.zeros(batch, dtype=torch.int64, device=dynamics.device)
        with capture_block_outputs(dynamics.transformer.blocks, self.layer) as outputs:
            observe_latents(dynamics, dynamics.init_state(batch), latents, unknown, seed, self.context_noise)
        return torch.cat(outputs, dim=1)[:, :, dynamics.registers : len(dynamics.places)].flatten(1, 2)
