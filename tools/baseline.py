"""Hash what every part of the package computes, seeded and on one thread, to compare before and after a change.

``PYTHONPATH=. OMP_NUM_THREADS=1 python tools/baseline.py OUT.json``. One key per value; scalars are stored as floats,
too.
Weights are hashed twice: ``weights`` whatever they are called and in whatever order, ``weights_by_name`` with both.
A case that fails leaves ``CASE/ERROR``, and the exit status is 1.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vwm.core.capabilities import MeasuresTransitionLoss, ObservesFrames, ProvidesFeatures
from vwm.core.components import load_component, save_component
from vwm.core.frames import frames_to_float
from vwm.core.network_simulator import NetworkSimulator, VideoSimulator
from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.data.clip_order import ClipOrder
from vwm.data.clips import ClipBatch
from vwm.data.datamodule import ClipLoader, VideoDataModule, make_clip_dataset
from vwm.data.episode import Episode
from vwm.data.shard_index import EpisodeIndexEntry, ShardIndex
from vwm.data.shards import ShardWriter
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.dit.agent_module import DiTAgentModule
from vwm.models.dit.finetuning import DiTFinetuning
from vwm.models.dit.module import DiTModule
from vwm.models.dit.network import DiT
from vwm.models.dit.objectives import DiffusionForcing, ShortcutForcing
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.models.dit.sampling import DiffusionSampling as DiTSampling
from vwm.models.dit.simulator import DiTSimulator
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.finetuning import GenieFinetuning
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.module import GenieModule
from vwm.models.genie.sampling import MaskGITSampling as GenieSampling
from vwm.models.genie.simulator import GenieSimulator
from vwm.models.mdn_rnn.module import MDNRNNModule
from vwm.models.mdn_rnn.network import MDNRNN
from vwm.models.mdn_rnn.simulator import MDNRNNSimulator
from vwm.models.muzero.network import MuZeroNetwork as MuZeroNetwork
from vwm.models.muzero.simulator import MuZeroSimulator
from vwm.models.rssm.kl_loss import KLLoss
from vwm.models.rssm.simulator import RSSMSimulator
from vwm.models.rssm.world_model import RSSMWorldModel, RSSMWorldModelConfig
from vwm.models.tdmpc2.simulator import TDMPC2Simulator
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel
from vwm.models.vjepa.action_conditioned_module import ActionConditionedJEPAModule, AntiCollapseConfig
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor
from vwm.models.vjepa.augmentation import RandomResizedCrop
from vwm.models.vjepa.collapse_regularizers import SIGReg, VarianceCovarianceRegularizer
from vwm.models.vjepa.conv_encoder import ConvFrameEncoder
from vwm.models.vjepa.latent_decoder import LatentDecoder
from vwm.models.vjepa.latent_projector import LatentProjector
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import ContextBlockMaskSampler, MultiBlockMaskSampler
from vwm.models.vjepa.module import VJEPAModule
from vwm.models.vjepa.motion_branch import MotionBranch
from vwm.models.vjepa.simulator import VJEPAACSimulator
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.lora import LoRAConfig
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance, encode_goal_frames
from vwm.planning.gumbel_search import GumbelMuZeroSearch
from vwm.planning.mppi import MPPI
from vwm.planning.puct_search import PUCTSearch
from vwm.planning.sampling_planner import NegativeReturnObjective
from vwm.rl.agent import Agent, ReplayBatch
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.actor_critic_policy import (
    ClonedActorCriticPolicy,
    FeatureActorCriticPolicy,
    FrameActorCriticPolicy,
)
from vwm.rl.algorithms.cma_es import CMAESSearch
from vwm.rl.algorithms.controller_evolution import ControllerEvolution, ControllerFitnessConfig
from vwm.rl.algorithms.controller_fitness import SimulatedFitness
from vwm.rl.algorithms.dreamer import Dreamer, DreamerOptimizerConfig
from vwm.rl.algorithms.imagined_rollout import imagination_losses, imagine_rollout, simulator_env_spaces
from vwm.rl.algorithms.linear_controller import (
    ControllerPolicy,
    LinearController,
    initial_controller_parameters,
    linear_controller_actions,
)
from vwm.rl.algorithms.muzero import MuZeroAgent
from vwm.rl.algorithms.planet import PlaNet
from vwm.rl.algorithms.policy_objectives import PMPOObjective, ReinforceObjective
from vwm.rl.algorithms.tdmpc2 import TDMPC2, TDMPC2Size
from vwm.rl.algorithms.tdmpc2_planner import TDMPC2PlannerConfig
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.rl.online_learning import OnlineLearning
from vwm.rl.replay_buffer import ReplayBuffer
from vwm.tokenizers.adversarial import AdversarialLoss
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.latent_statistics import measure_latent_statistics
from vwm.tokenizers.masked_autoencoder import MaskedAutoencoderTokenizer
from vwm.tokenizers.module import TokenizerModule
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer
from vwm.worlds.bundle import load_simulator, save_simulator
from vwm.worlds.context_sampler import ContextSampler, SimulatorContext
from vwm.worlds.ensemble import EnsembleSimulator
from vwm.worlds.simulated_env import SimulatedEnvSpec

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
FOUND: dict[str, Any] = {}


# --- hashing


FORMER_FIELDS = {"labeled": "labelled"}
"""Names that fields of dataclasses had in the recorded baseline."""


def feed(digest: Any, value: Any) -> None:
    """Whatever an object holds, with types and shapes, without the names of classes."""
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(f"T{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    elif isinstance(value, np.ndarray | np.generic):
        feed(digest, torch.from_numpy(np.array(value)))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(f"K{key}".encode())
            feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"L{len(value)}".encode())
        for item in value:
            feed(digest, item)
    elif is_dataclass(value) and not isinstance(value, type):
        feed(digest, {FORMER_FIELDS.get(f.name, f.name): getattr(value, f.name) for f in fields(value)})
    elif isinstance(value, bytes):
        digest.update(b"B" + value)
    elif value is None or isinstance(value, str | bool | int | float):
        digest.update(repr(value).encode())
    else:
        raise TypeError(f"no hash of {type(value)}")


def hashed(value: Any) -> str:
    digest = hashlib.sha256()
    feed(digest, value)
    return digest.hexdigest()


def put(name: str, value: Any) -> None:
    if name in FOUND:
        raise KeyError(f"{name} twice")
    entry: dict[str, Any] = {"sha256": hashed(value)}
    if isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1):
        entry["value"] = float(value)
    FOUND[name] = entry


def put_weights(name: str, module: nn.Module) -> None:
    state = module.state_dict()
    put(f"{name}/weights", sorted(hashed(value) for value in state.values()))
    put(f"{name}/weights_by_name", list(state.items()))


def case(name: str, function: Callable[..., None], *arguments: Any, **settings: Any) -> None:
    began = time.perf_counter()
    torch.manual_seed(0)
    np.random.seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(name, *arguments, **settings)
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        put(f"{name}/ERROR", f"{type(error).__name__}")
    print(f"{time.perf_counter() - began:7.2f} s  {name}", file=sys.stderr, flush=True)


# --- small networks (as tests/models.py has them)


def randomize(module: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.numel() > 1 and (p == p.flatten()[0]).all():
                p.add_(torch.randn(p.shape, generator=generator).to(p) * 0.2)
    return module


def pictures(*shape: int, seed: int = 4) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def clips(batch: int, frames: int, side: int, choices: int = 4, **more: Any) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (batch, frames, side, side, 3), dtype=torch.uint8, generator=generator)
    taken = torch.randint(0, choices, (batch, frames), generator=generator)
    earned = {"rewards": (taken == 1).float(), "terminated": taken == 3}
    return ClipBatch(**{"frames": video, "actions": taken, "seed": torch.arange(batch) * 7919, **earned, **more})


def names_of(dims: int) -> tuple[str, ...]:
    return ("steer", "gas", "brake")[:dims] if dims else ("LEFT", "RIGHT", "UP", "noop")


def space_of(dims: int) -> ActionSpace:
    return ActionSpace("continuous" if dims else "discrete", dims or 4, names_of(dims))


def tokenizer(codebook: Any = (4, 3, 3)) -> SpaceTimeTokenizer:
    torch.manual_seed(0)
    codes = list(codebook) if isinstance(codebook, tuple) else codebook
    return randomize(SpaceTimeTokenizer((16, 16), 4, codes, width=16, depth=2, heads=2, window=4, code_width=8))


def maskgit() -> MaskGITDynamics:
    torch.manual_seed(1)
    return randomize(
        MaskGITDynamics(codebook_size=36, tokens_per_frame=16, num_actions=4, width=16, depth=2, heads=2, window=4)
    )


def latent_action() -> LatentActionModel:
    torch.manual_seed(2)
    return randomize(
        LatentActionModel(image_size=(16, 16), patch_size=8, codebook=[2, 2], width=16, depth=2, heads=2, window=4)
    )


def genie(labelled: bool = False, outcomes: bool = False) -> GenieSimulator:
    return GenieSimulator(
        tokenizer(),
        maskgit(),
        None if labelled else latent_action(),
        ActionSpace("discrete", 4, names_of(0), latent=not labelled),
        randomize(RewardTerminationHeads(width=16, hidden=16)) if outcomes else None,
        sampling=GenieSampling(steps=3),
        context_frames=2,
        title="noise",
        starts=pictures(3, 2, 16, 16),
    )


def dit(seed: int = 3, **changes: Any) -> DiT:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"grid": (4, 4), "channels": 3, "num_actions": 4, "width": 32, "depth": 4, "heads": 2}
    return randomize(DiT(**{**settings, "window": 4, "registers": 2, **changes}))


def diffusion_world(outcomes: bool = False, policy: bool = False, sampling: Any = None, **changes: Any) -> DiTSimulator:
    dims = changes.get("action_dims", 0)
    if dims:
        changes["num_actions"] = 0
    pixels = PixelTokenizer((8, 8))
    return DiTSimulator(
        pixels,
        dit(grid=pixels.grid, channels=pixels.channels, patch_size=2, **changes),
        randomize(RewardTerminationHeads(width=32, hidden=16)) if outcomes else None,
        space_of(dims),
        randomize(PolicyRewardHeads(32, 0 if dims else 4, dims, hidden=16)) if policy else None,
        sampling=sampling or DiTSampling(steps=2),
        context_frames=2,
        title="noise",
        starts=pictures(3, 2, 8, 8),
    )


def jepa_parts(pooling: Any = "none", decoder: bool = True, **changes: Any) -> dict[str, Any]:
    torch.manual_seed(6)
    projector = LatentProjector((2, 2), 4, pooling, latent_width=8)
    grid = projector.latent_grid
    parts = {"encoder": randomize(ConvFrameEncoder((8, 8), [4, 4])), "projector": randomize(projector)}
    torch.manual_seed(5)
    settings: dict[str, Any] = {"latent_width": 8, "num_actions": 4, "width": 16, "depth": 2, "heads": 2, "window": 4}
    if changes.get("action_dims"):
        settings["num_actions"] = 0
    parts["dynamics"] = randomize(ActionConditionedPredictor(**{**settings, "grid": grid, **changes}))
    parts["decoder"] = randomize(LatentDecoder((8, 8), grid, 8, [4, 4])) if decoder else None
    return parts


def jepa_world(**changes: Any) -> VJEPAACSimulator:
    return VJEPAACSimulator(
        **jepa_parts(**changes),
        actions=space_of(changes.get("action_dims", 0)),
        context_frames=2,
        title="noise",
        starts=pictures(3, 2, 8, 8),
    )


def dream(seed: int = 7, **changes: Any) -> MDNRNNSimulator:
    torch.manual_seed(seed)
    dims = changes.get("action_dims", 0)
    settings = {
        "latent_size": 4,
        "num_actions": 0 if dims else 4,
        "hidden_size": 16,
        "num_mixtures": 3,
        "action_embedding_size": 4,
    }
    dynamics = randomize(MDNRNN(**{**settings, **changes}))
    if dynamics.reward_head is not None:
        with torch.no_grad():
            dynamics.reward_head.bias[dynamics.two_hot.values.abs() > 10] -= 30
    names = names_of(dims)[: changes.get("num_actions", 4)]
    return MDNRNNSimulator(
        randomize(FrameVAE((8, 8), latent_size=4, widths=[4, 8])),
        dynamics,
        ActionSpace("continuous" if dims else "discrete", len(names), names),
        context_frames=2,
        title="noise",
        starts=pictures(3, 2, 8, 8),
    )


def muzero_world(**changes: Any) -> MuZeroSimulator:
    torch.manual_seed(8)
    settings: dict[str, Any] = {
        "num_actions": 4,
        "num_stacked_frames": 2,
        "width": 8,
        "hidden": 8,
        "support_limit": 5,
    }
    settings |= {"prefix_hidden": 8, "projection_size": 8}
    return MuZeroSimulator(randomize(MuZeroNetwork([32, 32, 3], **{**settings, **changes})), space_of(0), title="noise")


def consistency_world(observation: tuple[int, ...] = (5,)) -> TDMPC2Simulator:
    torch.manual_seed(9)
    seen = len(observation) == 3
    dynamics = TDMPC2WorldModel(
        3, vector_size=None if seen else observation[0], image_size=observation[:2] if seen else (64, 64),
        num_stacked_frames=2,
        latent_size=16, width=16, encoder_width=16, image_channels=4, num_bins=21, symlog_limit=5.0,
        predict_termination=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    starts = torch.randint(0, 256, (3, 2, *observation), dtype=torch.uint8, generator=generator)
    return TDMPC2Simulator(
        randomize(dynamics), space_of(3), context_frames=2, title="noise", starts=starts if seen else starts / 128 - 1
    )


def imagined_world(observation: tuple[int, ...] = (16, 16, 3), action_dims: int = 0, **changes: Any) -> RSSMSimulator:
    torch.manual_seed(8)
    small: dict[str, Any] = {"deter": 16, "hidden": 8, "stoch": 12, "classes": 4, "blocks": 2, "units": 8}
    settings = RSSMWorldModelConfig(**{**small, "vector_layers": 1, "depth": 4, "mults": (1, 2), **changes})
    world = randomize(RSSMWorldModel.from_settings(observation, 0 if action_dims else 4, action_dims, settings))
    generator = torch.Generator().manual_seed(4)
    starts = (
        pictures(3, 2, *observation[:2])
        if len(observation) == 3
        else torch.randn(3, 2, *observation, generator=generator)
    )
    return RSSMSimulator(world, space_of(action_dims), context_frames=2, title="noise", starts=starts)


# --- 1. simulators


def fixed_actions(space: ActionSpace, batch: int, t: int) -> Tensor:
    lanes = torch.arange(batch)
    if space.kind == "discrete":
        return (3 * t + 2 * lanes + 1) % space.size
    return torch.sin(1.7 * t + lanes[:, None] + 2.3 * torch.arange(space.size)).float()


def show(name: str, world: Simulator, state: Any, output: StepOutput | None) -> None:
    if output is not None:
        for field, value in output._asdict().items():
            put(f"{name}/{field}", value)
    put(f"{name}/state_latent", world.latent(state))
    put(f"{name}/features", "refused" if not isinstance(world, ProvidesFeatures) else world.features(state))


def play(name: str, world: Any, starts: Tensor, seed: int = 7, actions_too: bool = True) -> None:
    """Reset, step twice, observe, step twice."""
    context, batch = starts[:2], 2
    state, shown = world.reset(context, seed)
    put(f"{name}/reset/frame", shown)
    show(f"{name}/reset", world, state, None)
    for t in range(5):
        action = fixed_actions(world.spec.actions, batch, t)
        if t == 2:
            frame = starts[[1, 0], 0]
            if not isinstance(world, ObservesFrames):
                put(f"{name}/observe", "refused")
                continue
            state = world.observe(state, action, frame)
            show(f"{name}/observe", world, state, None)
        else:
            state, output = world.step(state, action)
            show(f"{name}/step{t}", world, state, output)
            put(f"{name}/step{t}/vectors", world.flatten_latents(output.latent))
    _, blind = world.step(state, fixed_actions(world.spec.actions, batch, 9), decode=False)
    put(f"{name}/blind", list(blind))
    if actions_too and context.shape[1] > 1:
        between = torch.stack(
            [fixed_actions(world.spec.actions, batch, 20 + t) for t in range(context.shape[1] - 1)], 1
        )
        state, shown = world.reset(context, torch.tensor([11, 12]), between)
        put(f"{name}/reset_with_actions", [shown, world.step(state, fixed_actions(world.spec.actions, batch, 3))[1]])
    if isinstance(world, VideoSimulator):
        transition(name, world, context)
    if isinstance(world, VJEPAACSimulator):
        put(f"{name}/encode", world.encode(context))
        if context.shape[1] > 1:
            put(f"{name}/goal", encode_goal_frames(world, context[:, -1]))


def transition(name: str, world: VideoSimulator, context: Tensor) -> None:
    video = frames_to_float(torch.cat((context, context.flip(1)), 1))
    with torch.inference_mode():
        latents = world.tokenizer.encode(video)
        put(f"{name}/tokenizer/latents", latents)
        put(f"{name}/tokenizer/video", world.tokenizer.decode(latents))
    frames = latents.shape[1] - 1
    taken, others = (
        torch.stack([fixed_actions(world.spec.actions, 2, offset + t) for t in range(frames)], 1) for offset in (0, 41)
    )
    loss = world.transition_loss(latents, taken, others) if isinstance(world, MeasuresTransitionLoss) else None
    put(f"{name}/transition_loss", loss)
    if loss is not None:
        for way, value in zip(("own", "other"), loss, strict=True):
            put(f"{name}/transition_loss/{way}", value)


def shipped(name: str, bundle: str) -> None:
    world = load_simulator(BUNDLES / bundle, "cpu", torch.float32)
    assert world.starts is not None
    put(
        f"{name}/settings",
        [world.spec.fps, world.spec.context_frames, world.spec.title, world.spec.actions.names, tuple(world.sampling)],
    )
    put(f"{name}/starts", world.starts)
    for part, network in world.networks().items():
        put_weights(f"{name}/{part}", network)
    play(name, world, world.starts)


def small_world(
    name: str, make: Callable[[], NetworkSimulator], starts: Tensor | None = None, saved: bool = True
) -> None:
    world = make()
    starts = world.starts if starts is None else starts
    assert starts is not None
    play(name, world, starts)
    if not saved:
        return
    with tempfile.TemporaryDirectory() as folder:
        save_simulator(world, Path(folder) / "bundle")
        again = load_simulator(Path(folder) / "bundle", "cpu")
        state, shown = again.reset(starts[:2], 7)
        put(f"{name}/saved", [shown, again.step(state, fixed_actions(again.spec.actions, 2, 0))[1]])


def ensemble(name: str) -> None:
    members = [dream(7, predict_reward=True), dream(8, predict_reward=True)]
    world = EnsembleSimulator(members, penalty=0.5)
    assert members[0].starts is not None
    state, shown = world.reset(members[0].starts[:2], 7)
    put(f"{name}/reset", shown)
    for t in range(3):
        state, output = world.step(state, fixed_actions(world.spec.actions, 2, t))
        put(f"{name}/step{t}", [*output, state.uncertainty])


# --- 2. LightningModules


class Trainer:
    """As much of Lightning's as a module asks for."""

    max_steps, global_step, is_global_zero, global_rank, world_size, current_epoch = 10, 0, True, 0, 1, 0


