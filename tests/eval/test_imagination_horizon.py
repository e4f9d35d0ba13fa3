"""The proposed horizon ends where predictions stop beating trivial ones, and the penalty bounds reward errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pets_worlds import make_ensemble

from vwm.cli.main import main
from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.eval.eval_clips import EvalClips
from vwm.eval.imagination_horizon import advise_horizon, count_leading
from vwm.eval.imagination_report import describe_advice
from vwm.models.pets.simulator import PETSSimulator
from vwm.worlds.bundle import save_simulator

CONTEXT, HORIZON, CLIPS = 2, 6, 40


class Wander(Simulator):
    """Two numbers that the action moves, exactly until ``good`` steps after the context, then thrown far away.

    The reward is the action; from step ``paid`` on its sign, times 9.
    """

    def __init__(self, good: int = 99, paid: int = 99, frames: int = 1) -> None:
        space = ObservationSpace.vector(2)
        self.spec = SimulatorSpec(space, ActionSpace("continuous", 1), frames_per_step=frames)
        self.good, self.paid = good, paid

    def reset(self, context, seed=0, context_actions=None):
        return (context[:, -1], torch.zeros(len(context))), context[:, -1]

    def step(self, state, action, decode=True):
        place, step = state
        place = place + action * torch.tensor([1.0, 3.0]) + 50.0 * (step[:, None] >= self.good)
        reward = torch.where(step >= self.paid, 9 * torch.sign(action[:, 0]), action[:, 0])
        ended = torch.zeros(len(step), dtype=torch.bool)
        return (place, step + 1), StepOutput(place, place, reward, ended)


class DoubtfulWander(Wander):
    """Its rewards are wrong by half of its uncertainty, which is the step's number from 1."""

    def step(self, state, action, decode=True):
        after, out = super().step(state, action, decode)
        return after, out._replace(reward=out.reward + 0.5 * after[1])

    def uncertainty(self, state):
        return state[1]


def clips() -> tuple[EvalClips, torch.Tensor]:
    actions = torch.rand(CLIPS, CONTEXT + HORIZON, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moved = (actions * torch.tensor([1.0, 3.0])).cumsum(dim=1)
    observations = torch.cat((torch.zeros(CLIPS, 1, 2), moved[:, :-1]), dim=1)
    return EvalClips(observations, actions, (), "", CLIPS, CLIPS), actions[..., 0]


@pytest.mark.parametrize(
    ("good", "paid", "observations", "returns"), [(99, 99, 6, 6), (3, 99, 3, 6), (4, 2, 4, 2), (0, 0, 0, 0)]
)
def test_the_horizon_ends_with_the_first_prediction_that_is_not_better_than_trivial(good, paid, observations, returns):
    advice = advise_horizon(Wander(good, paid), *clips(), context=CONTEXT, seed=0, batch_size=16)
    assert (advice.observations, advice.returns, advice.longest) == (observations, returns, HORIZON)
    assert advice.horizon == min(observations, returns)
    if good == 99:
        assert max(advice.error) < 1e-10 and min(advice.error_copy) > 0.01 and max(advice.return_error[:2]) < 1e-5


def test_errors_equal_a_direct_computation():
    sample, rewards = clips()
    advice = advise_horizon(Wander(2, 3), sample, rewards, context=CONTEXT, seed=0, batch_size=7)
    after, last = sample.frames[:, CONTEXT:].double().numpy(), sample.frames[:, CONTEXT - 1 : CONTEXT].double().numpy()
    copied = ((after - last) ** 2).mean(axis=(0, 2)) / after.var()
    assert advice.error_copy == pytest.approx(copied.tolist(), rel=1e-9)
    real = rewards[:, CONTEXT - 1 : -1].double().numpy()
    paid = np.where(np.arange(HORIZON) >= 3, 9 * np.sign(real), real)
    errors = np.sqrt(((paid - real).cumsum(axis=1) ** 2).mean(axis=0))
    assert advice.return_error == pytest.approx(errors.tolist(), rel=1e-6)
    assert advice.return_error_mean == pytest.approx(real.cumsum(axis=1).std(axis=0).tolist(), rel=1e-6)


def test_without_rewards_that_change_only_observations_count():
    sample, rewards = clips()
    for paid in (None, torch.ones_like(rewards)):
        advice = advise_horizon(Wander(4, 0), sample, paid, context=CONTEXT, seed=0, batch_size=16)
        assert advice.returns is None and advice.horizon == 4 and not advice.return_error


def test_the_penalty_is_the_factor_by_which_uncertainty_bounds_reward_errors():
    advice = advise_horizon(DoubtfulWander(good=2), *clips(), context=CONTEXT, seed=0, batch_size=16)
    assert advice.uncertainty_penalty == pytest.approx(0.5, rel=1e-5)
    assert 0 < advice.uncertainty_limit <= HORIZON
    assert advise_horizon(Wander(), *clips(), context=CONTEXT, seed=0, batch_size=16).uncertainty_penalty is None


def test_one_clip_has_no_standard_error():
    sample = EvalClips(torch.zeros(1, 8, 2), torch.zeros(1, 8, 1), (), "", 1, 1)
    with pytest.raises(ValueError, match="need two clips or more"):
        advise_horizon(Wander(), sample, None, context=CONTEXT, seed=0, batch_size=1)


def test_leading_steps_are_counted():
    assert [count_leading(np.array(row, bool)) for row in ([1, 1, 0, 1], [0, 1], [1, 1])] == [2, 0, 2]


def test_vwm_agent_horizon_proposes_settings(tmp_path, capsys):
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "data" / "shard.tar") as writer:
        for i in range(4):
            state = rng.normal(size=(9, 4)).astype(np.float32)
            rewards, actions = rng.normal(size=9).astype(np.float32), rng.integers(0, 2, 9)
            frames = np.zeros((9, 16, 16, 3), np.uint8)
            writer.write(
                f"{i}", Episode(frames=frames, actions=actions, rewards=rewards, state=state, meta={"fps": 9.0})
            )
    for name, width in (("first", 8), ("second", 12)):
        ensemble = make_ensemble(2, observation_size=4, width=width)
        save_simulator(PETSSimulator(ensemble, ActionSpace("discrete", 2), context_frames=1), tmp_path / name)
    main([
        "agent", "horizon", str(tmp_path / "first"), str(tmp_path / "data"), "--ensemble", f"[{tmp_path / 'second'}]",
        "--horizon", "5", "--clips", "4", "--out", str(tmp_path / "out"), "--device", "cpu",
    ])  # fmt: skip
    report, printed = json.loads((tmp_path / "out/horizon.json").read_text()), capsys.readouterr().out
    assert report["longest"] == 5 and report["uncertainty_penalty"] > 0 and report["uncertainty_limit"] > 0
    assert (report["horizon"] == 0) == ("no horizon is proposed" in printed)
    assert (tmp_path / "out/horizon.png").stat().st_size > 5000


def test_the_settings_to_learn_with_are_printed():
    advice = advise_horizon(DoubtfulWander(good=3, paid=99), *clips(), context=CONTEXT, seed=0, batch_size=16)
    lines = describe_advice(advice)
    assert "observations are better than trivial ones for 3 of 6 steps" in lines
    assert f"SimulatedEnvSpec:     time_limit: {advice.horizon}" in lines or "no horizon is proposed" in lines[-1]
