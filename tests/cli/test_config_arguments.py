"""Short names of `vwm fit` and `vwm agent train`."""

from pathlib import Path

import pytest

from vwm.cli.agent_commands import make_agent_parser
from vwm.cli.config_arguments import expand_arguments
from vwm.train.fit import parse_fit_config


def test_short_option_names_dashes_and_config_names_are_expanded():
    argv = ["--data", "data/mine", "--steps=7", "--no-resume", "-c", "tokenizer/coinrun_small", "--batch", "3"]
    expanded = expand_arguments("fit", argv)
    assert expanded[0] == "-c" and Path(expanded[1]).is_file()
    cli = parse_fit_config([*expanded, "--gradient_checkpointing"])
    assert cli.config["data"]["init_args"]["path"] == "data/mine"
    assert cli.config["data"]["init_args"]["batch_size"] == 3 and cli.config["trainer"]["max_steps"] == 7
    assert cli.config["resume"] is False
    assert cli.config["gradient_checkpointing"] is True and cli.config["compile"] == "auto"


def test_seed_and_device_map_to_lightning_options():
    expanded = expand_arguments("fit", ["--seed", "3", "--device=cpu", "--help-all"])
    assert expanded == ["--seed_everything", "3", "--trainer.accelerator=cpu", "--help"]
    with pytest.raises(FileNotFoundError, match="name a config, such as -c genie/coinrun_small; vwm fit --help lists"):
        expand_arguments("fit", [])
    with pytest.raises(FileNotFoundError, match="a config is named by -c: vwm fit -c genie/coinrun_small"):
        expand_arguments("fit", ["genie/coinrun_small"])


@pytest.mark.parametrize("argv", [["--device", "cuda:1"], ["--device=cuda:1"]])
def test_a_device_index_selects_only_that_device(argv):
    argv = [*argv, "-c", "tokenizer/coinrun_small", "--print-config"]
    expanded = expand_arguments("fit", argv)
    assert expanded[2:] == ["--trainer.accelerator=cuda", "--trainer.devices=[1]", "--print_config"]
    assert "--trainer.devices=[1]" not in expand_arguments("agent train", argv)


def test_agent_options_accept_their_short_names(tmp_path):
    argv = [
        "--seed",
        "5",
        "--run",
        str(tmp_path),
        "--config=configs/agents/tdmpc2_pendulum.yaml",
        "--compile",
        "false",
    ]
    config = make_agent_parser().parse_args(expand_arguments("agent train", argv))
    assert config.seed == 5 and config.run == tmp_path
    assert config.compile is False and config.tensorboard is False


def test_a_mistyped_config_gets_a_suggestion():
    with pytest.raises(FileNotFoundError, match=r"genie/coinrun_smal: there is no such config.*coinrun_small"):
        expand_arguments("fit", ["-c", "genie/coinrun_smal"])


def test_an_error_of_a_class_is_not_buried_in_the_parsers():
    argv = ["-c", "configs/dit/freeway_small.yaml", "--model.init_args.objective.init_args.finest", "64"]
    with pytest.raises(ValueError, match=r"^finest=64 needs dynamics.num_step_sizes=7, got 4$"):
        parse_fit_config(argv)
