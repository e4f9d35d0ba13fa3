"""`vwm probe`: what can be predicted from frozen features, compared with random networks and with pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.checks import check_positive
from vwm.core.command_output import format_command, print_output
from vwm.core.devices import resolve_device
from vwm.core.feature_extractor import FeatureExtractor
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.eval import probe_plots
from vwm.eval.bootstrap import (
    BootstrapScores,
    ConfidenceInterval,
    average_over_seeds,
    bootstrap_accuracy,
    bootstrap_episode_counts,
    bootstrap_r2,
    percentile_intervals,
    score_difference,
)
from vwm.eval.features import PixelFeatureExtractor, load_feature_extractor
from vwm.eval.labeled_clips import SPLITS, LabeledClips, LabeledClipsConfig, read_labeled_clips
from vwm.eval.probe_sweep import LEARNING_RATES, WEIGHT_DECAYS, SweepSettings
from vwm.eval.probe_table import render_probe_report
from vwm.eval.probes import PROBE_NAMES, ProbeName, check_probe_names, extract_features, run_probe
from vwm.eval.provenance import environment_info
from vwm.eval.world_report import to_json_value
from vwm.hub.weight_hash import hash_weights

PROBE_REPORT_FILE, PROBE_TABLE_FILE = "probe.json", "probe.md"
RANDOM_INIT_CONTROL, PIXEL_CONTROL = "random init", "pixels"
SMALLEST_DIFFERENCE = 0.0005
"""Differences of scores up to this count as none: the table rounds them to 0.000."""


@dataclass(frozen=True)
class ProbeConfig:
    """The probes, their training and their controls.

    Attributes:
        probes: some of attentive, linear, knn, ridge; null runs all.
        blocks: attention blocks of the attentive probe: 1 as in V-JEPA; 4 (three of self-attention) as in V-JEPA 2, at
            many times the cost.
        learning_rates, weight_decays: values of the sweep; every pair is a head, and all are trained in one pass.
        epochs: passes of the sweep over the training clips.
        random_seeds: number of randomly initialized networks to compare with.
        draws: number of draws of the bootstrap over test episodes.
        batch_size: clips that a model processes at a time; it changes numbers by rounding only.
        memory: GiB that the features of one model may take.
    """

    probes: list[ProbeName] | None = None
    blocks: int = 1
    learning_rates: list[float] | None = None
    weight_decays: list[float] | None = None
    epochs: int = 20
    random_seeds: int = 2
    draws: int = 2000
    batch_size: int = 32
    memory: float = 4.0

    def __post_init__(self) -> None:
        check_probe_names(self.names)
        check_positive(blocks=self.blocks, epochs=self.epochs, random_seeds=self.random_seeds)
        check_positive(draws=self.draws, batch_size=self.batch_size)

    @property
    def names(self) -> Sequence[ProbeName]:
        """Names of the probes to run."""
        return self.probes or PROBE_NAMES

    def sweep(self, seed: int) -> SweepSettings:
        """Return the settings of the sweeps."""
        return SweepSettings(
            learning_rates=tuple(self.learning_rates or LEARNING_RATES),
            weight_decays=tuple(self.weight_decays or WEIGHT_DECAYS),
            epochs=self.epochs,
            seed=seed,
        )


def probe_features(
    bundle: str,
    data: str,
    out: Path = Path("probe"),
    layer: int | Literal["all"] | None = None,
    clip_length: int | None = None,
    clips: LabeledClipsConfig = LabeledClipsConfig(),
    probing: ProbeConfig = ProbeConfig(),
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Probe frozen features of any model: how well labels are predicted from them on held-out episodes.

    Args:
        bundle: folder of a V-JEPA model, a world or a tokenizer; several, separated by commas, are compared.
        data: shards: a folder, a tar, a pattern or an fsspec address. The episodes are split into training, validation
            and test.
        out: folder for the report; an earlier report there is replaced.
        layer: layer of the networks (0 is the first, -1 the last), or all, one after the other. null: the output of a
            V-JEPA encoder, the layer at two thirds of the depth of a world, the latents of a tokenizer.
        clip_length: frames per clip; null takes the training clip length of the first model, or 4.
        clips: labels, and number of clips.
        probing: the probes, their training and their controls.
        seed: seed of the split, the clips, the probes and the random networks.
        device: where to compute; see ``resolve_device``.

    Returns:
        The report, as written to ``probe.json``. Undefined numbers are None.

    Raises:
        ValueError: a setting is out of range, the data do not fit the model or lack the label, or ``out`` is a folder
            of something else.
    """
    check_positive(clip_length=clip_length)
    check_replaceable_folder(out, PROBE_REPORT_FILE, "report of probes")
    device = str(resolve_device(device))
    paths = [path.strip() for path in bundle.split(",") if path.strip()]
    models = _load_models(paths, layer, read_image_size(data))
    frames = next(iter(models.values())).frames if clip_length is None else clip_length
    labeled = read_labeled_clips(data, frames, clips, seed)
    runner = ProbeRunner(clips=labeled, config=probing, seed=seed, device=device)
    report = compare_with_controls(runner, models)
    report["provenance"] = {
        "bundles": {path: hash_weights(Path(path)) for path in paths},
        "data": data,
        "index_hash": labeled.index_hash,
        "settings": {"layer": layer, "clip_length": frames, "clips": asdict(clips), "probing": asdict(probing)},
        "sweep": probing.sweep(seed)._asdict(),
        "environment": environment_info(torch.device(device)),
    }
    report = to_json_value(report)
    _write_probe_report(out, report)
    print(render_probe_report(report))
    all_layers = None if layer == "all" else format_command("probe", bundle, data, "--layer", "all", "-o", f"{out}_all")
    print_output(out, f"{PROBE_TABLE_FILE}, {PROBE_REPORT_FILE} and plots", all_layers)
    return report


