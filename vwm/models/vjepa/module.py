"""Masked pretraining: predict the representation of what is hidden from that of what is seen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from vwm.core.components import load_component
from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch
from vwm.models.vjepa.augmentation import RandomResizedCrop
from vwm.models.vjepa.collapse_monitor import (
    CollapseBaseline,
    CollapseMonitor,
    RepresentationMetrics,
    measure_representations,
)
from vwm.models.vjepa.collapse_regularizers import CollapseRegularizer
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import MaskSampler, TokenMask
from vwm.models.vjepa.motion_branch import MotionBranch
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.models.vjepa.visualization import pca_rgb_video
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.training_module import TrainingModule


@dataclass
class EMAMomentumSchedule:
    """How slowly the target encoder follows: target = m target + (1 - m) encoder, each step.

    Attributes:
        start: m at the first step.
        end: m at the trainer's ``max_steps``, reached in a straight line. 0 for both: the target is the encoder of
            the moment, with no gradient through it.
    """

    start: float = 0.998
    end: float = 0.9996

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or not 0 <= self.end <= 1:
            raise ValueError(f"momentum must lie between 0 and 1, got start={self.start}, end={self.end}")


@dataclass
class MaskedClips(ClipBatch):
    """Clips and what to hide of them."""

    masks: list[TokenMask] | None = None


class VJEPAModule(TrainingModule):
    """V-JEPA (arXiv 2404.08471) and V-JEPA 2 (arXiv 2506.09985); I-JEPA (arXiv 2301.08243) with clips of one frame.

    Args:
        encoder: the network to train.
        predictor: says what the encoder would say of hidden tokens; narrow.
        masks: how to hide; each is one pass of the encoder, and has its own mask token where the predictor has as many.
        optimizer: learning rate and schedule.
        momentum: of the target encoder; null has none: the encoder is its own target, with gradients through both
            sides. Then something else must prevent collapse.
        collapse: a regulariser of the encoder's tokens beside the prediction.
        motion: a branch that learns flow, jointly; it costs one more pass of the encoder, over whole clips.
        augment: random crops and flips; null takes clips as they are.
        monitor: watches the representations; null does not.
        weights: a folder with trained networks to start from (``encoder`` and ``predictor``: an export, or imported
            weights), for a cool-down or other data; their sizes are those of the config.
    """

    def __init__(
        self,
        encoder: VideoEncoder,
        predictor: MaskedPredictor,
        masks: list[MaskSampler],
        optimizer: OptimizerConfig,
        momentum: EMAMomentumSchedule | None = EMAMomentumSchedule(),  # noqa: B008 (not changed by anybody)
        collapse: CollapseRegularizer | None = None,
        motion: MotionBranch | None = None,
        augment: RandomResizedCrop | None = None,
        monitor: CollapseMonitor | None = CollapseMonitor(),  # noqa: B008 (holds settings alone)
        weights: str | None = None,
    ) -> None:
        super().__init__()
        check_vjepa_networks(encoder, predictor, masks)
        if weights is not None:
            load_pretrained_networks(weights, {"encoder": encoder, "predictor": predictor})
        self.encoder, self.predictor, self.masks, self.optimizer = encoder, predictor, masks, optimizer
        self.momentum, self.collapse, self.motion, self.augment = momentum, collapse, motion, augment
        self.target_encoder = None if momentum is None else copy.deepcopy(encoder).requires_grad_(False)
        self.monitor, self.baseline = monitor, CollapseBaseline()
        self._monitored_video: Tensor | None = None
        self._previous_features: Tensor | None = None
        self._last_monitored_step = -1

    def forward(self, batch: MaskedClips) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what to log."""
        assert batch.masks is not None
        video = self._video(batch)
        targets, whole = self._targets(video)
        losses, seen, tokens = [], [], self.predictor.config.mask_tokens
        for number, mask in enumerate(batch.masks):
            context = self.encoder(video, mask.keep)
            seen.append((context, mask.keep))
            for aims in mask.targets:
                said = self.predictor(context, mask.keep, aims, number % tokens, video.shape[1])
                losses.append((said.float() - gather_tokens(targets, aims)).abs().mean())
        loss = torch.stack(losses).mean()
        logs = {"prediction_loss": loss.detach()}
        if self.collapse is not None:
            of_whole = [(whole, self._all_token_indices(whole))] if whole is not None else seen
            penalty, more = self.collapse(
                torch.cat([subtract_position_mean(x, at, targets.shape[1]) for x, at in of_whole])
            )
            loss, logs = loss + penalty, logs | more
        if self.motion is not None:
            whole = self.encoder(video) if whole is None else whole
            moved, more = self.motion(whole, video, self.encoder.grid(video.shape[1]))
            loss, logs = loss + moved, logs | more
        return loss, logs

    def _targets(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """Layer-normed features of whole clips [b, n, d]; and, where gradients pass, the encoder's own of them."""
        if self.target_encoder is None:
            whole = self.encoder(video)
            return normalize_features(whole), whole
        with torch.no_grad():
            return normalize_features(self.target_encoder(video)), None

    def _all_token_indices(self, tokens: Tensor) -> Tensor:
        return torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)

    def _video(self, batch: ClipBatch) -> Tensor:
        video = frames_to_float(batch.frames)
        if self.augment is None or not self.training:
            return video
        assert batch.seed is not None
        return self.augment(video, batch.seed)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Draw the masks while the clips' seeds are on the CPU, so that no step waits for the device."""
        if not isinstance(batch, ClipBatch) or isinstance(batch, MaskedClips):
            return batch
        return self.draw_masks(batch)

    def draw_masks(self, batch: ClipBatch) -> MaskedClips:
        """The clips with masks, which are a function of their seeds."""
        assert batch.seed is not None
        grid = self.encoder.grid(batch.frames.shape[1])
        drawn = [masking.draw(batch.seed + number, grid) for number, masking in enumerate(self.masks)]
        return MaskedClips(**vars(batch), masks=drawn)

    def training_step(self, batch: MaskedClips, index: int) -> Tensor:
        """Lightning's hook; now and then, a look at the representations."""
        self._monitor_representations(batch)
        return super().training_step(batch, index)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook: after the encoder's step, the target follows (before anybody saves a checkpoint)."""
        super().optimizer_step(*args, **kwargs)
        if self.target_encoder is not None:
            assert self.momentum is not None
            share = min(1.0, self.global_step / max(1, self.trainer.max_steps))
            momentum = self.momentum.start + (self.momentum.end - self.momentum.start) * share
            update_target_encoder(self.target_encoder, self.encoder, momentum)

    @torch.no_grad()
    def _monitor_representations(self, batch: ClipBatch) -> None:
        monitor, step = self.monitor, self.global_step
        if monitor is None or step == self._last_monitored_step or step % monitor.every:
            return
        self._last_monitored_step = step
        if self._monitored_video is None:
            self._monitored_video = frames_to_float(batch.frames[: monitor.clips])
        features = normalize_features((self.target_encoder or self.encoder)(self._monitored_video))
        now = measure_representations(features, self._previous_features)
        self._previous_features = features
        self.log_dict({f"collapse/{name}": value for name, value in now._asdict().items()})
        self._report_collapse(monitor, now, self.baseline.get(now))

    def _report_collapse(
        self, monitor: CollapseMonitor, now: RepresentationMetrics, first: RepresentationMetrics
    ) -> None:
        trouble = monitor.alarm(now, first)
        self.log("collapse/alarm", float(trouble is not None))
        if trouble is None:
            return
        message = f"step {self.global_step}: {trouble}. {self.remedy()}"
        if monitor.stop:
            raise ValueError(message)
        rank_zero_warn(message, category=CollapseWarning)

    def remedy(self) -> str:
        """What to change in this run's config against a collapse, likeliest first."""
        if self.collapse is None and self.momentum is None:
            return "Nothing prevents a collapse here: set model.momentum, or model.collapse (SIGReg needs no momentum)."
        if self.collapse is None and self.momentum is not None and self.momentum.start < 0.99:
            return (
                f"The target follows too fast (model.momentum.start={self.momentum.start}): raise it to 0.99 or more, "
                "or add model.collapse."
            )
        if self.collapse is not None and self.momentum is None:
            return "Raise the weights of model.collapse, or give the run a target encoder (model.momentum)."
        return (
            f"Lower the learning rate (model.optimizer.lr={self.optimizer.lr}), raise model.momentum, hide more "
            "(model.masks), or add model.collapse (VarianceCovariance, SIGReg)."
        )

    def networks(self) -> dict[str, nn.Module]:
        """What to compile and to export."""
        trained: dict[str, nn.Module] = {"encoder": self.encoder, "predictor": self.predictor}
        return trained if self.target_encoder is None else trained | {"target_encoder": self.target_encoder}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """The batch's features in false colours, uint8 [b, t, H, W, 3]: their first three principal components."""
        video = frames_to_float(batch.frames)
        features = normalize_features((self.target_encoder or self.encoder)(video))
        return pca_rgb_video(features, self.encoder.grid(video.shape[1]), tuple(batch.frames.shape[1:4]))


