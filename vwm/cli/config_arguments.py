"""Arguments of ``vwm fit`` and ``vwm agent train``: short names for what people change most, and configs by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from vwm.cli.configs import config_names, config_path
from vwm.core.suggestions import suggest
from vwm.runs.config_files import split_config_files

_FIT: Mapping[str, str] = {
    "--data": "--data.init_args.path",
    "--batch": "--data.init_args.batch_size",
    "--steps": "--trainer.max_steps",
    "--seed": "--seed_everything",
    "--device": "--trainer.accelerator",  # the index of cuda:1 goes to --trainer.devices
    "--tokenizer": "--model.init_args.tokenizer",
}
SHORT_NAMES: Mapping[str, Mapping[str, str]] = {
    "fit": _FIT,
    "estimate": {**_FIT, "--strategy": "--trainer.strategy", "--precision": "--trainer.precision"},
    "agent train": {},
}
"""Short option names and the keys that they set, by command; the keys are accepted, too."""
EXAMPLES = {"fit": "genie/coinrun_small", "estimate": "dit/dreamer4_1b", "agent train": "agents/tdmpc2_pendulum"}
"""An example config of each command."""


def expand_arguments(command: str, argv: list[str]) -> list[str]:
    """Return the arguments in the form of the config parsers.

    Dashes in option names become underscores, short names become the keys that they stand for,
    ``-c genie/coinrun_small`` finds a config that comes with vwm, and configs are moved to the front: every other
    argument overrides them.

    Args:
        command: a key of ``SHORT_NAMES``.
        argv: what follows the command.

    Raises:
        FileNotFoundError: a config does not exist, or there are no arguments.
    """
    files, words = split_config_files(argv)
    configs = [word for file in files for word in ("-c", find_config(file))]
    others: list[str] = []
    for word in _join_data_sets(_split_device_index(words)) if command in ("fit", "estimate") else words:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name.replace("-", "_").replace("__", "--", 1)
            name = "--help" if name == "--help_all" else name
            others.append(SHORT_NAMES[command].get(name, name) + equals + value)
        else:
            others.append(word)
    if not configs and words and words[0].removesuffix(".yaml") in config_names():
        raise FileNotFoundError(f"a config is named by -c: vwm {command} -c {words[0]}")
    if not others and not configs:
        raise FileNotFoundError(f"name a config, such as -c {EXAMPLES[command]}; vwm {command} --help lists them")
    return configs + others


def _split_device_index(words: list[str]) -> list[str]:
    """Replace ``--device cuda:1`` by ``--device=cuda --trainer.devices=[1]``, as Lightning expects it."""
    split: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "--device" and (value := value if equals else next(rest, "")):
            device, _, index = value.partition(":")
            split += (
                [f"--device={device}", f"--trainer.devices=[{index}]"] if index.isdigit() else [f"--device={value}"]
            )
        else:
            split.append(word)
    return split


def _join_data_sets(words: list[str]) -> list[str]:
    """Replace ``--data data/a:3 data/b:1`` by ``--data={"data/a": 3, "data/b": 1}``, and ``--data a b`` by a list.

    Raises:
        ValueError: some data sets have a weight and others none.
    """
    joined: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name != "--data" or value[:1] in ("{", "["):
            joined.append(word)
            continue
        given = [value] if equals else []
        while rest and not rest[0].startswith("-"):
            given.append(rest.pop(0))
        joined.append(f"--data={_format_data_sets(given)}" if given else word)
    return joined


def _format_data_sets(given: list[str]) -> str:
    """Return one data set as it is, several as a list, and those with weights as a mapping, in JSON."""
    parts = [_split_weight(text) for text in given]
    if all(weight is None for _, weight in parts):
        return given[0] if len(given) == 1 else json.dumps(given)
    without = [name for name, weight in parts if weight is None]
    if without:
        raise ValueError(
            f"--data: {', '.join(without)} has no weight and others have: give all of them one, as in "
            f"{without[0]}:1, or none"
        )
    if len({name for name, _ in parts}) < len(parts):
        raise ValueError(
            f"--data: {', '.join(given)} names a data set twice: a weight of 2 draws from it twice as often"
        )
    return json.dumps({name: float(weight) for name, weight in parts if weight is not None})


def _split_weight(text: str) -> tuple[str, str | None]:
    """Split ``data/a:3`` into a path and its weight; a path that exists as it stands has none."""
    path, colon, weight = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", weight) or Path(text).exists():
        return text, None
    return path, weight


def find_config(name: str) -> str:
    """Return the path of a config: as given, or of one that comes with vwm, whose suffix may be left out.

    Raises:
        FileNotFoundError: there is no such file; the message names a shipped config with a similar name.
    """
    if Path(name).is_file():
        return name
    shipped = name.removeprefix("configs/").removesuffix(".yaml")
    names = config_names()
    if shipped in names:
        return config_path(f"{shipped}.yaml")
    raise FileNotFoundError(f"{name}: there is no such config{suggest(shipped, names)}")
