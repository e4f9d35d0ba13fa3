"""Every command works on every family that supports it; add a small simulator for a new family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from autoregressive_worlds import autoregressive_world, token_dynamics
from diamond_worlds import diamond_world
from factories import (
    diffusion_world,
    dit,
    dream,
    dynamics,
    genie,
    jepa_parts,
    jepa_world,
    latent_action,
    muzero_world,
    tdmpc2_world,
    tokenizer,
)
from latent_worlds import rssm_world
from pets_worlds import pets_world
from published_worlds import dreamer4_world, oasis_world, waypoint_world
from vjepa_models import encoder, predictor

from vwm.cli.bench_play import benchmark_play
from vwm.core.components import public_path, save_component
from vwm.core.family import ExportSettings, WorldFamily
from vwm.core.network_simulator import NetworkSimulator
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.eval.features import load_feature_extractor
from vwm.eval.surprise_evaluation import load_surprise_scorer
from vwm.eval.world_report import evaluate_world
from vwm.models.autoregressive.module import AutoregressiveModule
from vwm.models.diamond.module import DiamondModule
from vwm.models.dit.agent_module import DiTAgentModule
from vwm.models.dit.module import DiTModule
from vwm.models.dit.network import DiT
from vwm.models.dit.objectives import DiffusionForcing
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.models.genie.module import GenieModule
from vwm.models.mdn_rnn.module import MDNRNNModule
from vwm.models.vjepa.action_conditioned_module import ActionConditionedJEPAModule
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import MultiBlockMaskSampler
from vwm.models.vjepa.module import VJEPAModule
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.training_module import TrainingModule
from vwm.play.session import PlaySession
from vwm.tokenizers.module import TokenizerModule
from vwm.worlds.bundle import load_simulator, save_simulator
from vwm.worlds.families import find_family, find_simulator_class, world_families
from vwm.worlds.gymnasium_env import SimulatorEnv

VJEPA_SIZES = {"image_size": (16, 16), "frames": 4, "tubelet": 2, "patch_size": 4, "heads": 2, "depth": 1}


def dit_network(**changes: int) -> DiT:
    return dit(grid=(16, 16), channels=3, patch_size=2, **changes)


SIMULATORS = {
    "genie": genie,
    "dit": lambda: diffusion_world(size=16),
    "vjepa": jepa_world,
    "rssm": rssm_world,
    "mdn_rnn": lambda: dream(size=16),
    "tdmpc2": lambda: tdmpc2_world((5,)),
    "muzero": muzero_world,
    "pets": pets_world,
    "autoregressive": autoregressive_world,
    "oasis": oasis_world,
    "diamond": diamond_world,
    "dreamer4": lambda: dreamer4_world(rotary=True),
    "waypoint": waypoint_world,
}
OPTIMIZER = OptimizerConfig()
MODULES: dict[str, Callable[[Path], TrainingModule]] = {
    "genie": lambda folder: GenieModule(
        folder / "genie", dynamics=dynamics(), optimizer=OPTIMIZER, latent_action=latent_action()
    ),
    "dit": lambda folder: DiTModule(str(folder / "dit"), dit_network(), DiffusionForcing(), OPTIMIZER),
    "dit, with an agent": lambda folder: DiTAgentModule(
        dit_network(agent_tokens=1),
        PolicyRewardHeads(32, 4, hidden=16),
        tokenizer=str(folder / "dit"),
        objective=DiffusionForcing(),
        optimizer=OPTIMIZER,
    ),
    "vjepa": lambda folder: VJEPAModule(
        VideoEncoder(width=24, **VJEPA_SIZES),
        MaskedPredictor(encoder_width=24, width=16, **VJEPA_SIZES),
        [MultiBlockMaskSampler(1, (0.5, 0.5))],
        OPTIMIZER,
    ),
    "vjepa, action-conditioned": lambda folder: ActionConditionedJEPAModule(**jepa_parts(), optimizer=OPTIMIZER),
    "mdn_rnn": lambda folder: MDNRNNModule(str(folder / "mdn_rnn"), dream(size=16).dynamics, OPTIMIZER),
    "diamond": lambda folder: DiamondModule(
        diamond_world().dynamics, OPTIMIZER, (16, 16), outcomes=diamond_world().outcomes
    ),
    "autoregressive": lambda folder: AutoregressiveModule(folder / "autoregressive", token_dynamics(), OPTIMIZER),
    "tokenizer": lambda folder: TokenizerModule(tokenizer(), OPTIMIZER),
}
FAMILIES = {family.name: family for family in world_families()}


def write_random_clips(path: Path, simulator: NetworkSimulator) -> None:
    """Write clips that a simulator can be evaluated on."""
    rng, space, actions = np.random.default_rng(0), simulator.spec.context, simulator.spec.actions
    shape = space.shape if space.is_image else (8, 8, 3)
    with ShardWriter(path) as writer:
        for i in range(3):
            uniform = torch.from_numpy(rng.uniform(-1, 1, (9, actions.size)).astype(np.float32))
            episode = Episode(
                frames=rng.integers(0, 256, (9, *shape)).astype(np.uint8),
                actions=rng.integers(0, actions.size, 9) if actions.is_discrete else actions.from_flat(uniform).numpy(),
                rewards=rng.normal(size=9).astype(np.float32),
                state=rng.normal(size=(9, *space.shape)).astype(np.float32) if space.is_vector else None,
                meta={"fps": 10.0} | ({"action_parts": actions.to_json()["parts"]} if actions.is_composite else {}),
            )
            writer.write(f"{i}", episode, raw=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each family, and clips to evaluate it on."""
    folder = tmp_path_factory.mktemp("families")
    for name, make in SIMULATORS.items():
        simulator = make()
        save_simulator(simulator, folder / name)
        write_random_clips(folder / f"{name}_data" / "shard-000000.tar", simulator)
    return folder


