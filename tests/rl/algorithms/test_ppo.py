"""Stable-Baselines3's PPO in real and learned environments, and the Gymnasium adapter."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from factories import diffusion_world
from gymnasium.utils.env_checker import check_env

from vwm.envs.batched_envs import EnvSpec, GymnasiumEnvAdapter, GymnasiumEnvSpec
from vwm.envs.time_step import TimeStep
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.ppo import PPO
from vwm.rl.evaluation import evaluate_policy
from vwm.rl.evaluation_log import EVALUATION_SEED_OFFSET, EvaluationConfig
from vwm.worlds.bundle import save_simulator
from vwm.worlds.simulated_env import SimulatedEnvSpec

stable_baselines3 = pytest.importorskip("stable_baselines3")


def make_ppo(
    run: Path, env: EnvSpec, steps: int, evaluation: EvaluationConfig, policy: str | None = None
) -> AgentTraining:
    options = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
    return AgentTraining(run, PPO(env, num_envs=2, policy=policy, options=options), steps, evaluation=evaluation)


@pytest.mark.filterwarnings("ignore:.*Box.*infinity:UserWarning")  # CartPole's observations have no bounds
@pytest.mark.filterwarnings("ignore:.*bound.*:UserWarning")
def test_the_adapter_passes_gymnasiums_environment_check() -> None:
    check_env(GymnasiumEnvAdapter(GymnasiumEnvSpec("CartPole-v1"), 0), skip_render_check=True)


def test_episodes_differ_and_a_seed_repeats_an_episode() -> None:
    env = GymnasiumEnvAdapter(GymnasiumEnvSpec("CartPole-v1"), 0)
    first, _ = env.reset(seed=1)
    done = False
    while not done:
        _, reward, terminated, truncated, _ = env.step(1)
        done = terminated or truncated
        assert reward == 1
    second, _ = env.reset()
    assert not np.array_equal(first, second)
    repeated, _ = env.reset(seed=1)
    assert np.array_equal(first, repeated)
    interrupted, _ = env.reset()
    other, _ = env.reset(seed=2)
    assert len({tuple(observation) for observation in (first, second, interrupted, other)}) == 4


def test_it_learns_from_the_signs_of_rewards_and_reports_the_rewards_themselves(tmp_path: Path) -> None:
    options = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "gamma": 1.0, "gae_lambda": 1.0}
    env = GymnasiumEnvSpec("Pendulum-v1", time_limit=8)
    ppo = PPO(env, num_envs=2, options=options, sign_rewards=True)
    AgentTraining(tmp_path, ppo, 32).run()
    learned = ppo.model.rollout_buffer.rewards.reshape(2, 8, 2)[:, :-1]  # to the last of 8, truncated, a value is added
    assert set(np.unique(learned)) == {-1.0}
    returns = [float(line.split(",")[1]) for line in (tmp_path / "metrics/episodes.csv").read_text().splitlines()[1:]]
    assert len(returns) == 4 and all(each < -8.5 or -7.5 < each < 0 for each in returns)  # not 8 times -1


def test_ppo_in_a_real_environment(tmp_path: Path) -> None:
    env_spec = GymnasiumEnvSpec("CartPole-v1")
    training = make_ppo(tmp_path, env_spec, 96, EvaluationConfig(50, 2))
    for best, message in ((False, "has not saved a checkpoint yet"), (True, "writes it at its first evaluation")):
        with pytest.raises(FileNotFoundError, match=message):
            training.load_policy(best)
    training.run()
    rows = [line.split(",") for line in (tmp_path / "metrics" / "evaluations.csv").read_text().splitlines()[1:]]
    best = evaluate_policy(training.load_policy(best=True), env_spec, 2, seed=EVALUATION_SEED_OFFSET)
    assert len(rows) == 2 and best.returns.mean() == max(float(row[1]) for row in rows)
    assert (tmp_path / "curves.png").is_file() and list((tmp_path / "videos").iterdir())
    one, other = (evaluate_policy(training.load_policy(), env_spec, 2, seed=7).returns for _ in range(2))
    assert np.array_equal(one, other)
    time_step = TimeStep(torch.zeros(64, 4), torch.zeros(64), *(torch.zeros(64, dtype=torch.bool) for _ in range(3)))
    assert training.load_policy().act((), time_step, explore=False).action.unique().numel() == 1
    training.algorithm.deterministic = False
    assert training.load_policy().act((), time_step, explore=False).action.unique().numel() == 2


@pytest.mark.usefixtures("no_curves")
def test_a_run_resumes_and_a_finished_one_does_not_change(tmp_path: Path, capsys) -> None:
    def make_training(steps: int, env_spec: str = "CartPole-v1") -> AgentTraining:
        return make_ppo(
            tmp_path, GymnasiumEnvSpec(env_spec), steps, EvaluationConfig(32, 2, video=False), policy="MlpPolicy"
        )

    def first_observations(training: AgentTraining) -> np.ndarray:
        training.set_up()
        return training.algorithm.model.get_env().reset()

    make_training(64).run()
    tables = {name: (tmp_path / "metrics" / name).read_text() for name in ("episodes.csv", "evaluations.csv")}
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    saved = checkpoint.read_bytes()
    make_training(64).run()
    assert f"resuming from {checkpoint}, 64 decisions" in capsys.readouterr().out
    assert {name: (tmp_path / "metrics" / name).read_text() for name in tables} == tables
    assert checkpoint.read_bytes() == saved
    resumed_observations = [first_observations(make_training(128)) for _ in range(2)]
    assert np.array_equal(*resumed_observations)
    fresh = make_ppo(tmp_path / "fresh", GymnasiumEnvSpec("CartPole-v1"), 128, EvaluationConfig(32, 2))
    assert not np.array_equal(first_observations(fresh), resumed_observations[0])
    longer = make_training(128)
    longer.run()
    for name, text in tables.items():
        assert (tmp_path / "metrics" / name).read_text().startswith(text)
    steps = [line.split(",")[0] for line in (tmp_path / "metrics" / "evaluations.csv").read_text().splitlines()[1:]]
    assert steps == ["32", "64", "96", "128"]
    resumed = make_training(128)
    resumed.set_up()
    assert resumed.algorithm.progress == 128 and resumed.algorithm.model._n_updates == 128 // 32
    with pytest.raises(ValueError, match="is of another agent or environment"):
        make_training(256, "MountainCar-v0").run()


def test_ppo_in_a_learned_world_is_evaluated_in_a_real_environment(tmp_path: Path) -> None:
    torch.manual_seed(0)
    simulator = diffusion_world(outcomes=True)
    simulator.starts = torch.randint(256, (3, 2, *simulator.spec.context.image_size, 3), dtype=torch.uint8)
    save_simulator(simulator, tmp_path / "world")
    size = simulator.spec.context.image_size[0]
    assert simulator.spec.actions.kind == "discrete"
    real = GymnasiumEnvSpec("CartPole-v1", pixels=True, size=size, time_limit=4)
    learned = SimulatedEnvSpec(tmp_path / "world", time_limit=6)
    training = make_ppo(tmp_path / "run", learned, 32, EvaluationConfig(32, 2, video=False), policy="MlpPolicy")
    training.run()
    envs = learned.vector_env(2, 0)
    assert isinstance(envs, gymnasium.vector.VectorEnv) and envs.single_observation_space.shape == (size, size, 3)
    assert real.open(1, 0).spaces.observation.shape == (size, size, 3)
    lengths = {
        float(row.split(",")[2]) for row in (tmp_path / "run" / "metrics" / "episodes.csv").read_text().splitlines()[1:]
    }
    assert lengths and max(lengths) <= 6
