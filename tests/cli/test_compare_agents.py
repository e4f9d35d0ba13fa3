"""`vwm agent compare` from the command line, on short PPO runs in CartPole."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from vwm.cli.agent_commands import load_agent
from vwm.cli.compare_agents import RunGroup, common_env_spec, parse_run_groups
from vwm.cli.main import main
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.eval.return_comparison import compare_returns
from vwm.rl.evaluation import evaluate_policy

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.usefixtures("no_curves")

CONFIG = """
run: {run}
steps: 32
seed: {seed}
evaluation:
  every: 32
  episodes: 1
  video: false
  env: {{class_path: vwm.envs.batched_envs.GymnasiumEnvSpec, init_args: {{env: CartPole-v1}}}}
algorithm:
  class_path: vwm.rl.algorithms.PPO
  init_args:
    env: {{class_path: vwm.envs.batched_envs.GymnasiumEnvSpec, init_args: {{env: CartPole-v1, time_limit: {limit}}}}}
    num_envs: 2
    policy: MlpPolicy
    options: {{n_steps: 16, batch_size: 16, n_epochs: 1}}
"""


def train(folder: Path, name: str, seed: int = 0, limit: str = "null") -> Path:
    config = folder / f"{name}.yaml"
    config.write_text(CONFIG.format(run=folder / name, seed=seed, limit=limit))
    main(["agent", "train", "-c", str(config)])
    return folder / name


def test_runs_are_compared_on_the_same_episodes(tmp_path, capsys):
    first_seed, second_seed, short = (
        train(tmp_path, "real"),
        train(tmp_path, "again", seed=1),
        train(tmp_path, "short", limit="3"),
    )
    out = tmp_path / "compared"
    main([
        "agent", "compare", f"real={first_seed},{second_seed}", str(short),
        "--reference", "real", "--episodes", "5", "--out", str(out),
    ])  # fmt: skip
    report, printed = json.loads((out / "comparison.json").read_text()), capsys.readouterr().out
    assert (out / "comparison.png").stat().st_size > 1000
    assert (out / "curves.png").stat().st_size > 1000
    assert (out / "comparison.md").read_text().split("\n\n", 1)[1] in printed
    # Every return equals that of evaluating the run directly, on the same episodes for all.
    spec = GymnasiumEnvSpec("CartPole-v1")
    for name, runs in {"real": [first_seed, second_seed], "short": [short]}.items():
        for returns, folder in zip(report["groups"][name]["returns"], runs, strict=True):
            assert returns == evaluate_policy(load_agent(folder)[0], spec, 5, 2_000_000).returns.tolist()
    assert report["groups"]["random"]["returns"] == [evaluate_policy(None, spec, 5, 2_000_000).returns.tolist()]
    assert {name: group["env_steps"] for name, group in report["groups"].items()} == {
        "random": 0,
        "real": 32,
        "short": 0,
    }
    recomputed = compare_returns({name: group["returns"] for name, group in report["groups"].items()}, "random", "real")
    assert report["means"] == {name: list(score) for name, score in recomputed.means.items()}
    assert report["means"]["real"][0] == np.mean(report["groups"]["real"]["returns"])


def test_worker_processes_do_not_change_the_result(tmp_path):
    run, out = train(tmp_path, "run"), tmp_path / "compared"
    reports = []
    for workers in ("0", "1"):
        main(["agent", "compare", str(run), "--episodes", "3", "--out", str(out), "--workers", workers])
        reports.append(json.loads((out / "comparison.json").read_text()))
    assert reports[0] == reports[1]


def test_an_encoder_of_observations_does_not_change_the_environment(tmp_path):
    run = train(tmp_path, "run")
    encoded = tmp_path / "encoded"
    encoded.mkdir()
    config = (run / "config.yaml").read_text()
    inner = "class_path: vwm.envs.batched_envs.GymnasiumEnvSpec, init_args: {env: CartPole-v1}"
    encoded_config = (
        f"class_path: vwm.rl.algorithms.encoded_env.EncodedEnvSpec, init_args: {{env: {{{inner}}}, bundle: {tmp_path}}}"
    )
    parsed = yaml.safe_load(config)
    parsed["evaluation"]["env"] = yaml.safe_load(f"{{{encoded_config}}}")
    (encoded / "config.yaml").write_text(yaml.safe_dump(parsed))
    assert common_env_spec([RunGroup("a", [run]), RunGroup("b", [encoded])]) == GymnasiumEnvSpec("CartPole-v1")


def test_groups_are_parsed_into_names_and_run_folders():
    groups = parse_run_groups(["a=x/one,x/two", "x/three"])
    assert [(group.name, list(map(str, group.runs))) for group in groups] == [
        ("a", ["x/one", "x/two"]),
        ("three", ["x/three"]),
    ]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["x/a", "y/a"], "a: several groups have this name"),
        (["random=x"], "random: several groups have this name"),
        (["=x"], "'=x': give NAME=RUN"),
        (["a="], "'a=': give NAME=RUN"),
    ],
)
def test_rejects_ambiguous_names(groups, message):
    with pytest.raises(ValueError, match=message):
        parse_run_groups(groups)


def test_errors_are_raised_before_any_episode_or_file(tmp_path, capsys):
    run = train(tmp_path, "run")
    other_run = train(tmp_path, "other")
    config = other_run / "config.yaml"
    config.write_text(config.read_text().replace("CartPole-v1", "Pendulum-v1"))
    foreign = tmp_path / "full"
    foreign.mkdir()
    (foreign / "diary.txt").write_text("keep me")
    for arguments, message in (
        ([str(run), str(other_run)], "returns of different environments cannot be compared"),
        ([str(run), "--reference", "reel"], "--reference reel: no runs have this name; there are run"),
        ([str(tmp_path / "nowhere")], "give the folder of a run"),
        ([str(run), "--out", str(foreign)], "choose another folder"),
        (
            [str(run), "--episodes", "0", "--out", str(tmp_path / "none")],
            "episodes must be 1 or more",
        ),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["agent", "compare", *arguments])
        assert message in capsys.readouterr().err
    assert (foreign / "diary.txt").read_text() == "keep me" and not (tmp_path / "none").exists()
