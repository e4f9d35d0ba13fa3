"""Compare a world with another one on the same clips: quality by horizon, and time per frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import world_seeds
from vwm.eval.control import delta_psnr
from vwm.eval.latency import measure_step_latency
from vwm.eval.metrics import set_psnr
from vwm.eval.rollouts import open_loop_rollout, read_clip_actions
from vwm.eval.world_measures import EvaluationData
from vwm.worlds.bundle import load_simulator


class OtherWorld(NamedTuple):
    """A world that another one is compared with, and its bundle."""

    simulator: NetworkSimulator
    bundle: Path


def load_other_world(bundle: Path, device: str, simulator: NetworkSimulator, horizon: int) -> OtherWorld:
    """Load the world to compare a simulator with.

    Raises:
        ValueError: one of both does not show frames, or they are of another size, or the horizon is not whole steps.
    """
    other = load_simulator(bundle, device)
    check_comparable(simulator, other, bundle, horizon)
    return OtherWorld(other, bundle)


def check_comparable(simulator: NetworkSimulator, other: NetworkSimulator, bundle: Path, horizon: int) -> None:
    """Raise ValueError unless both show frames of the same size, and the horizon is whole steps of the other."""
    if not simulator.spec.observation.is_image or not other.spec.observation.is_image:
        raise ValueError(f"compare={bundle}: only worlds that show frames are compared: leave --compare out")
    size, theirs = simulator.spec.context.image_size, other.spec.context.image_size
    if theirs != size:
        raise ValueError(
            f"compare={bundle} has frames of {theirs[0]}x{theirs[1]} pixels, and this world of {size[0]}x{size[1]} "
            "(height x width): compare worlds of the same recordings"
        )
    if horizon % other.spec.frames_per_step:
        raise ValueError(
            f"horizon={horizon} must be a multiple of the {other.spec.frames_per_step} frames that a step of {bundle} "
            "shows: set --horizon"
        )


def compare_world(evaluation: EvaluationData, compared: OtherWorld) -> dict[str, Any]:
    """Roll the other world out over the same clips, with the same seeds, and time its steps.

    Both predict the same frames. Where the other world's context is 1 + k i frames of fewer, it gets the last ones.

    Returns:
        its PSNR by horizon, the gain of the evaluated world over it by horizon (the difference of PSNRs of a clip: mean
        and standard error over clips, and the clips left out because a frame is exact), and milliseconds per frame.
    """
    other = compared.simulator
    skip = (evaluation.context - 1) % other.spec.frames_per_step
    sample, context = evaluation.sample, evaluation.context - skip
    frames = sample.frames[:, skip:]
    actions = read_clip_actions(other, sample, evaluation.batch_size)[:, skip:]
    seeds = world_seeds(evaluation.seed, len(sample))
    predicted = open_loop_rollout(
        other, frames, actions, context, seeds, evaluation.batch_size, "rollout, the other world"
    )
    gain = delta_psnr(evaluation.true_frames, evaluation.predicted, predicted)
    step = measure_step_latency(other, frames[0, :context], evaluation.seed).median()
    return {
        "world": str(compared.bundle),
        "psnr": set_psnr(evaluation.true_frames, predicted),
        "gain_by_horizon": gain.estimates(),
        "frame_ms": step / other.spec.frames_per_step,
        "frames_per_step": other.spec.frames_per_step,
    }
