"""``vwm export``: from a training run to a bundle."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from diffusers import ModelMixin
from torch import Tensor
from tqdm import tqdm

from vwm.core.atomic_files import atomic_folder
from vwm.core.components import save_component
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.datamodule import make_clip_dataset
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_episode_metadata
from vwm.data.video import VIDEO_EXTENSIONS
from vwm.eval.action_descriptions import describe_actions
from vwm.models.dit.agent_module import DiTAgentModule
from vwm.models.dit.finetuning import DiTFinetuning
from vwm.models.dit.module import DiTModule
from vwm.models.dit.simulator import DiTSimulator
from vwm.models.genie.dynamics import MaskGITSampling
from vwm.models.genie.finetuning import GenieFinetuning
from vwm.models.genie.module import GenieModule
from vwm.models.genie.simulator import GenieSimulator
from vwm.models.mdn_rnn.module import MDNRNNModule
from vwm.models.mdn_rnn.simulator import MDNRNNSimulator
from vwm.models.vjepa.action_conditioned_module import ActionConditionedJEPAModule
from vwm.models.vjepa.module import VJEPAModule
from vwm.models.vjepa.simulator import VJEPAACSimulator
from vwm.nn.actions import ActionEmbedding
from vwm.runs.run_folder import RunFolder
from vwm.tokenizers.latent_statistics import measure_latent_statistics
from vwm.tokenizers.module import TokenizerModule
from vwm.train.ema import load_ema_weights
from vwm.train.fit import parse_fit_config
from vwm.worlds.bundle import save_simulator

NUM_STATISTICS_CLIPS = 256
"""Clips of 8 latents that the scale of continuous latents is measured on."""


def export_run(
    run: Path,
    out: Path = Path("runs/bundle"),
    data: str | None = None,
    weights: Literal["average", "last"] = "average",
    title: str | None = None,
    starts: int = 12,
    context: int = 4,
    steps: int | None = None,
    temperature: float = 0.5,
    guidance: float = 1.0,
    half: bool = False,
) -> None:
    """Make a bundle of a run.

    A simulator of a Genie, DiT, MDN-RNN or V-JEPA 2-AC run, a tokenizer folder of a tokenizer run, encoder and
    predictor of a V-JEPA run.

    Args:
        run: the run's folder, as ``vwm fit`` wrote it.
        out: the folder to make (-o).
        data: shards to take starting frames from, to name the latent actions by and to measure continuous latents on;
            by default the run's own, if they are still there. "none" takes none.
        weights: the exponential moving average, where the run kept one (of V-JEPA's encoder: the target encoder), or
            the last weights.
        title: what the player shows; by default the run's name.
        starts: how many starting contexts the bundle holds.
        context: frames of each.
        steps: sampling steps a frame; by default 8 of MaskGIT, and what a DiT run's samples were drawn with.
        temperature: of MaskGIT's sampling.
        guidance: of a DiT's sampling towards the action; 1 leaves it alone.
        half: store a simulator's weights in float16, in half the space; they are loaded as float32.
    """
    module, config = load_trained_module(run, weights)
    source = _resolve_data(config, data)
    if isinstance(module, TokenizerModule):
        if module.tokenizer.channels:
            _measure_latent_statistics(module.tokenizer, source)
        _save_networks({"tokenizer": module.tokenizer}, out)
        print(f"tokenizer: {out}\ntrain dynamics on it: vwm fit -c configs/... --model.init_args.tokenizer {out}")
        return
    if isinstance(module, VJEPAModule):
        follower = module.target_encoder if weights == "average" else None
        _save_networks({"encoder": follower or module.encoder, "predictor": module.predictor}, out)
        print(f"encoder and predictor: {out}\nwhat it knows: vwm probe {out} DATA")
        return
    common: dict[str, Any] = {
        "fps": _read_fps(source),
        "context_frames": context,
        "title": title or run.resolve().name,
        "starts": _read_starts(source, context, starts) if source is not None and _has_video(source) else None,
    }
    simulator: NetworkSimulator
    if isinstance(module, GenieModule):
        sampling = MaskGITSampling(steps=8 if steps is None else steps, temperature=temperature)
        parts = (module.tokenizer, module.dynamics, module.latent_action)
        actions = _genie_action_space(module, source)
        simulator = GenieSimulator(*parts, actions, module.outcomes, sampling=sampling, **common)
        if module.latent_action is not None and source is not None:
            clips = make_clip_dataset(source, 8, fields=("frames", "actions"))
            named = replace(actions, names=tuple(describe_actions(simulator, clips)))
            simulator.spec = replace(simulator.spec, actions=named)
    elif isinstance(module, DiTModule):
        drawn = module.sampling._replace(guidance=guidance, steps=module.sampling.steps if steps is None else steps)
        if guidance != 1 and not module.action_dropout:
            print("warning: guidance compares with a frame whose action is hidden, and this run hid none "
                  "(model.action_dropout=0)")  # fmt: skip
        parts = (module.tokenizer, module.dynamics, module.outcomes)
        actions = _embedded_action_space(module.dynamics.embed_action, source)
        policy = module.policy if isinstance(module, DiTAgentModule) else None
        simulator = DiTSimulator(*parts, actions, policy, sampling=drawn, **common)
    elif isinstance(module, ActionConditionedJEPAModule):
        actions = _embedded_action_space(module.dynamics.embed_action, source)
        simulator = VJEPAACSimulator(
            module.encoder, module.projector, module.dynamics, module.decoder, actions, **common
        )
    elif isinstance(module, MDNRNNModule):
        actions = _embedded_action_space(module.dynamics.embed_action, source)
        simulator = MDNRNNSimulator(module.tokenizer, module.dynamics, actions, **common)
    else:
        raise ValueError(f"{run}: a {type(module).__name__} run cannot be exported")
    save_simulator(simulator, out, _model_card(simulator, run, source), half)
    print(f"bundle: {out}")
    latent = simulator.spec.observation.is_latent
    print("it has no decoder, so it can be planned in, not played" if latent else f"play it: vwm play {out}")


def load_trained_module(run: Path, weights: str = "average") -> tuple[L.LightningModule, Any]:
    """The trained module of a run, and its config.

    Raises:
        FileNotFoundError: the folder is no run, or has no checkpoint yet.
    """
    folder = RunFolder(run)
    config, checkpoint = folder.config, folder.last_checkpoint
    for missing in (config, checkpoint):
        if not missing.is_file():
            raise FileNotFoundError(
                f"{run} is no finished run: there is no {missing}. Train it first: vwm fit -c ... --run {run}"
            )
    cli = parse_fit_config(["-c", str(config), "--run", str(run)])
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    cli.model.load_state_dict(state["state_dict"])
    if weights == "average":
        load_ema_weights(cli.model, state)
    if isinstance(cli.model, GenieFinetuning | DiTFinetuning):
        cli.model.merge()
    return cli.model.eval(), cli.config


def _save_networks(parts: dict[str, ModelMixin], out: Path) -> None:
    """Write networks into their folders in ``out``; those of the same names there are replaced."""
    with ExitStack() as replaced:  # all of them are written before the first takes its place
        for name, part in parts.items():
            save_component(part, replaced.enter_context(atomic_folder(out / name)))


def _measure_latent_statistics(tokenizer: VideoTokenizer, source: str | None) -> None:
    """Bring continuous latents to zero mean and unit deviation, which the dynamics' noise is made for."""
    if source is None:
        print("warning: no data to measure the latents on, so their scale stays as it is: give --data SHARDS")
        return
    # Eight latents a clip: the first one of a clip is of a single frame, and few of a long video's are.
    dataset = make_clip_dataset(source, 1 + 7 * tokenizer.time_compression, fields=("frames",), seed=1)
    count = min(NUM_STATISTICS_CLIPS, len(dataset.order))
    batches = (torch.from_numpy(dataset[(0, i)]["frames"].copy())[None] for i in range(count))
    measure_latent_statistics(tokenizer, tqdm(batches, desc="measure latents", total=count, unit="clip"))


def _resolve_data(config: Any, data: str | None) -> str | None:
    """Where to take starts and names from; a run's own data may have gone, which is no reason not to export."""
    if data == "none":
        return None
    if data is not None:
        list_shards(data)
        return data
    try:
        path = str(config["data"]["init_args"]["path"])
        list_shards(path)
    except FileNotFoundError:
        return None
    return path


def _has_video(path: str) -> bool:
    """Whether shards hold video; encoded ones may not."""
    members = load_shard_index(list_shards(path)[0]).episodes[0].members
    if {"frames.npy", *VIDEO_EXTENSIONS} & set(members):
        return True
    print(f"note: {path} holds no video, so the bundle gets no frames to begin from: name shards with video by --data")
    return False


def _read_starts(path: str, context: int, count: int) -> Tensor:
    """Contexts to begin from, uint8 [n, t, h, w, 3], spread over the data."""
    dataset = make_clip_dataset(path, context, fields=("frames",), seed=1)
    total = len(dataset.order)
    count = min(count, total)
    chosen = [dataset[(0, i * total // count)]["frames"] for i in range(count)]
    return torch.stack([torch.from_numpy(clip.copy()) for clip in chosen])


def _read_first_episode(path: str) -> tuple[dict[str, Any], float]:
    """The facts that the first episode's json states, and its frames a second."""
    shard = list_shards(path)[0]
    entry = load_shard_index(shard).episodes[0]
    return read_episode_metadata(shard, entry), entry.fps


def _read_fps(path: str | None) -> float:
    return (_read_first_episode(path)[1] if path is not None else 0.0) or 15.0


def _genie_action_space(module: GenieModule, path: str | None) -> ActionSpace:
    size = module.dynamics.num_actions
    if module.latent_action is not None:
        return ActionSpace("discrete", size, tuple(f"action {i}" for i in range(size)), latent=True)
    return _recorded_action_space("continuous" if module.dynamics.continuous else "discrete", size, path)


def _embedded_action_space(embedding: ActionEmbedding | None, path: str | None) -> ActionSpace:
    if embedding is None:
        return ActionSpace("discrete", 1, ("go on",))
    if embedding.choices:
        return _recorded_action_space("discrete", embedding.choices[0], path)
    return _recorded_action_space("continuous", embedding.dims, path)


def _recorded_action_space(kind: str, size: int, path: str | None) -> ActionSpace:
    """An action space with the names and rest values that the recording states."""
    facts = _read_first_episode(path)[0] if path is not None else {}
    names = tuple(map(str, facts.get("action_names") or ()))
    rest = tuple(map(float, facts.get("action_rest") or ()))
    names = names if len(names) == size else tuple(f"action {i}" for i in range(size))
    return ActionSpace(kind, size, names, rest=rest if kind == "continuous" and len(rest) == size else ())


def _model_card(simulator: NetworkSimulator, run: Path, source: str | None) -> str:
    sizes = ", ".join(
        f"{n} {sum(p.numel() for p in m.parameters()) / 1e6:.2f}M" for n, m in simulator.networks().items()
    )
    actions = "\n".join(f"- {i}: {name}" for i, name in enumerate(simulator.spec.actions.names))
    height, width = simulator.spec.context.image_size
    return (
        f"# {simulator.spec.title}\n\nA vwm world: {height}x{width} pixels at {simulator.spec.fps:g} frames a second. "
        f"Parameters: {sizes}. Exported from {run.name}, data {Path(source).name if source else 'not named'}.\n\n"
        f"    vwm play FOLDER\n\nActions{' (learned)' if simulator.spec.actions.latent else ''}:\n\n{actions}\n"
    )
