"""Entry point of ``vwm``: finds the command, checks its arguments, and only then imports what the command needs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from vwm.cli.commands import COMMANDS, CLICommand

FIRST_STEPS = """\
from videos to a world:
  vwm ingest my_videos data/mine --size 64 --fps 15
  vwm fit -c tokenizer/coinrun_small --data data/mine --run runs/mine/tokenizer
  vwm export runs/mine/tokenizer -o runs/mine/bundle
  vwm fit -c genie/coinrun_small --data data/mine --tokenizer runs/mine/bundle --run runs/mine/genie
  vwm export runs/mine/genie -o runs/mine/world
  vwm play runs/mine/world

words:
  shards     tar files of recorded episodes in a folder, from which trainings read
  config     a YAML file with the settings of a training; vwm fit --help lists those that come with vwm
  run        the folder of a training: settings, checkpoints, metrics
  tokenizer  a network that turns frames into few numbers, the latents, and back
  bundle     the folder of a trained model, as vwm export makes it; some come with vwm: coinrun, carracing, boxing,
             freeway
  world      a bundle that predicts the frames that follow an action"""


def main(argv: list[str] | None = None) -> None:
    """Run the command that the arguments name."""
    argv = sys.argv[1:] if argv is None else argv
    # With libgomp's default, waiting threads spin so long that a step takes a hundred times longer when another job
    # shares the cores; without any spinning it takes 1.5 times longer on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Environments render into arrays, but pygame looks for a display without this.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{_command_overview(COMMANDS)}\n\n{FIRST_STEPS}")
        return
    if argv[0] == "--version":
        import vwm

        print(f"vwm {vwm.__version__}")
        return
    name = find_command(argv)
    if name is None:
        print(_command_overview({n: c for n, c in COMMANDS.items() if n.split()[0] == argv[0]}))
        return
    try:
        run_command(name, argv[len(name.split()) :])
    except BrokenPipeError:
        raise SystemExit(1) from None  # whoever read the output is gone, as with `| head`
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("VWM_DEBUG"):
            raise
        print(f"vwm {name}: {shorten_message(str(error))}\n(VWM_DEBUG=1 shows where)", file=sys.stderr)
        raise SystemExit(1) from error
    except (MemoryError, RuntimeError) as error:
        if os.environ.get("VWM_DEBUG") or not is_out_of_memory(error):
            raise
        print(f"vwm {name}: the memory is too small ({str(error).splitlines()[0][:200]})", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def shorten_message(text: str, limit: int = 3000) -> str:
    """Cut the middle out of a message that quotes a value of thousands of characters."""
    return text if len(text) <= limit else f"{text[: limit - 500]} [...] {text[-480:]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of a GPU was too small."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def find_command(argv: list[str]) -> str | None:
    """The command that the arguments begin with; None where they ask what a group of commands holds.

    Raises:
        SystemExit: there is no such command.
    """
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if argv[0] not in groups:
        typed, known = argv[0], set(COMMANDS) | groups
    elif argv[1:] in ([], ["-h"], ["--help"]):
        return None
    else:
        typed, known = " ".join(argv[:2]), {name for name in COMMANDS if name.startswith(argv[0] + " ")}
    if typed in known:
        return typed
    from vwm.core.suggestions import suggest

    print(f"vwm: no command {typed}{suggest(typed, known)}; vwm --help lists the commands", file=sys.stderr)
    raise SystemExit(2)


def run_command(name: str, argv: list[str]) -> None:
    """Run one command in this process.

    Raises:
        SystemExit: help was requested, or the command line is invalid; a message says why. Other errors are not caught.
    """
    from vwm.cli.argument_checks import check_paths
    from vwm.cli.parser import UsageError, make_command_parser
    from vwm.cli.setting_ranges import check_setting_range
    from vwm.cli.signatures import group_arguments, read_signature

    command = COMMANDS[name]
    if command.parses_arguments:
        from vwm.cli.config_arguments import expand_arguments
        from vwm.cli.config_checks import check_config_arguments
        from vwm.cli.config_help import config_help

        if "-h" in argv or "--help" in argv:
            print(config_help(name))
            raise SystemExit(0)  # as argparse does for the other commands
        argv = expand_arguments(name, argv)
        try:
            check_config_arguments(name, argv)
        except UsageError as error:
            print(f"vwm {name}: {shorten_message(str(error))}", file=sys.stderr)
            raise SystemExit(2) from error
        _import_function(command)(argv)
        return
    signature = read_signature(command.target)
    try:
        arguments = make_command_parser(f"vwm {name}", signature, command.examples).parse_command(argv)
    except UsageError as error:
        print(f"vwm {name}: {shorten_message(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error
    problems = [problem for key, value in arguments.items() for problem in check_setting_range(key, value)]
    if problems:
        print(f"vwm {name}: {'; '.join(problems)}", file=sys.stderr)
        raise SystemExit(2)
    check_paths(signature, arguments)
    function = _import_function(command)
    function(**group_arguments(function, signature, arguments))


def _import_function(command: CLICommand) -> Callable[..., Any]:
    module, _, name = command.target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _command_overview(commands: Mapping[str, CLICommand]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(
        ["vwm: video world models", "", "usage: vwm COMMAND ...   (vwm COMMAND --help shows its arguments)", "", *lines]
    )


if __name__ == "__main__":
    main()
