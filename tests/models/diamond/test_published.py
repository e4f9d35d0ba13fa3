"""DIAMOND's published files: weights as the authors' code names and shapes them, and what is wrong with others.

``published_layout.json`` was made by the authors' code: settings of small networks with the names and shapes of their
weights, and of the published sizes the number of weights and the hash of their names and shapes.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.data.importers.csgo_actions import csgo_action_space
from vwm.models.diamond.denoiser import DiamondDenoiser
from vwm.models.diamond.games import ATARI_ACTIONS, csgo_columns
from vwm.models.diamond.outcome_model import DiamondOutcomeModel
from vwm.models.diamond.policy_network import DiamondPolicyNetwork
from vwm.models.diamond.published import CSGO_DENOISER, load_published_diamond
from vwm.models.diamond.upsampler import DiamondUpsampler
from vwm.train.import_world import import_world
from vwm.worlds.bundle import load_simulator

LAYOUT = json.loads(Path(__file__).with_name("published_layout.json").read_text())
CSGO_SIZE = (20, 30)


def random_weights(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in LAYOUT[kind]["weights"].items()}


def write_settings(folder: Path, kind: str) -> None:
    agent, env, size = ("csgo", "csgo", list(CSGO_SIZE)) if kind == "csgo" else ("default", "atari", 16)
    settings: dict[str, Any] = json.loads(json.dumps(LAYOUT[kind]["settings"]))
    if kind == "atari":  # as the authors' file says it
        settings["rew_end_model"]["img_size"] = "${env.train.size}"
    for name, content in ((f"agent/{agent}", settings), (f"env/{env}", {"train": {"id": "x", "size": size}})):
        path = folder / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of eloialonso/diamond with two games and Counter-Strike, of small networks."""
    folder = tmp_path_factory.mktemp("diamond")
    (folder / "atari_100k" / "models").mkdir(parents=True)
    (folder / "csgo" / "model").mkdir(parents=True)
    for game in ("Breakout", "Pong"):
        torch.save(random_weights("atari"), folder / "atari_100k" / "models" / f"{game}.pt")
    torch.save(random_weights("csgo"), folder / "csgo" / "model" / "csgo.pt")
    write_settings(folder / "atari_100k", "atari")
    write_settings(folder / "csgo", "csgo")
    for number in range(2):
        (folder / "csgo" / "spawn" / str(number)).mkdir(parents=True)
        frames = np.random.default_rng(number).integers(0, 256, (4, 3, *CSGO_SIZE), dtype=np.uint8)
        np.save(folder / "csgo" / "spawn" / str(number) / "full_res.npy", frames)
    return folder