@dataclass(frozen=True)
class ProbeRunner:
    """Runs the probes on features with the same settings.

    Attributes:
        clips: clips for fitting, selection and test.
        config: the probes and their training.
        seed: seed of the sweeps and of the bootstrap.
        device: where features are computed and sweeps are trained.
    """

    clips: LabeledClips
    config: ProbeConfig
    seed: int
    device: str

    def __call__(self, name: str, extractors: Sequence[FeatureExtractor]) -> ProbeResult:
        """Probe features that differ by their seed only; scores are averaged, and the bootstrap draws seeds, too."""
        config, settings = self.config, self.config.sweep(self.seed)
        scores: dict[str, list[BootstrapScores]] = {probe: [] for probe in config.names}
        details: dict[str, list[dict[str, Any]]] = {probe: [] for probe in config.names}
        count = width = 0
        for features in extractors:
            tokens = extract_features(features.to(self.device), self.clips, config.batch_size, config.memory, name)
            count, width = tokens.train.shape[1:]
            for probe in config.names:
                found = run_probe(probe, tokens, self.clips, settings, config.blocks, self.device, name)
                scores[probe].append(self._bootstrap(found.predictions))
                details[probe].append({**found.selected, "val_losses": found.validation_losses})
        averaged = {probe: average_over_seeds(by_seed, self.seed) for probe, by_seed in scores.items()}
        return ProbeResult(name=name, tokens=count, width=width, scores=averaged, details=details)

    def _bootstrap(self, predictions: Tensor) -> BootstrapScores:
        test = self.clips.test
        counts = bootstrap_episode_counts(int(test.episodes.max()) + 1, self.config.draws, self.seed)
        if self.clips.kind == "numbers":
            return bootstrap_r2(test.labels, predictions, test.episodes, counts)
        return bootstrap_accuracy(test.labels, predictions.argmax(dim=1), test.episodes, counts)


@dataclass(frozen=True)
class ProbeResult:
    """The results of all probes on one kind of features.

    Attributes:
        name: title in the report.
        tokens, width: number of tokens of a clip, and their width.
        scores: scores by probe; one per number, or one for all classes.
        details: selected settings and losses of the sweep by probe, one entry per seed.
    """

    name: str
    tokens: int
    width: int
    scores: dict[str, BootstrapScores]
    details: dict[str, list[dict[str, Any]]]

    def to_json(self, **more: Any) -> dict[str, Any]:
        """Return the entry of the report: intervals of the mean over the numbers, and of each number."""
        probes = {
            probe: {
                "score": percentile_intervals(draws.mean())[0]._asdict(),
                "by_output": [i._asdict() for i in percentile_intervals(draws)],
                "selected": self.details[probe],
            }
            for probe, draws in self.scores.items()
        }
        return {"name": self.name, "tokens": self.tokens, "width": self.width, "probes": probes, **more}

    def difference_to(self, control: ProbeResult) -> dict[str, Any]:
        """Return the score differences to a control, by probe, on the same bootstrap draws, each with a verdict."""
        found = {}
        for probe, draws in self.scores.items():
            interval = percentile_intervals(score_difference(draws.mean(), control.scores[probe].mean()))[0]
            found[probe] = {**interval._asdict(), "verdict": difference_verdict(interval)}
        return found


