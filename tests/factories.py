"""Small networks shared by tests; all weights are random, because zero-initialized branches would have no effect."""

from __future__ import annotations

import torch
from torch import nn

from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.latent_action import LatentActionModel
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Add noise to the weights that are initialized to a constant."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.numel() > 1 and (p == p.flatten()[0]).all():
                p.add_(torch.randn(p.shape, generator=generator).to(p) * 0.2)
    return module


def tokenizer(codebook: int | list[int] = [4, 3, 3], window: int = 4) -> SpaceTimeTokenizer:  # noqa: B006
    torch.manual_seed(0)
    network = SpaceTimeTokenizer((16, 16), 4, codebook, width=16, depth=1, heads=2, window=window, code_width=8)
    return randomize(network)


def dynamics(**changes) -> MaskGITDynamics:
    torch.manual_seed(1)
    settings = {"codebook_size": 36, "tokens_per_frame": 16, "num_actions": 4, "width": 16, "depth": 2, "heads": 2}
    return randomize(MaskGITDynamics(**{**settings, "window": 4, **changes}))


def latent_action(**changes) -> LatentActionModel:
    torch.manual_seed(2)
    settings = {"image_size": (16, 16), "patch_size": 8, "codebook": [2, 2], "width": 16, "depth": 1, "heads": 2}
    return randomize(LatentActionModel(**{**settings, "window": 4, **changes}))


