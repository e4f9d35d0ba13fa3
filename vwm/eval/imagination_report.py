"""``vwm agent horizon``: how far agents may imagine in a world, and the penalty of its uncertainty, as settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.checks import check_not_negative, check_positive
from vwm.core.command_output import format_command, print_output
from vwm.core.simulator import Simulator
from vwm.eval.compounding_error import read_observations
from vwm.eval.eval_settings import EvalSettings
from vwm.eval.imagination_horizon import HorizonAdvice, advise_horizon
from vwm.eval.plots import plot_imagination_horizon
from vwm.worlds.bundle import load_simulator
from vwm.worlds.ensemble import EnsembleSimulator

HORIZON_FILE = "horizon.json"
MIN_REWARDED_CLIPS = 10
"""With fewer, the report says that little is known about returns."""


def propose_horizon(
    world: Path,
    data: str,
    ensemble: list[Path] | None = None,
    out: Path = Path("runs/horizon"),
    horizon: int = 32,
    context: int | None = None,
    clips: int = 128,
    batch_size: int = 16,
    seed: int = 0,
    part: Literal["all", "train", "val"] = "all",
    device: str = "auto",
) -> HorizonAdvice:
    """Propose how many steps agents imagine in a world, from its compounding error on recorded clips.

    Writes ``horizon.json`` and ``horizon.png``. The horizon ends where predicted observations are no longer better than
    a copy of the last one and than those under random actions, or predicted returns no longer better than the mean
    return; it is 0 where the first step is not clearly better, by two standard errors over clips. With ``ensemble``
    there are an uncertainty penalty and a limit, too.

    Args:
        world: a bundle that predicts observations.
        data: shards that it was not trained on, with rewards where agents are to learn from them.
        ensemble: bundles of worlds that were trained on the same environment with other seeds.
        out: output folder.
        horizon: longest horizon to measure, in frames; where a step shows k frames, rounded up to a multiple of k.
        context: number of context frames; null takes the bundle's own number.
        clips: largest number of clips.
        batch_size: simulations that step together.
        seed: of the choice of clips, the simulations and the random actions.
        part: all episodes, or those that training with the default split trained on or held out.
        device: where to compute; auto uses a GPU where there is one.

    Raises:
        ValueError: a setting is out of range, the world predicts latents only, or the data do not fit it.
    """
    check_positive(horizon=horizon, context=context, clips=clips, batch_size=batch_size)
    check_not_negative(seed=seed)
    check_replaceable_folder(out, HORIZON_FILE, "proposal")
    first = load_simulator(world, device)
    if first.spec.observation.is_latent:
        raise ValueError(f"{world} predicts latents only: no observation to compare with the recording; see vwm eval")
    others = [load_simulator(path, device) for path in ensemble or ()]
    simulator: Simulator = EnsembleSimulator([first, *others], followed_member="first") if others else first
    frames = simulator.spec.frames_per_step
    context = simulator.spec.context_frames if context is None else context
    settings = EvalSettings(
        data, part, horizon + -horizon % frames, context - (context - 1) % frames, clips, batch_size, seed
    )
    sample, rewards = read_observations(first, settings)
    advice = advise_horizon(simulator, sample, rewards, settings.context, seed, batch_size)
    title = f"{world}: {len(sample)} clips of {sample.num_episodes} episodes"
    with atomic_folder(out) as aside:
        report = asdict(advice) | {"horizon": advice.horizon, "data": data, "settings": settings.numbers()}
        (aside / HORIZON_FILE).write_text(json.dumps(report, indent=2) + "\n")
        plot_imagination_horizon(advice, title).savefig(aside / "horizon.png")
    print("\n".join([title, *describe_advice(advice)]))
    print_output(out, f"{HORIZON_FILE} and a plot", format_command("agent", "train"))
    return advice


def describe_advice(advice: HorizonAdvice) -> list[str]:
    """Return what was found, and the settings to learn with, line by line."""
    lines = [f"observations are better than trivial ones for {_steps(advice.observations, advice.longest)}"]
    if advice.returns is None:
        lines.append("the data have no rewards that change: nothing is known about returns")
    else:
        lines.append(f"returns are better than their mean for {_steps(advice.returns, advice.longest)}")
        if advice.rewarded_clips < MIN_REWARDED_CLIPS:
            lines.append(f"only {advice.rewarded_clips} clips have a reward: take more --clips, or other data")
    if not advice.horizon:
        return [*lines, "no horizon is proposed: train this world longer, or on more data, before agents learn in it"]
    lines += [
        f"SimulatedEnvSpec:     time_limit: {advice.horizon}",
        f"ImaginationLearning:  rollouts: {{horizon: {advice.horizon}}}",
    ]
    if advice.uncertainty_penalty is not None:
        lines.append(
            f"both, with the ensemble: uncertainty_penalty: {advice.uncertainty_penalty:.3g} or "
            f"uncertainty_limit: {advice.uncertainty_limit:.3g}"
        )
    return lines


def _steps(count: int, longest: int) -> str:
    return f"all {longest} steps (measure longer with --horizon)" if count == longest else f"{count} of {longest} steps"
