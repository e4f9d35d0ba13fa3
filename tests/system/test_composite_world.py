"""A world of keys and a pointer, whole: recorded, trained, exported, evaluated, and learned in by PPO.

It is played with real keys and a real pointer in tests/play/test_browser.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gymnasium import spaces

from vwm.cli.main import main
from vwm.core.simulator import Simulator
from vwm.envs.lamp import LampEnv
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.ppo import PPO
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.worlds.bundle import load_simulator
from vwm.worlds.gymnasium_env import SimulatorEnv
from vwm.worlds.simulated_env import SimulatedEnvSpec


def load_world(folder: Path) -> Simulator:
    return load_simulator(folder / "world", "cpu")


def test_the_bundle_has_the_named_parts_of_the_environment(lamp_world: Path) -> None:
    space = load_world(lamp_world).spec.actions
    assert space.parts == LampEnv.action_parts and space.names[1:3] == ("keys.left", "keys.right")


def test_it_is_exported_with_guidance_by_part(lamp_world: Path, tmp_path: Path) -> None:
    options = ["--data", "none", "--sampling-steps", "1", "--guidance", "{keys: 2.0, pointer: 1.5}"]
    main(["export", str(lamp_world / "run"), "-o", str(tmp_path / "world"), *options])
    assert load_simulator(tmp_path / "world", "cpu").sampling.guidance == {"keys": 2.0, "pointer": 1.5}


def test_it_is_evaluated_on_its_recording(lamp_world: Path, tmp_path: Path) -> None:
    options = ["--clips", "2", "--horizon", "2", "--device", "cpu", "--drift-seconds", "0"]
    main(["eval", str(lamp_world / "world"), str(lamp_world / "data"), "-o", str(tmp_path), *options])
    report = json.loads((tmp_path / "report.json").read_text())
    assert np.isfinite([report["control"]["delta_psnr"]["mean"], report["rollout"]["psnr"][-1]]).all()


def test_a_planner_reaches_for_goals_with_keys_pointer_and_color(lamp_world: Path, tmp_path: Path) -> None:
    size = [
        "--episodes",
        "2",
        "--max_steps",
        "3",
        "--horizon",
        "2",
        "--samples",
        "4",
        "--planner_options",
        "{elites: 2}",
    ]
    main(["plan", str(lamp_world / "world"), "vwm/Lamp-v0", "-o", str(tmp_path / "plan"), *size])
    results = json.loads((tmp_path / "plan" / "plan.json").read_text())["results"]["all"]
    assert set(results) == {"cem", "random", "straight lines"}


def test_ppo_learns_in_it_through_gymnasium(lamp_world: Path, tmp_path: Path) -> None:
    env = SimulatorEnv(load_world(lamp_world))
    assert set(env.action_space.spaces) == {"color", "keys", "pointer"}
    assert isinstance(SimulatorEnv(load_world(lamp_world), flat_actions=True).action_space, spaces.Box)
    spec = SimulatedEnvSpec(lamp_world / "world", time_limit=3, device="cpu")
    options = {"n_steps": 4, "batch_size": 8, "n_epochs": 1}
    algorithm = PPO(spec, num_envs=2, policy="MlpPolicy", options=options)
    AgentTraining(tmp_path, algorithm, 8, evaluation=EvaluationConfig(8, 1)).run()
    assert algorithm.progress >= 8