def train(name: str, module: Any, batch: ClipBatch, steps: int = 2, sample: bool = True) -> None:
    trainer, logged = Trainer(), {}
    module.trainer = trainer
    module.log = lambda key, value, **_: logged.update({key: value})
    module.log_dict = lambda values, **_: logged.update(values)
    put_weights(f"{name}/begun", module)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    module.train()
    torch.manual_seed(0)
    for step in range(steps):
        logged.clear()
        module.on_train_batch_start(batch, step)
        moved = module.on_before_batch_transfer(batch, 0)
        loss = module.training_step(moved, step)
        put(f"{name}/step{step}/loss", loss)
        for key, value in logged.items():
            put(f"{name}/step{step}/log/{key}", value)
        optimizer.zero_grad()
        loss.backward()
        put(
            f"{name}/step{step}/gradients",
            sorted(hashed(p.grad) for p in module.parameters() if p.grad is not None),
        )
        if step + 1 < steps:

            def closure(loss: Tensor = loss) -> Tensor:
                trainer.global_step += 1
                return loss

            module.optimizer_step(0, step, optimizer, closure)
            schedule.step()
    put_weights(name, module)
    module.eval()
    logged.clear()
    with torch.no_grad():
        module.validation_step(module.on_before_batch_transfer(batch, 0), 0)
        for key, value in logged.items():
            put(f"{name}/validation/{key}", value)
        if sample:
            put(f"{name}/sample", module.sample(batch))
    put(f"{name}/networks", sorted(module.networks()))


