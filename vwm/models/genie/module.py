"""Training latent actions and dynamics together, over a frozen tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.components import load_component, load_pretrained_weights
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.clips import ClipBatch
from vwm.hub.bundle_names import find_folder
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.sampling import MaskGITSampling, sample_token_frame
from vwm.nn.action_pooling import check_actions_after_latents, sum_outcomes
from vwm.nn.context_parallel import ContextGroup
from vwm.nn.loss_normalizer import LossNormalizer
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.nn.precision import at_least_float32
from vwm.nn.quantize import code_counts, perplexity
from vwm.nn.tensor_parallel import TensorGroup, divide_blocks
from vwm.nn.training_module import TrainingModule, known_actions
from vwm.tokenizers.loading import load_tokenizer
from vwm.tokenizers.token_dynamics import check_equal_settings, token_setting_pairs

MIN_ACTION_NATS = 0.1
"""Continuous latent actions that carry less, on average over transitions, are reported as collapsed."""

ACTION_WEIGHTS = ("embed_action", "no_action", "pool_actions")
SETTINGS_THAT_MAY_DIFFER = ("num_actions", "continuous", "action_parts", "action_pooling", "window",
                            "min_mask_rate", "context_corruption")  # fmt: skip
"""Weights and settings in which a dynamics may differ from the pretrained one: the others would not fit."""


class GenieModule(TrainingModule):
    """Genie's second stage: latent actions and dynamics.

    The latent action model learns from its own reconstruction only: the dynamics takes its actions as indices, or as
    numbers without a gradient.

    Args:
        tokenizer: a trained tokenizer: a bundle, or its ``tokenizer`` folder.
        dynamics: the dynamics transformer.
        latent_action: the latent action model; null trains on the true actions of the recording instead.
        optimizer: learning rate and schedule of both.
        context_frames: true frames at the start of a sample video; latents, where a latent holds several frames.
        sampling_steps: MaskGIT steps of the sample videos.
        collapse_threshold: an action perplexity below this share of the number of actions warns of collapsed actions.
        pretrained_actions: a trained latent action model, which stays as it is, instead of ``latent_action``: a run's
            export of ``LatentActionModule``, a bundle, or the ``latent_action`` folder of either.
        pretrained: a bundle over the same tokenizer, whose dynamics initializes this one, except for the embedding of
            actions, which mean something else; null initializes randomly.
        outcomes: heads for reward and termination; null learns none. They require true actions (``latent_action`` null:
            the action that ends an episode leads to no frame from which it could be inferred), and rewards (and
            terminated) in data.fields.
    """

    progress_bar: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"acc": "accuracy", "actions": "action_perplexity", "action nats": "action_nats"}
    )

    def __init__(
        self,
        tokenizer: str | os.PathLike[str],
        dynamics: MaskGITDynamics,
        optimizer: OptimizerConfig,
        latent_action: LatentActionModel | None = None,
        context_frames: int = 4,
        sampling_steps: int = 8,
        collapse_threshold: float = 0.25,
        outcomes: RewardTerminationHeads | None = None,
        pretrained_actions: str | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        if pretrained_actions is not None:
            if latent_action is not None:
                raise ValueError("pretrained_actions replaces latent_action: set latent_action to null")
            latent_action = _load_latent_actions(pretrained_actions)
        self.learns_actions = pretrained_actions is None
        self.tokenizer = load_tokenizer(tokenizer)
        self.tokenizer_folder = str(tokenizer)
        self.reads_frames = latent_action is not None
        self.dynamics = dynamics
        self.latent_action = latent_action
        self.optimizer = optimizer
        self.context_frames = context_frames
        self.sampling_steps = sampling_steps
        self.collapse_threshold = collapse_threshold
        self.outcomes = outcomes
        if outcomes is not None:
            self.scales = nn.ModuleDict({name: LossNormalizer() for name in ("dynamics", "reward", "end")})
        _check_components_match(self.tokenizer, dynamics, latent_action, outcomes)
        if pretrained is not None:
            folder = find_folder(pretrained) / "dynamics"
            load_pretrained_weights(dynamics, folder, new=ACTION_WEIGHTS, settings=SETTINGS_THAT_MAY_DIFFER)

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and what to log."""
        if self.outcomes is not None:
            return self._loss_with_rewards(batch)
        actions, action_loss, logs = self._actions(batch)
        known = self._known_actions(batch, actions.shape[1])
        loss, accuracy = self.dynamics.loss(self._tokens(batch).flatten(2), actions, known)
        return loss + action_loss, logs | {"dynamics_loss": loss.detach(), "accuracy": accuracy}

    def _loss_with_rewards(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the losses of frames, rewards and terminations, normalized to one scale, as in ``DiTModule``."""
        assert self.outcomes is not None
        if batch.rewards is None:
            raise ValueError("outcomes need rewards: name them in data.fields, or set outcomes to null")
        actions, _, _ = self._actions(batch)
        assert batch.actions is not None
        known = self._known_actions(batch, batch.actions.shape[1])
        known_between = None if known is None else known[:, : actions.shape[1]]
        loss, accuracy, features = self.dynamics.loss_with_features(
            self._tokens(batch).flatten(2), actions, known_between
        )
        per_latent = self.dynamics.frames_per_latent
        check_actions_after_latents(batch.actions, features.shape[1], per_latent)
        action_embedding = self.dynamics.embed_actions(batch.actions, known)
        outcomes = sum_outcomes(batch.rewards, batch.terminated, per_latent)
        reward, end = self.outcomes.losses(features, action_embedding, *outcomes)
        total = self.scales["dynamics"](loss) + self.scales["reward"](reward) + self.scales["end"](end)
        losses = {"dynamics_loss": loss.detach(), "reward_loss": reward.detach(), "termination_loss": end.detach()}
        return total, losses | {"accuracy": accuracy}

    def _actions(self, batch: ClipBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the actions between the video frames, [b, t-1, ...], and the latent action loss or 0."""
        if self.latent_action is None:
            if batch.actions is None:
                raise ValueError(
                    "latent_action is null, so the true actions are needed, and these shards hold none: "
                    "set model.latent_action to learn actions from the video"
                )
            per_latent = self.dynamics.frames_per_latent
            between = (batch.actions.shape[1] - 1) // per_latent * per_latent  # those after the last latent lead on
            return batch.actions[:, :between], torch.zeros((), device=self.device), {}
        if batch.frames is None:
            raise ValueError("latent actions are inferred from pixels: add frames to data.fields")
        video = frames_to_float(batch.frames)
        if not self.learns_actions:
            inferred = self.latent_action.infer(video).actions
            return inferred, video.new_zeros(()), self._count_actions(inferred)
        predicted, actions = self.latent_action(video)
        reconstruction = F.mse_loss(at_least_float32(predicted), video[:, 1:])
        copied = F.mse_loss(video[:, :-1], video[:, 1:])
        logs = {
            "lam_loss": reconstruction.detach(),
            "lam_gain": 1 - reconstruction.detach() / copied.clamp(min=1e-8),
        }
        if self.latent_action.continuous:
            logs["action_nats"] = actions.loss.detach() / self.latent_action.config.kl_weight
        return actions.actions, reconstruction + actions.loss, logs | self._count_actions(actions.actions)

    def _count_actions(self, actions: Tensor) -> dict[str, Tensor]:
        """Return the perplexity of discrete latent actions."""
        if self.latent_action is None or self.latent_action.continuous:
            return {}
        return {"action_perplexity": perplexity(code_counts(actions, self.latent_action.num_actions))}

    def _known_actions(self, batch: ClipBatch, steps: int) -> Tensor | None:
        """Return which recorded actions are known, see ``known_actions``; all latent ones are."""
        return None if self.latent_action is not None else known_actions(batch, steps)

    @torch.no_grad()
    def _tokens(self, batch: ClipBatch) -> Tensor:
        """Return the tokens, int64 [b, t, h, w], as encoded shards hold them, or encode the frames."""
        if batch.latents is not None:
            return batch.latents
        return self.tokenizer.encode(frames_to_float(batch.frames))

    def validation_losses(self, batch: ClipBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TrainingModule``: the losses, and how much higher the dynamics' is with shuffled actions."""
        loss, logs = self(batch)
        actions, _, _ = self._actions(batch)
        tokens = self._tokens(batch).flatten(2)
        mask = torch.ones_like(tokens[:, 1:], dtype=torch.bool)

        known = self._known_actions(batch, actions.shape[1])

        def cross_entropy(given: Tensor) -> Tensor:
            logits = self.dynamics(tokens, given, mask, known)
            return F.cross_entropy(at_least_float32(logits).flatten(0, 2), tokens[:, 1:].flatten())

        shuffled = actions.roll(1, dims=0)
        logs["shuffle_ratio"] = cross_entropy(shuffled) / cross_entropy(actions)
        return loss, logs

    def on_validation_epoch_end(self) -> None:
        """Warn of collapsed or ignored actions."""
        metrics = self.trainer.callback_metrics
        if not self.trainer.is_global_zero or self.latent_action is None or "val/shuffle_ratio" not in metrics:
            return
        size = self.latent_action.num_actions
        if self.latent_action.continuous:
            nats = float(metrics.get("val/action_nats", MIN_ACTION_NATS))
            collapsed, used = nats < MIN_ACTION_NATS, f"val/action_nats is {nats:.2f}"
            remedy = "Lower latent_action.kl_weight, set"
        else:
            count = float(metrics["val/action_perplexity"])
            collapsed = count < max(1.05, self.collapse_threshold * size)
            used = f"val/action_perplexity is {count:.2f} of {size}"
            remedy = "Try FSQ levels for latent_action.codebook,"
        if collapsed:
            print(
                f"\nalarm: the latent actions have collapsed ({used}). {remedy} latent_action.decoder_context=first, "
                "or use data with more events."
            )
        if float(metrics["val/shuffle_ratio"]) < 1.005:
            print(
                "\nalarm: the dynamics ignores its actions (shuffled actions cost "
                f"{metrics['val/shuffle_ratio']:.3f} x the loss). Train longer, or check the actions first: {used}."
            )

    def share_clips(self, group: ContextGroup) -> None:
        """See ``TrainingModule``. Raises ValueError for latent actions of a VQ codebook."""
        if self.latent_action is not None:
            self.latent_action.share_clips(group)
        self.context_group = self.dynamics.context_group = group

    def divide_weights(self, group: TensorGroup) -> None:
        """See ``TrainingModule``. Raises ValueError for latent actions of a VQ codebook."""
        if self.latent_action is not None:
            self.latent_action.divide_weights(group)
        divide_blocks((self.dynamics,), group)
        self.tensor_group = group

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``: the tokenizer, and the latent action model where it was trained before."""
        if self.learns_actions or self.latent_action is None:
            return (self.tokenizer,)
        return self.tokenizer, self.latent_action

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule``."""
        trained = {"dynamics": self.dynamics, "latent_action": self.latent_action, "outcomes": self.outcomes}
        return {name: part for name, part in trained.items() if part is not None}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """See ``TrainingModule``: the batch's first frames, continued under its own actions."""
        actions, _, _ = self._actions(batch)
        tokens = self._tokens(batch)
        b, t = tokens.shape[:2]
        start, per_latent = min(self.context_frames, t - 1), self.dynamics.frames_per_latent
        state = self.dynamics.init_state(b)
        state = self.dynamics.observe(state, tokens[:, :1].flatten(2), None)
        if start > 1:
            state = self.dynamics.observe(state, tokens[:, 1:start].flatten(2), actions[:, : (start - 1) * per_latent])
        frames, sampling = [tokens[:, :start]], MaskGITSampling(steps=self.sampling_steps)
        seeds = world_seeds(0, b, tokens.device)
        for i in range(start - 1, t - 1):
            taken = actions[:, i * per_latent : (i + 1) * per_latent]
            state, frame = sample_token_frame(self.dynamics, state, taken, fold_in(seeds, i), sampling)
            frames.append(frame.unflatten(-1, self.tokenizer.grid)[:, None])
        return video_to_uint8(self.tokenizer.decode(torch.cat(frames, dim=1)))


def _load_latent_actions(path: str) -> LatentActionModel:
    """Load a frozen latent action model from its folder, or from a bundle that has one."""
    folder = find_folder(path)
    if (folder / "latent_action").is_dir():
        folder = folder / "latent_action"
    network = load_component(folder)
    if not isinstance(network, LatentActionModel):
        raise ValueError(f"pretrained_actions={path}: a {type(network).__name__}, not a latent action model")
    return network


def _check_components_match(
    tokenizer: VideoTokenizer,
    dynamics: MaskGITDynamics,
    latent_action: LatentActionModel | None,
    outcomes: RewardTerminationHeads | None,
) -> None:
    """Raise ValueError where the networks do not fit each other, naming both values."""
    pairs = token_setting_pairs(tokenizer, dynamics)
    if latent_action is not None:
        pairs.append(
            ("dynamics.num_actions", dynamics.num_actions, "latent_action's actions", latent_action.num_actions)
        )
        pairs.append(("dynamics.continuous", dynamics.continuous, "latent_action's actions", latent_action.continuous))
    if outcomes is not None:
        if latent_action is not None:
            raise ValueError(
                "outcomes require true actions, and these are latent: set latent_action or outcomes to null"
            )
        pairs.append(("outcomes.width", outcomes.config.width, "dynamics.width", dynamics.config.width))
    check_equal_settings(pairs)
