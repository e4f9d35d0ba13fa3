"""The four probes over frozen features of clips.

- ``attentive``: a learned query attends to the tokens (a sweep of learning rates and weight decays);
- ``linear``: a linear layer on the mean of the tokens (the same sweep);
- ``ridge``: linear regression on all tokens, concatenated, in closed form;
- ``knn``: the labels of the nearest neighbors by all tokens, concatenated.

Every probe is fitted on the training clips, and its settings are selected on the validation clips.

Legend: n clips, l tokens of a clip, d width, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vwm.core.command_output import progress_bar
from vwm.core.feature_extractor import FeatureExtractor
from vwm.eval.closed_form_probes import ClosedFormPredictions, knn_probe, ridge_probe
from vwm.eval.labeled_clips import SPLITS, LabeledClips
from vwm.eval.probe_heads import make_probe_heads
from vwm.eval.probe_sweep import SweepSettings, train_probe_sweep

ProbeName = Literal["attentive", "linear", "knn", "ridge"]
PROBE_NAMES: tuple[ProbeName, ...] = ("attentive", "linear", "knn", "ridge")
MEMORY_COPIES = 3
"""Largest number of copies of all features that are in memory at once."""


class SplitTokens(NamedTuple):
    """Features of each part, float32 [n, l, d]; channels are standardized by the training clips."""

    train: Tensor
    val: Tensor
    test: Tensor


class ProbePredictions(NamedTuple):
    """A probe's predictions for the test clips.

    Attributes:
        predictions: float64 [n, o]: numbers, or a score for every class.
        selected: settings selected on the validation clips.
        validation_losses: float64 [epochs, s], by head of the sweep; None for closed-form probes.
    """

    predictions: Tensor
    selected: dict[str, Any]
    validation_losses: Tensor | None


def extract_features(
    features: FeatureExtractor, clips: LabeledClips, batch_size: int, memory: float, title: str
) -> SplitTokens:
    """Compute the features of all clips, on the CPU.

    Args:
        features: the extractor.
        clips: clips of the three parts.
        batch_size: clips that are processed at a time; it changes numbers by rounding only.
        memory: GiB that the features and the probes' copies of them may take.
        title: label of the progress bar.

    Raises:
        ValueError: they require more memory.
    """
    parts = [getattr(clips, part).frames for part in SPLITS]
    count = sum(map(len, parts))
    made: list[Tensor] = []
    with progress_bar(total=count, desc=title, unit="clip") as bar:
        for frames in parts:
            out: Tensor | None = None
            for first in range(0, len(frames), batch_size):
                found = features(frames[first : first + batch_size])
                if out is None:
                    _check_memory(count, found, memory, title)
                    out = torch.empty(len(frames), *found.shape[1:])
                out[first : first + len(found)] = found
                bar.update(len(found))
            assert out is not None
            made.append(out)
    return standardize_features(SplitTokens(*made))


def _check_memory(clips: int, found: Tensor, memory: float, title: str) -> None:
    tokens, width = found.shape[1:]
    needed = MEMORY_COPIES * clips * tokens * width * found.element_size() / 2**30
    if needed > memory:
        raise ValueError(
            f"{title}: {clips} clips of {tokens} tokens of width {width} require {needed:.1f} GiB with the probes' "
            f"copies, over memory={memory:g}: use fewer clips (--clips {int(clips * memory / needed * 0.6)}), a "
            f"shorter --clip-length, or more --memory"
        )


def standardize_features(tokens: SplitTokens) -> SplitTokens:
    """Scale every channel to mean 0 and standard deviation 1 over all tokens of the training clips, in place.

    All tokens of a channel share one scale: with one per token, rare events at a token would be amplified.
    """
    flat = tokens.train.flatten(0, 1)
    mean, std = flat.mean(dim=0, dtype=torch.float64), flat.double().std(dim=0, correction=0)
    # A constant channel carries no information but rounding errors.
    scale = torch.where(std > 1e-6 * (1e-6 + mean.abs()), 1 / std, 0.0)
    for part in tokens:
        part.sub_(mean.float()).mul_(scale.float())
    return tokens


def run_probe(
    probe: ProbeName,
    tokens: SplitTokens,
    clips: LabeledClips,
    settings: SweepSettings,
    blocks: int = 1,
    device: torch.device | str = "cpu",
    title: str = "",
) -> ProbePredictions:
    """Fit one probe and predict the labels of the test clips.

    Args:
        probe: its name.
        tokens: see ``extract_features``.
        clips: the clips, with their labels.
        settings: settings of the sweeps.
        blocks: attention blocks of the attentive probe.
        device: where sweeps are trained.
        title: label of the progress bar.
    """
    labels = clips.train.labels, clips.val.labels
    if probe == "ridge" or probe == "knn":
        fit: Callable[..., ClosedFormPredictions] = ridge_probe if probe == "ridge" else knn_probe
        numbers = clips.kind == "numbers"
        y = labels if numbers else tuple(F.one_hot(y, clips.num_outputs).double() for y in labels)
        train, val, test = (part.flatten(1) for part in tokens)
        found = fit((train, y[0]), (val, y[1]), test, by_output=numbers)
        return ProbePredictions(
            found.predictions, {"strength" if probe == "ridge" else "neighbors": found.selected}, None
        )
    x = (
        tokens
        if probe == "attentive"
        else standardize_features(SplitTokens(*(part.mean(dim=1, keepdim=True) for part in tokens)))
    )
    train, val, test = (part.to(device) for part in x)
    count, (tokens_per_clip, width) = len(settings.pairs), train.shape[1:]
    heads = make_probe_heads(probe, count, tokens_per_clip, width, clips.num_outputs, blocks, settings.seed).to(device)
    y = tuple((y.float() if clips.kind == "numbers" else y).to(device) for y in labels)
    swept = train_probe_sweep(heads, (train, y[0]), (val, y[1]), test, settings, f"{title} {probe}".strip())
    selected = {"learning_rate": swept.learning_rate, "weight_decay": swept.weight_decay, "epoch": swept.epoch}
    return ProbePredictions(swept.predictions.cpu(), selected, swept.losses.cpu())


def check_probe_names(probes: Sequence[str]) -> None:
    """Raise ValueError unless all names are of probes, and there is at least one."""
    unknown = [name for name in probes if name not in PROBE_NAMES]
    if unknown or not probes:
        raise ValueError(f"probes={list(probes)} must be some of {', '.join(PROBE_NAMES)}")
