"""Small worlds of the families whose weights others publish, and files in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from vwm.core.spaces import ActionSpace
from vwm.models.dreamer4.agent_heads import Dreamer4PolicyHead, Dreamer4RewardHead
from vwm.models.dreamer4.network import Dreamer4Dynamics
from vwm.models.dreamer4.sampling import Dreamer4Sampling
from vwm.models.dreamer4.simulator import Dreamer4Simulator
from vwm.models.dreamer4.tokenizer import Dreamer4Tokenizer
from vwm.models.oasis.actions import minecraft_actions
from vwm.models.oasis.network import OasisDiT, rotary_frequencies
from vwm.models.oasis.sampling import OasisSampling
from vwm.models.oasis.simulator import OasisSimulator
from vwm.models.oasis.vit_vae import OasisViTVAE
from vwm.models.waypoint.autoencoder import WaypointAutoencoder
from vwm.models.waypoint.network import WaypointDiT
from vwm.models.waypoint.simulator import WaypointSimulator, keyboard_and_mouse

OASIS_IMAGE = (16, 32)


def oasis_networks() -> tuple[OasisViTVAE, OasisDiT]:
    """Networks for frames of 16x32 pixels, with one head each, and a window of 4 frames."""
    torch.manual_seed(5)
    tokenizer = OasisViTVAE(OASIS_IMAGE, patch_size=4, channels=4, width=16, heads=1, encoder_depth=1, decoder_depth=2)
    return tokenizer, OasisDiT(tokenizer.grid, channels=4, patch_size=2, width=16, depth=2, heads=1, window=4)


def oasis_world() -> OasisSimulator:
    """An Oasis of 16x32 pixels."""
    return OasisSimulator(
        *oasis_networks(),
        minecraft_actions(),
        sampling=OasisSampling(steps=2),
        context_frames=2,
        title="noise",
        fps=3.0,
    )


def oasis_layout(tokenizer: OasisViTVAE, dynamics: OasisDiT) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The contents of ``vit-l-20`` and ``oasis500m`` with these weights, frequencies included."""
    weights = dict(dynamics.state_dict())
    for axis, frequencies in zip(("spatial", "temporal"), rotary_frequencies(dynamics.head_width), strict=True):
        weights[f"{axis}_rotary_emb.freqs"] = frequencies
        for block in range(len(dynamics.blocks)):
            weights[f"blocks.{block}.{axis[0]}_attn.rotary_emb.freqs"] = frequencies
    return dict(tokenizer.state_dict()), weights


def dreamer4_networks(rotary: bool) -> tuple[Dreamer4Tokenizer, Dreamer4Dynamics, Dreamer4RewardHead | None]:
    """Networks of one generation for frames of 16x16 pixels and a window of 4 frames; the second has a reward head."""
    torch.manual_seed(6)
    shared = {"latents": 4, "channels": 3, "width": 16, "heads": 2, "depth": 2, "hidden": 24, "rotary": rotary}
    tokenizer = Dreamer4Tokenizer((16, 16), patch_size=4, **shared)
    agents: dict[str, Any] = {"agent_tokens": 2, "agent_attention": "reading" if rotary else "isolated"}
    dynamics = Dreamer4Dynamics(**shared, packing=2, time_every=2, registers=1, window=4, action_inputs=16, **agents)
    torch.nn.init.normal_(dynamics.agents)
    return tokenizer, dynamics, Dreamer4RewardHead(width=16, hidden=8, rewards=2, bins=5) if rotary else None


def dreamer4_policy() -> Dreamer4PolicyHead:
    """The cloned policy of the second generation of ``dreamer4_networks``."""
    torch.manual_seed(8)
    return Dreamer4PolicyHead(width=16, hidden=8, steps=3, action_inputs=16)


def dreamer4_world(rotary: bool = False) -> Dreamer4Simulator:
    """A Dreamer 4 of 16x16 pixels and three actions."""
    actions = ActionSpace("continuous", 3, ("x", "y", "z"))
    sampling = Dreamer4Sampling(steps=4, context_noise=0.1, warm_start=0.25) if rotary else Dreamer4Sampling(steps=2)
    return Dreamer4Simulator(
        *dreamer4_networks(rotary),
        actions,
        trained_policy=dreamer4_policy() if rotary else None,
        sampling=sampling,
        context_frames=2,
        title="noise",
        fps=3.0,
    )


