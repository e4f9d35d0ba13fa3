"""The loop of play and learning: what it writes, and that a run that was broken off becomes the unbroken one."""

import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import Agent, PolicyCarry, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.agent_training import AgentTraining
from vwm.rl.evaluation import evaluate_policy
from vwm.rl.evaluation_log import EVALUATION_SEED_OFFSET, EvaluationConfig
from vwm.rl.online_learning import OnlineLearning
from vwm.runs.checkpoints import load_best_weights


class SmallDQN(Agent):
    """Q-learning with a small network: enough of an agent to have weights, an optimizer, noise, memory and extras."""

    single_episode = True

    def __init__(self, spaces: EnvSpaces, batch_size: int = 16) -> None:
        super().__init__()
        self.spaces, self.batch_size, self.batch_length = spaces, batch_size, 2
        self.extras = {"seen": ((), torch.int64)}
        self.q = nn.Sequential(
            nn.Linear(spaces.observation.shape[0], 32), nn.ReLU(), nn.Linear(32, spaces.actions.size)
        )
        self.optimizer = torch.optim.Adam(self.q.parameters(), 1e-3)

    def init_carry(self, batch: int) -> PolicyCarry:
        return torch.zeros(batch, dtype=torch.int64)

    def act(self, carry: PolicyCarry, time_step: TimeStep, explore: bool) -> PolicyStep:
        carry = torch.where(time_step.is_first, 0, carry + 1)
        action = self.q(time_step.observation).argmax(-1)
        if explore:
            random = torch.randint(self.spaces.actions.size, action.shape)
            action = torch.where(torch.rand(action.shape) < 0.3, random, action)
        return PolicyStep(action, carry, {"seen": carry})

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        with torch.no_grad():
            going = ~batch.is_terminal[:, 1]
            target = batch.reward[:, 1] + 0.99 * going * self.q(batch.observation[:, 1]).amax(-1)
        said = self.q(batch.observation[:, 0]).gather(-1, batch.action[:, :1])[:, 0]
        loss = (said - target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return UpdateOutput({"loss": loss.item()}, {"seen": batch.extras["seen"] + 1}, batch.indices)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"q": self.optimizer}


def training(
    run: Path, env: str = "CartPole-v1", agent=SmallDQN, disk: bool = False, updates: float = 0.5, every: int = 120,
    episodes: int = 3, num_envs: int = 2, **settings,
) -> AgentTraining:  # fmt: skip
    learning = OnlineLearning(
        GymnasiumEnvSpec(env, time_limit=None if env == "CartPole-v1" else 20), agent, num_envs=num_envs, prefill=40,
        updates_per_decision=updates, replay_capacity=150, replay_on_disk=disk,
    )  # fmt: skip
    evaluation = EvaluationConfig(every=every, episodes=episodes, video=False)
    defaults = {"steps": 240, "checkpoint_every": 80, "log_every": 10}
    return AgentTraining(run, learning, evaluation=evaluation, **{**defaults, **settings})


def weights(run: Path) -> Mapping[str, Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]["policy"]


def columns(path: Path, *left_out: str) -> list[list[str]]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if name not in left_out]
    return [[row[i] for i in kept] for row in rows]


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(("disk", "broken_at"), [(False, 160), (True, 80)])
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path: Path, disk: bool, broken_at: int) -> None:
    training(tmp_path / "whole").run()
    training(tmp_path / "broken", steps=broken_at, disk=disk).run()
    # What a run writes after its last checkpoint, before it is killed, must leave no trace.
    with (tmp_path / "broken" / "metrics" / "episodes.csv").open("a") as file:
        file.write(f"{broken_at + 2},9,9\r\n")
    (tmp_path / "broken" / "checkpoints" / "replay" / f"{broken_at // 2:012d}-{broken_at:012d}.npz").touch()
    training(tmp_path / "broken", disk=disk).run()
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    for table in ("episodes", "updates"):
        a, b = (columns(tmp_path / run / "metrics" / f"{table}.csv", "seconds") for run in ("whole", "broken"))
        assert a == b


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_saves_a_checkpoint_and_the_run_resumes(tmp_path: Path, capsys, number: int) -> None:
    class Asked(SmallDQN):
        asked = 0

        def update(self, batch: ReplayBatch) -> UpdateOutput:
            Asked.asked += 1
            if Asked.asked == 30:
                signal.raise_signal(number)
            return super().update(batch)

    training(tmp_path / "whole").run()
    run, before = training(tmp_path / "asked", agent=Asked), signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        run.run()
    assert ended.value.code == 128 + number and signal.getsignal(number) is before
    assert f"stopped: 98 decisions are saved in {tmp_path / 'asked'}" in capsys.readouterr().out
    training(tmp_path / "asked").run()
    whole, asked = weights(tmp_path / "whole"), weights(tmp_path / "asked")
    assert all(torch.equal(whole[name], asked[name]) for name in whole)


