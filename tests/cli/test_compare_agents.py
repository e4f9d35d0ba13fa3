"""`vwm agent compare` and `vwm agent rank` from the command line, on short PPO runs in CartPole."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pets_worlds import make_ensemble, pets_world

from vwm.cli.agent_commands import load_agent
from vwm.cli.compare_agents import RunGroup, common_env_spec, parse_run_groups
from vwm.cli.main import main
from vwm.core.spaces import ActionSpace
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.eval.policy_ranking import rank_policies
from vwm.eval.return_comparison import compare_returns
from vwm.models.pets.simulator import PETSSimulator
from vwm.rl.agent import PolicyStep
from vwm.rl.evaluation import evaluate_policy
from vwm.rl.partly_random_policy import PartlyRandomPolicy
from vwm.worlds.bundle import save_simulator
from vwm.worlds.simulated_env import SimulatedEnvSpec

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
        "short": 32,
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("ranked"), "ppo")


def save_world(folder: Path, size: int) -> Path:
    ensemble = make_ensemble(2, observation_size=size)
    starts = torch.randn(3, 1, size, generator=torch.Generator().manual_seed(4))
    save_simulator(PETSSimulator(ensemble, ActionSpace("discrete", 2), starts=starts, context_frames=1), folder)
    return folder


def test_a_ranking_is_of_the_returns_in_both(run, tmp_path, capsys):
    world, out = save_world(tmp_path / "world", 4), tmp_path / "ranking"
    main([
        "agent", "rank", str(world), f"ppo={run}", "--epsilons", "[0.0, 0.5]", "--episodes", "4", "--time-limit", "6",
        "--out", str(out), "--device", "cpu",
    ])  # fmt: skip
    report, printed = json.loads((out / "ranking.json").read_text()), capsys.readouterr().out
    assert list(report["returns"]) == ["ppo", "ppo, 50% random", "random"]
    (policy, real), inside = load_agent(run), SimulatedEnvSpec(world, time_limit=6, device="cpu")
    assert report["returns"]["ppo"]["real"] == evaluate_policy(policy, real, 4, 2_000_000).returns.tolist()
    assert report["returns"]["ppo"]["world"] == evaluate_policy(policy, inside, 4, 2_000_000).returns.tolist()
    assert report["returns"]["random"]["world"] == evaluate_policy(None, inside, 4, 2_000_000).returns.tolist()
    returns = report["returns"].values()
    expected = rank_policies([each["real"] for each in returns], [each["world"] for each in returns])
    assert report["ranking"]["spearman"][0] == pytest.approx(expected.spearman.value, nan_ok=True)
    assert (out / "ranking.png").stat().st_size > 1000
    assert (out / "ranking.md").read_text().split("\n\n", 1)[1] in printed


@pytest.mark.parametrize(
    ("size", "epsilons", "message"),
    [(4, "[0.0]", "2 policies: give 3 or more"), (5, "[0.0, 0.5]", r"its agent observes \[4\].*the world has \[5\]")],
)
def test_what_cannot_be_ranked_is_named(run, tmp_path, capsys, size, epsilons, message):
    world, out = save_world(tmp_path / "world", size), tmp_path / "ranking"
    with pytest.raises(SystemExit):
        main(["agent", "rank", str(world), str(run), "--epsilons", epsilons, "--out", str(out)])
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert not out.exists()


class AlwaysLeft:
    device = torch.device("cpu")

    def init_carry(self, batch):
        return ()

    def act(self, carry, time_step, explore):
        return PolicyStep(torch.zeros(len(time_step.reward), dtype=torch.int64), carry, {})


def test_a_share_of_actions_is_random():
    count = 4000
    spaces = EnvSpaces(pets_world().spec.observation, ActionSpace("discrete", 4))
    flags = torch.zeros(count, dtype=torch.bool)
    now = TimeStep(torch.zeros(count, 5), torch.zeros(count), flags, flags, flags)
    torch.manual_seed(0)
    for epsilon, share in ((0.0, 1.0), (0.4, 0.7), (1.0, 0.25)):
        action = PartlyRandomPolicy(AlwaysLeft(), spaces, epsilon).act((), now, explore=False).action
        assert abs((action == 0).double().mean() - share) < 0.03
    with pytest.raises(ValueError, match=r"epsilon must lie in 0\.\.1"):
        PartlyRandomPolicy(AlwaysLeft(), spaces, 1.5)
