"""``vwm export``: from a training run to a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vwm.core.atomic_files import atomic_folder
from vwm.core.bundle_folder import BUNDLE_INDEX_FILE
from vwm.core.capabilities import InfersActions
from vwm.core.checks import check_positive
from vwm.core.command_output import format_command, print_output
from vwm.core.components import save_component
from vwm.core.family import ExportSettings
from vwm.core.network_base import ModelMixin
from vwm.core.network_simulator import NetworkSimulator
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.mixtures import DataPath
from vwm.eval.action_descriptions import describe_actions
from vwm.eval.model_card import world_card
from vwm.nn.training_module import TrainingModule
from vwm.play.static_player import export_static_world
from vwm.runs.checkpoints import mismatch_as_value_error
from vwm.runs.run_folder import RunFolder
from vwm.runs.saved_config import read_saved_config
from vwm.train.ema import load_ema_weights
from vwm.train.export_data import data_set_names, find_export_data, format_data, read_recording, read_starts
from vwm.train.fit import load_run_config
from vwm.train.resume_points import find_resume_point, load_resume_point
from vwm.worlds.bundle import save_simulator
from vwm.worlds.families import find_family


def export_run(
    run: Path,
    out: Path | None = None,
    data: str | None = None,
    weights: Literal["average", "last"] = "average",
    title: str | None = None,
    starts: int = 12,
    context: int = 4,
    sampling_steps: int | None = None,
    temperature: float | None = None,
    guidance: float | dict[str, float] | None = None,
    task: int | None = None,
    float16: bool = False,
    web: bool = False,
    onnx: bool = False,
    runtime: str | None = None,
    allow_packages: list[str] | None = None,
) -> None:
    """Make a bundle of a training run, or a page or ONNX graphs of a bundle.

    Genie, DiT, MDN-RNN and V-JEPA 2-AC runs become simulators, tokenizer runs a tokenizer folder, and V-JEPA runs an
    encoder and a predictor.

    Args:
        run: the run's folder, as ``vwm fit`` wrote it; with ``--web`` or ``--onnx`` a world: a bundle or its name.
        out: the folder to make; by default runs/bundle, runs/web or runs/onnx.
        data: shards to take starting frames from, to name the latent actions by and to normalize continuous latents on;
            by default the run's own, if they still exist, of a mixture all data sets. "none" uses none.
        weights: the exponential moving average, where the run kept one (of V-JEPA's encoder: the target encoder), or
            the last weights.
        title: shown in the player; by default the run's name.
        starts: number of starting contexts in the bundle.
        context: frames of each starting context; rounded up to whole latents, 1 + k n, where latents hold k frames.
        sampling_steps: sampling steps per frame; by default 8 (MaskGIT), or as in the sample videos of a DiT run.
        temperature: sampling temperature of MaskGIT (by default 0.5) or of an MDN-RNN (by default 1).
        guidance: weight of a DiT's classifier-free guidance by the action; 1, the default, disables it. Composite
            actions may have weights by part, such as '{keys: 2}'; see ``vwm.models.dit.guidance``.
        task: of a DiT whose agent tokens have tasks, which the world's policy, rewards and features are for.
        float16: store a simulator's weights in float16, which halves the size; they are loaded as float32.
        web: make static files of a world: the player's page, whose browser computes the world. It takes no option but
            ``runtime`` and those of the sampler.
        onnx: make ONNX graphs of a world's reset and step; as with ``web``, without the page.
        runtime: with ``web``, a folder with onnxruntime-web, or an address that serves it; by default npm gets it.
        allow_packages: packages other than vwm whose code the run's config may name, and which are then imported.
    """
    check_positive(starts=starts, context=context)
    chosen = {"steps": sampling_steps, "temperature": temperature, "guidance": guidance, "task": task}
    sampling = {name: value for name, value in chosen.items() if value is not None}
    if web or onnx:
        return export_static_world(run, out or Path("runs/web" if web else "runs/onnx"), web, runtime, sampling)
    out = out or Path("runs/bundle")
    module, config = load_trained_module(run, weights, allow_packages or ())
    family, source = find_family(module), find_export_data(config, data)
    exported = family.export_networks(module, source, weights == "average")
    if exported is not None:
        _save_networks(exported.networks, out)
        places = {"out": out, "data": data_set_names(source)[0] if source else "DATA", "runs": run.parent}
        words = [word.format(**places) for word in exported.next_command]
        print_output(out, exported.contents, format_command(*words))
        return
    context += -(context - 1) % module.frames_per_latent
    settings = _make_export_settings(source, title or run.resolve().name, starts, context)
    _warn_of_untrained_guidance(module, guidance)
    simulator = family.make_simulator(module, settings).with_sampling(**sampling)
    if source is not None:
        _name_latent_actions(simulator, source)
    origin = f"Exported from {run.name}, data {format_data(source)}."
    save_simulator(simulator, out, world_card(simulator, origin), float16)
    if simulator.spec.observation.is_latent:
        print_output(out, "a world without a decoder, for planning", format_command("plan", out, "ENV"))
    else:
        print_output(out, "a world", format_command("play", out))


def _warn_of_untrained_guidance(module: TrainingModule, guidance: float | dict[str, float] | None) -> None:
    """Warn where guidance would hide what the training always showed."""
    by_part = isinstance(guidance, dict)
    what, setting = ("parts", "part_dropout") if by_part else ("action", "action_dropout")
    weights = guidance.values() if isinstance(guidance, dict) else [1.0 if guidance is None else guidance]
    if any(weight != 1 for weight in weights) and not getattr(module, setting):
        verb = "are" if by_part else "is"
        print(f"warning: guidance compares with a frame whose {what} {verb} hidden, and this run hid none "
              f"(model.{setting}=0)")  # fmt: skip


def _make_export_settings(source: DataPath | None, title: str, starts: int, context: int) -> ExportSettings:
    """Read the frame rate, the metadata and the starting contexts from the data."""
    recording, fps = ({}, 0.0) if source is None else read_recording(source)
    return ExportSettings(
        title=title,
        fps=fps or 15.0,
        context_frames=context,
        starts=None if source is None else read_starts(source, context, starts),
        recording=recording,
    )


def load_trained_module(
    run: Path, weights: str = "average", allow_packages: Sequence[str] = ()
) -> tuple[TrainingModule, Any]:
    """Load the trained module of a run, and its config; see ``read_saved_config`` for ``allow_packages``.

    Raises:
        FileNotFoundError: the folder is no run, or has no checkpoint yet.
    """
    folder = RunFolder(run)
    unfinished = f"{run} is no finished run: there is no %s. Train it first: vwm fit -c ... --run {run}"
    if not folder.config.is_file():
        raise FileNotFoundError(unfinished % folder.config)
    cli = load_run_config(folder, allow_packages)
    point = find_resume_point(folder, read_saved_config(folder, allow_packages).get("checkpoint", {}).get("url"))
    if point is None:
        raise FileNotFoundError(unfinished % folder.last_checkpoint)
    state = load_resume_point(point)
    with mismatch_as_value_error(Path(point), "model"):
        cli.model.load_state_dict(state["state_dict"])
    if weights == "average":
        load_ema_weights(cli.model, state)
    cli.model.merge()
    return cli.model.eval(), cli.config


def _save_networks(parts: Mapping[str, ModelMixin], out: Path) -> None:
    """Write networks into their folders in ``out``; those of the same names there are replaced.

    Raises:
        ValueError: ``out`` is a bundle, whose networks belong together.
    """
    if (out / BUNDLE_INDEX_FILE).exists():
        raise ValueError(f"{out} is a bundle with networks of its own: choose another folder (--out)")
    with ExitStack() as replaced:  # all of them are written before the first takes its place
        whole = None
        if not out.is_dir() or {path.name for path in out.iterdir()} <= parts.keys():
            whole = replaced.enter_context(atomic_folder(out))  # so that no two networks of different exports remain
        for name, part in parts.items():
            save_component(part, whole / name if whole else replaced.enter_context(atomic_folder(out / name)))


def _name_latent_actions(simulator: NetworkSimulator, path: DataPath) -> None:
    """Name the actions that a simulator learned from video by their effects; others have names."""
    if isinstance(simulator, InfersActions) and simulator.num_latent_actions and not simulator.spec.actions.is_named:
        clips = make_clip_dataset(path, 8, fields=("frames", "actions"))
        names = tuple(describe_actions(simulator, clips))
        simulator.spec = replace(simulator.spec, actions=replace(simulator.spec.actions, names=names))
