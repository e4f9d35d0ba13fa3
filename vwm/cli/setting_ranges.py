"""Ranges of settings that mean the same in every class: sizes, counts, shares and rates.

A value out of range is reported by its full key before torch is imported, as values of wrong types are. Classes check
the settings of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from vwm.core.limits import MAX_CONTEXT_FRAMES, MAX_FPS, MAX_FRAME_SIDE, MAX_SAMPLING_STEPS, MAX_WORKERS


class SettingRange(NamedTuple):
    """Bounds of a setting; ``max_is_open`` excludes the largest value, ``min_is_open`` the smallest."""

    min: float
    max: float = math.inf
    min_is_open: bool = False
    max_is_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; NaN does not."""
        above = value > self.min if self.min_is_open else value >= self.min
        below = value < self.max if self.max_is_open else value <= self.max
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {_format(self.min)}" if self.min_is_open else f"{_format(self.min)} or more"
        if self.max == math.inf:
            return low
        return f"{low} and {'below' if self.max_is_open else 'at most'} {_format(self.max)}"


def _format(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


SIZES = (
    "width depth heads kv_heads window patch_size batch_size batch_length clip_length stride horizon units deter stoch"
)
SIZES += " num_envs episodes checkpoint_every log_every frames_per_shard code_width latent_channels time_compression"
SIZES += " frames_per_latent memory_every global_batch context_parallel tensor_parallel"
COUNTS = "warmup timeout prefill pretrain_updates weight_decay replay_capacity min_lr start_lr"
COUNTS += " sink_frames memory_frames"
FRACTIONS = "val_fraction labeled_fraction ends_share rewards_share labeled_share context_corruption action_dropout"
FRACTIONS += " dropout discount lam tau"
SETTING_RANGES = {
    **dict.fromkeys(SIZES.split(), SettingRange(1, 2**31)),
    **dict.fromkeys(COUNTS.split(), SettingRange(0)),
    **dict.fromkeys(FRACTIONS.split(), SettingRange(0, 1)),
    "lr": SettingRange(0, min_is_open=True),
    "threads": SettingRange(0, 1024),
    "workers": SettingRange(0, MAX_WORKERS),
    "size": SettingRange(1, MAX_FRAME_SIDE),
    "fps": SettingRange(0, MAX_FPS, min_is_open=True),
    "minutes": SettingRange(0, min_is_open=True),
    **dict.fromkeys(["chunk", "starts", "context", "clips", "drift_starts", "frames", "frame_skip"], SettingRange(1)),
    **dict.fromkeys(["videos", "drift_seconds", "skip_first_frames"], SettingRange(0)),
    "context_frames": SettingRange(1, MAX_CONTEXT_FRAMES),
    "sampling_steps": SettingRange(1, MAX_SAMPLING_STEPS),
    "seed": SettingRange(0, 2**63),
    "seed_everything": SettingRange(0, 2**32 - 1),
}
"""By the name of the setting, wherever it is."""
SECTION_RANGES = {
    "ema.decay": SettingRange(0, 1, max_is_open=True),
    "checkpoint.every": SettingRange(1),
    "checkpoint.keep_every_n_steps": SettingRange(0),
    "checkpoint.keep": SettingRange(1),
    "samples.every": SettingRange(0),
    "watchdog.timeout": SettingRange(0),
    "samples.clips": SettingRange(1),
    "trainer.accumulate_grad_batches": SettingRange(1),
    "trainer.log_every_n_steps": SettingRange(1),
    "trainer.max_steps": SettingRange(-1),
    "trainer.max_epochs": SettingRange(-1),
    "trainer.val_check_interval": SettingRange(0, min_is_open=True),
    "trainer.check_val_every_n_epoch": SettingRange(1),
    "trainer.gradient_clip_val": SettingRange(0),
    **{f"trainer.limit_{part}_batches": SettingRange(0) for part in ("train", "val")},
    "trainer.num_nodes": SettingRange(1, 2**16),
    "steps": SettingRange(1),
    "evaluation.every": SettingRange(1),
}
"""By the whole key, without ``init_args``."""

CHOICES = {
    "trainer.precision": (
        "32-true 16-true bf16-true 64-true 16-mixed bf16-mixed transformer-engine transformer-engine-float16 "
        "32 16 bf16 64"
    ),
    "precision": "32-true bf16-mixed",
}
"""Allowed texts by the whole key of a config: those of arguments whose types other packages define."""


def check_setting_choice(key: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with a text of a config; nothing for a key without choices."""
    choices = CHOICES.get(key, "").split()
    if choices and value is not None and str(value) not in choices:
        yield f"{key}: {value!r} must be one of {', '.join(choices)}"


def check_setting_range(key: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with a number of a config or of an option; nothing for a value without a range.

    Args:
        key: dotted, such as ``model.optimizer.lr``.
        value: of any type; only numbers are checked, since types are checked elsewhere.
    """
    allowed = SECTION_RANGES.get(key) or SETTING_RANGES.get(key.rpartition(".")[2])
    if allowed is None or isinstance(value, bool):
        return
    try:
        number = float(value)  # YAML reads 1e-06 as text
    except (TypeError, ValueError):
        return
    if not allowed.holds(number):
        yield f"{key} must be {allowed}, got {value}"
