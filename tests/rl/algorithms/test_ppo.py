"""Stable-Baselines3's PPO in our games, real and learned, and games behind Gymnasium's face."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from factories import diffusion_world
from gymnasium.utils.env_checker import check_env

from vwm.envs.batched_envs import GymnasiumEnvAdapter, GymnasiumEnvSpec
from vwm.envs.time_step import TimeStep
from vwm.rl.evaluation import evaluate_policy
from vwm.rl.evaluation_log import EVALUATION_SEED_OFFSET
from vwm.rl.simulated_env import SimulatedEnvSpec
from vwm.worlds.bundle import save_simulator

stable_baselines3 = pytest.importorskip("stable_baselines3")

FEW = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}


@pytest.mark.filterwarnings("ignore:.*Box.*infinity:UserWarning")  # CartPole's own observations have no bounds
@pytest.mark.filterwarnings("ignore:.*bound.*:UserWarning")
def test_a_game_is_a_gymnasium_environment() -> None:
    check_env(GymnasiumEnvAdapter(GymnasiumEnvSpec("CartPole-v1"), 0), skip_render_check=True)


def test_the_next_episode_is_another_one_and_a_seed_begins_anew() -> None:
    env = GymnasiumEnvAdapter(GymnasiumEnvSpec("CartPole-v1"), 0)
    first, _ = env.reset(seed=1)
    done = False
    while not done:
        _, reward, terminated, truncated, _ = env.step(1)
        done = terminated or truncated
        assert reward == 1
    second, _ = env.reset()
    assert not np.array_equal(first, second)
    again, _ = env.reset(seed=1)
    assert np.array_equal(first, again)
    broken_off, _ = env.reset()
    other, _ = env.reset(seed=2)
    assert len({tuple(seen) for seen in (first, second, broken_off, other)}) == 4


def test_ppo_in_the_real_game(tmp_path: Path) -> None:
    from vwm.rl.algorithms.ppo import PPOTraining

    game = GymnasiumEnvSpec("CartPole-v1")
    training = PPOTraining(
        tmp_path, game, steps=96, environments=2, options=FEW, evaluate_every=50, evaluate_episodes=2
    )
    for best in (False, True):
        with pytest.raises(FileNotFoundError, match="there is none; give the folder of a run of PPO"):
            training.player(best)
    training.run()
    rows = [line.split(",") for line in (tmp_path / "metrics" / "evaluations.csv").read_text().splitlines()[1:]]
    best = evaluate_policy(training.player(best=True), game, 2, seed=EVALUATION_SEED_OFFSET)
    assert len(rows) == 2 and best.returns.mean() == max(float(row[1]) for row in rows)
    assert (tmp_path / "curves.png").is_file() and list((tmp_path / "videos").iterdir())
    one, other = (evaluate_policy(training.player(), game, 2, seed=7).returns for _ in range(2))
    assert np.array_equal(one, other)
    moment = TimeStep(torch.zeros(64, 4), torch.zeros(64), *(torch.zeros(64, dtype=torch.bool) for _ in range(3)))
    assert training.player().act((), moment, explore=False).action.unique().numel() == 1
    training.greedy = False
    assert training.player().act((), moment, explore=False).action.unique().numel() == 2


def test_a_run_goes_on_and_one_that_is_over_is_left_alone(tmp_path: Path, capsys) -> None:
    from vwm.rl.algorithms.ppo import PPOTraining

    def training(steps: int, game: str = "CartPole-v1") -> PPOTraining:
        return PPOTraining(tmp_path, GymnasiumEnvSpec(game), steps=steps, environments=2, policy="MlpPolicy",
        options=FEW,
                   evaluate_every=32, evaluate_episodes=2, video=False)  # fmt: skip

    training(64).run()
    tables = {name: (tmp_path / "metrics" / name).read_text() for name in ("episodes.csv", "evaluations.csv")}
    model = (tmp_path / "checkpoints" / "ppo.zip").read_bytes()
    training(64).run()
    assert f"going on from {tmp_path / 'checkpoints' / 'ppo.zip'}, 64 decisions" in capsys.readouterr().out
    assert {name: (tmp_path / "metrics" / name).read_text() for name in tables} == tables
    assert (tmp_path / "checkpoints" / "ppo.zip").read_bytes() == model
    longer = training(128)
    begun = [make().get_env().reset() for make in (longer.make, training(128).make)]
    assert np.array_equal(*begun)
    (tmp_path / "checkpoints" / "ppo.zip").rename(tmp_path / "checkpoints" / "kept.zip")
    assert not np.array_equal(longer.make().get_env().reset(), begun[0])  # a fresh run's first episodes
    (tmp_path / "checkpoints" / "kept.zip").rename(tmp_path / "checkpoints" / "ppo.zip")
    longer.run()
    for name, text in tables.items():
        assert (tmp_path / "metrics" / name).read_text().startswith(text)
    steps = [line.split(",")[0] for line in (tmp_path / "metrics" / "evaluations.csv").read_text().splitlines()[1:]]
    assert steps == ["32", "64", "96", "128"]
    assert longer.make().num_timesteps == 128 and longer.make()._n_updates == 128 // 32
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        training(256, "MountainCar-v0").run()


def test_ppo_in_a_learned_world_judged_in_a_real_one(tmp_path: Path) -> None:
    from vwm.rl.algorithms.ppo import PPOTraining

    torch.manual_seed(0)
    simulator = diffusion_world(outcomes=True)
    simulator.starts = torch.randint(256, (3, 2, *simulator.spec.context.image_size, 3), dtype=torch.uint8)
    save_simulator(simulator, tmp_path / "world")
    size = simulator.spec.context.image_size[0]
    assert simulator.spec.actions.kind == "discrete"
    real = GymnasiumEnvSpec("CartPole-v1", pixels=True, size=size, time_limit=4)
    learned = SimulatedEnvSpec(tmp_path / "world", time_limit=6)
    training = PPOTraining(tmp_path / "run", learned, learned, steps=32, environments=2, policy="MlpPolicy",
    options=FEW,
                   evaluate_every=32, evaluate_episodes=2, video=False)  # fmt: skip
    training.run()
    envs = learned.vector_env(2, 0)
    assert isinstance(envs, gymnasium.vector.VectorEnv) and envs.single_observation_space.shape == (size, size, 3)
    assert real.open(1, 0).spaces.observation == (size, size, 3)
    lengths = {
        float(row.split(",")[2]) for row in (tmp_path / "run" / "metrics" / "episodes.csv").read_text().splitlines()[1:]
    }
    assert lengths and max(lengths) <= 6
