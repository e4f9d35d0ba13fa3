"""Two worlds on the same clips, and the table of a report by horizon, with known values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator, StepOutput
from vwm.eval.eval_clips import EvalClips
from vwm.eval.horizon_table import count_clear_gains, format_horizon_table, horizon_rows
from vwm.eval.reconstruction import ReconstructedClips
from vwm.eval.rollouts import open_loop_rollout
from vwm.eval.world_comparison import OtherWorld, check_comparable, compare_world
from vwm.eval.world_measures import EvaluationData


class TwoFrames(Simulator):
    """Another world with one context frame whose steps show two frames, each led to by its own action."""

    def __init__(self, world: Simulator) -> None:
        self.world = world
        self.spec = replace(world.spec, frames_per_step=2, context_frames=1)

    def reset(self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None) -> Any:
        assert context.shape[1] % 2 == 1, "a context of 1 + 2 i frames"
        return self.world.reset(context, seed, context_actions)

    def step(self, state: Any, action: Tensor, decode: bool = True) -> tuple[Any, StepOutput]:
        taken = action[:, None].expand(-1, 2) if action.ndim == 1 else action  # one held action, or one per frame
        state, first = self.world.step(state, taken[:, 0])
        state, second = self.world.step(state, taken[:, 1])
        frames = torch.cat((first.frames, second.frames), dim=1)
        return state, second._replace(frame=frames)


def evaluate(world: Simulator, frames: Tensor, actions: Tensor, context: int) -> EvaluationData:
    """What ``vwm eval`` knows after rolling a world out."""
    sample = EvalClips(frames, torch.cat((actions, actions[:, -1:]), dim=1), (), "", len(frames), 1)
    predicted = open_loop_rollout(world, frames, actions, context, world_seeds(0, len(frames)), 4, "test")
    simulator = cast(NetworkSimulator, world)
    reconstruction = ReconstructedClips(frames, None)
    return EvaluationData(
        simulator, sample, context, 0, 4, reconstruction, actions, predicted, predicted, torch.ones(1)
    )


@pytest.mark.parametrize("frames_per_step", [1, 2])
def test_an_error_twice_as_large_is_six_decibels_worse_at_every_horizon(
    make_world: Callable[..., Simulator], rolling_clips: tuple[Tensor, Tensor], frames_per_step: int
) -> None:
    """A context of two frames, of which a world of two frames a step gets the last one."""
    frames, actions = rolling_clips[0][:, :6], rolling_clips[1][:, :5]
    other = make_world(error=2) if frames_per_step == 1 else TwoFrames(make_world(error=2))
    evaluation = evaluate(make_world(error=1), frames, actions, context=2)
    found = compare_world(evaluation, OtherWorld(cast(NetworkSimulator, other), Path("other")))
    assert [e["mean"] for e in found["gain_by_horizon"]] == pytest.approx([20 * math.log10(2)] * 4)
    assert [(e["n"], e["excluded"]) for e in found["gain_by_horizon"]] == [(6, 0)] * 4
    assert found["psnr"].tolist() == pytest.approx([20 * math.log10(255 / 2)] * 4)
    assert found["frames_per_step"] == frames_per_step and found["frame_ms"] > 0
    with pytest.raises(ValueError, match="horizon=5 must be a multiple of the 2 frames"):
        check_comparable(
            evaluation.simulator, cast(NetworkSimulator, TwoFrames(make_world())), Path("other"), horizon=5
        )


def test_the_table_by_horizon_holds_the_numbers_of_the_report() -> None:
    estimates = [{"mean": float(i), "stderr": 1.0, "n": 9, "excluded": 0} for i in range(6)]
    report = {
        "rollout": {
            "horizon_seconds": [(i + 1) / 10 for i in range(6)],
            "psnr": [30.0 - i for i in range(6)],
            "psnr_copy_last": [None, *[20.0] * 5],
            "gain_over_copy_by_horizon": estimates,
        },
        "control": {"delta_psnr_by_horizon": [{**e, "stderr": 0.25} for e in estimates]},
        "comparison": {"psnr": [25.0] * 6, "gain_by_horizon": [{**e, "mean": -e["mean"]} for e in estimates]},
    }
    rows = horizon_rows(report)
    assert rows[0] == ["1", "0.10", "30.00", "none", "0.00 ± 1.00", "0.00 ± 0.25", "25.00", "-0.00 ± 1.00"]
    assert rows[5] == ["6", "0.60", "25.00", "20.00", "5.00 ± 1.00", "5.00 ± 0.25", "25.00", "-5.00 ± 1.00"]
    lines = format_horizon_table(report).splitlines()
    assert [line.split()[0] for line in lines] == ["frames", "1", "2", "4", "6"]
    assert len({len(line) for line in lines}) == 1  # aligned
    assert count_clear_gains(estimates) == (3, 0)  # 3, 4 and 5: at 2 it is exactly two standard errors
    assert count_clear_gains(report["comparison"]["gain_by_horizon"]) == (0, 3)  # type: ignore[index]
    plain = report | {"control": None, "comparison": None}
    assert horizon_rows(plain)[1] == ["2", "0.20", "29.00", "20.00", "1.00 ± 1.00"]
