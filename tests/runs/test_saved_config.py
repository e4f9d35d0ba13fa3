"""The config of a run folder from anybody: it runs no code of other packages, and errors name file and key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from vwm.cli.agent_commands import check_same_run, load_agent_training, make_agent_parser, parse_agent_config
from vwm.cli.main import main
from vwm.core import trusted_packages
from vwm.core.trusted_packages import find_untrusted_names
from vwm.runs.config_files import ConfigFileError, parse_config_text, read_config_file
from vwm.runs.run_folder import RunFolder
from vwm.runs.saved_config import UntrustedConfigError, check_fixed_settings, read_saved_config
from vwm.train.fit import load_run_config, parse_fit_config

HOSTILE_MODULE = """
import pathlib

import gymnasium

pathlib.Path(__file__).with_name("executed").touch()


class Hostile(gymnasium.Env):
    pass


def make(*args, **settings):
    return None
"""
ENV = {"class_path": "vwm.envs.GymnasiumEnvSpec", "init_args": {"env": "CartPole-v1"}}
AGENT = {"class_path": "vwm.rl.algorithms.PlaNet"}
HOSTILE_AGENTS = {
    "algorithm.class_path": {"algorithm": {"class_path": "hostile.Hostile"}},
    "env.class_path": {"env": {"class_path": "hostile.Hostile"}},
    "env.init_args.env": {"env": {"class_path": "vwm.envs.GymnasiumEnvSpec", "init_args": {"env": "hostile:X-v0"}}},
    "agent.class_path": {"agent": {"class_path": "os.system", "init_args": {"command": "touch executed"}}},
    "agent": {"agent": "hostile.make"},
    "agent.init_args.planner": {"agent": {**AGENT, "init_args": {"planner": "hostile.Hostile"}}},
}
HOSTILE_MODULES = {
    "model.class_path": {"model": {"class_path": "hostile.Hostile"}},
    "data.class_path": {"data": {"class_path": "hostile.Hostile"}},
    "model.init_args.dynamics.class_path": {
        "model": {
            "class_path": "vwm.models.dit.DiTModule",
            "init_args": {"dynamics": {"class_path": "hostile.Hostile"}},
        }
    },
    "model": {"model": "hostile.Hostile"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Make an empty run folder in the current folder, where a hostile module can be imported."""
    (tmp_path / "hostile.py").write_text(HOSTILE_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(trusted_packages, "_trusted", {"vwm"})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    return tmp_path / "run"


@pytest.mark.parametrize("key", HOSTILE_AGENTS)
def test_an_agents_run_executes_no_code_of_other_packages(folder: Path, key: str) -> None:
    settings = HOSTILE_AGENTS[key]
    whole = {"class_path": "vwm.rl.OnlineLearning", "init_args": {"env": ENV, "agent": AGENT, **settings}}
    config = settings if "algorithm" in settings else {"algorithm": whole}
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": "run", "steps": 10, **config}))
    with pytest.raises(UntrustedConfigError, match=r"config.yaml: algorithm\..*--allow-packages (hostile|os)"):
        load_agent_training(folder)
    assert not Path("executed").exists() and "hostile" not in sys.modules


@pytest.mark.parametrize("key", HOSTILE_MODULES)
def test_a_fit_run_executes_no_code_of_other_packages(folder: Path, key: str) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(HOSTILE_MODULES[key]))
    with pytest.raises(UntrustedConfigError, match=rf"config.yaml: {key} names hostile"):
        load_run_config(RunFolder(folder))
    assert not Path("executed").exists() and "hostile" not in sys.modules


def test_commands_on_a_hostile_run_end_in_one_line_that_names_the_remedy(folder: Path, capsys) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(HOSTILE_MODULES["model.class_path"]))
    for command in (["export", "run"], ["agent", "eval", "run"], ["agent", "play", "run"], ["agent", "export", "run"]):
        with pytest.raises(SystemExit):
            main(command)
        printed = capsys.readouterr().err
        assert "model.class_path names hostile.Hostile" in printed and "Traceback" not in printed
        assert "--allow-packages hostile" in printed
    assert not Path("executed").exists()


def test_an_allowed_package_may_be_named(folder: Path) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(HOSTILE_MODULES["model.class_path"]))
    assert read_saved_config(RunFolder(folder), ["hostile"])["model"]["class_path"] == "hostile.Hostile"


@pytest.mark.parametrize(
    "text",
    [
        "vwm.models.dit.DiT", "CartPole-v1", "ALE/Pong-v5", "procgen:coinrun", "vwm/TwoRooms-v0", "cuda:1", "32-true",
        "shimmy.registration:dm_control/walker-walk-v0", "runs/torch.compile/world", "http://example.org/data",
        "shard-{000000..000009}.tar", "data.tar", "A title: of os.path", "0.5", "",
    ],
)  # fmt: skip
def test_ordinary_texts_are_no_names_of_code(text: str) -> None:
    assert not list(find_untrusted_names({"key": [text]}))


@pytest.mark.parametrize(
    "text", ["os.system", "list[os.system]", "builtins.eval", "torch.nn.Linear", "missing_module:Env-v0", "os:Env-v0"]
)
def test_names_of_other_packages_are_found_wherever_they_are(text: str) -> None:
    assert list(find_untrusted_names({"a": [{"b": text}]})) == [("a[0].b", text)]


