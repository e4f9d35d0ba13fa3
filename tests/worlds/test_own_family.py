"""A family of another package, defined in this file only, works with every command."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import yaml
from aiohttp.test_utils import TestClient, TestServer
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

import vwm
from vwm.cli.main import main
from vwm.core import trusted_packages
from vwm.core.family import ExportSettings, WorldFamily
from vwm.core.feature_extractor import FeatureExtractor
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import NetworkSimulator, NoSampling
from vwm.core.seeds import world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.data.clips import ClipBatch
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.training_module import TrainingModule
from vwm.play.server import make_app
from vwm.worlds import families
from vwm.worlds.gymnasium_env import SimulatorEnv

SIZE = 16

# ---------------------------------------------------------------------------------------------------- the family


class NextFrameNet(ModelMixin, ConfigMixin):
    """Predict the next frame from the current frame and the action, by convolutions."""

    @register_to_config
    def __init__(self, image_size: int = SIZE, action_dims: int = 2, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3 + action_dims, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def hidden(self, frames: Tensor, actions: Tensor) -> Tensor:
        """float [b, 3, h, w] and [b, a] -> [b, width, h, w]."""
        actions = actions[:, :, None, None].expand(-1, -1, *frames.shape[2:])
        return F.silu(self.first(torch.cat((frames, actions), dim=1)))

    def forward(self, frames: Tensor, actions: Tensor) -> Tensor:
        return (frames + self.last(self.hidden(frames, actions))).clamp(-1, 1)


class NextFrameModule(TrainingModule):
    """Train a ``NextFrameNet`` on pairs of frames."""

    def __init__(self, network: NextFrameNet, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        video = frames_to_float(batch.frames)
        predicted = self.network(video[:, :-1].flatten(0, 1), batch.actions[:, :-1].flatten(0, 1))
        return F.mse_loss(predicted, video[:, 1:].flatten(0, 1)), {}

    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        frames = [frames_to_float(batch.frames)[:, 0]]
        for i in range(batch.frames.shape[1] - 1):
            frames.append(self.network(frames[-1], batch.actions[:, i]))
        return video_to_uint8(torch.stack(frames, dim=1))


class NextFrameState(NamedTuple):
    latent: Tensor
    seed: Tensor


class NextFrameSimulator(NetworkSimulator):
    """Predict frames directly: there is no tokenizer and no randomness."""

    SAMPLING_CLASS = NoSampling

    def __init__(self, dynamics: NextFrameNet, actions: ActionSpace, **rest: Any) -> None:
        size = dynamics.config.image_size
        super().__init__(
            dynamics, observation=ObservationSpace.image(size, size), actions=actions, stochastic=False, **rest
        )

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[NextFrameState, Tensor]:
        self.check_context(context)
        context = context.to(self.device)
        state = NextFrameState(frames_to_float(context)[:, -1], world_seeds(seed, len(context), self.device))
        return state, context[:, -1]

    @torch.inference_mode()
    def advance(self, state: NextFrameState, action: Tensor, decode: bool) -> tuple[NextFrameState, StepOutput]:
        latent = self.dynamics(state.latent.to(self.dtype), action.to(self.dtype)).float()
        zeros = torch.zeros(len(latent), device=self.device)
        frame = video_to_uint8(latent[:, None])[:, 0] if decode else None
        return NextFrameState(latent, state.seed), StepOutput(frame, latent, zeros, zeros.bool())


class NextFrameFeatures(FeatureExtractor):
    """The hidden layer under an action of zeros; each pixel is a token."""

    image_size = (SIZE, SIZE)

    def tokens(self, video: Tensor) -> Tensor:
        network: Any = self.networks["dynamics"]
        frames = video.to(network.device).flatten(0, 1)
        hidden = network.hidden(frames, frames.new_zeros(len(frames), 2))
        return hidden.unflatten(0, video.shape[:2]).flatten(3).permute(0, 1, 3, 2).flatten(1, 2)


class NextFrameFamily(WorldFamily):
    name = "next_frame"
    title = "next frame"
    simulator_class = f"{__name__}.NextFrameSimulator"
    module_classes = (f"{__name__}.NextFrameModule",)

    def make_simulator(self, module: NextFrameModule, settings: ExportSettings) -> NextFrameSimulator:
        actions = ActionSpace.recorded("continuous", 2, settings.recording)
        return NextFrameSimulator(module.network, actions, **settings.simulator_arguments())

    def feature_extractor(self, simulator: NextFrameSimulator, layer: int | None = None) -> FeatureExtractor:
        return NextFrameFeatures(simulator.networks(), 0, layer)


# --------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def registry():
    """The registry, restored after the tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "_registered", {})
        patch.setattr(trusted_packages, "_trusted", {"vwm"})
        yield families


