"""Configs merge over their bases, and several of them one over the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vwm.runs.config_files import ConfigFileError, compose_config_arguments, load_config, merge_configs

SMALL = {
    "run": "runs/small",
    "optimizer": {"lr": 1e-6, "betas": [0.9, 0.95]},
    "model": {
        "class_path": "a.Model",
        "init_args": {"width": 8, "heads": {"class_path": "a.Heads", "init_args": {"n": 1}}},
    },
}


def write(folder: Path, name: str, config: dict) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def test_mappings_merge_and_every_other_value_replaces(tmp_path: Path) -> None:
    write(tmp_path, "small.yaml", SMALL)
    large = {"base": "small.yaml", "optimizer": {"betas": [0.8]}, "model": {"init_args": {"width": 16}}, "run": None}
    merged = load_config(write(tmp_path, "large.yaml", large))
    assert merged == {
        "run": None,
        "optimizer": {"lr": 1e-6, "betas": [0.8]},
        "model": {"class_path": "a.Model", "init_args": {"width": 16, "heads": SMALL["model"]["init_args"]["heads"]}},
    }


def test_another_class_drops_the_arguments_of_the_first() -> None:
    heads = {"class_path": "b.Heads", "init_args": {"m": 2}}
    merged = merge_configs([SMALL, {"model": {"init_args": {"heads": heads}}}])
    assert merged["model"]["init_args"] == {"width": 8, "heads": heads}
    assert merge_configs([SMALL, {"model": {"class_path": "b.Model"}}])["model"] == {"class_path": "b.Model"}
    again = {"model": {"class_path": "a.Model", "init_args": {"width": 9}}}
    assert merge_configs([SMALL, again])["model"]["init_args"]["heads"] == SMALL["model"]["init_args"]["heads"]


def test_bases_have_bases_and_the_last_of_several_wins(tmp_path: Path) -> None:
    write(tmp_path, "common/one.yaml", {"a": 1, "b": 1, "c": 1})
    write(tmp_path, "common/two.yaml", {"base": "one.yaml", "b": 2})
    write(tmp_path, "three.yaml", {"c": 3})
    assert load_config(write(tmp_path, "x.yaml", {"base": ["common/two.yaml", "three.yaml"]})) == {
        "a": 1,
        "b": 2,
        "c": 3,
    }


def test_several_configs_of_a_command_become_one(tmp_path: Path) -> None:
    one, two = write(tmp_path, "one.yaml", SMALL), write(tmp_path, "two.yaml", {"optimizer": {"lr": 2}})
    assert compose_config_arguments(["-c", str(one), "--run", "r"]) == ["-c", str(one), "--run", "r"]
    option, text, *rest = compose_config_arguments(["--run", "r", "-c", str(one), f"--config={two}"])
    assert (option, rest) == ("-c", ["--run", "r"])
    assert yaml.safe_load(text)["optimizer"] == {"lr": 2, "betas": [0.9, 0.95]}


def test_numbers_keep_their_type(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("lr: 1e-06\nname: 'null'\n")
    _, text = compose_config_arguments(["-c", str(write(tmp_path, "y.yaml", {"base": "x.yaml", "steps": 3}))])
    assert yaml.safe_load(text) == {"lr": 1e-6, "name": "null", "steps": 3}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"base": "smal.yaml"}, r"x\.yaml: base smal\.yaml: there is no such config \(did you mean .*small\.yaml\?\)"),
        ({"base": "x.yaml"}, r"x\.yaml: base leads back to this file \(x\.yaml > x\.yaml\)"),
        ([1], r"x\.yaml: a config is a mapping of keys to values, and this is list"),
    ],
)
def test_what_cannot_be_merged_is_named(tmp_path: Path, config, message: str) -> None:
    write(tmp_path, "small.yaml", SMALL)
    with pytest.raises(ConfigFileError, match=message):
        load_config(write(tmp_path, "x.yaml", config))
