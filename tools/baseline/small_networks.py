"""Small seeded networks, clips and worlds of every family (as the tests' factories have them)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vwm.core.spaces import ActionSpace
from vwm.data.clips import ClipBatch
from vwm.models.dit.network import DiT
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.models.dit.sampling import DiffusionSampling as DiTSampling
from vwm.models.dit.simulator import DiTSimulator
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.sampling import MaskGITSampling as GenieSampling
from vwm.models.genie.simulator import GenieSimulator
from vwm.models.mdn_rnn.network import MDNRNN
from vwm.models.mdn_rnn.simulator import MDNRNNSimulator
from vwm.models.muzero.network import MuZeroNetwork
from vwm.models.muzero.simulator import MuZeroSimulator
from vwm.models.rssm.simulator import RSSMSimulator
from vwm.models.rssm.world_model import RSSMWorldModel, RSSMWorldModelConfig
from vwm.models.tdmpc2.simulator import TDMPC2Simulator
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor
from vwm.models.vjepa.conv_encoder import ConvFrameEncoder
from vwm.models.vjepa.latent_decoder import LatentDecoder
from vwm.models.vjepa.latent_projector import LatentProjector
from vwm.models.vjepa.simulator import VJEPAACSimulator
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer


def randomize(module: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.numel() > 1 and (p == p.flatten()[0]).all():
                p.add_(torch.randn(p.shape, generator=generator).to(p) * 0.2)
    return module


def pictures(*shape: int, seed: int = 4) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def clips(batch: int, frames: int, side: int, choices: int = 4, **more: Any) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (batch, frames, side, side, 3), dtype=torch.uint8, generator=generator)
    taken = torch.randint(0, choices, (batch, frames), generator=generator)
    earned = {"rewards": (taken == 1).float(), "terminated": taken == 3}
    return ClipBatch(**{"frames": video, "actions": taken, "seed": torch.arange(batch) * 7919, **earned, **more})


def names_of(dims: int) -> tuple[str, ...]:
    return ("steer", "gas", "brake")[:dims] if dims else ("LEFT", "RIGHT", "UP", "noop")


def space_of(dims: int) -> ActionSpace:
    return ActionSpace("continuous" if dims else "discrete", dims or 4, names_of(dims))


def tokenizer(codebook: Any = (4, 3, 3)) -> SpaceTimeTokenizer:
    torch.manual_seed(0)
    codes = list(codebook) if isinstance(codebook, tuple) else codebook
    return randomize(SpaceTimeTokenizer((16, 16), 4, codes, width=16, depth=2, heads=2, window=4, code_width=8))


def maskgit() -> MaskGITDynamics:
    torch.manual_seed(1)
    return randomize(
        MaskGITDynamics(codebook_size=36, tokens_per_frame=16, num_actions=4, width=16, depth=2, heads=2, window=4)
    )


def latent_action() -> LatentActionModel:
    torch.manual_seed(2)
    return randomize(
        LatentActionModel(image_size=(16, 16), patch_size=8, codebook=[2, 2], width=16, depth=2, heads=2, window=4)
    )


def genie(labeled: bool = False, outcomes: bool = False) -> GenieSimulator:
    return GenieSimulator(
        tokenizer(),
        maskgit(),
        None if labeled else latent_action(),
        ActionSpace("discrete", 4, names_of(0), latent=not labeled),
        randomize(RewardTerminationHeads(width=16, hidden=16)) if outcomes else None,
        sampling=GenieSampling(steps=3),
        context_frames=2,
        title="noise",
        starts=pictures(3, 2, 16, 16),
    )


def dit(seed: int = 3, **changes: Any) -> DiT:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"grid": (4, 4), "channels": 3, "num_actions": 4, "width": 32, "depth": 4, "heads": 2}
    return randomize(DiT(**{**settings, "window": 4, "registers": 2, **changes}))


def diffusion_world(outcomes: bool = False, policy: bool = False, sampling: Any = None, **changes: Any) -> DiTSimulator:
    dims = changes.get("action_dims", 0)
    if dims:
        changes["num_actions"] = 0
    pixels = PixelTokenizer((8, 8))
    return DiTSimulator(
        pixels,
        dit(grid=pixels.grid, channels=pixels.channels, patch_size=2, **changes),
        randomize(RewardTerminationHeads(width=32, hidden=16)) if outcomes else None,
        space_of(dims),
        randomize(PolicyRewardHeads(32, 0 if dims else 4, dims, hidden=16)) if policy else None,
        sampling=sampling or DiTSampling(steps=2),
        context_frames=2,
        title="noise",
        starts=pictures(3, 2, 8, 8),
    )


def jepa_parts(pooling: Any = "none", decoder: bool = True, **changes: Any) -> dict[str, Any]:
    torch.manual_seed(6)
    projector = LatentProjector((2, 2), 4, pooling, latent_width=8)
    grid = projector.latent_grid
    parts = {"encoder": randomize(ConvFrameEncoder((8, 8), [4, 4])), "projector": randomize(projector)}
    torch.manual_seed(5)
    settings: dict[str, Any] = {"latent_width": 8, "num_actions": 4, "width": 16, "depth": 2, "heads": 2, "window": 4}
    if changes.get("action_dims"):
        settings["num_actions"] = 0
    parts["dynamics"] = randomize(ActionConditionedPredictor(**{**settings, "grid": grid, **changes}))
    parts["decoder"] = randomize(LatentDecoder((8, 8), grid, 8, [4, 4])) if decoder else None
    return parts


def jepa_world(**changes: Any) -> VJEPAACSimulator:
    return VJEPAACSimulator(
        **jepa_parts(**changes),
        actions=space_of(changes.get("action_dims", 0)),
        context_frames=2,
        title="noise",
        starts=pictures(3, 2, 8, 8),
    )


def dream(seed: int = 7, **changes: Any) -> MDNRNNSimulator:
    torch.manual_seed(seed)
    dims = changes.get("action_dims", 0)
    settings = {
        "latent_size": 4,
        "num_actions": 0 if dims else 4,
        "hidden_size": 16,
        "num_mixtures": 3,
        "action_embedding_size": 4,
    }
    dynamics = randomize(MDNRNN(**{**settings, **changes}))
    if dynamics.reward_head is not None:
        with torch.no_grad():
            dynamics.reward_head.bias[dynamics.two_hot.values.abs() > 10] -= 30
    names = names_of(dims)[: changes.get("num_actions", 4)]
    return MDNRNNSimulator(
        randomize(FrameVAE((8, 8), latent_size=4, widths=[4, 8])),
        dynamics,
        ActionSpace("continuous" if dims else "discrete", len(names), names),
        context_frames=2,
        title="noise",
        starts=pictures(3, 2, 8, 8),
    )


def muzero_world(**changes: Any) -> MuZeroSimulator:
    torch.manual_seed(8)
    settings: dict[str, Any] = {
        "num_actions": 4,
        "num_stacked_frames": 2,
        "width": 8,
        "hidden": 8,
        "support_limit": 5,
    }
    settings |= {"prefix_hidden": 8, "projection_size": 8}
    return MuZeroSimulator(randomize(MuZeroNetwork([32, 32, 3], **{**settings, **changes})), space_of(0), title="noise")


def consistency_world(observation: tuple[int, ...] = (5,)) -> TDMPC2Simulator:
    torch.manual_seed(9)
    seen = len(observation) == 3
    dynamics = TDMPC2WorldModel(
        3, vector_size=None if seen else observation[0], image_size=observation[:2] if seen else (64, 64),
        num_stacked_frames=2,
        latent_size=16, width=16, encoder_width=16, image_channels=4, num_bins=21, symlog_limit=5.0,
        predict_termination=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    starts = torch.randint(0, 256, (3, 2, *observation), dtype=torch.uint8, generator=generator)
    return TDMPC2Simulator(
        randomize(dynamics), space_of(3), context_frames=2, title="noise", starts=starts if seen else starts / 128 - 1
    )


def imagined_world(observation: tuple[int, ...] = (16, 16, 3), action_dims: int = 0, **changes: Any) -> RSSMSimulator:
    torch.manual_seed(8)
    small: dict[str, Any] = {"deter": 16, "hidden": 8, "stoch": 12, "classes": 4, "blocks": 2, "units": 8}
    settings = RSSMWorldModelConfig(**{**small, "vector_layers": 1, "depth": 4, "mults": (1, 2), **changes})
    world = randomize(RSSMWorldModel.from_settings(observation, 0 if action_dims else 4, action_dims, settings))
    generator = torch.Generator().manual_seed(4)
    starts = (
        pictures(3, 2, *observation[:2])
        if len(observation) == 3
        else torch.randn(3, 2, *observation, generator=generator)
    )
    return RSSMSimulator(world, space_of(action_dims), context_frames=2, title="noise", starts=starts)