def test_a_game_becomes_a_bundle_with_every_weight_in_its_place(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_world("diamond", hub, tmp_path / "world", variant="Breakout")
    assert "license of the weights: mit" in capsys.readouterr().out
    world = load_simulator(tmp_path / "world", "cpu")
    assert world.spec.actions.names == ("NOOP", "FIRE", "RIGHT", "LEFT")
    assert (world.spec.title, world.spec.context_frames, world.spec.fps) == ("Breakout", 4, 15.0)
    loaded = {"denoiser": world.dynamics, "rew_end_model": world.outcomes, "actor_critic": world.trained_policy}
    given = random_weights("atari")
    found = {f"{part}.{name}": w for part, network in loaded.items() for name, w in network.state_dict().items()}
    assert found.keys() == given.keys() and all(torch.equal(found[name], given[name]) for name in given)
    assert "arXiv 2405.12399" in (tmp_path / "world" / "README.md").read_text()


def test_counter_strike_has_its_upsampler_its_actions_and_its_starts(hub: Path, tmp_path: Path) -> None:
    import_world("diamond", hub, tmp_path / "world", variant="csgo")
    world = load_simulator(tmp_path / "world", "cpu")
    given = random_weights("csgo")
    for part, network in (("denoiser", world.dynamics), ("upsampler", world.tokenizer.denoiser)):
        for name, weight in network.state_dict().items():
            assert torch.equal(weight, given.pop(f"{part}.{name}"))
    assert not given and world.starts.shape == (2, 4, *CSGO_SIZE, 3)
    frames = np.load(hub / "csgo" / "spawn" / "1" / "full_res.npy")
    assert np.array_equal(world.starts[1].permute(0, 3, 1, 2).numpy(), frames)
    assert (world.sampling.steps, world.tokenizer.sampling.steps, world.tokenizer.sampling.order) == (1, 1, 2)
    _, out = world.step(world.reset(world.starts)[0], torch.zeros(2, 15))
    assert out.frame.shape == (2, *CSGO_SIZE, 3) and out.latent.shape == (2, 4, 6, 3)
    quality = load_published_diamond(hub, "csgo-quality").simulator
    assert (quality.sampling.steps, quality.tokenizer.sampling.steps, quality.tokenizer.sampling.order) == (3, 10, 1)


@pytest.mark.parametrize("kind", ["atari", "csgo"])
def test_the_default_sizes_are_those_of_the_published_weights(kind: str) -> None:
    """Without the authors' settings next to a file: every name and shape that their code gives these weights."""
    with torch.device("meta"):
        if kind == "atari":
            parts = {
                "denoiser": DiamondDenoiser(),
                "rew_end_model": DiamondOutcomeModel(),
                "actor_critic": DiamondPolicyNetwork(),
            }
        else:
            parts = {"denoiser": DiamondDenoiser(**CSGO_DENOISER), "upsampler": DiamondUpsampler().denoiser}
    shapes = {f"{part}.{name}": w.shape for part, network in parts.items() for name, w in network.state_dict().items()}
    text = "\n".join(sorted(f"{name} {list(shape)}" for name, shape in shapes.items()))
    expected = LAYOUT[kind]["published"]
    assert (len(shapes), sum(shape.numel() for shape in shapes.values())) == (expected["weights"], expected["numbers"])
    assert hashlib.sha256(text.encode()).hexdigest() == expected["sha256"]


def test_what_is_wrong_with_a_file_is_named(tmp_path: Path) -> None:
    write_settings(tmp_path, "atari")
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "Pong.pt"
    good = random_weights("atari")
    linear = "rew_end_model.head.2.weight"
    for changed, problem in (
        ({k: v for k, v in good.items() if k != linear}, r"Pong\.pt, rew_end_model: missing: head\.2\.weight"),
        (good | {linear: torch.zeros(5, 9)}, r"of another shape: head\.2\.weight \[5, 9\] instead of \[5, 8\]"),
        (good | {"denoiser.inner_model.extra": torch.zeros(1)}, r"denoiser: not used: inner_model\.extra"),
        (good | {"other.weight": torch.zeros(1)}, r"not used: other\.weight"),
        (good | {"upsampler.weight": torch.zeros(1)}, "has an upsampler: it is of Counter-Strike"),
        (good | {linear: "text"}, "no weights of this name"),
    ):
        torch.save(changed, file)
        with pytest.raises(PretrainedWeightsError, match=problem):
            load_published_diamond(tmp_path, "Pong")
    torch.save(good, file)
    settings = tmp_path / "config" / "agent" / "default.yaml"
    written = yaml.safe_load(settings.read_text())
    for actor_critic, problem in (
        ({"channels": [4], "down": [1, 1]}, "one value for each level"),
        ([1], "no settings"),
    ):
        settings.write_text(yaml.safe_dump(written | {"actor_critic": actor_critic}))
        with pytest.raises(PretrainedWeightsError, match=f"actor_critic.*{problem}"):
            load_published_diamond(tmp_path, "Pong")


class Hostile:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


def test_nothing_in_the_published_files_is_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save(random_weights("atari") | {"denoiser.x": Hostile(made)}, tmp_path / "Pong.pt")
    with pytest.raises(PretrainedWeightsError, match=r"Pong\.pt: cannot be read"):
        load_published_diamond(tmp_path / "Pong.pt")
    source = tmp_path / "source"
    spawn = source / "csgo" / "spawn" / "0"
    (source / "csgo" / "model").mkdir(parents=True)
    spawn.mkdir(parents=True)
    write_settings(source / "csgo", "csgo")
    torch.save(random_weights("csgo"), source / "csgo" / "model" / "csgo.pt")
    np.save(spawn / "full_res.npy", np.array([Hostile(made)], dtype=object), allow_pickle=True)
    with pytest.raises(PretrainedWeightsError, match=r"full_res\.npy: cannot be read"):
        load_published_diamond(source, "csgo")
    assert not made.exists()


def test_worlds_are_found_by_name(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"DIAMOND has no world 'Breakot'.*Breakout"):
        load_published_diamond(hub, "Breakot")
    with pytest.raises(ValueError, match=r"holds Breakout, Pong, csgo: name one as the variant"):
        load_published_diamond(hub)
    with pytest.raises(ValueError, match=r"there is no Alien\.pt in atari_100k/models"):
        load_published_diamond(hub, "Alien")
    with pytest.raises(ValueError, match=r"there is no \.pt file of a world"):
        load_published_diamond(tmp_path)
    pong = load_published_diamond(hub / "atari_100k" / "models" / "Pong.pt").simulator  # of another number of actions
    assert pong.spec.title == "Pong" and pong.spec.actions.names == tuple(f"action {i}" for i in range(4))
    csgo = load_published_diamond(hub / "csgo" / "model" / "csgo.pt").simulator
    assert csgo.spec.actions == csgo_action_space()


def test_the_actions_of_games_are_those_of_the_emulator() -> None:
    gymnasium, ale = pytest.importorskip("gymnasium"), pytest.importorskip("ale_py")
    gymnasium.register_envs(ale)
    for game in ("Breakout", "Gopher", "KungFuMaster", "UpNDown"):
        env = gymnasium.make(f"ALE/{game}-v5", full_action_space=False)
        assert ATARI_ACTIONS[game].split() == env.unwrapped.get_action_meanings()
        env.close()
    assert len(ATARI_ACTIONS) == 26


def test_keys_and_mouse_become_the_columns_of_the_network() -> None:
    rows = torch.zeros(3, csgo_action_space().size)
    rows[0, [0, 11]] = 1  # forward and fire
    rows[1, 13:] = torch.tensor([0.055, -1.0])  # 55 is nearest to 60, and 200 is the most that goes up
    rows[2, 13:] = torch.tensor([-0.0029, 0.0051])  # -2.9 is nearest to -2, and 5.1 to 4
    columns = csgo_columns(rows)
    assert columns[0].nonzero().flatten().tolist() == [0, 11, 13 + 11, 36 + 7]
    assert columns[1].nonzero().flatten().tolist() == [13 + 11 + 6, 36]
    assert columns[2].nonzero().flatten().tolist() == [13 + 10, 36 + 9]