def write_dreamer4(folder: Path, rotary: bool, instruction: Tensor | None = None) -> None:
    """Write the networks of ``dreamer4_networks`` in the layout of their generation.

    Args:
        folder: to write to.
        rotary: the generation.
        instruction: embedding of the instruction of the task "reach" in ``tasks.json``, for which the second
            generation's agent tokens become those of the network.
    """
    tokenizer, dynamics, reward = dreamer4_networks(rotary)
    weights = dict(dynamics.state_dict())
    agents = weights.pop("agents")
    arguments = {"H": 16, "W": 16, "patch": 4, "n_heads": 2, "n_agent": len(agents), "space_mode": "wm_agent_isolated"}
    ending = "" if rotary else "_ckpt"
    torch.save({"model": tokenizer.state_dict(), "args": arguments, "step": 1}, folder / f"tokenizer{ending}.pt")
    checkpoint: dict[str, Any] = {"args": arguments, "epoch": 1}
    if instruction is not None:
        scale = instruction / instruction.square().sum()
        weights["task_proj.weight"] = agents.flatten()[:, None] * scale
        weights["task_proj.bias"] = torch.zeros(agents.numel())
        task = {"action_dim": 3, "text_embedding": instruction.tolist(), "instruction": "Reach the target"}
        (folder / "tasks.json").write_text(json.dumps({"reach": task}))
    if reward is not None:
        checkpoint["rew_head"] = {f"module.{name}": value for name, value in reward.state_dict().items()}
        policy = dreamer4_policy().state_dict()
        checkpoint["policy_head"] = {f"_orig_mod.{name}": value for name, value in policy.items()}
        weights = {f"_orig_mod.{name}": value for name, value in weights.items()}
    torch.save(checkpoint | {"dynamics": weights}, folder / f"dynamics{ending}.pt")


def waypoint_networks() -> tuple[WaypointAutoencoder, WaypointDiT]:
    """Networks for frames of 12x20 pixels, that remember 2 frames, and 2 of every second."""
    torch.manual_seed(7)
    widths, blocks = (8, 16), (1,)
    tokenizer = WaypointAutoencoder((12, 20), 8, 3, 4, widths, blocks, widths, blocks)
    dynamics = WaypointDiT(
        tokenizer.grid,
        channels=4,
        width=32,
        depth=2,
        heads=2,
        kv_heads=1,
        mlp_ratio=1,
        control_every=2,
        prompt_every=2,
        prompt_width=16,
        prompt_tokens=3,
        local_slots=2,
        global_slots=2,
        global_stride=2,
        global_every=2,
        global_offset=1,
        sigmas=(1.0, 0.5, 0.0),
    )
    torch.nn.init.normal_(dynamics.prompt)
    return tokenizer, dynamics


def waypoint_world() -> WaypointSimulator:
    """A Waypoint of 12x20 pixels."""
    return WaypointSimulator(*waypoint_networks(), keyboard_and_mouse(), context_frames=2, title="noise", fps=3.0)


def write_waypoint(folder: Path) -> None:
    """Write the networks of ``waypoint_networks`` in their published layout."""
    tokenizer, dynamics = waypoint_networks()
    weights = {}
    for name, value in dynamics.state_dict().items():
        if name.startswith("modulation."):
            for block in range(2):
                published = name.replace("modulation", f"transformer.blocks.{block}.cond_head.cond_proj")
                weights[published] = value.clone()
        elif name == "prompt":
            save_file({"prompt": value}, folder / "prompt.safetensors")
        else:
            weights[name] = value
    weights["ctrl_cfg.null_emb"] = torch.zeros(1, 1, 32)
    save_file(weights, folder / "model.safetensors")
    for part in ("encoder", "decoder"):
        normed = {}
        for name, value in tokenizer.get_submodule(part).state_dict().items():
            if name.endswith(".weight"):
                base = f"{name}".removesuffix("weight") + "parametrizations.weight.original"
                norm = torch.linalg.vector_norm(value, dim=(1, 2, 3), keepdim=True)
                normed |= {f"{base}0": norm, f"{base}1": 3 * value}
            else:
                normed[name] = value
        save_file(normed, folder / f"{part}.safetensors")
    settings = {
        **{"channels": 4, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 32, "mlp_ratio": 1, "causal": True},
        **{"n_buttons": 256, "height": 2, "width": 2, "patch": [2, 2], "base_fps": 60, "local_window": 2},
        **{"global_window": 4, "global_pinned_dilation": 2, "global_attn_period": 2, "global_attn_offset": 1},
        **{"value_residual": False, "rope_impl": "ortho", "gated_attn": True, "noise_conditioning": "wan"},
        **{"ctrl_conditioning": "mlp_fusion", "ctrl_conditioning_period": 2, "prompt_conditioning": "cross_attention"},
        **{"prompt_embedding_dim": 16, "prompt_conditioning_period": 2, "scheduler_sigmas": [1.0, 0.5, -0.0]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
