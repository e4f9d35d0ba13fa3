"""`vwm probe`: what frozen features know of a clip, beside what random networks and bare pixels know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.checks import check_positive
from vwm.core.devices import resolve_device
from vwm.core.feature_extractor import FeatureExtractor
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.eval import probe_plots
from vwm.eval.bootstrap import (
    BootstrapScores,
    average_over_seeds,
    bootstrap_accuracy,
    bootstrap_episode_counts,
    bootstrap_r2,
    percentile_intervals,
    score_difference,
)
from vwm.eval.features import PixelFeatureExtractor, load_feature_extractor
from vwm.eval.labelled_clips import SPLITS, LabelledClips, read_labelled_clips
from vwm.eval.probe_sweep import LEARNING_RATES, WEIGHT_DECAYS, SweepSettings
from vwm.eval.probe_table import render_probe_report
from vwm.eval.probes import PROBE_NAMES, ProbeName, check_probe_names, extract_features, run_probe
from vwm.eval.provenance import environment_info, hash_weights
from vwm.eval.world_report import to_json_value

PROBE_REPORT_FILE, PROBE_TABLE_FILE = "probe.json", "probe.md"
RANDOM_INIT_CONTROL, PIXEL_CONTROL = "random init", "pixels"


def probe_features(
    bundle: str,
    data: str,
    out: Path = Path("probe"),
    label: str | None = None,
    only: list[str] | None = None,
    test: str | None = None,
    layer: int | Literal["all"] | None = None,
    clip_length: int | None = None,
    stride: int = 1,
    clips: int = 1024,
    test_clips: int = 512,
    probes: list[ProbeName] | None = None,
    blocks: int = 1,
    rates: list[float] | None = None,
    decays: list[float] | None = None,
    epochs: int = 20,
    random_seeds: int = 2,
    draws: int = 2000,
    batch_size: int = 32,
    memory: float = 4.0,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Probe frozen features of any model: what can be read from them, on episodes that no probe has seen.

    Args:
        bundle: folder of a V-JEPA model, a world or a tokenizer; several, separated by commas, stand side by side.
        data: shards: a folder, a tar, a pattern or an fsspec address. Its episodes are dealt to training, validation
            and test.
        out: folder for the report; an earlier report there is replaced.
        label: a key of the episodes' json to tell: text, whole numbers and truth values as classes, other numbers as
            numbers. null: the recorded state (vwm record --state) at a clip's last frame.
        only: names of the state's numbers to keep, e.g. '[ball_x, ball_y]'; null keeps all that vary.
        test: other shards to judge on.
        layer: which layer of the networks (0 is the first, -1 the last), or all of them, one after the other. null: a
            V-JEPA encoder's output, of worlds the layer at two thirds of the depth, of tokenizers the latents.
        clip_length: frames a clip; null takes what the first model was trained on, or 4.
        stride: frames from one frame of a clip to its next.
        clips: training clips at most, and a quarter as many for validation.
        test_clips: clips to judge on, at most.
        probes: which of attentive, linear, knn, ridge; null runs all.
        blocks: of the attentive probe: 1 is V-JEPA's; 4 (three of self-attention) V-JEPA 2's, at many times the cost.
        rates, decays: learning rates and weight decays of the sweep; every pair is a head, all trained in one pass.
        epochs: of the sweep, over the training clips.
        random_seeds: networks with random weights to compare with.
        draws: of the bootstrap over test episodes.
        batch_size: clips that a model sees at a time; it changes no number beyond rounding.
        memory: GiB that the features of one model may take.
        seed: of the parts, the clips, the probes and the random networks.
        device: auto takes a GPU where there is one.

    Returns:
        The report, as it stands in ``probe.json``. Undefined numbers are None.

    Raises:
        ValueError: a setting makes no sense, the data do not fit the model or have no such label, or ``out`` is
            something else's folder.
    """
    chosen = list(probes or PROBE_NAMES)
    check_probe_names(chosen)
    check_positive(clips=clips, test_clips=test_clips, blocks=blocks, epochs=epochs, random_seeds=random_seeds)
    check_positive(draws=draws, batch_size=batch_size, stride=stride, clip_length=clip_length)
    check_replaceable_folder(out, PROBE_REPORT_FILE, "report of probes")
    device = str(resolve_device(device))
    paths = [path.strip() for path in bundle.split(",") if path.strip()]
    size = read_image_size(data)
    loaded = {
        name: load_feature_extractor(path, None, size) for name, path in zip(_model_names(paths), paths, strict=True)
    }
    models = {
        name: of for model, features in loaded.items() for name, of in _select_layers(model, features, layer).items()
    }
    frames = next(iter(models.values())).frames if clip_length is None else clip_length
    labelled = read_labelled_clips(data, frames, stride, label, only or (), test, clips, test_clips, seed)
    settings = SweepSettings(tuple(rates or LEARNING_RATES), tuple(decays or WEIGHT_DECAYS), epochs, seed=seed)
    judge = ProbeRunner(labelled, chosen, settings, blocks, draws, batch_size, memory, device)
    report = compare_with_controls(judge, models, random_seeds)
    report["made"] = {
        "bundles": {path: hash_weights(Path(path)) for path in paths},
        "data": data,
        "test": test,
        "index_hash": labelled.index_hash,
        "settings": {
            "label": label, "only": only, "layer": layer, "clip_length": frames, "stride": stride, "clips": clips,
            "test_clips": test_clips, "blocks": blocks, "draws": draws, "random_seeds": random_seeds, "seed": seed,
            "sweep": settings._asdict(),
        },
        "environment": environment_info(torch.device(device)),
    }  # fmt: skip
    report = to_json_value(report)
    _write_probe_report(out, report)
    print(render_probe_report(report))
    print(f"{out / PROBE_TABLE_FILE}, {out / PROBE_REPORT_FILE} and the plots beside them: the whole report")
    return report


