"""Worlds with known dynamics, and shards to evaluate them on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import VideoSimulator
from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.sampling import MaskGITSampling
from vwm.models.genie.simulator import GenieSimulator
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer
from vwm.worlds.bundle import save_simulator

SIZE = 16
NAMES = ("STAY", "RIGHT", "DOWN", "LEFT")
MOVES = ((0, 0), (0, 3), (3, 0), (0, -3))


class RollingWorld(Simulator):
    """Roll the frame by the action's move and add ``error`` levels to every pixel that it shows.

    The state is the frame without the error. Without ``uses_actions`` the frame never changes.
    """

    def __init__(self, error: int = 0, uses_actions: bool = True) -> None:
        actions = ActionSpace("discrete", len(MOVES), NAMES)
        self.spec = SimulatorSpec(ObservationSpace.image(SIZE, SIZE), actions, fps=10.0, context_frames=2)
        self.error, self.uses_actions = error, uses_actions

    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.check_context(context)
        return context[:, -1], context[:, -1]

    def step(self, state: Tensor, action: Tensor, decode: bool = True) -> tuple[Tensor, StepOutput]:
        self.check_action(action, len(state))
        state = roll_frames(state, action) if self.uses_actions else state
        zeros = torch.zeros(len(state))
        return state, StepOutput(state + self.error if decode else None, action, zeros, zeros.bool())


class Gain(ModelMixin):
    """A dynamics model of one parameter: how much brighter an action makes a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.2))


class BrightnessWorld(VideoSimulator):
    """Continuous in latents and actions: the frame becomes brighter by the action's mean."""

    class SAMPLING_CLASS(NamedTuple):
        steps: int = 1

    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.check_context(context)
        self.check_context_actions(context_actions, *context.shape[:2])
        latents = self.tokenizer.encode(frames_to_float(context))
        return latents[:, -1], video_to_uint8(self.tokenizer.decode(latents[:, -1:]))[:, 0]

    def advance(self, state: Tensor, action: Tensor, decode: bool) -> tuple[Tensor, StepOutput]:
        state = state + self.dynamics.gain.detach() * action.mean(dim=1)[:, None, None, None]
        zeros = torch.zeros(len(state))
        frame = video_to_uint8(self.tokenizer.decode(state[:, None]))[:, 0]
        return state, StepOutput(frame if decode else None, state, zeros, zeros.bool())


@pytest.fixture
def brightness_world() -> BrightnessWorld:
    """A world of pixels with actions of two dimensions."""
    return BrightnessWorld(
        PixelTokenizer((SIZE, SIZE)), Gain(), ActionSpace("continuous", 2), fps=10.0, context_frames=3
    )


def roll_frames(frames: Tensor, actions: Tensor) -> Tensor:
    """Frames uint8 [b, h, w, 3] after actions int64 [b]."""
    return torch.stack([f.roll(MOVES[int(a)], dims=(0, 1)) for f, a in zip(frames, actions, strict=True)])


@pytest.fixture
def make_world() -> Callable[..., RollingWorld]:
    """The rolling world's class."""
    return RollingWorld


@pytest.fixture
def rolling_clips() -> tuple[Tensor, Tensor]:
    """Clips uint8 [6, 7, 16, 16, 3] with levels below 200, and the actions int64 [6, 6] that roll them."""
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randint(0, 200, (6, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)]
    actions = torch.randint(0, len(MOVES), (6, 6), generator=generator)
    for i in range(6):
        frames.append(roll_frames(frames[-1], actions[:, i]))
    return torch.stack(frames, dim=1), actions


@pytest.fixture
def write_shards(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes episodes of 24 rolling frames and returns their folder; continuous actions are moves."""

    def write(
        episodes: int = 4, size: int = SIZE, actions: bool = True, moving: bool = True, continuous: bool = False
    ) -> Path:
        folder = tmp_path / f"shards{size}"
        generator = torch.Generator().manual_seed(1)
        with ShardWriter(folder / "shard-000000.tar") as writer:
            for number in range(episodes):
                frame = torch.randint(0, 255, (1, size // 4, size // 4, 3), dtype=torch.uint8, generator=generator)
                frame = frame.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
                action_indices = torch.randint(0, len(MOVES), (24,), generator=generator) * moving
                frames = [frame]
                for action in action_indices[:-1]:
                    frames.append(roll_frames(frames[-1], action[None]))
                meta = {"fps": 10.0, "source": "test", "action_names": list(NAMES)}
                episode_actions = action_indices.numpy() if actions else None
                if continuous:
                    episode_actions = np.array(MOVES, np.float32)[action_indices.numpy()] / 3
                writer.write(f"{number:03d}", Episode(torch.cat(frames).numpy(), episode_actions, meta=meta), raw=True)
        return folder

    return write


@pytest.fixture
def genie() -> Callable[..., GenieSimulator]:
    """A function that makes a small Genie world with random weights, in which actions have an effect."""

    def make(labeled: bool = False, actions: int = 4) -> GenieSimulator:
        torch.manual_seed(0)
        tokenizer = SpaceTimeTokenizer((SIZE, SIZE), 8, [4, 4], width=16, depth=1, heads=2)
        dynamics = MaskGITDynamics(16, 4, actions, width=16, depth=1, heads=2)
        latent_action = LatentActionModel((SIZE, SIZE), 8, [2, 2], width=16, depth=1, heads=2)
        for part in (tokenizer, dynamics, latent_action):
            for weight in part.parameters():
                if not weight.any():
                    torch.nn.init.normal_(weight, std=0.3)
        names = NAMES if labeled else ()
        space = ActionSpace("discrete", actions, names, latent=not labeled)
        return GenieSimulator(
            tokenizer,
            dynamics,
            None if labeled else latent_action,
            space,
            fps=10.0,
            sampling=MaskGITSampling(steps=2),
            context_frames=3,
            title="small world",
        )

    return make


@pytest.fixture
def write_bundle(genie: Callable[..., GenieSimulator], tmp_path: Path) -> Callable[..., Path]:
    """A function that saves a small Genie world and returns its folder."""

    def write(labeled: bool = False, actions: int = 4) -> Path:
        save_simulator(genie(labeled, actions), tmp_path / "bundle")
        return tmp_path / "bundle"

    return write


@pytest.fixture
def narrow_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the width of attentive heads on narrow tokens from 512 to 64, for speed."""
    monkeypatch.setattr("vwm.eval.probe_heads.MIN_HEAD_WIDTH", 64)


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    """Use one thread, which suffices for small images, and seed NumPy's global generator."""
    torch.set_num_threads(1)
    np.random.seed(0)
