"""Every config is accepted by its command, and large networks have the size in their name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from vwm.cli.agent_commands import make_agent_parser, make_training, parse_agent_config
from vwm.models.dit.network import DiT
from vwm.models.vjepa.masked_prediction import ContextLossConfig
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import MultiBlockMaskSampler
from vwm.models.vjepa.network_checks import check_vjepa_networks
from vwm.models.vjepa.official_weights import ENCODER_HEADS_BY_WIDTH, VJEPA21_FEATURE_LAYERS
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.runs.config_files import load_config
from vwm.train.fit import parse_fit_config

CONFIGS = Path(__file__).parents[2] / "configs"
AGENTS = sorted(path.name for path in CONFIGS.glob("agents/*.yaml"))
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "agents")


@pytest.mark.parametrize("name", NAMES)
def test_every_fit_config_is_accepted(name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_fit_config(["-c", str(CONFIGS / name), "--print_config"])
    assert stop.value.code == 0
    parsed, settings = yaml.safe_load(capsys.readouterr().out), load_config(CONFIGS / name)
    assert parsed["model"]["class_path"] == settings["model"]["class_path"] and parsed["run"] == settings["run"]


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_config_is_accepted(name):
    config = parse_agent_config(make_agent_parser(), ["-c", str(CONFIGS / "agents" / name)])
    settings = load_config(CONFIGS / "agents" / name)
    assert config.algorithm.class_path == settings["algorithm"]["class_path"] and str(config.run).startswith("runs/")


def test_an_agent_in_a_world_and_its_reference_differ_in_their_environment_alone():
    """Otherwise ``vwm agent compare`` refuses them, or compares two agents."""
    world, real = (load_config(CONFIGS / "agents" / f"dreamer_v3_coinrun_{name}.yaml") for name in ("world", "plain"))
    assert world.pop("run") != real.pop("run")
    envs = [settings["algorithm"]["init_args"].pop("env") for settings in (world, real)]
    assert world == real and [env["class_path"].rpartition(".")[2] for env in envs] == [
        "SimulatedEnvSpec",
        "GymnasiumEnvSpec",
    ]


@pytest.mark.parametrize(("name", "millions"), [("dit/oasis_600m.yaml", 600), ("dit/dreamer4_1b.yaml", 1000)])
def test_large_networks_have_the_number_of_parameters_in_their_name(name, millions):
    settings = load_config(CONFIGS / name)["model"]["init_args"]["dynamics"]["init_args"]
    with torch.device("meta"):
        network = DiT(**settings)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.06)


@pytest.mark.parametrize(
    ("letter", "millions"), [("ti", 5.5), ("s", 22), ("b", 86), ("l", 304), ("h", 632), ("g", 1012)]
)
def test_vision_transformers_have_the_number_of_parameters_of_their_letter(letter, millions):
    settings = load_config(CONFIGS / f"vjepa/vjepa2_vit{letter}16.yaml")["model"]["init_args"]
    with torch.device("meta"):
        network = VideoEncoder(**settings["encoder"]["init_args"])
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize(
    ("name", "shared", "count"),
    [
        ("vjepa_vith16", None, 2),
        ("vjepa2_vitg16_cooldown", 0, 1),
        ("vjepa21_vitgg16", 0, 1),
        ("finetune_vitl16", 0, 10),
    ],
)
def test_masks_share_a_token_where_the_published_code_has_one_for_all(name, shared, count):
    settings = load_config(CONFIGS / f"vjepa/{name}.yaml")["model"]["init_args"]
    assert (settings["mask_token"], settings["predictor"]["init_args"]["num_mask_tokens"]) == (shared, count)


@pytest.mark.parametrize(("letter", "millions"), [("b", 86), ("l", 304), ("g", 1012), ("gg", 1890)])
def test_vjepa21_trains_the_networks_of_the_published_sizes(letter, millions):
    settings = load_config(CONFIGS / f"vjepa/vjepa21_vit{letter}16.yaml")["model"]["init_args"]
    with torch.device("meta"):
        encoder = VideoEncoder(**settings["encoder"]["init_args"])
        predictor = MaskedPredictor(**settings["predictor"]["init_args"])
    masks = [MultiBlockMaskSampler(**sampler["init_args"]) for sampler in settings["mask_samplers"]]
    check_vjepa_networks(encoder, predictor, masks, ContextLossConfig(**settings["context_loss"]))
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
    layers = encoder.config.feature_layers
    assert (
        tuple(layers) == VJEPA21_FEATURE_LAYERS[encoder.config.depth]
        and encoder.config.heads == (ENCODER_HEADS_BY_WIDTH[encoder.width])
    )
    assert encoder.blocks[0].mlp.fc1.out_features == {768: 3072, 1024: 4096, 1408: 6144, 1664: 8192}[encoder.width]


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("dreamer_v3_crafter", "crafter"),
        ("dreamer_v3_coinrun", "gym3"),
        ("dreamer_v3_dmc", "dm_control"),
        ("tdmpc2_dmc", "dm_control"),
        ("efficientzero_minatar", "minatar"),
    ],
)
def test_the_agent_of_a_config_acts_in_its_environment(name, package, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")  # nothing is rendered, and not every machine can
    pytest.importorskip(package, reason=f"{package} is not installed")
    parser = make_agent_parser()
    training = make_training(parser, parse_agent_config(parser, ["-c", str(CONFIGS / f"agents/{name}.yaml")]))
    envs = training.algorithm.env.open(1, seed=0)
    agent = training.algorithm.make_agent(envs.spaces)
    time_step, carry = envs.reset(), agent.init_carry(1)
    for _ in range(2):
        output = agent.act(carry, time_step, explore=True)
        time_step, carry = envs.step(output.action), output.carry
    assert not time_step.is_first.any() and time_step.reward.isfinite().all()
    assert training.eval_env.open(1, seed=1).spaces == envs.spaces
    envs.close()


@pytest.mark.parametrize(
    ("name", "encoder", "predictor"),
    [
        ("vitg16", 1_013_267_968, 55_400_704),
        ("vitgg16", 1_845_216_768, 59_433_472),
        ("vitl16_distilled", 304_680_960, 22_973_056),
    ],
)
def test_vjepa21_has_as_many_weights_as_the_published_code_loads(name, encoder, predictor):
    """Counted on its classes, whose predictors have 8 mask tokens."""
    settings = load_config(CONFIGS / f"vjepa/vjepa21_{name}.yaml")["model"]["init_args"]
    with torch.device("meta"):
        networks = (
            VideoEncoder(**settings["encoder"]["init_args"]),
            MaskedPredictor(**settings["predictor"]["init_args"] | {"num_mask_tokens": 8}),
        )
    assert tuple(sum(p.numel() for p in network.parameters()) for network in networks) == (encoder, predictor)