@pytest.fixture(scope="module")
def artifacts(registry, tmp_path_factory) -> Path:
    """Record, fit and export through the command line."""
    registry.register_family(NextFrameFamily())
    out = tmp_path_factory.mktemp("own")
    record = ["--frames", "480", "--max_episode_frames", "8", "--size", str(SIZE), "--workers", "0", "--state"]
    main(["record", "vwm/TwoRooms-v0", str(out / "data"), *record])
    config = {
        "model": {
            "class_path": f"{__name__}.NextFrameModule",
            "init_args": {
                "network": {"class_path": f"{__name__}.NextFrameNet", "init_args": {"width": 8}},
                "optimizer": {"lr": 0.003, "warmup": 0},
            },
        },
        "data": {
            "class_path": "vwm.data.VideoDataModule",
            "init_args": {
                "path": str(out / "data"), "clip_length": 4, "batch_size": 16, "workers": 0, "val_fraction": 0.4,
                "fields": ["frames", "actions"],
            },
        },
        "trainer": {
            "max_steps": 60, "val_check_interval": 20, "check_val_every_n_epoch": None, "log_every_n_steps": 1,
            "accelerator": "cpu",
        },
        "samples": {"every": 60},
        "ema": {"decay": 0.9},
        "threads": 1,
    }  # fmt: skip
    (out / "own.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(out / "own.yaml"), "--run", str(out / "run")])
    main(["export", str(out / "run"), "-o", str(out / "bundle"), "--starts", "3", "--context", "2"])
    return out


def test_a_run_becomes_a_bundle_that_loads(artifacts: Path) -> None:
    index = json.loads((artifacts / "bundle" / "model_index.json").read_text())
    assert index["_class_name"] == "NextFrameSimulator" and index["dynamics"] == [__name__, "NextFrameNet"]
    assert "(next frame)" in (artifacts / "bundle" / "README.md").read_text()
    world = vwm.load(artifacts / "bundle", "cpu")
    assert type(world) is NextFrameSimulator and world.spec.actions.names == ("right", "down")
    assert families.find_family(world).name == "next_frame"
    state, frame = world.reset(world.starts)
    _, output = world.step(state, torch.zeros(3, 2))
    assert frame.shape == output.frame.shape == (3, SIZE, SIZE, 3)


def test_the_bundle_is_evaluated(artifacts: Path) -> None:
    main(
        ["eval", str(artifacts / "bundle"), str(artifacts / "data"), "--out", str(artifacts / "report")]
        + ["--clips", "4", "--horizon", "3", "--batch_size", "4", "--videos", "1"]
    )
    report = json.loads((artifacts / "report" / "report.json").read_text())
    assert len(report["rollout"]["psnr"]) == 3 and report["rollout"]["psnr"][0] > 20
    assert report["codebook"] is None and report["tokenizer"]["psnr"] is None  # frames need no reconstruction
    assert report["play"]["sampling_steps"] is None and report["provenance"]["parts"]["dynamics"]["parameters"] > 0


def test_the_bundle_is_probed_and_benchmarked(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--clips",
        "32",
        "--test_clips",
        "16",
        "--clip_length",
        "2",
        "--probes",
        "[ridge]",
        "--random_seeds",
        "1",
    ]
    main(["probe", str(artifacts / "bundle"), str(artifacts / "data"), "-o", str(artifacts / "probe"), *arguments])
    names = [row["name"] for row in json.loads((artifacts / "probe" / "probe.json").read_text())["rows"]]
    assert names[0] == "bundle" and any("random init" in name for name in names)
    capsys.readouterr()
    main(["bench", "play", str(artifacts / "bundle"), "--steps", "2", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "(next frame)" in printed and "ms a frame" in printed


def test_the_bundle_is_played_and_is_an_environment(artifacts: Path) -> None:
    world = vwm.load(artifacts / "bundle", "cpu")

    async def play() -> None:
        async with TestClient(TestServer(make_app(world))) as client:
            connection = await client.ws_connect("/play", max_msg_size=0)
            await connection.send_json({"type": "hello", "images": ["png"]})
            hello = await connection.receive_json()
            assert hello["title"] == "run"
            await connection.send_json({"type": "reset", "start": 0, "seed": 0})
            await connection.receive_bytes()
            await connection.send_json({"type": "step", "action": [1.0, 0.0]})
            await connection.receive_bytes()

    asyncio.run(play())
    env = SimulatorEnv(world)
    frame, _ = env.reset(seed=0)
    after, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    assert frame.shape == after.shape == (SIZE, SIZE, 3) and reward == 0 and not terminated and not truncated


def test_rejects_unregistered_families_and_duplicate_names(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clashing, message in (
        ({"name": "genie"}, "family 'genie' already"),
        ({"simulator_class": "mine.GenieSimulator"}, "'genie' has a simulator class GenieSimulator"),
    ):
        settings = {"name": "other", "title": "other", "simulator_class": "", **clashing}
        with pytest.raises(ValueError, match=message):
            families.register_family(type("Clashing", (WorldFamily,), settings)())
    families.register_family(NextFrameFamily())  # registering the same family again is allowed
    monkeypatch.setattr(families, "_registered", {})
    with pytest.raises(ValueError, match=r"no family has a simulator 'NextFrameSimulator'.*register"):
        vwm.load(artifacts / "bundle", "cpu")
    with pytest.raises(ValueError, match=r"no family has the class NextFrameModule.*register_family"):
        families.find_family(NextFrameModule(NextFrameNet(), OptimizerConfig()))


def test_families_of_installed_packages_are_found_by_their_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class EntryPoint:
        name = "next_frame"
        value = f"{__name__}:NextFrameFamily"
        load = staticmethod(lambda: NextFrameFamily)

    class BrokenEntryPoint(EntryPoint):
        load = staticmethod(lambda: importlib.import_module("package_that_is_not_there"))

    monkeypatch.setattr(families, "entry_points", lambda group: [EntryPoint()] if group == "vwm.families" else [])
    monkeypatch.setattr(families, "_registered", {})
    monkeypatch.setattr(trusted_packages, "_trusted", {"vwm"})
    register = families._register_installed_families.__wrapped__  # without the cache, which runs it only once
    monkeypatch.setattr(families, "_register_installed_families", register)
    assert families.find_simulator_class("NextFrameSimulator") is NextFrameSimulator
    assert __name__.partition(".")[0] in trusted_packages._trusted
    monkeypatch.setattr(families, "entry_points", lambda group: [BrokenEntryPoint()])
    with pytest.raises(ImportError, match=r"the family 'next_frame' .* cannot be imported"):
        families.world_families()
