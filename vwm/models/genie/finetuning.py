"""Fine-tuning a pretrained Genie world to an environment's true actions, rewards and ends."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vwm.core.components import COMPONENT_CONFIG_FILE, load_component, rebuild_network
from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch
from vwm.data.datamodule import ClipLoader
from vwm.models.genie.action_map import LatentActionMap, count_action_pairs
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.module import GenieModule
from vwm.nn.lora import AdaptationMode, LoRAConfig, merge_lora, prepare_finetuning


class GenieFinetuning(GenieModule):
    """Learn true actions from a small labelled recording, by a world that was pretrained on video.

    In a world with latent actions the action map begins with their co-occurrence with the true ones; in a world with
    another game's actions it begins with all of those alike.

    Args:
        world: the pretrained bundle. The run needs it whenever it is loaded.
        num_actions: true discrete actions of the environment.
        adapt: what of the dynamics may move beside the action map: nothing (``frozen``), ``lora``, or everything
            (``trained``).
        lora: settings of ``adapt: lora``; null takes its defaults.
        action_map_clips: how many training clips the action map is begun with.
        **rest: see ``GenieModule``; ``outcomes`` learns reward and end.

    Raises:
        ValueError: no bundle, or one whose dynamics has continuous actions; settings that do not fit.
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
        folder = Path(world)
        if not (folder / "dynamics" / COMPONENT_CONFIG_FILE).is_file():
            raise ValueError(f"world={world}: there is no bundle (vwm export RUN -o {world})")
        dynamics = load_component(folder / "dynamics", MaskGITDynamics)
        assert isinstance(dynamics, MaskGITDynamics)
        if dynamics.continuous:
            raise ValueError(f"{world} has continuous actions, of which no map to discrete ones can be made")
        super().__init__(tokenizer=world, dynamics=dynamics, latent_action=None, **rest)
        self.world, self.num_actions, self.action_map_clips = folder, num_actions, action_map_clips
        prepare_finetuning(dynamics, adapt, lora)
        assert isinstance(dynamics.embed_action, nn.Embedding)
        dynamics.embed_action = LatentActionMap(num_actions, dynamics.embed_action)
        dynamics.train()

    def on_fit_start(self) -> None:
        """Lightning's hook: begin the action map, where no checkpoint said what it has become."""
        if not self._map.begun and (self.world / "latent_action" / COMPONENT_CONFIG_FILE).is_file():
            own = self.trainer.datamodule.train_dataloader()
            same = ClipLoader(own.dataset, own.batch_size)  # on every rank, so that all begin with one map
            self.initialize_action_map(islice(iter(same), -(-self.action_map_clips // own.batch_size)))

    @torch.no_grad()
    def initialize_action_map(self, batches: Any) -> None:
        """Count which latent actions are inferred where true ones were taken, and begin the action map with it.

        Args:
            batches: ``ClipBatch`` with frames and actions.

        Raises:
            ValueError: the bundle's latent actions are not its dynamics', or the clips lack what is counted.
        """
        inferring = load_component(self.world / "latent_action", LatentActionModel)
        assert isinstance(inferring, LatentActionModel)
        known = self._map.logits.shape[1]
        if inferring.num_actions != known:
            raise ValueError(
                f"{self.world}: latent_action infers {inferring.num_actions} actions, but dynamics takes {known}: "
                "they are not of one world"
            )
        inferring.to(self.device)
        counts = torch.zeros(self.num_actions, known, dtype=torch.int64)
        for batch in batches:
            if batch.frames is None:
                raise ValueError(
                    "the action map begins with latent actions, inferred from pixels: add frames to data.fields"
                )
            actions, _, _ = self._actions(batch)
            latents = inferring.infer(frames_to_float(batch.frames.to(self.device))).indices.cpu()
            counts += count_action_pairs(actions.cpu(), latents, (self.num_actions, known))
        self._map.begin(counts.to(self.device))
        seen = int((counts.sum(dim=1) > 0).sum())
        print(f"action map: {int(counts.sum())} transitions, {seen} of {self.num_actions} actions among them")

    def merge(self) -> None:
        """Make ordinary dynamics of true actions: the map becomes their embedding, LoRA part of the weights."""
        merge_lora(self.dynamics)
        self.dynamics.embed_action = self._map.merged()
        plain = rebuild_network(self.dynamics, num_actions=self.num_actions)
        plain.load_state_dict(self.dynamics.state_dict())
        self.dynamics = plain.to(self.device).eval()

    @property
    def _map(self) -> LatentActionMap:
        assert isinstance(self.dynamics.embed_action, LatentActionMap)
        return self.dynamics.embed_action

    def _actions(self, batch: ClipBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See ``GenieModule``; checked, for labels are what fine-tuning is about."""
        if batch.actions is None:
            raise ValueError("these shards hold no actions: fine-tuning needs a labelled recording (vwm record)")
        if batch.labeled is not None and not batch.labeled.all():
            raise ValueError("Genie's fine-tuning learns from labeled clips alone: set data.labeled_fraction to 1")
        if batch.actions.is_floating_point() or batch.actions.ndim != 2:
            raise ValueError(f"actions must be integers [b, t], got {batch.actions.dtype} {list(batch.actions.shape)}")
        if self.checks_values(batch.actions):
            low, high = int(batch.actions.min()), int(batch.actions.max())
            if low < 0 or high >= self.num_actions:
                raise ValueError(f"actions run from {low} to {high}, but num_actions={self.num_actions}")
        return super()._actions(batch)
