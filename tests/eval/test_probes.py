"""The four probes on features with known contents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vwm.eval.bootstrap import bootstrap_episode_counts, bootstrap_r2
from vwm.eval.features import PixelFeatureExtractor
from vwm.eval.labeled_clips import LabeledClips, LabeledSplit
from vwm.eval.probe_sweep import SweepSettings
from vwm.eval.probes import (
    PROBE_NAMES,
    ProbeName,
    SplitTokens,
    check_probe_names,
    extract_features,
    run_probe,
    standardize_features,
)

pytestmark = pytest.mark.usefixtures("narrow_heads")
SETTINGS = SweepSettings(learning_rates=(5e-3, 1e-3), weight_decays=(0.01, 0.4), epochs=15, batch_size=32)


def make_labeled_clips(labels: Tensor, frames: Tensor, kind: str = "numbers") -> LabeledClips:
    """Split clips into three equal splits."""
    third = len(labels) // 3
    parts = [
        LabeledSplit(
            frames[i * third : (i + 1) * third], labels[i * third : (i + 1) * third], torch.arange(third) // 8, third
        )
        for i in range(3)
    ]
    count = labels.shape[1] if kind == "numbers" else int(labels.max()) + 1
    return LabeledClips(*parts, kind, tuple(map(str, range(count))), {}, {})


def random_clips(count: int = 480, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 2, 8, 8, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("probe", PROBE_NAMES)
def test_unrelated_labels_have_r2_of_about_0_or_below(probe: ProbeName) -> None:
    labels = torch.randn(480, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    data = make_labeled_clips(labels, random_clips())
    tokens = extract_features(PixelFeatureExtractor(1, (4, 4)), data, 64, 1.0, "pixels")
    predictions = run_probe(probe, tokens, data, SETTINGS).predictions
    score = bootstrap_r2(data.test.labels, predictions, data.test.episodes, bootstrap_episode_counts(20, 10, 0)).value
    assert (score < 0.05).all() and (score > -1).all()


@pytest.mark.parametrize("probe", PROBE_NAMES)
def test_every_probe_reads_brightness_as_number_and_class(probe: ProbeName) -> None:
    """Probe for the brightness of the whole clip."""
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(480, generator=generator)
    frames = (level[:, None, None, None, None] * 200 + random_clips() * 0.1).byte()
    numbers = make_labeled_clips((level[:, None].double() - 0.5) * 12**0.5, frames)
    tokens = extract_features(PixelFeatureExtractor(1, (4, 4)), numbers, 64, 1.0, "pixels")
    predictions = run_probe(probe, tokens, numbers, SETTINGS).predictions
    score = bootstrap_r2(
        numbers.test.labels, predictions, numbers.test.episodes, bootstrap_episode_counts(20, 10, 0)
    ).value
    # Cosine similarity shows the side of the mean, but not the distance.
    assert score > (0.7 if probe == "knn" else 0.9)
    classes = make_labeled_clips((level > 0.5).long(), frames, "classes")
    result = run_probe(probe, tokens, classes, SETTINGS)
    assert result.predictions.shape == (160, 2)
    assert (result.predictions.argmax(dim=1) == classes.test.labels).double().mean() > 0.85
    assert (result.validation_losses is None) == (probe in ("knn", "ridge")) and result.selected


def test_equal_settings_give_equal_numbers() -> None:
    labels = torch.randn(480, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    data = make_labeled_clips(labels, random_clips())
    for probe in PROBE_NAMES:
        first, second = (
            run_probe(
                probe,
                extract_features(PixelFeatureExtractor(1, (4, 4)), data, size, 1.0, "x"),
                data,
                SETTINGS._replace(epochs=2),
            )
            for size in (64, 7)
        )
        torch.testing.assert_close(first.predictions, second.predictions, rtol=0, atol=1e-9)


def test_channels_are_standardized_by_the_training_clips_only() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(20, 5, 4, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 0.0]) + 3 for _ in range(3)]
    raw = [part.clone() for part in parts]
    tokens = standardize_features(SplitTokens(*parts))
    flat = tokens.train.flatten(0, 1)
    torch.testing.assert_close(flat.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(flat.std(dim=0, correction=0), torch.tensor([1.0, 1.0, 1.0, 0.0]), rtol=0, atol=1e-4)
    mean, std = raw[0].flatten(0, 1).mean(dim=0), raw[0].flatten(0, 1).std(dim=0, correction=0)
    torch.testing.assert_close(tokens.test[..., :3], ((raw[2] - mean) / std)[..., :3], rtol=0, atol=1e-3)
    assert (tokens.test[..., 3] == 0).all()  # 3, without any noise


def test_rejects_features_over_the_memory_limit_with_a_remedy() -> None:
    data = make_labeled_clips(torch.zeros(480, 1).double(), random_clips())
    with pytest.raises(ValueError, match=r"480 clips of 8 tokens of width 48.*--clips \d+.*--memory"):
        extract_features(PixelFeatureExtractor(1, (4, 4)), data, 64, 1e-4, "pixels")


def test_rejects_unknown_probe_names() -> None:
    check_probe_names(["ridge"])
    with pytest.raises(ValueError, match="some of attentive, linear, knn, ridge"):
        check_probe_names(["ridge", "quadratic"])
    with pytest.raises(ValueError, match="some of"):
        check_probe_names([])
