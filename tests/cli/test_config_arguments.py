"""Short names of `vwm fit` and `vwm agent train`."""

from pathlib import Path

import pytest

from vwm.cli.agent_commands import make_agent_parser
from vwm.cli.config_arguments import expand_arguments
from vwm.train.fit import parse_fit_config


def test_short_names_dashes_and_configs_by_name():
    typed = ["--data", "data/mine", "--steps=7", "--no-resume", "-c", "tokenizer/coinrun_small", "--batch", "3"]
    expanded = expand_arguments("fit", typed)
    assert expanded[0] == "-c" and Path(expanded[1]).is_file()
    cli = parse_fit_config([*expanded, "--gradient_checkpointing"])
    assert cli.config["data"]["init_args"]["path"] == "data/mine"
    assert cli.config["data"]["init_args"]["batch_size"] == 3 and cli.config["trainer"]["max_steps"] == 7
    assert cli.config["resume"] is False and cli.config["gradient_checkpointing"] and not cli.config["compile"]


def test_seed_and_device_are_named_as_in_every_command():
    expanded = expand_arguments("fit", ["--seed", "3", "--device=cpu", "--help-all"])
    assert expanded == ["--seed_everything", "3", "--trainer.accelerator=cpu", "--help"]
    with pytest.raises(FileNotFoundError, match="name a config, such as -c genie/coinrun_small; vwm fit --help lists"):
        expand_arguments("fit", [])


@pytest.mark.parametrize("typed", [["--device", "cuda:1"], ["--device=cuda:1"]])
def test_the_index_of_a_device_chooses_that_device_alone(typed):
    typed = [*typed, "-c", "tokenizer/coinrun_small", "--print-config"]
    expanded = expand_arguments("fit", typed)
    assert expanded[2:] == ["--trainer.accelerator=cuda", "--trainer.devices=[1]", "--print_config"]
    assert "--trainer.devices=[1]" not in expand_arguments("agent train", typed)


def test_an_agents_short_names(tmp_path):
    typed = [
        "--seed",
        "5",
        "--run",
        str(tmp_path),
        "--config=configs/agents/tdmpc2_pendulum.yaml",
        "--compile",
        "false",
    ]
    config = make_agent_parser().parse_args(expand_arguments("agent train", typed))
    assert config.seed == 5 and config.run == tmp_path
    assert config.compile is False and config.tensorboard is False


def test_a_mistyped_config_gets_a_suggestion():
    with pytest.raises(FileNotFoundError, match=r"genie/coinrun_smal: there is no such config.*coinrun_small"):
        expand_arguments("fit", ["-c", "genie/coinrun_smal"])
