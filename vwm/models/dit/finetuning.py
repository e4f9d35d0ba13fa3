"""Fine-tuning a pretrained diffusion world to an environment's true actions, rewards and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vwm.core.components import COMPONENT_CONFIG_FILE, copy_weights, load_component, rebuild_network
from vwm.models.dit.module import DiTModule
from vwm.models.dit.network import DiT
from vwm.nn.actions import ActionEmbedding
from vwm.nn.lora import AdaptationMode, LoRAConfig, merge_lora, prepare_finetuning


class DiTFinetuning(DiTModule):
    """Learn an environment's actions from a small labelled recording, by a world pretrained without labels.

    Or with those of another game, which are forgotten. The new embedding (the action adapter) begins with every action
    as the vector that stands for an unknown one, so that the world begins as it was, whatever is done in it.

    Args:
        world: the pretrained bundle. The run needs it whenever it is loaded.
        num_actions, action_dims: of the environment; see ``DiT``.
        adapt: what of the dynamics may move beside the action adapter: nothing (``frozen``), ``lora``, or everything
            (``trained``).
        lora: settings of ``adapt: lora``; null takes its defaults.
        **rest: see ``DiTModule``; ``outcomes`` learns reward and end. There is no ``pretrained``, for ``world`` is.

    Raises:
        ValueError: no bundle; no actions; settings that do not fit.
    """

    def __init__(
        self,
        world: str,
        num_actions: int | list[int] = 0,
        action_dims: int = 0,
        adapt: AdaptationMode = "lora",
        lora: LoRAConfig | None = None,
        **rest: Any,
    ) -> None:
        folder = Path(world) / "dynamics"
        if not (folder / COMPONENT_CONFIG_FILE).is_file():
            raise ValueError(f"world={world}: there is no bundle (vwm export RUN -o {world})")
        if not num_actions and not action_dims:
            raise ValueError("set num_actions or action_dims: fine-tuning is to an environment's actions")
        pretrained = load_component(folder, DiT)
        dynamics = rebuild_network(pretrained, num_actions=num_actions, action_dims=action_dims)
        copy_weights(dynamics, pretrained, str(folder), new=("embed_action",), settings=("num_actions", "action_dims"))
        assert isinstance(dynamics, DiT) and dynamics.embed_action is not None
        prepare_finetuning(dynamics, adapt, lora)
        init_constant_embedding(dynamics.embed_action, dynamics.no_action)
        dynamics.embed_action.requires_grad_(True)
        super().__init__(tokenizer=world, dynamics=dynamics, pretrained=None, **rest)  # it began as the world already

    def merge(self) -> None:
        """Make ordinary dynamics of it: LoRA becomes part of the weights."""
        merge_lora(self.dynamics)


@torch.no_grad()
def init_constant_embedding(embedding: ActionEmbedding, vector: Tensor) -> None:
    """Make every action the same vector [d], from which each goes its own way."""
    for table in embedding.tables:
        assert isinstance(table, nn.Embedding)
        table.weight.zero_()
    if embedding.mlp is not None:
        last = embedding.mlp[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.copy_(vector)
    else:
        first = embedding.tables[0]
        assert isinstance(first, nn.Embedding)
        first.weight.copy_(vector.expand_as(first.weight))