@dataclass(frozen=True)
class ProbeRunner:
    """Runs the probes over features, always in the same way.

    Attributes:
        clips: what they are fitted and judged on.
        probes: which.
        settings: of the sweeps.
        blocks: of the attentive probe.
        draws: of the bootstrap.
        batch_size, memory, device: see ``probe_features``.
    """

    clips: LabelledClips
    probes: Sequence[ProbeName]
    settings: SweepSettings
    blocks: int
    draws: int
    batch_size: int
    memory: float
    device: str

    def __call__(self, name: str, every: Sequence[FeatureExtractor]) -> ProbeResult:
        """Probe features that differ by a seed alone; their scores are averaged, and the draws go over the seeds."""
        scores: dict[str, list[BootstrapScores]] = {probe: [] for probe in self.probes}
        details: dict[str, list[dict[str, Any]]] = {probe: [] for probe in self.probes}
        count = width = 0
        for features in every:
            tokens = extract_features(features.to(self.device), self.clips, self.batch_size, self.memory, name)
            count, width = tokens.train.shape[1:]
            for probe in self.probes:
                found = run_probe(probe, tokens, self.clips, self.settings, self.blocks, self.device, name)
                scores[probe].append(self._score(found.predictions))
                details[probe].append({**found.chosen, "val_losses": found.losses})
        averaged = {probe: average_over_seeds(of, self.settings.seed) for probe, of in scores.items()}
        return ProbeResult(name, count, width, averaged, details)

    def _score(self, predictions: Tensor) -> BootstrapScores:
        test = self.clips.test
        counts = bootstrap_episode_counts(int(test.episodes.max()) + 1, self.draws, self.settings.seed)
        if self.clips.kind == "numbers":
            return bootstrap_r2(test.labels, predictions, test.episodes, counts)
        return bootstrap_accuracy(test.labels, predictions.argmax(dim=1), test.episodes, counts)


@dataclass(frozen=True)
class ProbeResult:
    """What all probes found in one kind of feature.

    Attributes:
        name: for people.
        tokens, width: of a clip.
        scores: by probe, of every number; or of all classes, one.
        details: by probe, what validation chose and the sweep's losses, an entry a seed.
    """

    name: str
    tokens: int
    width: int
    scores: dict[str, BootstrapScores]
    details: dict[str, list[dict[str, Any]]]

    def told(self, **more: Any) -> dict[str, Any]:
        """For the report: the mean over the numbers, and each of them."""
        probes = {
            probe: {
                "score": percentile_intervals(draws.mean())[0]._asdict(),
                "by_output": [i._asdict() for i in percentile_intervals(draws)],
                "chosen": self.details[probe],
            }
            for probe, draws in self.scores.items()
        }
        return {"name": self.name, "tokens": self.tokens, "width": self.width, "probes": probes, **more}

    def less(self, other: ProbeResult) -> dict[str, Any]:
        """The difference of the scores to a control's, on the same draws of episodes, and what it says."""
        found = {}
        for probe, draws in self.scores.items():
            told = percentile_intervals(score_difference(draws.mean(), other.scores[probe].mean()))[0]
            verdict = "better" if told.low > 0 else "worse" if told.high < 0 else "open"
            found[probe] = {**told._asdict(), "verdict": verdict}
        return found