def test_what_a_run_writes(tmp_path: Path) -> None:
    training(tmp_path / "run").run()
    assert len(columns(tmp_path / "run" / "metrics" / "evaluations.csv")) == 1 + 2
    assert len(columns(tmp_path / "run" / "metrics" / "updates.csv")) == 1 + (240 - 40 + 2) // 2 // 10
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    replay = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "replay").iterdir())
    assert replay == ["000000000040-000000000080.npz", "000000000080-000000000120.npz", "extras-000000000120.npz"]


@pytest.mark.usefixtures("no_curves")
def test_the_weights_that_did_best_are_kept(tmp_path: Path) -> None:
    run = training(tmp_path / "run", steps=600, every=60, updates=3)
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt does not exist"):
        load_best_weights(run.folder, nn.Linear(1, 1))
    run.run()
    means = [float(row[1]) for row in columns(tmp_path / "run" / "metrics" / "evaluations.csv")[1:]]
    agent = SmallDQN(run.eval_env.open(1, 0).spaces)
    load_best_weights(run.folder, agent)
    assert evaluate_policy(agent, run.eval_env, 3, EVALUATION_SEED_OFFSET).returns.mean() == max(means) > means[-1]
    agent.load_state_dict(weights(tmp_path / "run"))
    assert evaluate_policy(agent, run.eval_env, 3, EVALUATION_SEED_OFFSET).returns.mean() == means[-1]
    with pytest.raises(ValueError, match=r"best\.ckpt: is of another agent or environment"):
        load_best_weights(run.folder, nn.Linear(1, 1))


@pytest.mark.parametrize("disk", [False, True])
def test_who_looks_at_a_run_that_goes_on_leaves_it_alone(tmp_path: Path, disk: bool) -> None:
    """Between a checkpoint's replay, which is written first, and its naming, a look sees the checkpoint before."""
    run = training(tmp_path / "run", disk=disk)
    learning, folder = run.algorithm, run.folder.path
    run.set_up()
    for _ in range(50):
        learning.step()
        if learning.progress == 80:
            run.save()
    learning.replay.save(folder / "checkpoints" / "replay")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = training(tmp_path / "run", disk=disk)
    agent = other.load_policy()
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]
    replay = other.algorithm.load_replay(other.setup, agent, state, tmp_path / "scratch")
    assert len(replay) == 80 and (tmp_path / "scratch").exists() == disk
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    saved = weights(folder)
    assert all(torch.equal(saved[name], value) for name, value in agent.state_dict().items())
    assert np.array_equal(replay.storage["observation"][:, :40], learning.replay.storage["observation"][:, :40])
    learning.close()


@pytest.mark.usefixtures("no_curves")
def test_an_evaluation_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    training(tmp_path / "rarely", every=1000).run()
    training(tmp_path / "often", every=20).run()
    rarely, often = weights(tmp_path / "rarely"), weights(tmp_path / "often")
    assert all(torch.equal(rarely[name], often[name]) for name in rarely)


@pytest.mark.usefixtures("no_curves")
def test_rejects_the_folder_of_another_agent(tmp_path: Path) -> None:
    training(tmp_path / "run", steps=80).run()
    with pytest.raises(ValueError, match=r"last\.ckpt: is of another agent or environment"):
        training(tmp_path / "run", env="Acrobot-v1").run()


@pytest.mark.parametrize("name", ["steps", "num_envs", "episodes", "checkpoint_every"])
def test_settings_that_are_out_of_range_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        training(tmp_path, **{name: 0})


def test_evaluation_plays_every_copy_its_share() -> None:
    game = GymnasiumEnvSpec("CartPole-v1")
    together = evaluate_policy(None, game, 5, seed=3, num_envs=2)
    assert len(together.returns) == 5
    assert np.array_equal(together.returns, together.lengths)  # CartPole pays 1 a decision
    low, high = together.interval()
    assert low <= together.returns.mean() <= high
