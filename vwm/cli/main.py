"""The command line: one table of commands, each a typed function somewhere in the package.

A function's parameters are the command's arguments, and its docstring is their help. Modules are imported when their
command is called, so that ``vwm --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class CLICommand(NamedTuple):
    """Where a command's function lives, what it does in a line, and examples."""

    target: str
    summary: str
    examples: tuple[str, ...] = ()
    parses_arguments: bool = False
    """The function takes the arguments as they were typed."""


COMMANDS = {
    "record": CLICommand(
        "vwm.envs.recording:record_dataset",
        "record a game into shards",
        (
            "vwm record procgen:coinrun data/coinrun --frames 50000",
            "vwm record ALE/Pong-v5 data/pong --policy sticky --frame_skip 4",
            "vwm record CarRacing-v3 data/carracing --workers 2",
        ),
    ),
    "ingest": CLICommand(
        "vwm.data.ingest:ingest_videos",
        "turn a folder of videos into shards",
        ("vwm ingest my_videos data/mine --size 64 --fps 15",),
    ),
    "data inspect": CLICommand(
        "vwm.data.inspection:inspect_dataset",
        "count what is in shards, and draw a contact sheet",
        ("vwm data inspect data/coinrun --contact_sheet sheet.png",),
    ),
    "encode": CLICommand(
        "vwm.tokenizers.shard_encoding:encode_shards",
        "write shards with latents beside the video",
        ("vwm encode data/coinrun --tokenizer runs/bundle --out data/coinrun_tokens",),
    ),
    "fit": CLICommand("vwm.train.fit:fit_model", "train a model from a config", parses_arguments=True),
    "export": CLICommand(
        "vwm.train.export:export_run",
        "make a bundle of a training run",
        ("vwm export runs/genie -o runs/bundle --data data/coinrun",),
    ),
    "play": CLICommand(
        "vwm.play.server:play_world",
        "play a bundle in the browser",
        ("vwm play coinrun", "vwm play carracing", "vwm play runs/bundle --port 8080 --host 0.0.0.0"),
    ),
    "eval": CLICommand(
        "vwm.eval.world_report:evaluate_world",
        "measure a bundle on held-out data",
        ("vwm eval runs/bundle data/coinrun_test --out runs/report",),
    ),
    "agent train": CLICommand(
        "vwm.cli.agent_commands:train_agent", "train an agent from a config", parses_arguments=True
    ),
    "agent eval": CLICommand(
        "vwm.cli.agent_commands:evaluate_agent",
        "measure a trained agent on episodes of their own seeds",
        ("vwm agent eval runs/dreamer_v3_cartpole --episodes 100",),
    ),
    "agent compare": CLICommand(
        "vwm.cli.compare_agents:compare_runs",
        "set runs beside one another in the real game, and beside random",
        parses_arguments=True,
    ),
    "agent play": CLICommand(
        "vwm.cli.agent_commands:record_agent_videos",
        "write a video of a trained agent's play",
        ("vwm agent play runs/dreamer_v3_cartpole --episodes 3",),
    ),
    "agent export": CLICommand(
        "vwm.cli.agent_commands:export_agent_world",
        "make a bundle of the world that an agent has learned",
        ("vwm agent export runs/dreamer_v3_carracing -o runs/dreamer_v3_carracing/world",),
    ),
    "agent plan": CLICommand(
        "vwm.eval.goal_evaluation:evaluate_planner",
        "plan to goals in a bundle, and count how often they are reached",
        (
            "vwm agent plan runs/bundle vwm/TwoRooms-v0 --episodes 100",
            "vwm agent plan runs/bundle Pendulum-v1 --planner mppi --budget 120",
        ),
    ),
    "probe": CLICommand(
        "vwm.eval.probe_report:probe_features",
        "measure what frozen features know, beside random networks and bare pixels",
        (
            "vwm probe runs/vjepa/bundle data/pong_state --only '[ball_x, ball_y]' --out runs/probe",
            "vwm probe carracing,runs/vjepa/bundle data/carracing_state --layer all",
            "vwm probe runs/vjepa/bundle data/sprites --label shape --test data/sprites_unseen",
        ),
    ),
    "eval surprise": CLICommand(
        "vwm.eval.vjepa_surprise:evaluate_surprise",
        "is a V-JEPA model more surprised by what cannot happen?",
        ("vwm eval surprise runs/sprites_small/bundle data/sprites_surprise",),
    ),
    "bench play": CLICommand(
        "vwm.cli.benchmarks:benchmark_play", "time the steps of a bundle", ("vwm bench play runs/bundle --steps 40",)
    ),
    "bench data": CLICommand(
        "vwm.cli.benchmarks:benchmark_data", "time the loader", ("vwm bench data data/coinrun --clip_length 16",)
    ),
    "demo": CLICommand(
        "vwm.cli.demo:run_demo",
        "the whole way on a small scale: record, train, measure, export",
        ("vwm demo", "vwm demo --minutes 4 --out runs/short"),
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``vwm``."""
    argv = sys.argv[1:] if argv is None else argv
    # Threads that spin as long as libgomp likes make a step a hundred times slower where another job shares the cores;
    # threads that do not spin at all make it half as slow again on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Games are drawn into arrays; pygame looks for a screen all the same.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if not argv or argv[0] in ("-h", "--help"):
        print(_command_overview(COMMANDS))
        return
    if argv[0] == "--version":
        import vwm

        print(f"vwm {vwm.__version__}")
        return
    name = next((n for n in (" ".join(argv[:2]), argv[0]) if n in COMMANDS), None)
    if name is None:
        group = {n: command for n, command in COMMANDS.items() if n.startswith(argv[0] + " ")}
        if group and argv[1:] in ([], ["-h"], ["--help"]):
            print(_command_overview(group))
            return
        print(f"vwm: no command {argv[0]!r}; there are: {', '.join(group or COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    rest = argv[len(name.split()) :]
    try:
        run_command(name, rest)
    except (ValueError, FileNotFoundError, FileExistsError, ImportError, PermissionError) as error:
        if os.environ.get("VWM_DEBUG"):
            raise
        print(f"vwm {name}: {error}\n(VWM_DEBUG=1 shows where)", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run_command(name: str, argv: list[str]) -> None:
    """Run one command in this process. Errors are raised as they come."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    if COMMANDS[name].parses_arguments:
        function(argv)
        return
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=f"vwm {name}",
        description=COMMANDS[name].summary,
        epilog="examples:\n  " + "\n  ".join(COMMANDS[name].examples),
        formatter_class=_HelpFormatter,
    )
    parser.add_function_arguments(function, as_group=False, as_positional=True, fail_untyped=True)
    argv = ["--out" if argument == "-o" else argument for argument in argv]
    arguments = parser.instantiate(parser.parse_args(argv))
    function(**vars(arguments))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' lines as they are."""


def _command_overview(commands: Mapping[str, CLICommand]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(
        ["vwm: video world models", "", "usage: vwm COMMAND ...   (vwm COMMAND --help shows its arguments)", "", *lines]
    )


if __name__ == "__main__":
    main()
