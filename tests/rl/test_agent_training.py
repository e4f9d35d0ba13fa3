"""AgentTraining: what a run writes, and that an interrupted and resumed run equals an uninterrupted one."""

import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl import agent_training, online_learning
from vwm.rl.agent import Agent, PolicyCarry, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.agent_training import AgentTraining
from vwm.rl.evaluation import evaluate_policy
from vwm.rl.evaluation_log import EVALUATION_SEED_OFFSET, EvaluationConfig
from vwm.rl.online_learning import OnlineLearning
from vwm.runs.checkpoints import load_best_weights


class SmallDQN(Agent):
    """A small DQN that has weights, an optimizer, exploration noise, a recurrent carry and extras."""

    single_episode = True

    def __init__(self, spaces: EnvSpaces, batch_size: int = 16) -> None:
        super().__init__()
        self.spaces, self.batch_size, self.batch_length = spaces, batch_size, 2
        self.extras = {"episode_step": ((), torch.int64)}
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
        return PolicyStep(action, carry, {"episode_step": carry})

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        with torch.no_grad():
            not_terminal = ~batch.is_terminal[:, 1]
            target = batch.reward[:, 1] + 0.99 * not_terminal * self.q(batch.observation[:, 1]).amax(-1)
        predicted = self.q(batch.observation[:, 0]).gather(-1, batch.action[:, :1])[:, 0]
        loss = (predicted - target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return UpdateOutput({"loss": loss.item()}, {"episode_step": batch.extras["episode_step"] + 1}, batch.indices)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"q": self.optimizer}


def make_training(
    run: Path, env: str = "CartPole-v1", agent=SmallDQN, disk: bool = False, updates: float = 0.5, every: int = 120,
    episodes: int = 3, num_envs: int = 2, workers: int = 0, memory: str = "host", **settings,
) -> AgentTraining:  # fmt: skip
    learning = OnlineLearning(
        GymnasiumEnvSpec(env, time_limit=None if env == "CartPole-v1" else 20), agent, num_envs=num_envs, prefill=40,
        updates_per_decision=updates, replay_capacity=150, replay_on_disk=disk, env_workers=workers,
        replay_memory=memory,
    )  # fmt: skip
    evaluation = EvaluationConfig(every=every, episodes=episodes, video=False)
    defaults = {"steps": 240, "checkpoint_every": 80, "log_every": 10}
    return AgentTraining(run, learning, evaluation=evaluation, **{**defaults, **settings})


def load_policy_weights(run: Path) -> Mapping[str, Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]["policy"]


def read_columns(path: Path, *excluded: str) -> list[list[str]]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    indices = [i for i, name in enumerate(rows[0]) if name not in excluded]
    return [[row[i] for i in indices] for row in rows]


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    ("interrupted_at", "how"),
    [(160, {}), (80, {"disk": True, "workers": 2}), (80, {"memory": "device"})],
    ids=["memory", "disk and workers", "device"],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path: Path, interrupted_at: int, how: dict) -> None:
    """Neither where replay lies nor which process steps the environments changes a result."""
    make_training(tmp_path / "uninterrupted").run()
    make_training(tmp_path / "interrupted", steps=interrupted_at, **how).run()
    # What a run writes after its last checkpoint, before it is killed, must leave no trace.
    with (tmp_path / "interrupted" / "metrics" / "episodes.csv").open("a") as file:
        file.write(f"{interrupted_at + 2},9,9\r\n")
    (
        tmp_path / "interrupted" / "checkpoints" / "replay" / f"{interrupted_at // 2:012d}-{interrupted_at:012d}.npz"
    ).touch()
    make_training(tmp_path / "interrupted", **how).run()
    uninterrupted, interrupted = (
        load_policy_weights(tmp_path / "uninterrupted"),
        load_policy_weights(tmp_path / "interrupted"),
    )
    assert all(torch.equal(uninterrupted[name], interrupted[name]) for name in uninterrupted)
    for table in ("episodes", "updates"):
        a, b = (
            read_columns(tmp_path / run / "metrics" / f"{table}.csv", "seconds")
            for run in ("uninterrupted", "interrupted")
        )
        assert a == b


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_saves_a_checkpoint_and_the_run_resumes(tmp_path: Path, capsys, signal_number: int) -> None:
    class StoppingDQN(SmallDQN):
        num_updates = 0

        def update(self, batch: ReplayBatch) -> UpdateOutput:
            StoppingDQN.num_updates += 1
            if StoppingDQN.num_updates == 30:
                signal.raise_signal(signal_number)
            return super().update(batch)

    make_training(tmp_path / "uninterrupted").run()
    run, handler = make_training(tmp_path / "stopped", agent=StoppingDQN), signal.getsignal(signal_number)
    with pytest.raises(SystemExit) as exit_info:
        run.run()
    assert exit_info.value.code == 128 + signal_number and signal.getsignal(signal_number) is handler
    assert f"stopped: 98 decisions are saved in {tmp_path / 'stopped'}" in capsys.readouterr().out
    make_training(tmp_path / "stopped").run()
    uninterrupted, resumed = load_policy_weights(tmp_path / "uninterrupted"), load_policy_weights(tmp_path / "stopped")
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_a_run_writes_metric_tables_curves_and_replay(tmp_path: Path, monkeypatch) -> None:
    """Also, it asks for the fast kernels of the device."""
    devices: list[torch.device] = []
    optimizers: list[torch.optim.Optimizer] = []
    monkeypatch.setattr(agent_training, "allow_tf32", devices.append)
    monkeypatch.setattr(online_learning, "fuse_adam_on_cuda", lambda *some: optimizers.extend(some))
    make_training(tmp_path / "run", device="cpu").run()
    assert [type(optimizer) for optimizer in optimizers] == [torch.optim.Adam]
    assert devices == [torch.device("cpu")] and torch.get_float32_matmul_precision() == "highest"
    assert len(read_columns(tmp_path / "run" / "metrics" / "evaluations.csv")) == 1 + 2
    assert len(read_columns(tmp_path / "run" / "metrics" / "updates.csv")) == 1 + (240 - 40 + 2) // 2 // 10
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    replay = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "replay").iterdir())
    assert replay == ["000000000040-000000000080.npz", "000000000080-000000000120.npz", "extras-000000000120.npz"]


