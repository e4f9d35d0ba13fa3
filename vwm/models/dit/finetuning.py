"""Fine-tune a pretrained diffusion model to the actions, rewards and terminations of an environment."""

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
    """Learn the actions of an environment from a small labeled recording, with a pretrained model.

    The model may be pretrained without actions or with those of another environment, which are dropped. All entries of
    the new action embedding are initialized to the embedding of an unknown action, so that the model initially predicts
    the same as before, for all actions.

    Args:
        world: the pretrained bundle, which is also needed whenever the run is loaded.
        num_actions, action_dims: actions of the environment; see ``DiT``.
        adapt: how the dynamics is trained, apart from the action embedding: not at all (``frozen``), ``lora``, or all
            weights (``trained``).
        lora: settings of ``adapt: lora``; null for its defaults.
        **rest: see ``DiTModule``; ``outcomes`` learns reward and termination. ``pretrained`` is replaced by ``world``.

    Raises:
        ValueError: there is no bundle, no actions are set, or ``lora`` is set without ``adapt: lora``.
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
            raise ValueError(f"world={world}: there is no bundle (create one with: vwm export RUN -o {world})")
        if not num_actions and not action_dims:
            raise ValueError("set num_actions or action_dims: fine-tuning needs the actions of the environment")
        pretrained = load_component(folder, DiT)
        dynamics = rebuild_network(pretrained, num_actions=num_actions, action_dims=action_dims)
        new = ("embed_action", "pool_actions")
        copy_weights(dynamics, pretrained, str(folder), new=new, settings=("num_actions", "action_dims"))
        assert isinstance(dynamics, DiT) and dynamics.embed_action is not None
        prepare_finetuning(dynamics, adapt, lora)
        init_constant_embedding(dynamics.embed_action, dynamics.no_action)
        dynamics.embed_action.requires_grad_(True)
        if dynamics.pool_actions is not None:
            dynamics.pool_actions.requires_grad_(True)
        super().__init__(tokenizer=world, dynamics=dynamics, pretrained=None, **rest)  # the weights are loaded already

    def merge(self) -> None:
        """Merge LoRA into the weights, which gives an ordinary ``DiT``."""
        merge_lora(self.dynamics)


@torch.no_grad()
def init_constant_embedding(embedding: ActionEmbedding, vector: Tensor) -> None:
    """Initialize the embedding so that every action has the same vector [d]."""
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
