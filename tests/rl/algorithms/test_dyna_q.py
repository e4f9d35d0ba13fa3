"""Dyna-Q: its table against the book's algorithm, what it draws from its model, and that it resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithm import TrainingSetup
from vwm.rl.algorithms.dyna_q import DynaQ, TabularModel, TabularPolicy
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.runs.run_folder import RunFolder

MAZE = GymnasiumEnvSpec("vwm/DynaMaze-v0")
CPU = torch.device("cpu")


def set_up(tmp_path: Path, planning_steps: int, seed: int = 0) -> DynaQ:
    torch.manual_seed(seed)
    agent = DynaQ(MAZE, planning_steps)
    agent.set_up(TrainingSetup(RunFolder(tmp_path), steps=1, seed=seed, device=CPU))
    return agent


def finish_episodes(agent: DynaQ, count: int) -> list[float]:
    lengths: list[float] = []
    while len(lengths) < count:
        lengths += [row["length"] for row in agent.step()["episodes"]]
    return lengths


def test_the_table_is_that_of_the_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sutton and Barto, 2018, the algorithm of section 8.2, on the same real steps and the same draws."""
    agent, steps, real = set_up(tmp_path, 3), [], []
    store, draw = agent.model.store, agent.model.draw
    monkeypatch.setattr(agent.model, "store", lambda *step: (steps.append(step), real.append(step), store(*step)))

    def recorded(count: int, generator: np.random.Generator) -> list:
        steps.extend(draw(count, generator))
        return steps[-count:]

    monkeypatch.setattr(agent.model, "draw", recorded)
    finish_episodes(agent, 4)
    values = {(state, action): 0.0 for state in range(54) for action in range(4)}
    for state, action, reward, following, terminal in steps:
        target = reward if terminal else reward + 0.95 * max(values[following, a] for a in range(4))
        values[state, action] = 0.9 * values[state, action] + 0.1 * target
    assert len(steps) == 4 * len(real) and sum(step[4] for step in real) == 4
    found = agent.policy.values.numpy()
    np.testing.assert_allclose(found, np.array(list(values.values())).reshape(54, 4), rtol=1e-12)
    assert found.max() > 0.3


def test_the_model_draws_states_then_actions_that_were_taken() -> None:
    model = TabularModel(5, 3)
    stored = [(1, 0, 0.5, 2, False), (1, 2, -1.0, 1, False), (4, 1, 2.0, 0, True), (4, 1, 3.0, 0, True)]
    for step in stored:
        model.store(*step)
    drawn = model.draw(4000, np.random.default_rng(0))
    counts = {step: drawn.count(step) for step in stored}
    assert sum(counts.values()) == 4000 and counts[stored[2]] == 0  # the last outcome counts
    assert counts[stored[3]] == pytest.approx(2000, abs=150) and counts[stored[0]] == pytest.approx(1000, abs=150)


def test_planning_learns_in_fewer_episodes_and_changes_no_step_before_the_first_reward(tmp_path: Path) -> None:
    without, planned = (finish_episodes(set_up(tmp_path, n, seed=1), 5) for n in (0, 30))
    assert without[0] == planned[0] and planned[2] < 40 < min(without[:5])


def test_greedy_actions_are_best_ones_and_ties_are_broken_at_random() -> None:
    torch.manual_seed(0)
    policy = TabularPolicy(EnvSpaces(ObservationSpace.vector(2), ActionSpace("discrete", 3)), epsilon=0.3)
    policy.values[0] = torch.tensor([1.0, 0.0, 1.0])
    count = 3000
    flags = torch.zeros(count, dtype=torch.bool)
    step = TimeStep(torch.eye(2)[torch.zeros(count, dtype=torch.int64)], torch.zeros(count), flags, flags, flags)
    greedy, exploring = (
        policy.act((), step, explore).action.bincount(minlength=3) / count for explore in (False, True)
    )
    torch.testing.assert_close(greedy, torch.tensor([0.5, 0.0, 0.5]), atol=0.04, rtol=0)
    torch.testing.assert_close(exploring, torch.tensor([0.45, 0.1, 0.45]), atol=0.04, rtol=0)


@pytest.mark.usefixtures("no_curves")
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(name: str, steps: int) -> dict:
        evaluation = EvaluationConfig(every=1000, episodes=1, video=False)
        settings = {"checkpoint_every": 50, "evaluation": evaluation, "log_every": 50}
        env = GymnasiumEnvSpec("vwm/DynaMaze-v0", time_limit=60)
        AgentTraining(tmp_path / name, DynaQ(env, 4), steps=steps, **settings).run()
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]

    whole = run("whole", 250)
    run("stopped", 100)
    resumed = run("stopped", 250)
    for part in ("policy", "model"):
        assert all(torch.equal(whole[part][name], resumed[part][name]) for name in whole[part])
    assert whole["generator"] == resumed["generator"] and whole["model"]["observed"].sum() > 30
    tables = [(tmp_path / name / "metrics" / "episodes.csv").read_text() for name in ("whole", "stopped")]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 5


def test_what_has_no_numbered_states_is_refused(tmp_path: Path) -> None:
    setup = TrainingSetup(RunFolder(tmp_path), steps=1, seed=0, device=CPU)
    with pytest.raises(ValueError, match=r"a table needs numbered states and actions, .* continuous actions"):
        DynaQ(GymnasiumEnvSpec("Pendulum-v1")).set_up(setup)
    vectors = DynaQ(GymnasiumEnvSpec("CartPole-v1"))
    vectors.set_up(setup)
    with pytest.raises(
        ValueError, match=r"a table needs numbered states \(Gymnasium's Discrete\), got the observation"
    ):
        vectors.step()
    vectors.close()