def difference_verdict(interval: ConfidenceInterval) -> Literal["better", "worse", "open"]:
    """Return ``better`` or ``worse`` if the whole interval of a difference is beyond ``SMALLEST_DIFFERENCE``."""
    if interval.low > SMALLEST_DIFFERENCE:
        return "better"
    return "worse" if interval.high < -SMALLEST_DIFFERENCE else "open"


def compare_with_controls(runner: ProbeRunner, models: dict[str, FeatureExtractor]) -> dict[str, Any]:
    """Probe every model and its controls; controls that models share are probed once."""
    clips, rows = runner.clips, []
    seeds = range(runner.seed, runner.seed + runner.config.random_seeds)
    size, frames = tuple(clips.test.frames.shape[2:4]), clips.test.frames.shape[1]
    pixels: dict[tuple[int, ...], ProbeResult] = {}
    for name, features in models.items():
        model = runner(name, [features])
        untrained = runner(f"{name}, {RANDOM_INIT_CONTROL}", [features.reinitialized(seed) for seed in seeds])
        baseline = PixelFeatureExtractor.matching(model.tokens, frames, (int(size[0]), int(size[1])))
        shape = (baseline.tubelet, *baseline.patch_size)
        if shape not in pixels:
            pixels[shape] = runner(f"{PIXEL_CONTROL} {'×'.join(map(str, shape))}", [baseline])
        against = {
            RANDOM_INIT_CONTROL: model.difference_to(untrained),
            PIXEL_CONTROL: model.difference_to(pixels[shape]),
        }
        parameters = sum(p.numel() for part in features.networks.values() for p in part.parameters())
        rows.append(model.to_json(role="model", parameters=parameters, layer=features.layer, against=against))
        rows.append(untrained.to_json(role=RANDOM_INIT_CONTROL, of=name, seeds=len(seeds)))
    rows += [row.to_json(role=PIXEL_CONTROL) for row in pixels.values()]
    parts = {part: getattr(clips, part) for part in SPLITS}
    return {
        "labels": {
            "kind": clips.kind,
            "score": "R²" if clips.kind == "numbers" else "accuracy",
            "names": list(clips.names),
            "excluded": clips.excluded,
            "chance": _chance_score(clips),
        },
        "data": {
            part: {"clips": len(found), "episodes": int(found.episodes.max()) + 1, "available": found.available}
            for part, found in parts.items()
        },
        "rows": rows,
    }


def _chance_score(clips: LabeledClips) -> float:
    """Compute the score of constant predictions: an R² of about 0, or the share of the most frequent class."""
    if clips.kind == "numbers":
        return 0.0
    most_frequent = clips.train.labels.bincount().argmax()
    return float((clips.test.labels == most_frequent).double().mean())


def read_image_size(data: str) -> tuple[int, int]:
    """Read (height, width) of the first episode.

    Raises:
        ValueError: the shards hold no episode.
    """
    for shard in list_shards(data):
        for entry in load_shard_index(shard).episodes:
            return entry.height, entry.width
    raise ValueError(f"{data}: its shards hold no episode")


def _load_models(
    paths: Sequence[str], layer: int | Literal["all"] | None, image_size: tuple[int, int]
) -> dict[str, FeatureExtractor]:
    """Load the features of the selected layers of all models, by the titles of their rows."""
    models: dict[str, FeatureExtractor] = {}
    for name, path in zip(_model_names(paths), paths, strict=True):
        models |= _select_layers(name, load_feature_extractor(path, None, image_size), layer)
    return models


def _model_names(paths: Sequence[str]) -> list[str]:
    """Return a name for every model: that of its folder, or the whole path where folder names are equal."""
    if not paths:
        raise ValueError("bundle is empty: give the folder of a model, or several separated by commas")
    short = [Path(path).resolve().name for path in paths]
    return [path if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]


def _select_layers(
    name: str, features: FeatureExtractor, layer: int | Literal["all"] | None
) -> dict[str, FeatureExtractor]:
    """Return the features of the selected layers, by name."""
    if layer is None:
        return {name: features}
    if layer == "all" and not features.depth:
        raise ValueError(f"layer=all: {name} has no layers to choose from; leave --layer out")
    numbers = range(features.depth) if layer == "all" else [layer]
    layers = [features.with_layer(number) for number in numbers]
    return {f"{name}, layer {extractor.layer}": extractor for extractor in layers}


def _write_probe_report(out: Path, report: dict[str, Any]) -> None:
    """Write all files of the report at once: the folder is complete or unchanged."""
    with atomic_folder(out) as folder:
        (folder / PROBE_REPORT_FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        (folder / PROBE_TABLE_FILE).write_text(render_probe_report(report))
        for name, draw in probe_plots.PROBE_PLOTS.items():
            figure = draw(report)
            if figure is not None:
                figure.savefig(folder / name)
