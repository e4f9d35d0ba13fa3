"""Every config is one that its command takes, and the large ones are as large as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from vwm.cli.agent_commands import make_agent_parser, make_training, parse_agent_config
from vwm.models.dit.network import DiT
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.runs.config_files import load_config
from vwm.train.fit import parse_fit_config

CONFIGS = Path(__file__).parents[2] / "configs"
AGENTS = sorted(path.name for path in CONFIGS.glob("agents/*.yaml"))
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "agents")


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_config_is_known(name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_fit_config(["-c", str(CONFIGS / name), "--print_config"])
    assert stop.value.code == 0
    whole, said = yaml.safe_load(capsys.readouterr().out), load_config(CONFIGS / name)
    assert whole["model"]["class_path"] == said["model"]["class_path"] and whole["run"] == said["run"]


@pytest.mark.parametrize("name", AGENTS)
def test_every_key_of_an_agents_config_is_known(name):
    config = parse_agent_config(make_agent_parser(), ["-c", str(CONFIGS / "agents" / name)])
    said = load_config(CONFIGS / "agents" / name)
    assert config.algorithm.class_path == said["algorithm"]["class_path"] and str(config.run).startswith("runs/")


@pytest.mark.parametrize(("name", "millions"), [("dit/oasis_600m.yaml", 600), ("dit/dreamer4_1b.yaml", 1000)])
def test_large_networks_have_the_size_in_their_name(name, millions):
    said = load_config(CONFIGS / name)["model"]["init_args"]["dynamics"]["init_args"]
    with torch.device("meta"):
        network = DiT(**said)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.06)


@pytest.mark.parametrize(
    ("letter", "millions"), [("ti", 5.5), ("s", 22), ("b", 86), ("l", 304), ("h", 632), ("g", 1012)]
)
def test_vision_transformers_have_the_size_of_their_letter(letter, millions):
    said = load_config(CONFIGS / f"vjepa/vjepa2_vit{letter}16.yaml")["model"]["init_args"]
    with torch.device("meta"):
        network = VideoEncoder(**said["encoder"]["init_args"])
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("dreamer_v3_crafter", "crafter"),
        ("dreamer_v3_coinrun", "gym3"),
        ("dreamer_v3_dmc", "dm_control"),
        ("tdmpc2_dmc", "dm_control"),
    ],
)
def test_the_agent_of_a_config_plays_its_game(name, package, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")  # nothing is drawn, and not every machine could
    pytest.importorskip(package, reason=f"{package} is not installed")
    parser = make_agent_parser()
    training = make_training(parser, parse_agent_config(parser, ["-c", str(CONFIGS / f"agents/{name}.yaml")]))
    worlds = training.algorithm.env.open(1, seed=0)
    agent = training.algorithm.make_agent(worlds.spaces)
    moment, carry = worlds.reset(), agent.init_carry(1)
    for _ in range(2):
        acted = agent.act(carry, moment, explore=True)
        moment, carry = worlds.step(acted.action), acted.carry
    assert not moment.is_first.any() and moment.reward.isfinite().all()
    assert training.eval_env.open(1, seed=1).spaces == worlds.spaces
    worlds.close()
