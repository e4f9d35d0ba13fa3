"""Fine-tune a pretrained Genie model to the true actions, rewards and terminations of an environment."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from vwm.core.components import COMPONENT_CONFIG_FILE, load_component, rebuild_network
from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch
from vwm.data.datamodule import ClipLoader
from vwm.hub.bundle_names import find_folder
from vwm.models.genie.action_map import LatentActionMap, count_action_pairs
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.module import GenieModule
from vwm.nn.lora import AdaptationMode, LoRAConfig, merge_lora, prepare_finetuning


class GenieFinetuning(GenieModule):
    """Learn true actions from a small labeled recording, with a model pretrained on video.

    For a model with latent actions, the action map is initialized by their co-occurrence with true actions; for a model
    with the actions of another environment, it is initialized uniformly.

    Args:
        world: the pretrained bundle, which is also needed whenever the run is loaded.
        num_actions: number of true discrete actions of the environment.
        adapt: how the dynamics is trained, apart from the action map: not at all (``frozen``), ``lora``, or all weights
            (``trained``).
        lora: settings of ``adapt: lora``; null for its defaults.
        action_map_clips: number of training clips that initialize the action map.
        **rest: see ``GenieModule``; ``outcomes`` learns reward and termination.

    Raises:
        ValueError: there is no bundle, its actions are not discrete, or ``lora`` is set without ``adapt: lora``.
    """

    def __init__(
        self,
        world: str,
        num_actions: int,
        adapt: AdaptationMode = "lora",
        lora: LoRAConfig | None = None,
        action_map_clips: int = 256,
        **rest: Any,
    ) -> None:
        folder = find_folder(world)
        if not (folder / "dynamics" / COMPONENT_CONFIG_FILE).is_file():
            raise ValueError(f"world={world}: there is no bundle (create one with: vwm export RUN -o {world})")
        dynamics = load_component(folder / "dynamics", MaskGITDynamics)
        assert isinstance(dynamics, MaskGITDynamics)
        if not dynamics.action_space.is_discrete:
            raise ValueError(
                f"world={world} takes {dynamics.action_space}: only discrete ones can be mapped to new actions"
            )
        super().__init__(tokenizer=world, dynamics=dynamics, latent_action=None, **rest)
        self.reads_frames = True  # from which the action map is initialized
        self.world = folder
        self.num_actions = num_actions
        self.action_map_clips = action_map_clips
        prepare_finetuning(dynamics, adapt, lora)
        assert isinstance(dynamics.embed_action, nn.Embedding)
        dynamics.embed_action = LatentActionMap(num_actions, dynamics.embed_action)
        dynamics.train()

    def on_fit_start(self) -> None:
        """Lightning's hook: initialize the action map, unless it was loaded from a checkpoint."""
        if not self._action_map.begun and (self.world / "latent_action" / COMPONENT_CONFIG_FILE).is_file():
            train_loader = self.trainer.datamodule.train_dataloader()
            # All ranks read the same clips, so that they initialize the same map.
            loader = ClipLoader(train_loader.dataset, train_loader.batch_size)
            self.initialize_action_map(islice(iter(loader), -(-self.action_map_clips // train_loader.batch_size)))

    @torch.no_grad()
    def initialize_action_map(self, batches: Any) -> None:
        """Initialize the action map by counting which latent actions are inferred where true ones were taken.

        Args:
            batches: ``ClipBatch`` with frames and actions.

        Raises:
            ValueError: the latent actions of the bundle are not those of its dynamics, or the clips lack frames or
                actions.
        """
        latent_action = load_component(self.world / "latent_action", LatentActionModel)
        assert isinstance(latent_action, LatentActionModel)
        num_latent_actions = self._action_map.logits.shape[1]
        if latent_action.num_actions != num_latent_actions:
            raise ValueError(
                f"{self.world}: latent_action infers {latent_action.num_actions} actions, but dynamics takes "
                f"{num_latent_actions}: they are not from the same model"
            )
        latent_action.to(self.device)
        counts = torch.zeros(self.num_actions, num_latent_actions, dtype=torch.int64)
        for batch in batches:
            if batch.frames is None:
                raise ValueError(
                    "the action map is initialized by latent actions, inferred from frames: add frames to data.fields"
                )
            actions, _, _ = self._actions(batch)
            latents = latent_action.infer(frames_to_float(batch.frames.to(self.device))).actions.cpu()
            counts += count_action_pairs(actions.cpu(), latents, (self.num_actions, num_latent_actions))
        self._action_map.initialize(counts.to(self.device))
        num_seen = int((counts.sum(dim=1) > 0).sum())
        print(f"action map: {int(counts.sum())} transitions with {num_seen} of the {self.num_actions} actions")

    def merge(self) -> None:
        """Merge LoRA into the weights and the map into an embedding, which gives an ordinary ``MaskGITDynamics``."""
        merge_lora(self.dynamics)
        self.dynamics.embed_action = self._action_map.to_embedding()
        plain = rebuild_network(self.dynamics, num_actions=self.num_actions)
        plain.load_state_dict(self.dynamics.state_dict())
        self.dynamics = plain.to(self.device).eval()

    @property
    def _action_map(self) -> LatentActionMap:
        assert isinstance(self.dynamics.embed_action, LatentActionMap)
        return self.dynamics.embed_action

    def _actions(self, batch: ClipBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See ``GenieModule``. Raises ValueError for missing, unlabeled or invalid actions."""
        if batch.actions is None:
            raise ValueError("these shards hold no actions: fine-tuning needs a labeled recording (vwm record)")
        if batch.labeled is not None and not batch.labeled.all():
            raise ValueError("Genie's fine-tuning learns from labeled clips only: set data.labeled_fraction to 1")
        if batch.actions.is_floating_point() or batch.actions.ndim != 2:
            raise ValueError(f"actions must be integers [b, t], got {batch.actions.dtype} {list(batch.actions.shape)}")
        if self.checks_values(batch.actions):
            low, high = int(batch.actions.min()), int(batch.actions.max())
            if low < 0 or high >= self.num_actions:
                raise ValueError(f"actions run from {low} to {high}, but num_actions={self.num_actions}")
        return super()._actions(batch)
