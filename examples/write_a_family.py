"""A model family of your own: networks, training module, simulator, and the WorldFamily that introduces it to vwm.

python examples/write_a_family.py [FOLDER]

Everything that vwm does with a world then works on it: export, load, evaluate, probe, bench, play, environments.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

import vwm
from vwm.core import ActionSpace, NetworkSimulator, NoSampling, ObservationSpace, StepOutput, WorldFamily
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.seeds import world_seeds

SIZE = 32


class NextFrameNetwork(ModelMixin, ConfigMixin):
    """Predicts the change from a frame to the next by convolutions; diffusers' base classes save and load it."""

    @register_to_config
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers = [nn.Conv2d(3 + 2, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, frame: Tensor, action: Tensor) -> Tensor:
        """float [b, 3, h, w] in [-1, 1] and [b, 2] -> [b, 3, h, w]."""
        condition = action[:, :, None, None].expand(-1, -1, *frame.shape[2:])
        return (frame + self.layers(torch.cat((frame, condition), dim=1))).clamp(-1, 1)


class NextFrameState(NamedTuple):
    """A world's state is its last frame; states are plain tensors, the batch first."""

    latent: Tensor
    seed: Tensor


class NextFrameSimulator(NetworkSimulator):
    """reset and step: all that play, agents and reports need."""

    SAMPLING_CLASS = NoSampling

    def __init__(self, dynamics: NextFrameNetwork, actions: ActionSpace, **rest: object) -> None:
        super().__init__(
            dynamics, observation=ObservationSpace.image(SIZE, SIZE), actions=actions, stochastic=False, **rest
        )

    @torch.inference_mode()
    def reset(self, context, seed=0, context_actions=None):
        """Start from the last context frame."""
        self.check_context(context)
        latent = frames_to_float(context.to(self.device))[:, -1]
        return NextFrameState(latent, world_seeds(seed, len(context), self.device)), context[:, -1]

    @torch.inference_mode()
    def advance(self, state, action, decode):
        """Predict the next frame; the action is checked and on the device."""
        latent = self.dynamics(state.latent, action)
        zeros = torch.zeros(len(latent), device=self.device)
        frame = video_to_uint8(latent[:, None])[:, 0] if decode else None
        return NextFrameState(latent, state.seed), StepOutput(frame, latent, zeros, zeros.bool())


class NextFrameFamily(WorldFamily):
    """The classes are named by their paths, so that nothing is imported before it is needed."""

    name = "next_frame"
    title = "next frame"
    simulator_class = f"{__name__}.NextFrameSimulator"


folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/next_frame")
vwm.register_family(NextFrameFamily())
vwm.record("vwm/TwoRooms-v0", folder / "data", frames=400, size=SIZE, max_episode_frames=50, workers=0)
clips = vwm.open_clips(folder / "data", clip_length=2)

torch.manual_seed(0)
network = NextFrameNetwork()
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
for step in range(60):  # with a TrainingModule and a YAML, `vwm fit` does this: checkpoints, EMA, many nodes
    batch = [clips[int(i)] for i in torch.randint(len(clips), (16,))]
    video = frames_to_float(torch.stack([torch.tensor(clip["frames"]) for clip in batch]))
    action = torch.stack([torch.tensor(clip["actions"][0]) for clip in batch])
    loss = F.mse_loss(network(video[:, 0], action), video[:, 1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

starts = torch.stack([torch.tensor(clips[i]["frames"][:1]) for i in range(4)])
actions = ActionSpace("continuous", 2, ("right", "down"))
vwm.save(NextFrameSimulator(network, actions, context_frames=1, starts=starts, title="next frame"), folder / "world")
env = vwm.make_env(folder / "world", max_episode_steps=10)  # or: vwm play, after an entry point in "vwm.families"
frame, _ = env.reset(seed=0)
frame, *_ = env.step(env.action_space.sample())
print(f"{folder / 'world'}: steps to frames {frame.shape}")