FAST = OptimizerConfig(warmup=1, lr=1e-2)
OPTIMIZERS = {
    "adamw": FAST,
    "cosine": OptimizerConfig(warmup=2, lr=1e-2, schedule="cosine", final_weight_decay=0.1, stretch=1.25),
    "muon": OptimizerConfig(name="muon", warmup=1, lr=1e-2),
}


def vae(**changes: Any) -> CausalVAE:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"latent_channels": 4, "patch_size": 2, "widths": [8, 8], "depths": [1, 1], **changes}
    return randomize(CausalVAE((16, 16), **settings))


def masked_autoencoder() -> MaskedAutoencoderTokenizer:
    torch.manual_seed(0)
    return randomize(
        MaskedAutoencoderTokenizer(
            (16, 16), patch_size=4, latent_grid=(2, 3), latent_channels=4, width=16, depth=2, heads=2, window=4,
            time_every=2,
        )
    )  # fmt: skip


def frame_vae(**changes: Any) -> FrameVAE:
    torch.manual_seed(0)
    return randomize(FrameVAE((16, 16), latent_size=6, widths=[8, 8], **changes))


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "space_time_fsq": tokenizer,
    "space_time_vq": lambda: tokenizer(16),
    "vae_kl": vae,
    "vae_vq": lambda: vae(codebook=16),
    "vae_fsq": lambda: vae(codebook=[5, 4, 3]),
    "masked_autoencoder": masked_autoencoder,
    "frame_vae": frame_vae,
    "frame_vae_centred": lambda: frame_vae(subtract_mean_frame=True),
}