def test_data_that_are_read_in_place_are_named_and_found_above_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "lerobot:data/aloha?cameras=top,wrist&size=96"
    (tmp_path / "data" / "aloha").mkdir(parents=True)
    for path in (address, [address], {address: 2.0}):
        config = {"data": {"class_path": "vwm.data.VideoDataModule", "init_args": {"path": path}}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        assert read_saved_config(RunFolder(folder)) == config
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"path": address}}}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = read_saved_config(RunFolder(folder))["data"]["init_args"]["path"]
    assert found == f"lerobot:{tmp_path}/data/aloha?cameras=top,wrist&size=96"
    for key in ("model", "environment"):  # only data have addresses
        assert list(find_untrusted_names({key: {"init_args": {"path": "lerobot:data/aloha"}}}))


def test_a_config_of_billions_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigFileError, match=r"config.yaml: its aliases stand for .* values"):
        read_config_file(tmp_path / "config.yaml")
    with pytest.raises(ConfigFileError, match=r"aliases stand for|nested deeper than 50 levels"):
        parse_config_text("a: &a [*a]" + " " * 10, "text") and parse_config_text("[" * 10**5, "text")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "not a text in UTF-8"), (b"[1, 2]", "mapping"), (b"a: [", "not YAML"), (b"#" * 2**21, "too large")],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigFileError, match=f"config.yaml: .*{message}"):
        read_config_file(tmp_path / "config.yaml")


def test_fixed_settings_of_a_run_cannot_change(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_config("model: {width: 8, lr: 1e-06}\nsteps: 10\n")
    check = lambda now: check_fixed_settings(run, _model_parser(), now, lambda name: name.startswith("model."))  # noqa: E731
    check("model: {width: 8, lr: 1.0e-06}\nsteps: 20\n")
    for now in ("model: {width: 9, lr: 1e-6}", "model: {lr: 1e-6}", "model: {width: 9, lr: 1e-6, depth: 1}"):
        with pytest.raises(ValueError, match=r"was started with model\.width=8, not \w+: .* choose another folder"):
            check(now)


def test_a_setting_that_a_later_version_added_may_have_its_default(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_config("model: {width: 8, lr: 1e-06}\n")
    check = lambda now: check_fixed_settings(run, _model_parser(), now, lambda name: name.startswith("model."))  # noqa: E731
    check("model: {width: 8, lr: 1e-6, depth: 1, heads: {count: 4, dim: null}, options: {}}\nsteps: 10\n")
    for added in ("depth: 2", "depth: 1, heads: {count: 2}", "options: {sticky: true}", "classes: 3"):
        with pytest.raises(ValueError, match=r"was started with model\.(\w|\.)+=None, not (2|True|3): "):
            check(f"model: {{width: 8, lr: 1e-6, {added}}}\nsteps: 10\n")
    run.write_config("model: {lr: 1e-06}\n")
    with pytest.raises(ValueError, match=r"was started with model\.width=None, not 8: "):  # it has no default
        check("model: {width: 8, lr: 1e-6}")


def _model_parser() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model.width", type=int, required=True)
    for name, kind in (("lr", float), ("classes", int)):
        parser.add_argument(f"--model.{name}", type=kind)
    for name, default in (("depth", 1), ("heads.count", 4), ("heads.dim", None)):
        parser.add_argument(f"--model.{name}", type=int | None, default=default)
    parser.add_argument("--model.options", type=dict, default={})
    return parser


def test_runs_of_both_commands_continue_after_settings_were_added(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.touch()
    cli = parse_fit_config(["-c", "configs/vjepa_ac/two_rooms_small.yaml", "--run", str(tmp_path)])
    parser = make_agent_parser()
    config = parse_agent_config(parser, ["-c", "configs/agents/dreamer_v3_cartpole.yaml", "--run", str(tmp_path)])
    del config["config"]
    text = parser.dump(config, skip_unset=False)
    for now, check, group in (
        (cli.config_text, lambda: cli.check_same_run(run), ("model", "init_args", "anti_collapse")),
        (text, lambda: check_same_run(run, parser, text), ("algorithm", "init_args", "agent", "init_args", "critic")),
    ):
        settings = began = parse_config_text(now, "text")
        for key in group[:-1]:
            began = began[key]
        whole = began.pop(group[-1])
        began[group[-1]] = {name: whole[name] for name in list(whole)[:-1]}
        run.write_config(yaml.safe_dump(settings))
        check()
        began[group[-1]] = {**whole, "another": 1}
        run.write_config(yaml.safe_dump(settings))
        with pytest.raises(ValueError, match=r"was started with .*\.another=1, not None"):
            check()


def test_a_run_of_the_other_command_is_named(folder: Path) -> None:
    (folder / "config.yaml").write_text("model: {class_path: vwm.models.dit.DiTModule}\n")
    with pytest.raises(ValueError, match=r"is no run of vwm agent train .*see vwm export"):
        load_agent_training(folder)
    (folder / "config.yaml").write_text("algorithm: {class_path: vwm.rl.OnlineLearning}\n")
    with pytest.raises(ValueError, match=r"is no run of vwm fit .*see vwm agent export"):
        load_run_config(RunFolder(folder))


def test_relative_paths_are_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project" / "runs" / "tokenizer").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    run = RunFolder(tmp_path / "project" / "runs" / "dit")
    run.path.mkdir()
    run.write_config("run: runs/dit\nmodel: {tokenizer: runs/tokenizer, env: ALE/Pong-v5, paths: [data/none]}\n")
    monkeypatch.chdir(tmp_path / "project")
    model = read_saved_config(run)["model"]
    assert model == {"tokenizer": "runs/tokenizer", "env": "ALE/Pong-v5", "paths": ["data/none"]}
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = read_saved_config(run)["model"]
    assert model["tokenizer"] == str(tmp_path / "project" / "runs" / "tokenizer") and model["env"] == "ALE/Pong-v5"
