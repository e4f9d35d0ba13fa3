"""Load the worlds of Dreamer 4 in PyTorch from their published files, of both generations.

A checkpoint holds the weights and the arguments of its training (``args``), which state what the weights do not:
the size of frames and the number of heads. The first generation (nicklashansen/dreamer4) has ``tokenizer_ckpt.pt`` and
``dynamics_ckpt.pt``, the second (nicklashansen/mmbench2-models) ``tokenizer.pt`` and ``dynamics.pt``, with heads for
rewards and for a cloned policy. ``tasks.json`` of the authors' code describes the tasks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vwm.core.family import PublishedWorld
from vwm.core.json_files import read_json_object
from vwm.core.published_files import as_state_dict, find_published_file, read_published_weights
from vwm.core.spaces import ActionSpace
from vwm.core.suggestions import suggest
from vwm.core.weight_mapping import (
    PretrainedWeightsError,
    StateDict,
    count_numbered_layers,
    get_weight,
    load_mapped_weights,
)
from vwm.models.dreamer4.agent_heads import Dreamer4PolicyHead, Dreamer4RewardHead
from vwm.models.dreamer4.network import Dreamer4Dynamics
from vwm.models.dreamer4.sampling import Dreamer4Sampling
from vwm.models.dreamer4.simulator import Dreamer4Simulator
from vwm.models.dreamer4.tokenizer import Dreamer4Tokenizer

TOKENIZER_FILES = ("tokenizer.pt", "tokenizer_ckpt.pt")
DYNAMICS_FILES = ("dynamics.pt", "dynamics_ckpt.pt")
TASKS_FILE = "tasks.json"
MAX_TASKS_BYTES = 2**26
WRAPPERS = "_orig_mod|module|dynamics|dyn|rew_head|reward_head|policy_head|bc_head"
DEFAULT_ACTION_INPUTS = 16
"""Numbers of an action in every published checkpoint, unless its arguments say otherwise."""
FIRST_SAMPLING = Dreamer4Sampling(steps=2)
SECOND_SAMPLING = Dreamer4Sampling(steps=8, context_noise=0.01, warm_start=0.125)
"""The authors' settings of each generation."""
ORIGIN = "Weights by Nicklas Hansen, published as nicklashansen/{} on the Hugging Face Hub. Task: {}."


class Task(NamedTuple):
    """A task of ``tasks.json``: its number of actions, and the embedding of its instruction where there is one."""

    name: str
    action_dims: int
    embedding: Tensor | None


def load_dreamer4(source: Path, task: str = "") -> PublishedWorld:
    """Load a world.

    Args:
        source: folder with both checkpoints, and ``tasks.json`` where a task is named.
        task: name of a task; empty for all actions and no instruction.

    Raises:
        PretrainedWeightsError: a file is missing or broken, or weights are missing, of another shape or not used.
        ValueError: there is no such task.
    """
    tokenizer = load_dreamer4_tokenizer(find_published_file(source, TOKENIZER_FILES))
    file = find_published_file(source, DYNAMICS_FILES)
    checkpoint = read_published_weights(file)
    chosen = read_task(source / TASKS_FILE, task) if task else None
    dynamics = load_dreamer4_dynamics(checkpoint, tokenizer, chosen, f"{file}, dynamics")
    reward = _load_reward_head(checkpoint, f"{file}, rew_head")
    policy = _load_policy_head(checkpoint, f"{file}, policy_head")
    size = dynamics.action_inputs if chosen is None else chosen.action_dims
    simulator = Dreamer4Simulator(
        tokenizer,
        dynamics,
        reward,
        ActionSpace("continuous", size, tuple(f"action {number}" for number in range(size))),
        trained_policy=policy,
        sampling=SECOND_SAMPLING if dynamics.rotary else FIRST_SAMPLING,
        fps=10.0,
        context_frames=1,
        title=f"Dreamer 4: {task}" if task else "Dreamer 4",
    )
    published_as = "mmbench2-models" if dynamics.rotary else "dreamer4"
    return PublishedWorld(simulator, license="mit", origin=ORIGIN.format(published_as, task or "none"))


def read_task(file: Path, name: str) -> Task:
    """Read a task. Raises ValueError where the file is missing or has no such task."""
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file: take it from the authors' code for the task {name!r}")
    tasks = read_json_object(file, MAX_TASKS_BYTES)
    if not isinstance(tasks.get(name), dict):
        raise ValueError(f"{file}: there is no task {name!r}{suggest(name, tasks)} among {len(tasks)}")
    size, embedding = tasks[name].get("action_dim"), tasks[name].get("text_embedding")
    if type(size) is not int or size < 1:
        raise ValueError(f"{file}: action_dim of {name!r} must be a number of 1 or more, got {size!r}")
    return Task(name, size, None if embedding is None else torch.tensor(embedding, dtype=torch.float32))