@pytest.mark.usefixtures("no_curves")
def test_the_weights_of_the_best_evaluation_are_kept(tmp_path: Path) -> None:
    run = make_training(tmp_path / "run", steps=600, every=60, updates=3)
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt does not exist"):
        load_best_weights(run.folder, nn.Linear(1, 1))
    run.run()
    means = [float(row[1]) for row in read_columns(tmp_path / "run" / "metrics" / "evaluations.csv")[1:]]
    agent = SmallDQN(run.eval_env.open(1, 0).spaces)
    load_best_weights(run.folder, agent)
    assert evaluate_policy(agent, run.eval_env, 3, EVALUATION_SEED_OFFSET).returns.mean() == max(means) > means[-1]
    agent.load_state_dict(load_policy_weights(tmp_path / "run"))
    assert evaluate_policy(agent, run.eval_env, 3, EVALUATION_SEED_OFFSET).returns.mean() == means[-1]
    with pytest.raises(ValueError, match=r"best\.ckpt: is of another agent or environment"):
        load_best_weights(run.folder, nn.Linear(1, 1))


@pytest.mark.parametrize("disk", [False, True])
def test_loading_from_a_running_training_changes_no_file(tmp_path: Path, disk: bool) -> None:
    """A checkpoint's replay is saved first: until the checkpoint itself follows, readers load the previous one."""
    run = make_training(tmp_path / "run", disk=disk)
    learning, folder = run.algorithm, run.folder.path
    run.set_up()
    for _ in range(50):
        learning.step()
        if learning.progress == 80:
            run.save()
    learning.replay.save(folder / "checkpoints" / "replay")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    reader = make_training(tmp_path / "run", disk=disk)
    agent = reader.load_policy()
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]
    replay = reader.algorithm.load_replay(reader.setup, agent, state, tmp_path / "scratch")
    assert len(replay) == 80 and (tmp_path / "scratch").exists() == disk
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    saved = load_policy_weights(folder)
    assert all(torch.equal(saved[name], value) for name, value in agent.state_dict().items())
    assert np.array_equal(*(kept.fields["observation"].dump(np.arange(40)) for kept in (replay, learning.replay)))
    learning.close()


@pytest.mark.usefixtures("no_curves")
def test_evaluations_do_not_change_training(tmp_path: Path) -> None:
    make_training(tmp_path / "rarely", every=1000).run()
    make_training(tmp_path / "often", every=20).run()
    rarely, often = load_policy_weights(tmp_path / "rarely"), load_policy_weights(tmp_path / "often")
    assert all(torch.equal(rarely[name], often[name]) for name in rarely)


@pytest.mark.usefixtures("no_curves")
def test_rejects_the_folder_of_another_agent(tmp_path: Path) -> None:
    make_training(tmp_path / "run", steps=80).run()
    with pytest.raises(ValueError, match=r"last\.ckpt: is of another agent or environment"):
        make_training(tmp_path / "run", env="Acrobot-v1").run()


@pytest.mark.parametrize("name", ["steps", "num_envs", "episodes", "checkpoint_every"])
def test_rejects_settings_out_of_range(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        make_training(tmp_path, **{name: 0})


def test_evaluation_divides_episodes_among_environments() -> None:
    env = GymnasiumEnvSpec("CartPole-v1")
    evaluation = evaluate_policy(None, env, 5, seed=3, num_envs=2)
    assert len(evaluation.returns) == 5
    assert np.array_equal(evaluation.returns, evaluation.lengths)  # CartPole's reward is 1 at every step
    low, high = evaluation.interval()
    assert low <= evaluation.returns.mean() <= high