def tokenizer_module(name: str, make: Callable[[], Any], optimizer: str = "adamw", adversary: bool = False) -> None:
    adversarial = None
    if adversary:
        torch.manual_seed(1)
        adversarial = AdversarialLoss(start_step=0, width=4, layers=2)
    train(name, TokenizerModule(make(), OPTIMIZERS[optimizer], l1_weight=0.1, adversarial=adversarial), clips(2, 5, 16))


def tokenizer_streams(name: str, make: Callable[[], Any]) -> None:
    network = make().eval()
    video = frames_to_float(pictures(2, 5, 16, 16, seed=1))
    with torch.no_grad():
        if network.channels:
            put(f"{name}/measured", list(measure_latent_statistics(network, [pictures(2, 5, 16, 16, seed=2)])))
        latents = network.encode(video)
        put(f"{name}/latents", latents)
        put(f"{name}/video", network.decode(latents))
        _, one = network.encode_step(network.init_encoder(2), video)
        put(f"{name}/encode_step", one)
        _, back = network.decode_step(network.init_decoder(2), one)
        put(f"{name}/decode_step", back)
    with tempfile.TemporaryDirectory() as folder:
        save_component(network, Path(folder) / "part")
        put_weights(f"{name}/saved", load_component(Path(folder) / "part"))


