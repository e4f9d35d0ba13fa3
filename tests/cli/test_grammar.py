"""The grammar of the command line: names, options, switches, values, and error messages."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vwm.cli.commands import COMMANDS
from vwm.cli.config_help import config_help
from vwm.cli.main import main
from vwm.cli.parser import UsageError, make_command_parser
from vwm.cli.signatures import CommandParameter, CommandSignature, group_arguments, read_signature
from vwm.eval.goal_evaluation import GoalObjectiveConfig, GoalPlannerConfig, GoalTaskConfig, evaluate_planner

CONFIGS = Path(__file__).parents[2] / "configs"
FUNCTIONS = {name: command for name, command in COMMANDS.items() if not command.parses_arguments}


def test_command_and_group_names_do_not_overlap():
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    assert not groups & set(COMMANDS) and all(len(name.split()) <= 2 for name in COMMANDS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_described_and_every_example_parses(name):
    signature = read_signature(FUNCTIONS[name].target)
    assert all(parameter.help for parameter in signature.parameters) and signature.description
    parser = make_command_parser(f"vwm {name}", signature, FUNCTIONS[name].examples)
    for example in FUNCTIONS[name].examples:
        words = shlex.split(example)
        assert words[: 1 + len(name.split())] == ["vwm", *name.split()]
        assert set(parser.parse_command(words[1 + len(name.split()) :])) == {p.name for p in signature.parameters}


def test_options_of_grouped_settings_fill_the_dataclasses_of_the_function():
    signature = read_signature("vwm.eval.goal_evaluation:evaluate_planner")
    argv = ["rooms", "vwm/TwoRooms-v0", "--planner", "mppi", "--max-steps", "7", "--reduction", "end", "--seed", "3"]
    values = make_command_parser("vwm plan", signature, ()).parse_command(argv)
    arguments = group_arguments(evaluate_planner, signature, values)
    assert arguments == {
        **{"bundle": Path("rooms"), "env": "vwm/TwoRooms-v0", "out": Path("plan"), "seed": 3, "device": "auto"},
        "task": GoalTaskConfig(max_steps=7),
        "planning": GoalPlannerConfig(planner="mppi"),
        "objective": GoalObjectiveConfig(reduction="end"),
    }


def test_help_shows_percent_signs_of_descriptions_and_defaults():
    parameters = [
        CommandParameter("share", "str", "5%", "at most 50% or %d of it"),
        CommandParameter("whole", "bool", False, "100%"),
    ]
    printed = make_command_parser(
        "vwm test", CommandSignature("Uses 90% memory.", tuple(parameters)), ["vwm test 3%"]
    ).format_help()
    assert all(text in printed for text in ("90% memory", "50% or %d of it (default: 5%)", "100%", "vwm test 3%"))


def make_parser(**parameters):
    params = tuple(CommandParameter(name, kind, default, "") for name, (kind, default) in parameters.items())
    return make_command_parser("vwm test", CommandSignature("", params), [])


@pytest.mark.parametrize(
    ("kind", "default", "argv", "value"),
    [
        ("int", 1, ["--some-value", "2"], 2),
        ("int", 1, ["--some_value=2"], 2),
        ("int", 1, ["--some-value", "-2"], -2),
        ("bool", False, ["--some-value"], True),
        ("bool", True, ["--no-some-value"], False),
        ("bool", True, ["--no_some_value"], False),
        ("float | None", 0.5, ["--some-value", "null"], None),
        ("int | Literal['all'] | None", None, ["--some-value", "all"], "all"),
        ("list[str] | None", None, ["--some-value", "a,b"], ["a", "b"]),
        ("list[float] | None", None, ["--some-value", "[0.1, 1]"], [0.1, 1.0]),
        ("dict[int, float] | None", None, ["--some-value", "{7: 4, 8: 3}"], {7: 4.0, 8: 3.0}),
        ("dict[str, Any] | None", None, ["--some-value", "{a: [1, b]}"], {"a": [1, "b"]}),
    ],
)
def test_values_have_the_type_of_their_parameter(kind, default, argv, value):
    assert make_parser(some_value=(kind, default)).parse_command(argv) == {"some_value": value}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--some-valeu", "2"], "no option --some-valeu (did you mean --some-value?)"),
        (["--some-value", "ten"], "--some-value: 'ten' must be a whole number or one of all"),
        (["--batch", "2.5"], "--batch/--batch-size: '2.5' must be a whole number"),
        (["--other", "c"], "--other: 'c' must be one of a, b"),
        (["--some-value"], "--some-value: expected one argument; vwm test --help shows the arguments"),
        (["--best", "true"], "--best is a switch: remove true, and leave --best out to keep the default"),
    ],
)
def test_a_usage_error_names_option_value_and_remedy(argv, message):
    parser = make_parser(
        some_value=("int | Literal['all']", 1),
        batch_size=("int", 1),
        other=("Literal['a', 'b']", "a"),
        best=("bool", False),
    )
    with pytest.raises(UsageError) as error:
        parser.parse_command(argv)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plya"], "no command plya (did you mean play?)"),
        (["agent", "trian"], "no command agent trian (did you mean agent train?)"),
        (["play", "coinrum"], "coinrum is no bundle: there is no such folder (did you mean coinrun?)"),
        (["eval", "coinrun", "nowhere", "--horizn", "3"], "no option --horizn (did you mean --horizon?)"),
        (["eval", "coinrun", "datta"], "no shards at datta: there is no such file or folder (did you mean data?)"),
        (["ingest", "dta", "out"], "dta: there is no such folder (did you mean data?); give a folder of videos"),
        (["export", "runs/on"], "runs/on is no finished run: there is no such folder (did you mean runs/one?)"),
    ],
)
def test_a_mistyped_name_gets_a_suggestion(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    with pytest.raises(SystemExit):
        main(argv)
    assert message in capsys.readouterr().err


def test_the_first_steps_of_the_help_are_those_of_the_readme(capsys):
    main(["--help"])
    steps = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  vwm ")]
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert [step.split()[1] for step in steps] == ["ingest", "fit", "export", "fit", "export", "play"]
    assert all(f"\n    {step}" in readme for step in steps)


@pytest.mark.parametrize("command", ["fit", "agent train"])
def test_the_help_of_trainings_says_what_each_config_is_for(command):
    listed = config_help(command).partition("configs:\n")[2].partition("\n\n")[0].splitlines()
    for line in listed:
        name, _, summary = line.strip().partition(" ")
        assert (CONFIGS / f"{name}.yaml").is_file() and len(line) <= 130
        assert len(summary.split()) >= 2 and "arXiv" not in summary
    texts = " ".join(listed)
    assert len(listed) > 20 and ("BigFish" in texts or "TD-MPC2 on Pendulum-v1, small enough" in texts)


def test_help_and_usage_errors_do_not_import_torch():
    code = """
import sys
from vwm.cli.main import main
help_arguments = (["--help"], ["eval", "--help"], ["fit", "--help"], ["agent", "train", "-h"])
for argv in (*help_arguments, ["plya"], ["play", "coinrum"], ["eval", "a", "b", "--horizon", "x"]):
    try:
        main(argv)
    except SystemExit:
        pass
assert "torch" not in sys.modules
"""
    start = time.monotonic()
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        "ingest" in process.stdout
        and "--tokenizer PATH" in process.stdout
        and "agents/tdmpc2_pendulum" in process.stdout
    )
    assert "must be a whole number" in process.stderr
    assert time.monotonic() - start < 10  # a fraction of a second on a quiet machine