def genie(
    labeled: bool = False,
    codebook: int | list[int] = [4, 3, 3],  # noqa: B006
    outcomes: bool = False,
    composite: bool = False,
    dims: int = 0,
    depth: int = 2,
):
    """A Genie world of 16x16 pixels, with starting contexts; ``dims`` above 0: of continuous latent actions."""
    from vwm.core.spaces import ActionSpace
    from vwm.models.genie.sampling import MaskGITSampling
    from vwm.models.genie.simulator import GenieSimulator
    from vwm.nn.outcome_heads import RewardTerminationHeads

    actions, settings = ActionSpace("discrete", 4, ("LEFT", "RIGHT", "UP", "noop"), latent=not labeled), {}
    if composite:
        actions, settings = composite_space(), {"action_parts": composite_parts()}
    if dims:
        actions = ActionSpace("continuous", dims, tuple(map(str, range(dims))), latent=True)
        settings = {"num_actions": dims, "continuous": True}
    starts = torch.randint(0, 256, (3, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    return GenieSimulator(
        tokenizer(codebook),
        dynamics(depth=depth, **settings),
        None if labeled else latent_action(action_dims=dims),
        actions,
        randomize(RewardTerminationHeads(width=16, hidden=16)) if outcomes else None,
        sampling=MaskGITSampling(steps=3),
        context_frames=2,
        title="noise",
        starts=starts,
    )


def dit(seed: int = 3, **changes):
    from vwm.models.dit.network import DiT

    torch.manual_seed(seed)
    settings = {"grid": (4, 4), "channels": 3, "num_actions": 4, "width": 32, "depth": 4, "heads": 2, "window": 4}
    return randomize(DiT(**{**settings, "registers": 2, **changes}))


def composite_space():
    """A choice of three, four keys that can be held together, and a pointer."""
    from vwm.core.action_parts import ActionPart
    from vwm.core.spaces import ActionSpace

    return ActionSpace.composite(
        ActionPart("choice", 3, "color", ("red", "green", "blue")),
        ActionPart("keys", 4, "keys", ("left", "right", "up", "down")),
        ActionPart("pointer", name="mouse"),
    )


def _factory_actions(changes: dict):
    """The action space of a world whose network has these settings: composite, continuous or discrete."""
    from vwm.core.action_parts import read_action_parts
    from vwm.core.spaces import ActionSpace

    if changes.get("action_parts"):
        return ActionSpace.composite(*read_action_parts(changes["action_parts"]))
    dims = changes.get("action_dims", 0)
    if dims:
        return ActionSpace("continuous", dims, ("steer", "gas", "brake")[:dims])
    if changes.get("num_actions") == 0:
        return ActionSpace("discrete", 1, ("go on",))  # as ``embedded_action_space`` says of a network without actions
    return ActionSpace("discrete", 4, ("LEFT", "RIGHT", "UP", "noop"))


def composite_parts() -> list[dict]:
    """The parts of ``composite_space`` as the config of a network states them."""
    return [part.to_json() for part in composite_space().parts]


def diffusion_world(outcomes: bool = False, sampling=None, policy: bool = False, size: int = 8, **changes):
    """A diffusion world of 8x8 pixels over a pixel tokenizer, with starting contexts."""
    from vwm.models.dit.policy_heads import PolicyRewardHeads
    from vwm.models.dit.sampling import DiffusionSampling
    from vwm.models.dit.simulator import DiTSimulator
    from vwm.nn.outcome_heads import RewardTerminationHeads
    from vwm.tokenizers.pixel_tokenizer import PixelTokenizer

    dims, actions = changes.get("action_dims", 0), _factory_actions(changes)
    if not actions.is_discrete:
        changes["num_actions"] = 0
    tokenizer = PixelTokenizer((size, size))
    starts = torch.randint(0, 256, (3, 2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    return DiTSimulator(
        tokenizer,
        dit(grid=tokenizer.grid, channels=tokenizer.channels, patch_size=2, **changes),
        randomize(RewardTerminationHeads(width=32, hidden=16)) if outcomes else None,
        actions,
        randomize(PolicyRewardHeads(32, 0 if dims else 4, dims, hidden=16)) if policy else None,
        sampling=sampling or DiffusionSampling(steps=2),
        context_frames=2,
        title="noise",
        starts=starts,
    )


def genie_of_latent_frames(frames: int = 2, labeled: bool = False, outcomes: bool = False, **changes):
    """A Genie world of 16x16 pixels over a causal autoencoder with codes, each latent of several frames."""
    from vwm.core.spaces import ActionSpace
    from vwm.models.genie.sampling import MaskGITSampling
    from vwm.models.genie.simulator import GenieSimulator
    from vwm.nn.outcome_heads import RewardTerminationHeads
    from vwm.tokenizers.causal_vae import CausalVAE

    torch.manual_seed(2)
    starts = torch.randint(
        0, 256, (3, 1 + frames, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )
    return GenieSimulator(
        randomize(CausalVAE((16, 16), [4, 3, 3], 8, frames, patch_size=4, widths=[8], depths=[1])),
        dynamics(frames_per_latent=frames, **changes),
        None if labeled else latent_action(),
        ActionSpace("discrete", 4, ("LEFT", "RIGHT", "UP", "noop"), latent=not labeled),
        randomize(RewardTerminationHeads(width=16, hidden=16)) if outcomes else None,
        sampling=MaskGITSampling(steps=3),
        context_frames=1 + frames,
        title="noise",
        starts=starts,
    )


def latent_frames_world(frames: int = 2, outcomes: bool = False, dims: int = 0, window: int = 4, parts=(), **changes):
    """A diffusion world of 8x8 pixels over a causal autoencoder, of which each latent after the first holds frames."""
    from vwm.core.spaces import ActionSpace
    from vwm.models.dit.sampling import DiffusionSampling
    from vwm.models.dit.simulator import DiTSimulator
    from vwm.nn.outcome_heads import RewardTerminationHeads
    from vwm.tokenizers.causal_vae import CausalVAE

    torch.manual_seed(2)
    actions = ActionSpace("continuous", dims) if dims else ActionSpace("discrete", 4, ("LEFT", "RIGHT", "UP", "noop"))
    changes = {"channels": 4, "num_actions": 0 if dims else 4, "action_dims": dims, "window": window, **changes}
    if parts:
        actions = ActionSpace.composite(*parts)
        changes |= {"num_actions": 0, "action_parts": [part.to_json() for part in parts]}
    return DiTSimulator(
        randomize(CausalVAE((8, 8), None, 4, frames, patch_size=2, widths=[8], depths=[1])),
        dit(frames_per_latent=frames, **changes),
        randomize(RewardTerminationHeads(width=32, hidden=16)) if outcomes else None,
        actions,
        sampling=DiffusionSampling(steps=2),
        context_frames=1 + frames,
        title="noise",
        starts=torch.randint(
            0, 256, (3, 1 + frames, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
        ),
    )


def action_predictor(seed: int = 5, **changes):
    from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor

    torch.manual_seed(seed)
    settings = {"grid": (2, 2), "latent_width": 8, "num_actions": 4, "width": 16, "depth": 2, "heads": 2, "window": 4}
    if changes.get("action_dims"):
        settings["num_actions"] = 0
    return randomize(ActionConditionedPredictor(**{**settings, **changes}))


def jepa_parts(pooling: str = "none", decoder: bool = True, seed: int = 6, **changes) -> dict[str, nn.Module | None]:
    """The networks of a V-JEPA world of 8x8 pixels; a latent is four tokens of eight channels, or one token."""
    from vwm.models.vjepa.conv_encoder import ConvFrameEncoder
    from vwm.models.vjepa.latent_decoder import LatentDecoder
    from vwm.models.vjepa.latent_projector import LatentProjector

    torch.manual_seed(seed)
    projector = LatentProjector((2, 2), 4, pooling, latent_width=8)
    grid = projector.latent_grid
    return {
        "encoder": randomize(ConvFrameEncoder((8, 8), [4, 4])),
        "projector": randomize(projector),
        "dynamics": action_predictor(grid=grid, **changes),
        "decoder": randomize(LatentDecoder((8, 8), grid, 8, [4, 4])) if decoder else None,
    }


def jepa_world(**changes):
    """A V-JEPA world that predicts representations, with starting contexts."""
    from vwm.core.spaces import ActionSpace
    from vwm.models.vjepa.simulator import VJEPAACSimulator

    dims = changes.get("action_dims", 0)
    names = ("steer", "gas", "brake")[:dims] if dims else ("LEFT", "RIGHT", "UP", "noop")
    return VJEPAACSimulator(
        **jepa_parts(**changes),
        actions=ActionSpace("continuous" if dims else "discrete", dims or 4, names),
        context_frames=2,
        title="noise",
        starts=torch.randint(0, 256, (3, 2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)),
    )


def dream(seed: int = 7, sampling=None, title: str = "noise", size: int = 8, **changes):
    """A World Models (MDN-RNN) world of 8x8 pixels, with starting contexts."""
    from vwm.core.spaces import ActionSpace
    from vwm.models.mdn_rnn.network import MDNRNN
    from vwm.models.mdn_rnn.simulator import MDNRNNSimulator
    from vwm.tokenizers.frame_vae import FrameVAE

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
    if dynamics.reward_head is not None:  # random logits on the outer bins would give huge rewards
        with torch.no_grad():
            dynamics.reward_head.bias[dynamics.two_hot.values.abs() > 10] -= 30
    names = ("steer", "gas", "brake")[:dims] if dims else ("LEFT", "RIGHT", "UP", "noop")
    names = names[: changes.get("num_actions", len(names))]
    return MDNRNNSimulator(
        randomize(FrameVAE((size, size), latent_size=4, widths=[4, 8])),
        dynamics,
        ActionSpace("continuous" if dims else "discrete", len(names), names),
        sampling=sampling,
        context_frames=2,
        title=title,
        starts=torch.randint(
            0, 256, (3, 2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
        ),
    )


def muzero_world(observation: tuple[int, ...] = (32, 32, 3), seed: int = 8, **changes):
    """A MuZero world over two stacked frames, which predicts no frames."""
    from vwm.core.spaces import ActionSpace
    from vwm.models.muzero.network import MuZeroNetwork
    from vwm.models.muzero.simulator import MuZeroSimulator

    torch.manual_seed(seed)
    settings = {"num_actions": 4, "num_stacked_frames": 2, "width": 8, "hidden": 8, "support_limit": 5}
    settings |= {"prefix_hidden": 8, "projection_size": 8}
    dynamics = randomize(MuZeroNetwork(list(observation), **{**settings, **changes}))
    return MuZeroSimulator(dynamics, ActionSpace("discrete", 4, ("LEFT", "RIGHT", "UP", "noop")), title="noise")


def tdmpc2_world(observation: tuple[int, ...] = (5,), frames: int = 2, predict_termination: bool = True, seed: int = 9):
    """A TD-MPC2 world with three action dimensions and starting contexts."""
    from vwm.core.spaces import ActionSpace
    from vwm.models.tdmpc2.simulator import TDMPC2Simulator
    from vwm.models.tdmpc2.world_model import TDMPC2WorldModel

    torch.manual_seed(seed)
    pixels = len(observation) == 3
    dynamics = TDMPC2WorldModel(
        3,
        vector_size=None if pixels else observation[0],
        image_size=observation[:2] if pixels else (64, 64),
        num_stacked_frames=frames,
        latent_size=16,
        width=16,
        encoder_width=16,
        image_channels=4,
        num_bins=21,
        symlog_limit=5.0,
        predict_termination=predict_termination,
    )
    generator = torch.Generator().manual_seed(4)
    starts = torch.randint(0, 256, (3, frames, *observation), dtype=torch.uint8, generator=generator)
    return TDMPC2Simulator(
        randomize(dynamics),
        ActionSpace("continuous", 3, ("steer", "gas", "brake")),
        context_frames=frames,
        title="noise",
        starts=starts if pixels else starts / 128 - 1,
    )


DIFFUSERS_VAES = {
    "AutoencoderKL": {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "scaling_factor": 1.5,
        "shift_factor": 0.1,
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
    },
    "AutoencoderKLCosmos": {
        "encoder_block_out_channels": (8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 8),
        "num_layers": 1,
        "latent_channels": 4,
        "patch_size": 2,
        "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 4,
        "resolution": 16,
    },
    "AutoencoderKLWan": {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "latents_mean": [0.1, -0.2, 0.3, 0.4],
        "latents_std": [0.5, 1.0, 2.0, 0.7],
    },
}
"""Settings of diffusers' autoencoders, for frames of 16x16 pixels or a multiple."""


def diffusers_tokenizer(name: str):
    """A diffusers autoencoder with random weights, for frames of 16x16 pixels."""
    import diffusers

    from vwm.tokenizers.diffusers_vae import DiffusersTokenizer

    torch.manual_seed(0)
    return DiffusersTokenizer.from_vae(getattr(diffusers, name)(**DIFFUSERS_VAES[name]), image_size=(16, 16))


def masked_autoencoder(**changes):
    from vwm.tokenizers.masked_autoencoder import MaskedAutoencoderTokenizer

    torch.manual_seed(0)
    settings = {"patch_size": 4, "latent_grid": (2, 3), "latent_channels": 4, "width": 16, "depth": 2, "heads": 2}
    settings |= {"window": 4, "time_every": 2}
    return randomize(MaskedAutoencoderTokenizer((16, 16), **{**settings, **changes}))


def representation_codec(encoder_class: str = "vwm.tokenizers.TimmEncoder", settings: dict | None = None, **changes):
    """A codec of the features of a small vision transformer, for frames of 16x16 pixels."""
    from vwm.tokenizers.representation_codec import RepresentationCodec

    torch.manual_seed(0)
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    settings = settings or {"image_size": (16, 16), "grid": (4, 4), "settings": small}
    decoder = {"width": 16, "depth": 2, "heads": 2, "window": 4, "time_every": 2}
    return randomize(RepresentationCodec(None, encoder_class, settings, **(decoder | changes)))