def load_dreamer4_tokenizer(file: Path) -> Dreamer4Tokenizer:
    """Load a tokenizer. Raises PretrainedWeightsError, see ``load_dreamer4``."""
    checkpoint, where = read_published_weights(file), f"{file}, model"
    weights, arguments = as_state_dict(checkpoint.get("model"), where, WRAPPERS), _arguments(checkpoint)
    patches, width = get_weight(weights, "decoder.patch_queries", where).shape
    patch_size = math.isqrt(get_weight(weights, "encoder.patch_proj.weight", where).shape[1] // 3)
    side = math.isqrt(patches) * patch_size
    latents = get_weight(weights, "encoder.latents", where).shape[0]
    network = Dreamer4Tokenizer(
        image_size=(int(arguments.get("H", side)), int(arguments.get("W", side))),
        patch_size=patch_size,
        latents=latents,
        channels=get_weight(weights, "encoder.bottleneck_proj.weight", where).shape[0],
        width=width,
        **_transformer_sizes(weights, arguments, "encoder.transformer.", where),
    )
    return load_mapped_weights(network, weights, lambda name: [name], where)


def load_dreamer4_dynamics(
    checkpoint: dict[str, Any], tokenizer: Dreamer4Tokenizer, task: Task | None, where: str
) -> Dreamer4Dynamics:
    """Load the dynamics for a task, or none. Raises PretrainedWeightsError, see ``load_dreamer4``."""
    weights, arguments = as_state_dict(checkpoint.get("dynamics"), where, WRAPPERS), _arguments(checkpoint)
    width, packed = get_weight(weights, "spatial_proj.weight", where).shape
    signal_levels, noise_width = get_weight(weights, "signal_embed.weight", where).shape
    weights["agents"] = _agent_tokens(weights, arguments, width, task, where)
    network = Dreamer4Dynamics(
        latents=tokenizer.grid[1],
        channels=tokenizer.channels,
        packing=packed // tokenizer.channels,
        width=width,
        registers=get_weight(weights, "register_tokens", where).shape[0],
        agent_tokens=len(weights["agents"]),
        agent_attention=_agent_attention(arguments, rotary=noise_width < width),
        signal_levels=signal_levels - 1,
        action_inputs=get_weight(weights, "action_encoder.fc1.weight", where).shape[1],
        **_transformer_sizes(weights, arguments, "transformer.", where),
    )
    return load_mapped_weights(network, weights, lambda name: [name], where)


def _agent_tokens(weights: StateDict, arguments: dict[str, Any], width: int, task: Task | None, where: str) -> Tensor:
    """Return what the agent tokens begin with, [k, d]; the projection of instructions is taken out of the weights."""
    projection, bias = weights.pop("task_proj.weight", None), weights.pop("task_proj.bias", None)
    if projection is None or bias is None:
        return torch.zeros(int(arguments.get("n_agent", 0)), width)
    if task is None or task.embedding is None:
        return torch.zeros(len(projection) // width, width)
    if tuple(task.embedding.shape) != (projection.shape[1],):
        raise PretrainedWeightsError(
            f"{where}: takes instructions of {projection.shape[1]} numbers, and text_embedding of {task.name!r} has "
            f"shape {list(task.embedding.shape)}"
        )
    return (projection.float() @ task.embedding + bias.float()).unflatten(0, (-1, width))


def _load_reward_head(checkpoint: dict[str, Any], where: str) -> Dreamer4RewardHead | None:
    if checkpoint.get("rew_head") is None:
        return None
    weights, width, hidden = _head_weights(checkpoint["rew_head"], where)
    centers = get_weight(weights, "centers_log", where, axes=1)
    network = Dreamer4RewardHead(
        width=width,
        hidden=hidden,
        rewards=get_weight(weights, "out.weight", where).shape[0] // len(centers),
        bins=len(centers),
        limit=float(centers[-1]),
    )
    return load_mapped_weights(network, weights, lambda name: [name], where)


def _load_policy_head(checkpoint: dict[str, Any], where: str) -> Dreamer4PolicyHead | None:
    if checkpoint.get("policy_head") is None:
        return None
    weights, width, hidden = _head_weights(checkpoint["policy_head"], where)
    action_inputs = int(_arguments(checkpoint).get("bc_act_dim", DEFAULT_ACTION_INPUTS))
    network = Dreamer4PolicyHead(
        width=width,
        hidden=hidden,
        steps=max(1, get_weight(weights, "out.weight", where).shape[0] // action_inputs),
        action_inputs=action_inputs,
    )
    return load_mapped_weights(network, weights, lambda name: [name], where)


def _head_weights(weights: Any, where: str) -> tuple[StateDict, int, int]:
    """Return the weights of a head that reads agent tokens, its width, and that of its perceptron."""
    weights = as_state_dict(weights, where, WRAPPERS)
    if "pool_query" not in weights:
        raise PretrainedWeightsError(f"{where}: has no pool_query: only heads that pool agent tokens by attention load")
    width, hidden = get_weight(weights, "projector.fc_out.weight", where).shape
    return weights, width, hidden


def _transformer_sizes(weights: StateDict, arguments: dict[str, Any], prefix: str, where: str) -> dict[str, Any]:
    """Return the settings that tokenizer and dynamics share; the second generation's weights tell the heads."""
    depth = count_numbered_layers(weights, f"{prefix}layers")
    timed = [layer for layer in range(depth) if f"{prefix}layers.{layer}.norm2.scale" in weights]
    scale = weights.get(f"{prefix}layers.0.space.attn.log_qk_scale")
    return {
        "depth": depth,
        "hidden": get_weight(weights, f"{prefix}layers.0.mlp.fc_out.weight", where).shape[1],
        "heads": int(arguments.get("n_heads", 4)) if scale is None else len(scale),
        "time_every": timed[0] + 1 if timed else depth + 1,
        "rotary": scale is not None,
        "scaled_positions": bool(arguments.get("scale_pos_embeds", True)),
    }


def _agent_attention(arguments: dict[str, Any], rotary: bool) -> str:
    if rotary:
        return "reading"
    return "mixed" if arguments.get("space_mode") == "wm_agent" else "isolated"


def _arguments(checkpoint: dict[str, Any]) -> dict[str, Any]:
    arguments = checkpoint.get("args")
    return arguments if isinstance(arguments, dict) else {}