class CollapseWarning(UserWarning):
    """The representations are collapsing."""


def normalize_features(features: Tensor) -> Tensor:
    """Features with their mean taken off and divided by their deviation, without learned scales."""
    return F.layer_norm(features.float(), features.shape[-1:])


def gather_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens [b, n, d] at places int64 [b, m]: [b, m, d]."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def subtract_position_mean(tokens: Tensor, places: Tensor, count: int) -> Tensor:
    """Tokens [b, k, d] less the mean of the batch's tokens at the same one of ``count`` places: [b*k, d].

    What is left tells clips apart. With the places in, a regulariser is content with an encoder that only tells those.
    """
    x, at = tokens.float().flatten(0, 1), places.flatten()
    sums = x.new_zeros(count, x.shape[1]).index_add(0, at, x)
    numbers = x.new_zeros(count).index_add(0, at, torch.ones_like(at, dtype=x.dtype))
    return x - (sums / numbers.clamp(min=1)[:, None])[at]


@torch.no_grad()
def update_target_encoder(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """target = momentum target + (1 - momentum) source, for every weight."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - momentum)


def check_vjepa_networks(encoder: VideoEncoder, predictor: MaskedPredictor, masks: Sequence[MaskSampler]) -> None:
    """Raise ValueError where the networks were not made for each other, naming both values."""
    if not masks:
        raise ValueError(
            "masks is empty: name at least one way to hide, vwm.models.vjepa.masking.MultiBlockMaskSampler for example"
        )
    for name in ("image_size", "patch_size", "tubelet"):
        ours, theirs = encoder.config[name], predictor.config[name]
        if (tuple(ours) if name == "image_size" else ours) != (tuple(theirs) if name == "image_size" else theirs):
            raise ValueError(f"encoder.{name}={ours} but predictor.{name}={theirs}: set them equal")
    if predictor.config.encoder_width != encoder.config.width:
        raise ValueError(
            f"predictor.encoder_width={predictor.config.encoder_width} but encoder.width={encoder.config.width}: "
            "set them equal"
        )


def load_pretrained_networks(folder: str, networks: dict[str, Any]) -> None:
    """Copy trained weights into networks, each from its part of a folder. Raises PartError or ValueError."""
    for name, network in networks.items():
        trained = load_component(Path(folder) / name)
        wanted, found = network.state_dict(), trained.state_dict()
        wrong = [k for k in wanted.keys() | found.keys() if k not in wanted or k not in found]
        wrong += [k for k in wanted.keys() & found.keys() if wanted[k].shape != found[k].shape]
        if wrong:
            raise ValueError(f"{folder}/{name} does not fit the config's {name}: {', '.join(sorted(wrong)[:8])}")
        network.load_state_dict(found)
