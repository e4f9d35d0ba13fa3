"""Frames, states and losses of simulators: the shipped bundles and a small one of every family."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from factories import diffusion_world, dream, genie, jepa_world, muzero_world, tdmpc2_world
from hashing import BUNDLES, case, put, put_weights
from small_networks import imagined_world, pictures
from torch import Tensor

from vwm.core.capabilities import MeasuresTransitionLoss, ObservesFrames, ProvidesFeatures
from vwm.core.frames import frames_to_float
from vwm.core.network_simulator import NetworkSimulator, VideoSimulator
from vwm.core.simulator import Simulator, StepOutput
from vwm.core.spaces import ActionSpace
from vwm.models.dit.sampling import DiffusionSampling as DiTSampling
from vwm.models.rssm.kl_loss import KLLoss
from vwm.models.vjepa.simulator import VJEPAACSimulator
from vwm.planning.goal_distance import encode_goal_frames
from vwm.worlds.bundle import load_simulator, save_simulator
from vwm.worlds.ensemble import EnsembleSimulator


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
    world = EnsembleSimulator(members, uncertainty_penalty=0.5)
    assert members[0].starts is not None
    state, shown = world.reset(members[0].starts[:2], 7)
    put(f"{name}/reset", shown)
    for t in range(3):
        state, output = world.step(state, fixed_actions(world.spec.actions, 2, t))
        put(f"{name}/step{t}", [*output, state.uncertainty])


def simulators() -> None:
    for bundle in ("boxing", "carracing", "coinrun", "freeway", "two_rooms"):
        case(f"bundle/{bundle}", shipped, bundle)
    worlds: dict[str, Callable[[], Any]] = {
        "genie": genie,
        "genie_labelled_outcomes": lambda: genie(labeled=True, outcomes=True),
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
        "consistency": tdmpc2_world,
        "consistency_pictures": lambda: tdmpc2_world((40, 40, 3)),
    }
    for kind, make in worlds.items():
        case(f"world/{kind}", small_world, make)
    case("world/muzero", small_world, muzero_world, pictures(3, 2, 32, 32))
    case("world/muzero_prefix", small_world, lambda: muzero_world(value_prefix_horizon=2), pictures(3, 2, 32, 32))
    case("world/ensemble", ensemble)
