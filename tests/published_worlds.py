"""Small worlds of the families whose weights others publish, and files in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vwm.core.spaces import ActionSpace
from vwm.models.dreamer4.network import Dreamer4Dynamics
from vwm.models.dreamer4.reward_head import Dreamer4RewardHead
from vwm.models.dreamer4.sampling import Dreamer4Sampling
from vwm.models.dreamer4.simulator import Dreamer4Simulator
from vwm.models.dreamer4.tokenizer import Dreamer4Tokenizer
from vwm.models.oasis.actions import minecraft_actions
from vwm.models.oasis.network import OasisDiT, rotary_frequencies
from vwm.models.oasis.sampling import OasisSampling
from vwm.models.oasis.simulator import OasisSimulator
from vwm.models.oasis.vit_vae import OasisViTVAE

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


def dreamer4_world(rotary: bool = False) -> Dreamer4Simulator:
    """A Dreamer 4 of 16x16 pixels and three actions."""
    actions = ActionSpace("continuous", 3, ("x", "y", "z"))
    sampling = Dreamer4Sampling(steps=4, context_noise=0.1, warm_start=0.25) if rotary else Dreamer4Sampling(steps=2)
    return Dreamer4Simulator(
        *dreamer4_networks(rotary), actions, sampling=sampling, context_frames=2, title="noise", fps=3.0
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
        weights = {f"_orig_mod.{name}": value for name, value in weights.items()}
    torch.save(checkpoint | {"dynamics": weights}, folder / f"dynamics{ending}.pt")
