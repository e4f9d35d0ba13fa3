"""Fine-tune a pretrained diffusion model to the actions, rewards and terminations of an environment."""

from __future__ import annotations

from typing import Any

from vwm.core.components import COMPONENT_CONFIG_FILE, copy_weights, load_component, rebuild_network
from vwm.hub.bundle_names import find_folder
from vwm.models.dit.module import DiTModule
from vwm.models.dit.network import DiT
from vwm.nn.lora import AdaptationMode, LoRAConfig, merge_lora, prepare_finetuning


class DiTFinetuning(DiTModule):
    """Learn the actions of an environment from a small labeled recording, with a pretrained model.

    The model may be pretrained without actions or with those of another environment, which are dropped. All entries of
    the new action embedding are initialized to the embedding of an unknown action, so that the model initially predicts
    the same as before, for all actions.

    Args:
        world: the pretrained bundle, which is also needed whenever the run is loaded.
        num_actions, action_dims, action_parts: actions of the environment; see ``DiT``.
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
        num_actions: int = 0,
        action_dims: int = 0,
        action_parts: list[dict[str, Any]] | None = None,
        adapt: AdaptationMode = "lora",
        lora: LoRAConfig | None = None,
        **rest: Any,
    ) -> None:
        folder = find_folder(world) / "dynamics"
        if not (folder / COMPONENT_CONFIG_FILE).is_file():
            raise ValueError(f"world={world}: there is no bundle (create one with: vwm export RUN -o {world})")
        actions = {"num_actions": num_actions, "action_dims": action_dims, "action_parts": action_parts}
        if not any(actions.values()):
            raise ValueError(f"set one of {', '.join(actions)}: fine-tuning needs the actions of the environment")
        pretrained = load_component(folder, DiT)
        dynamics = rebuild_network(pretrained, **actions)
        new = ("embed_action", "pool_actions")
        copy_weights(dynamics, pretrained, str(folder), new=new, settings=tuple(actions))
        assert isinstance(dynamics, DiT) and dynamics.embed_action is not None
        prepare_finetuning(dynamics, adapt, lora)
        dynamics.embed_action.init_constant(dynamics.no_action)
        dynamics.embed_action.requires_grad_(True)
        if dynamics.pool_actions is not None:
            dynamics.pool_actions.requires_grad_(True)
        super().__init__(tokenizer=world, dynamics=dynamics, pretrained=None, **rest)  # the weights are loaded already

    def merge(self) -> None:
        """Merge LoRA into the weights, which gives an ordinary ``DiT``."""
        merge_lora(self.dynamics)