def genie_module(name: str, labelled: bool = False, outcomes: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_component(tokenizer(), Path(folder) / "tokenizer")
        torch.manual_seed(0)
        heads = randomize(RewardTerminationHeads(width=16, hidden=16)) if outcomes else None
        module = GenieModule(
            folder, maskgit(), FAST, None if labelled else latent_action(), context_frames=2, outcomes=heads
        )
        train(name, module, clips(3, 6, 16))


def genie_finetuning(name: str, adapt: Any, outcomes: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_simulator(genie(), Path(folder) / "latent")
        torch.manual_seed(0)
        module = GenieFinetuning(
            str(Path(folder) / "latent"), num_actions=3, optimizer=OptimizerConfig(warmup=0, lr=1e-2),
            context_frames=2, adapt=adapt, outcomes=randomize(RewardTerminationHeads(width=16, hidden=16)) if outcomes
            else None,
        )  # fmt: skip
        batch = clips(3, 6, 16, choices=3)
        module.initialize_action_map([batch])
        put_weights(f"{name}/map", module)
        train(name, module, batch)
        module.merge()
        put_weights(f"{name}/merged", module)


OBJECTIVES: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "velocity": ({}, DiffusionForcing),
    "v": ({"prediction": "v"}, lambda: DiffusionForcing("v", density="uniform", shift=3.0)),
    "shortcut": ({"prediction": "clean", "num_step_sizes": 3}, lambda: ShortcutForcing(finest=4, bootstrap=0.5)),
}


def dit_module(name: str, objective: str, context: Any = "clean", outcomes: bool = False, **changes: Any) -> None:
    settings, make = OBJECTIVES[objective]
    module = DiTModule(
        PixelTokenizer((8, 8), patch_size=2), dit(grid=(4, 4), channels=12, **settings, **changes), make(), FAST,
        context=context, action_dropout=0.2, context_frames=2,
        outcomes=randomize(RewardTerminationHeads(width=32, hidden=16)) if outcomes else None,
    )  # fmt: skip
    train(name, module, clips(3, 6, 8, labeled=torch.tensor([True, False, True])))


def agent_module(name: str, objective: str, context: Any = "clean") -> None:
    settings, make = OBJECTIVES[objective]
    torch.manual_seed(0)
    module = DiTAgentModule(
        dynamics=dit(grid=(4, 4), channels=12, agent_tokens=2, **settings),
        policy=randomize(PolicyRewardHeads(32, num_actions=4, hidden=16, length=3, bins=21)),
        tokenizer=PixelTokenizer((8, 8), patch_size=2),
        objective=make(),
        optimizer=FAST,
        outcomes=randomize(RewardTerminationHeads(width=32, hidden=16, bins=21)),
        context=context,
        context_frames=2,
    )
    train(name, module, clips(3, 6, 8))


def dit_finetuning(name: str, adapt: Any, dims: int = 0) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = diffusion_world(num_actions=0)
        world.spec = replace(world.spec, actions=ActionSpace("discrete", 1, ("go on",)))
        save_simulator(world, Path(folder) / "unlabelled")
        torch.manual_seed(0)
        module = DiTFinetuning(
            str(Path(folder) / "unlabelled"), objective=DiffusionForcing(), optimizer=OptimizerConfig(warmup=0,
            lr=1e-2),
            num_actions=0 if dims else 3, action_dims=dims, adapt=adapt, lora=LoRAConfig(rank=2) if adapt == "lora" else None, context_frames=2,  # noqa: E501
            outcomes=randomize(RewardTerminationHeads(32, 16)),
        )  # fmt: skip
        taken = torch.rand(2, 5, dims, generator=torch.Generator().manual_seed(1)) * 2 - 1 if dims else None
        batch = clips(2, 5, 8, choices=3, **({"actions": taken} if dims else {}))
        train(name, module, batch)
        module.merge()
        put_weights(f"{name}/merged", module)


def mdn_module(name: str, action_dropout: float = 0.0, **changes: Any) -> None:
    world = dream(**changes)
    module = MDNRNNModule(world.tokenizer, world.dynamics, FAST, action_dropout=action_dropout)
    train(name, module, clips(3, 6, 8))


SIZES: dict[str, Any] = {"image_size": (16, 16), "frames": 4, "tubelet": 2, "patch_size": 4, "heads": 2, "depth": 2}


def vjepa_module(
    name: str, encoder: Mapping[str, Any], predictor: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    torch.manual_seed(0)
    seer = randomize(VideoEncoder(**{"width": 24, **SIZES, **encoder}))
    sayer = randomize(MaskedPredictor(**{"encoder_width": 24, "width": 16, **SIZES, **predictor}))
    masks = [
        MultiBlockMaskSampler(2, (0.2, 0.3)),
        MultiBlockMaskSampler(1, (0.5, 0.5)),
        ContextBlockMaskSampler(num_targets=2),
    ]
    module = VJEPAModule(seer, sayer, **{"mask_samplers": masks, "optimizer": OPTIMIZERS["cosine"], **settings})
    train(name, module, clips(4, 4, 16))


def action_module(name: str, settings: Mapping[str, Any], frozen: bool = False, **parts: Any) -> None:
    networks = jepa_parts(**parts)
    with tempfile.TemporaryDirectory() as folder:
        if frozen:
            save_component(networks["encoder"], Path(folder) / "encoder")
            networks["encoder"] = folder
        module = ActionConditionedJEPAModule(**networks, optimizer=FAST, context_frames=2, **settings)
    if module.inverse_dynamics is not None:
        randomize(module.inverse_dynamics)
    more: dict[str, Any] = {"state": torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(2))}
    if parts.get("action_dims"):
        more["actions"] = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1
    train(name, module, clips(3, 6, 8, **more))


# --- 3. agents


def live(agent: Agent, steps: int, count: int = 2, length: int = 8) -> tuple[ReplayBuffer, list[Any]]:
    """A life in a made-up world, of which the action is what is paid."""
    replay = ReplayBuffer(count * steps, count, agent.spaces, agent.extras)
    generator = torch.Generator().manual_seed(3)
    carry, reward, acted = agent.init_carry(count), torch.zeros(count), []
    shape = (count, *agent.spaces.observation.shape)
    for t in range(steps):
        first, last = torch.full((count,), t % length == 0), torch.full((count,), t % length == length - 1)
        seen = (
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            if agent.spaces.observation.is_image
            else torch.randn(shape, generator=generator)
        )
        time_step = TimeStep(seen, torch.where(first, 0.0, reward), first, last, last & (torch.arange(count) == 0))
        done = agent.act(carry, time_step, explore=True)
        replay.add(time_step, done.action, done.extras)
        acted.append(done.action)
        carry, reward = (
            done.carry,
            done.action.float().flatten(1).sum(-1) if done.action.ndim > 1 else done.action.float(),
        )
    return replay, acted


def agent_case(name: str, make: Callable[[], Agent], steps: int = 40) -> None:
    torch.manual_seed(0)
    agent = make()
    put_weights(f"{name}/begun", agent)
    torch.manual_seed(1)
    replay, acted = live(agent, steps)
    put(f"{name}/acted", acted)
    agent.set_total_updates(10)
    batch: ReplayBatch = replay.sample(agent.batch_size, agent.batch_length, agent.single_episode, agent.context_steps)
    put(f"{name}/batch", list(batch))
    for number in range(2):
        torch.manual_seed(10 + number)
        updated = agent.update(batch)
        for key, value in updated.logs.items():
            put(f"{name}/update{number}/{key}", float(value))
        put(f"{name}/update{number}/extras", [updated.extras, updated.indices])
    put_weights(name, agent)
    put(
        f"{name}/optimizers",
        sorted(hashed(list(o.state_dict()["state"].values())) for o in agent.optimizers().values()),
    )
    carry, no = agent.init_carry(2), torch.zeros(2, dtype=torch.bool)
    for explore in (True, False):
        torch.manual_seed(20)
        now = TimeStep(batch.observation[:2, 0], torch.zeros(2), ~no if explore else no, no, no)
        done = agent.act(carry, now, explore=explore)
        put(f"{name}/act_explore_{explore}", [done.action, done.extras])
        carry = done.carry
    torch.manual_seed(21)
    watched = agent.observe(carry, now, done.action)
    put(f"{name}/watch", [watched.action, watched.extras])
    try:
        world = agent.simulator()
    except ValueError:
        put(f"{name}/simulator", "refused")
        return
    context = batch.observation[:2, :2]
    state, shown = world.reset(context, 7)
    state, output = world.step(state, fixed_actions(world.spec.actions, 2, 0))
    put(f"{name}/simulator", [shown, *output])


SMALL: dict[str, Any] = {"deter": 16, "hidden": 12, "stoch": 4, "units": 12}
OLD: dict[str, Any] = {
    "norm": "none",
    "activation": "elu",
    "symlog": False,
    "reconstruction_loss": "normal",
    "reward_distribution": "normal",
}
WORLDS = {
    3: RSSMWorldModelConfig(**SMALL, classes=4, blocks=2),
    2: RSSMWorldModelConfig(
        **SMALL, **OLD, classes=4, cell="norm_gru", discount_horizon=0, kl=KLLoss("balanced", 0.8, 0.2, 0.0, "mean")
    ),
    1: RSSMWorldModelConfig(
        **SMALL, **OLD, classes=0, cell="gru", predict_continue=False, discount_horizon=0,
        kl=KLLoss("elbo", free_nats=3.0, free_nats_over="mean"),
    ),
}  # fmt: skip


def dreamer(version: int, kind: str, observation: tuple[int, ...] = (5,)) -> Dreamer:
    spaces = EnvSpaces(ObservationSpace.of_shape(observation), ActionSpace(kind, 2))
    net: dict[str, Any] = {"width": 12, "layers": 1}
    old = {**net, "norm": "none", "activation": "elu"}
    shape: dict[str, Any] = {"horizon": 4, "batch_size": 3, "batch_length": 6}
    settings = WORLDS[version]
    if len(observation) == 3:
        settings = RSSMWorldModelConfig(**SMALL, classes=4, blocks=2, depth=4, mults=(1, 2))
    if version == 3:
        return Dreamer(
            spaces,
            settings,
            ActorConfig(**net),
            CriticConfig(**net),
            DreamerOptimizerConfig(lr=1e-2, warmup=0),
            **shape,
        )
    through = ActorConfig(
        "dynamics" if kind == "continuous" else "reinforce", continuous_distribution="tanh_normal", **old
    )
    slow: dict[str, Any] = (
        {"target_network": "target", "target_rate": 1.0, "target_every": 2}
        if version == 2
        else {"target_network": "none"}
    )
    plain: dict[str, Any] = {
        "discount": 0.99,
        "normalize_returns": False,
        "replay_critic_scale": 0.0,
        "store_latents": False,
    }
    separate = DreamerOptimizerConfig(1e-2, 1e-2, 1e-2, clip=100)
    return Dreamer(spaces, settings, through, CriticConfig("normal", **slow, **old), separate, **plain, **shape)


def planet(kind: str) -> PlaNet:
    settings = RSSMWorldModelConfig(
        deter=32, hidden=32, stoch=4, classes=0, cell="gru", prior_layers=1, norm="none", activation="relu", units=32,
        vector_layers=1, symlog=False, reconstruction_loss="normal", reward_distribution="normal", reward_layers=1,
        predict_continue=False, discount_horizon=0,
        kl=KLLoss("elbo", free_nats=1.0),
    )  # fmt: skip
    planner = CEM(
        horizon=3, samples=64, elites=8, iterations=3, keep_elites=0, selection="mean", init_std=1.0, noise_exponent=0.0
    )
    return PlaNet(
        EnvSpaces(ObservationSpace.of_shape((2,)), ActionSpace(kind, 2)),
        settings,
        planner,
        lr=3e-3,
        batch_size=4,
        batch_length=6,
    )


def tdmpc2(observation: tuple[int, ...] = (3,), **changes: Any) -> TDMPC2:
    size = TDMPC2Size(encoder_width=16, latent=16, width=16, members=3, channels=4)
    planning = TDMPC2PlannerConfig(horizon=3, samples=12, elites=4, proposals=3, iterations=2)
    made = TDMPC2(
        EnvSpaces(ObservationSpace.of_shape(observation), ActionSpace("continuous", 2)),
        **{
            "episode_length": 100, "size": size, "planning": planning, "batch_size": 6, "bins": 21, "reach": 5.0,
            **changes,
        },
    )  # fmt: skip
    randomize(made)
    return made


def muzero(observation: tuple[int, ...] = (3,), **changes: Any) -> MuZeroAgent:
    sizes: dict[str, Any] = {"width": 16, "hidden": 16, "support": 8, "prefix_hidden": 8, "projection": 8}
    actions = 3 if len(observation) == 3 else 2
    made = MuZeroAgent(
        EnvSpaces(ObservationSpace.of_shape(observation), ActionSpace("discrete", actions)),
        **{"search": GumbelMuZeroSearch(4), "batch_size": 6, **sizes, **changes},
    )
    randomize(made.network)
    return made


AGENTS: dict[str, Callable[[], Agent]] = {
    **{
        f"dreamer_v{version}_{kind}": (lambda version=version, kind=kind: dreamer(version, kind))
        for version in (1, 2, 3)
        for kind in ("discrete", "continuous")
    },
    "dreamer_v3_pictures": lambda: dreamer(3, "discrete", (16, 16, 3)),
    "planet_discrete": lambda: planet("discrete"),
    "planet_continuous": lambda: planet("continuous"),
    "tdmpc2": tdmpc2,
    "tdmpc2_episodic_frames": lambda: tdmpc2(frames=3, episodic=True),
    "tdmpc2_pictures": lambda: tdmpc2((40, 40, 3), frames=2),
    "muzero_gumbel": muzero,
    "muzero_puct_reanalyse": lambda: muzero(search=PUCTSearch(6), reanalyse=0.5),
    "muzero_prefix": lambda: muzero(value_prefix=2, unroll=4, td=2, discount=0.9, bootstrap_from_network=True),
    "muzero_pictures": lambda: muzero((32, 32, 3), frames=3),
}


def imagination(name: str, kind: str, objective: Any) -> None:
    world = diffusion_world(outcomes=True, policy=True)
    observe = "frame" if kind == "frame" else "features"
    spaces = simulator_env_spaces(world, observe)
    put(f"{name}/spaces", list(spaces.observation.shape))
    torch.manual_seed(0)
    policy: Any
    if kind == "features":
        policy = FeatureActorCriticPolicy(world, spaces, actor=ActorConfig(width=16, layers=1))
    elif kind == "frame":
        policy = FrameActorCriticPolicy(world, spaces, conv_channels=4, channel_multipliers=(1, 2), width=8)
    else:
        policy = ClonedActorCriticPolicy(world, spaces, critic=CriticConfig(width=16, layers=1), deterministic=False)
    put_weights(f"{name}/begun", policy)
    context = SimulatorContext(
        pictures(4, 3, 8, 8, seed=5),
        torch.randint(0, 4, (4, 2), generator=torch.Generator().manual_seed(6)),
        torch.ones(4, dtype=torch.bool),
    )
    optimizer = torch.optim.Adam([w for w in policy.parameters() if w.requires_grad], 1e-2)
    torch.manual_seed(1)
    for number in range(2):
        imagined = imagine_rollout(world, policy, context, 3, observe)
        put(f"{name}/dreamt{number}", [*imagined[1:]])
        learnt = imagination_losses(policy, objective, imagined, 0.9)
        put(f"{name}/update{number}/actor", learnt.actor_loss)
        put(f"{name}/update{number}/critic", learnt.critic_loss)
        put(f"{name}/update{number}/returns", learnt.returns)
        for key, value in learnt.logs.items():
            put(f"{name}/update{number}/log/{key}", value)
        optimizer.zero_grad()
        (learnt.actor_loss + learnt.critic_loss).backward()
        optimizer.step()
        policy.actor_critic.update_target()
    put_weights(name, policy)


def evolution(name: str) -> None:
    for kind, world in {
        "keys": dream(predict_reward=True),
        "levers": dream(predict_reward=True, action_dims=3),
    }.items():
        space = world.spec.actions
        start = initial_controller_parameters(20, space)
        put(f"{name}/{kind}/first", start)
        population = np.random.default_rng(0).normal(size=(5, len(start))) * 2
        assert world.starts is not None
        fitness = SimulatedFitness(world, world.starts[:, -1:], 3, 8, "model", 1.0)
        put(f"{name}/{kind}/fitness", fitness(population, 4))
        put(f"{name}/{kind}/survival", SimulatedFitness(world, world.starts, 4, 6, "survival", 1.2)(population, 1))
        search = CMAESSearch(start, 0.5, 6, 3)
        for generation in range(3):
            asked = search.ask()
            search.tell(fitness(asked, generation))
        put(f"{name}/{kind}/search", [search.mean, search.sigma])
        controller = LinearController.of(torch.from_numpy(search.mean), space)
        put_weights(f"{name}/{kind}/controller", controller)
        features = torch.randn(4, 20, generator=torch.Generator().manual_seed(1))
        put(f"{name}/{kind}/said", controller(features, space))
        parameters = torch.from_numpy(population[:4]).float()
        put(f"{name}/{kind}/linear", linear_controller_actions(parameters, features, space))
        driver = ControllerPolicy(world, controller, EnvSpaces(ObservationSpace.of_shape((8, 8, 3)), space))
        carry, no = driver.init_carry(2), torch.zeros(2, dtype=torch.bool)
        for t, frame in enumerate(pictures(3, 2, 8, 8, seed=9)):
            acted = driver.act(carry, TimeStep(frame, torch.zeros(2), no | (t == 0), no, no), explore=False)
            carry = acted.carry
            put(f"{name}/{kind}/driver{t}", [acted.action, world.features(carry.state)])


def planners(name: str) -> None:
    small: dict[str, Any] = {"horizon": 4, "samples": 24, "elites": 6}
    for dims in (0, 2):
        world = jepa_world(action_dims=dims)
        rewarded = dream(predict_reward=True, action_dims=dims)
        assert world.starts is not None and rewarded.starts is not None
        state, _ = world.reset(world.starts, 3)
        goal = world.encode(world.starts.flip(1))[:, -1]
        other, _ = rewarded.reset(rewarded.starts, 3)
        for kind, planner in {
            "cem": CEM(**small),
            "cem_mean": CEM(**small, selection="mean", keep_elites=0, noise_exponent=0.0, action_bound=0.5),
            "mppi": MPPI(**small),
            "mppi_all": MPPI(horizon=4, samples=24, temperature=0.5, relative_temperature=False, selection="best"),
        }.items():
            at = f"{name}/{kind}/{'continuous' if dims else 'discrete'}"
            objective = GoalDistance(goal, "l2")
            plan = planner.plan(world, state, objective, world_seeds(3, 3))
            put(f"{at}/goal", list(plan[:3]) + [list(plan.distribution)])
            again = planner.plan(world, state, objective, 5, planner.shift_plan(plan, 1))
            put(f"{at}/later", list(again[:3]) + [list(again.distribution)])
            put(f"{at}/return", list(planner.plan(rewarded, other, NegativeReturnObjective(0.9), 1)[:3]))
            put(f"{at}/simulator_steps_per_plan", planner.simulator_steps_per_plan)


class Maze(Simulator):
    """States are numbers, and tables say what actions lead to; some end it."""

    def __init__(self, states: int = 7, actions: int = 5) -> None:
        g = torch.Generator().manual_seed(0)
        self.spec = SimulatorSpec(
            ObservationSpace.latent(), ActionSpace("discrete", actions), context=ObservationSpace.vector(1)
        )
        self.next = torch.randint(0, states, (states, actions), generator=g)
        self.reward = torch.rand(states, actions, generator=g, dtype=torch.float64)
        self.ends = torch.rand(states, actions, generator=g) < 0.15
        self.values = torch.rand(states, generator=g, dtype=torch.float64) * 2

    def reset(self, context: Tensor, seed: Any = 0, context_actions: Any = None) -> Any:
        return context[:, -1, 0].long(), context[:, -1]

    def step(self, state: Any, action: Tensor, decode: bool = True) -> Any:
        latent, reward, ends = (table[state, action] for table in (self.next, self.reward, self.ends))
        return latent, StepOutput(None, latent, reward, ends)


def trees(name: str) -> None:
    maze, states = Maze(), torch.arange(7)
    world = dream(predict_reward=True)
    assert world.starts is not None
    begun, _ = world.reset(world.starts, 3)
    for kind, search in {"puct": PUCTSearch(23), "gumbel": GumbelMuZeroSearch(23)}.items():
        found = search.plan(maze, states, discount=0.9, value=lambda s: maze.values[s], seed=3)
        put(f"{name}/{kind}/maze", list(found))
        put(f"{name}/{kind}/dream", list(search.plan(world, begun, discount=0.9, seed=world_seeds(2, 3))))


def record(folder: Path, length: int = 12) -> Path:
    """Three episodes of 8x8 pixels, played at random; button 2 pays."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for key in "abc":
            frames = rng.integers(256, size=(length, 8, 8, 3), dtype=np.uint8)
            actions = rng.integers(4, size=length)
            writer.write(key, Episode(frames, actions, (actions == 2).astype(np.float32), terminated=True))
    return folder


def contexts(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = ContextSampler(str(record(Path(folder))), 3, 2, 0.5)
        torch.manual_seed(3)
        put(f"{name}/draw", list(found.draw(6)))
        put(f"{name}/spread", found.spread(5))


def simulated_game(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = record(Path(folder) / "data")
        save_simulator(diffusion_world(outcomes=True), Path(folder) / "world")
        for observe in ("features", "frame", "latent"):
            game = SimulatedEnvSpec(Path(folder) / "world", str(data), time_limit=4, observe=observe, device="cpu")  # type: ignore[arg-type]
            worlds = game.open(2, 5)
            put(f"{name}/{observe}/spaces", list(worlds.spaces.observation.shape))
            shown = [worlds.reset()] if hasattr(worlds, "reset") else []
            for t in range(5):
                shown.append(worlds.step(fixed_actions(worlds.spaces.actions, 2, t)))
            put(f"{name}/{observe}/moments", [list(time_step) for time_step in shown])
            worlds.close()


def online(name: str) -> None:
    net: dict[str, Any] = {"width": 12, "layers": 1}

    def small(spaces: EnvSpaces) -> Dreamer:
        return Dreamer(
            spaces, WORLDS[3], ActorConfig(**net), CriticConfig(**net), horizon=3, batch_size=2, batch_length=4
        )

    with tempfile.TemporaryDirectory() as folder:
        learning = OnlineLearning(
            GymnasiumEnvSpec("Pendulum-v1", time_limit=12), small, num_envs=2, prefill=20, updates_per_decision=0.5,
            replay_capacity=60,
        )  # fmt: skip
        AgentTraining(
            Path(folder), learning, steps=40, checkpoint_every=30, device="cpu",
            evaluation=EvaluationConfig(every=1000, episodes=1, video=False),
        ).run()  # fmt: skip
        state = torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)
        put(f"{name}/agent", sorted(hashed(value) for value in state["algorithm"]["policy"].values()))
        put(f"{name}/episodes", (Path(folder) / "metrics" / "episodes.csv").read_text())
        put(f"{name}/evaluations", (Path(folder) / "metrics" / "evaluations.csv").read_text())


def evolving(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_simulator(dream(num_actions=2), Path(folder) / "bundle")
        evolution = ControllerEvolution(
            Path(folder) / "bundle", GymnasiumEnvSpec("CartPole-v1", pixels=True, size=8),
            inputs=("latent_and_memory",), population=4, sigma=1.0, episodes=2, device="cpu",
            fitness=ControllerFitnessConfig(reward="survival", horizon=6, rollouts=2),
        )  # fmt: skip
        AgentTraining(Path(folder) / "run", evolution, steps=2, evaluation=EvaluationConfig(every=0)).run()
        run = Path(folder) / "run"
        put(f"{name}/generations", (run / "metrics" / "latent_and_memory_generations.csv").read_text())
        put_weights(f"{name}/controller", load_component(run / "controllers" / "latent_and_memory"))
        put(f"{name}/returns", json.loads((run / "evaluation.json").read_text())["results"])


# --- 4. data


def orders(name: str) -> None:
    rng = np.random.default_rng(0)
    for trial in range(6):
        layout = [rng.integers(0, 40, rng.integers(0, 6)).tolist() for _ in range(rng.integers(1, 12))] + [[50]]
        shards = [
            ShardIndex(
                f"shard-{s:06d}.tar",
                f"hash{s}",
                tuple(EpisodeIndexEntry(f"{s}-{e}", frames, 8, 8, 0, {}) for e, frames in enumerate(shard)),
            )
            for s, shard in enumerate(layout)
        ]
        length, stride, block = int(rng.integers(1, 8)), int(rng.integers(1, 4)), int(rng.integers(1, 6))
        order = ClipOrder(shards, length, stride, seed=trial, shuffle=bool(trial % 3), shards_per_block=block)
        put(f"{name}/{trial}/index_hash", order.index_hash)
        for epoch in (0, 1, 7):
            put(f"{name}/{trial}/epoch{epoch}", [tuple(order.address(epoch, p)) for p in range(len(order))])


def counting_episode(first: int, length: int, side: int = 32) -> Episode:
    rng = np.random.default_rng(first)
    actions = rng.integers(1, 4, length)
    numbers = first + np.concatenate(([0], actions[:-1].cumsum()))
    frames = np.broadcast_to(numbers[:, None, None, None], (length, side, side, 3)).astype(np.uint8)
    state = np.stack((numbers, np.arange(length)), axis=1).astype(np.float32)
    return Episode(frames, actions, (actions * 0.5).astype(np.float32), state, terminated=first % 2 == 0)


def shards(name: str) -> None:
    wanted = ("frames", "actions", "rewards", "state", "terminated")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        for shard, raw in enumerate((True, True, False)):
            with ShardWriter(data / f"shard-{shard:06d}.tar") as writer:
                for episode in range(3):
                    length = 14 + 5 * episode + shard
                    writer.write(f"{shard}-{episode}", counting_episode(20 * episode + 7 * shard, length), raw=raw)
        for path in sorted(data.iterdir()):
            put(f"{name}/file/{path.name}", path.read_bytes())
        kinds: dict[str, dict[str, Any]] = {
            "plain": {"fields": wanted},
            "labelled": {"fields": wanted, "labeled_fraction": 0.5, "seed": 3},
            "strided": {"fields": ("frames",), "stride": 2},
            "unshuffled": {"fields": wanted, "shuffle": False},
            "train": {"fields": wanted, "split": "train", "val_fraction": 0.3},
            "val": {"fields": wanted, "split": "val", "val_fraction": 0.3},
        }
        for kind, settings in kinds.items():
            found = make_clip_dataset(str(data), 4, **settings)
            for rank in range(2 if kind == "plain" else 1):
                loader = ClipLoader(found, 3, rank, 2) if kind == "plain" else ClipLoader(found, 2)
                for epoch in range(2):
                    put(f"{name}/{kind}/rank{rank}/epoch{epoch}", list(loader))
                put(f"{name}/{kind}/rank{rank}/state", list(loader.state_dict().values()))
        module = VideoDataModule(str(data), 4, 2, fields=list(wanted), workers=0, val_fraction=0.3, seed=5)
        put(f"{name}/module/train", list(module.train_dataloader()))
        put(f"{name}/module/val", list(module.val_dataloader()))


# --- all


def simulators() -> None:
    for bundle in ("coinrun", "carracing", "two_rooms"):
        case(f"bundle/{bundle}", shipped, bundle)
    worlds: dict[str, Callable[[], Any]] = {
        "genie": genie,
        "genie_labelled_outcomes": lambda: genie(labelled=True, outcomes=True),
        "dit": lambda: diffusion_world(outcomes=True, policy=True),
        "dit_continuous": lambda: diffusion_world(action_dims=3),
        "dit_agent_tokens": lambda: diffusion_world(outcomes=True, policy=True, agent_tokens=2),
        "dit_guided": lambda: diffusion_world(
            sampling=DiTSampling(steps=3, context_noise=0.2, guidance=1.5, shift=2.0)
        ),
        "jepa": jepa_world,
        "jepa_flatten_continuous": lambda: jepa_world(pooling="flatten", action_dims=2),
        "jepa_blind": lambda: jepa_world(decoder=False, allow_unknown_actions=True),
        "mdn_rnn": lambda: dream(predict_reward=True),
        "mdn_rnn_continuous": lambda: dream(action_dims=3),
        "rssm": imagined_world,
        "rssm_vectors": lambda: imagined_world((5,), action_dims=3),
        "rssm_gaussian": lambda: imagined_world((5,), classes=0, cell="gru", kl=KLLoss("elbo")),
        "consistency": consistency_world,
        "consistency_pictures": lambda: consistency_world((40, 40, 3)),
    }
    for kind, make in worlds.items():
        case(f"world/{kind}", small_world, make)
    case("world/muzero", small_world, muzero_world, pictures(3, 2, 32, 32))
    case("world/muzero_prefix", small_world, lambda: muzero_world(value_prefix_horizon=2), pictures(3, 2, 32, 32))
    case("world/ensemble", ensemble)


def modules() -> None:
    for kind, make in TOKENIZERS.items():
        case(f"module/tokenizer/{kind}", tokenizer_module, make)
        case(f"tokenizer/{kind}", tokenizer_streams, make)
    case("module/tokenizer/adversarial", tokenizer_module, vae, adversary=True)
    for name in ("cosine", "muon"):
        case(f"module/tokenizer/{name}", tokenizer_module, vae, name)
    case("module/genie", genie_module)
    case("module/genie_labelled", genie_module, True)
    case("module/genie_outcomes", genie_module, True, True)
    for adapt in ("frozen", "lora", "trained"):
        case(f"module/genie_finetuning/{adapt}", genie_finetuning, adapt, adapt == "trained")
        case(f"module/dit_finetuning/{adapt}", dit_finetuning, adapt)
    case("module/dit_finetuning/continuous", dit_finetuning, "lora", 2)
    for objective in OBJECTIVES:
        case(f"module/dit/{objective}", dit_module, objective)
        case(f"module/dit/{objective}_noisy_outcomes", dit_module, objective, "noisy", True)
        case(f"module/agent/{objective}", agent_module, objective)
    case("module/dit/outcomes", dit_module, "velocity", "clean", True)
    case("module/dit/agent_noisy", agent_module, "velocity", "noisy")
    case("module/dit/bidirectional", dit_module, "velocity", "noisy", causal=False)
    case("module/dit/kv_heads", dit_module, "velocity", kv_heads=1)
    case("module/mdn_rnn", mdn_module)
    case("module/mdn_rnn_reward", mdn_module, predict_reward=True)
    case("module/mdn_rnn_unknown", mdn_module, 0.5, allow_unknown_actions=True)
    plain: dict[str, Any] = {}
    case("module/vjepa", vjepa_module, plain, plain, plain)
    case(
        "module/vjepa_no_momentum", vjepa_module, plain, plain, {"momentum": None, "regularizer": SIGReg(num_slices=8)}
    )
    motion = {
        "motion": MotionBranch(24, 8, radius=1),
        "regularizer": VarianceCovarianceRegularizer(),
        "augmentation": RandomResizedCrop(),
    }
    case("module/vjepa_motion", vjepa_module, plain, plain, motion)
    for kind, encoder in {"sincos": {"positions": "sincos"}, "swiglu": {"mlp": "swiglu"}}.items():
        case(f"module/vjepa_{kind}", vjepa_module, encoder, plain, plain)
    everything = AntiCollapseConfig(VarianceCovarianceRegularizer(), smoothness_weight=0.5, inverse_dynamics_weight=0.5)
    case("module/action", action_module, {"anti_collapse": everything})
    case(
        "module/action_l2_rollout",
        action_module,
        {"loss_type": "l2", "rollout_steps": 3, "rollout_context_frames": 2},
        pooling="flatten",
    )
    case(
        "module/action_dropout", action_module,
        {"anti_collapse": everything, "proprioception_dropout": 0.5, "action_dropout": 0.3},
        proprioception_dims=2, allow_unknown_actions=True,
    )  # fmt: skip
    case("module/action_frozen", action_module, {}, True, action_dims=2)
    case(
        "module/action_no_decoder",
        action_module,
        {"anti_collapse": AntiCollapseConfig(SIGReg(num_slices=8))},
        decoder=False,
    )


def agents() -> None:
    for kind, make in AGENTS.items():
        case(f"agent/{kind}", agent_case, make)
    for policy, objective in (
        ("features", ReinforceObjective()),
        ("frame", ReinforceObjective()),
        ("cloned", PMPOObjective(beta=0.1)),
        ("cloned", ReinforceObjective(beta=0.1)),
        ("features", PMPOObjective(beta=0)),
    ):
        case(
            f"agent/imagination/{policy}_{'pmpo' if isinstance(objective, PMPOObjective) else 'reinforce'}",
            imagination,
            policy,
            objective,
        )
    case("agent/evolution", evolution)
    case("planner", planners)
    case("tree_search", trees)
    case("agent/contexts", contexts)
    case("agent/simulated_game", simulated_game)
    case("run/online", online)
    case("run/evolution", evolving)


def main() -> int:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    groups = {"simulators": simulators, "modules": modules, "agents": agents}
    chosen = sys.argv[2:] or [*groups, "data"]
    for name in chosen:
        if name == "data":
            case("data/order", orders)
            case("data/shards", shards)
        else:
            groups[name]()
    Path(sys.argv[1]).write_text(json.dumps(FOUND, indent=1, sort_keys=True) + "\n")
    failed = [name for name in FOUND if name.endswith("/ERROR")]
    print(f"{len(FOUND)} keys, failed: {failed}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