def compare_with_controls(judge: ProbeRunner, models: dict[str, FeatureExtractor], random_seeds: int) -> dict[str, Any]:
    """Every model beside its controls; controls that models share are probed once."""
    clips, rows = judge.clips, []
    size, frames = tuple(clips.test.frames.shape[2:4]), clips.test.frames.shape[1]
    pixels: dict[tuple[int, ...], ProbeResult] = {}
    for name, features in models.items():
        model = judge(name, [features])
        untrained = judge(
            f"{name}, {RANDOM_INIT_CONTROL}", [features.fresh(judge.settings.seed + i) for i in range(random_seeds)]
        )
        bare = PixelFeatureExtractor.like(model.tokens, frames, (int(size[0]), int(size[1])))
        shape = (bare.tubelet, *bare.patch_size)
        if shape not in pixels:
            pixels[shape] = judge(f"{PIXEL_CONTROL} {'×'.join(map(str, shape))}", [bare])
        against = {RANDOM_INIT_CONTROL: model.less(untrained), PIXEL_CONTROL: model.less(pixels[shape])}
        parameters = sum(p.numel() for part in features.networks.values() for p in part.parameters())
        rows.append(model.told(role="model", parameters=parameters, layer=features.layer, against=against))
        rows.append(untrained.told(role=RANDOM_INIT_CONTROL, of=name, seeds=random_seeds))
    rows += [row.told(role=PIXEL_CONTROL) for row in pixels.values()]
    parts = {part: getattr(clips, part) for part in SPLITS}
    return {
        "labels": {
            "kind": clips.kind,
            "score": "R²" if clips.kind == "numbers" else "accuracy",
            "names": list(clips.names),
            "left_out": clips.left_out,
            "chance": _chance_score(clips),
        },
        "data": {
            part: {"clips": len(found), "episodes": int(found.episodes.max()) + 1, "available": found.available}
            for part, found in parts.items()
        },
        "rows": rows,
    }


def _chance_score(clips: LabelledClips) -> float:
    """What one scores who knows the training labels and no clip: R² of about 0, or the commonest class's share."""
    if clips.kind == "numbers":
        return 0.0
    commonest = clips.train.labels.bincount().argmax()
    return float((clips.test.labels == commonest).double().mean())


def read_image_size(data: str) -> tuple[int, int]:
    """(height, width) of the first episode."""
    for shard in list_shards(data):
        for entry in load_shard_index(shard).episodes:
            return entry.height, entry.width
    raise ValueError(f"{data}: its shards hold no episode")


def _model_names(paths: Sequence[str]) -> list[str]:
    """A short name for every model: its folder's, or the whole path where that is not enough."""
    if not paths:
        raise ValueError("bundle is empty: give the folder of a model, or several separated by commas")
    short = [Path(path).resolve().name for path in paths]
    return [path if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]


def _select_layers(
    name: str, features: FeatureExtractor, layer: int | Literal["all"] | None
) -> dict[str, FeatureExtractor]:
    """The layers that are to be probed, by name."""
    if layer is None:
        return {name: features}
    if layer == "all" and not features.depth:
        raise ValueError(f"layer=all: {name} has no layers to choose from; leave --layer out")
    numbers = range(features.depth) if layer == "all" else [layer]
    chosen = [features.at(number) for number in numbers]
    return {f"{name}, layer {of.layer}": of for of in chosen}


def _write_probe_report(out: Path, report: dict[str, Any]) -> None:
    """Write the folder (aside, then renamed over what was there)."""
    with atomic_folder(out) as aside:
        (aside / PROBE_REPORT_FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        (aside / PROBE_TABLE_FILE).write_text(render_probe_report(report))
        for name, draw in probe_plots.PROBE_PLOTS.items():
            figure = draw(report)
            if figure is not None:
                figure.savefig(aside / name)