def test_every_family_has_a_unique_name_and_classes_that_exist() -> None:
    assert len(FAMILIES) == len(world_families())
    assert {name for name, family in FAMILIES.items() if family.simulator_class} == set(SIMULATORS)
    trained = {name.partition(",")[0] for name in MODULES}
    assert {name for name, family in FAMILIES.items() if family.module_classes} == trained
    for family in FAMILIES.values():
        for path in (family.simulator_class, *family.module_classes):
            if path:
                module, _, name = path.rpartition(".")
                assert public_path(getattr(__import__(module, fromlist=[name]), name)) == path


@pytest.mark.parametrize("name", MODULES)
def test_a_trained_module_becomes_a_bundle_or_networks(name: str, folder: Path, tmp_path: Path) -> None:
    module = MODULES[name](folder).eval()
    family = find_family(module)
    assert family is FAMILIES[name.partition(",")[0]]
    module.merge()
    exported = family.export_networks(module, None, True)
    if exported is not None:
        for part, network in exported.networks.items():
            save_component(network, tmp_path / part)
        assert "{out}" in exported.next_command and family.load_features(tmp_path) is not None
        return
    recording = {"action_names": ["LEFT", "RIGHT", "UP", "noop"]}
    settings = ExportSettings(title="world", fps=12.0, context_frames=2, starts=None, recording=recording)
    save_simulator(family.make_simulator(module, settings), tmp_path / "bundle")
    simulator = load_simulator(tmp_path / "bundle", "cpu")
    assert find_family(simulator) is family and (simulator.spec.title, simulator.spec.fps) == ("world", 12.0)
    names = tuple(recording["action_names"])
    assert simulator.spec.actions.names == names or simulator.spec.actions.latent


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_bundle_names_its_family(name: str, folder: Path) -> None:
    simulator = load_simulator(folder / name, "cpu")
    assert find_family(simulator) is FAMILIES[name]
    index = json.loads((folder / name / "model_index.json").read_text())
    assert find_simulator_class(index["_class_name"]) is type(simulator)


@pytest.mark.parametrize("name", SIMULATORS)
def test_every_family_is_evaluated_by_the_report_that_it_names(name: str, folder: Path) -> None:
    arguments = (folder / name, str(folder / f"{name}_data"), folder / f"{name}_report")
    if FAMILIES[name].report is None:
        with pytest.raises(ValueError, match=FAMILIES[name].no_report[:30]):
            evaluate_world(*arguments)
        return
    report = evaluate_world(*arguments, horizon=2, clips=3, batch_size=3, videos=1, drift_seconds=1, device="cpu")
    if FAMILIES[name].report == "frames":
        assert len(report["rollout"]["psnr"]) == 2 and abs(report["tokenizer"]["ssim"]) <= 1
    else:
        assert len(report["compounding"]["error"]) == 2


@pytest.mark.parametrize("name", SIMULATORS)
def test_every_family_is_benchmarked(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_play(folder / name, steps=2, batch=2, repeats=1, device="cpu")
    printed = capsys.readouterr().out
    assert f"({FAMILIES[name].title})" in printed and "ms a frame" in printed
    assert ("without the cache" in printed) == (name == "genie")
    simulator = load_simulator(folder / name, "cpu")
    assert ("no sampling settings" in printed) == (not simulator.sampling)
    assert ("decode included" in printed) == (name != "genie" and not simulator.spec.observation.is_latent)


@pytest.mark.parametrize("name", SIMULATORS)
def test_families_with_features_are_probed_and_others_raise_an_error(name: str, folder: Path) -> None:
    if type(FAMILIES[name]).feature_extractor is WorldFamily.feature_extractor:
        with pytest.raises(ValueError, match=f"{FAMILIES[name].title} has no features to probe"):
            load_feature_extractor(folder / name)
        return
    features = load_feature_extractor(folder / name)
    assert features.image_size is not None
    clips = torch.randint(0, 256, (2, features.frames, *features.image_size, 3), dtype=torch.uint8)
    assert features(clips).isfinite().all() and len(features.reinitialized(1)(clips)) == 2


@pytest.mark.parametrize("name", SIMULATORS)
def test_every_family_is_an_environment_and_is_playable_if_it_shows_frames(name: str, folder: Path) -> None:
    simulator = load_simulator(folder / name, "cpu")
    observation = simulator.spec.observation
    starts = _starts(simulator)
    env = SimulatorEnv(simulator, starts, observe="latent" if observation.is_latent else "frame")
    env.reset(seed=0)
    observed, *_ = env.step(action := env.action_space.sample())
    assert env.observation_space.contains(observed)
    if observation.is_image:
        session = PlaySession(simulator, starts)
        session.reset(0, seed=0)
        composite = simulator.spec.actions.is_composite  # whose actions are a dictionary for Gymnasium
        row = simulator.spec.actions.from_flat(torch.ones(simulator.spec.actions.size)) if composite else action
        assert session.step(row.tolist()).frame.shape == observation.shape


def test_networks_without_a_simulator_are_probed_and_measure_surprise(tmp_path: Path) -> None:
    save_component(tokenizer(), tmp_path / "tokens" / "tokenizer")
    save_component(encoder(), tmp_path / "jepa" / "encoder")
    save_component(predictor(), tmp_path / "jepa" / "predictor")
    assert load_feature_extractor(tmp_path / "tokens").networks.keys() == {"tokenizer"}
    assert load_feature_extractor(tmp_path / "jepa").networks.keys() == {"encoder"}
    scorer = load_surprise_scorer(tmp_path / "jepa", None, None, "cpu")
    assert scorer.frame_times(8)
    with pytest.raises(ValueError, match="no model whose surprise can be measured"):
        load_surprise_scorer(tmp_path / "tokens", None, None, "cpu")
    save_component(tokenizer(), tmp_path / "odd" / "encoder")
    with pytest.raises(ValueError, match=r"there is no config\.json"):
        load_surprise_scorer(tmp_path / "odd", None, None, "cpu")


def _starts(simulator: NetworkSimulator) -> torch.Tensor:
    if simulator.starts is not None:
        return simulator.starts
    shape = (2, simulator.spec.context_frames, *simulator.spec.context.shape)
    return torch.randint(0, 256, shape).to(simulator.spec.context.dtype)
