"""Step a world frame by frame, branch its state, and write a video.

python examples/play_a_world.py [BUNDLE] [VIDEO]
"""

import sys

import torch

import vwm
from vwm.data import write_video

bundle = sys.argv[1] if len(sys.argv) > 1 else "coinrun"
path = sys.argv[2] if len(sys.argv) > 2 else f"{bundle}.mp4"
world = vwm.load(bundle)
print(f"{world.spec.title}: shows {world.spec.observation}, takes {world.spec.actions}")

state, frame = world.reset(world.starts[:1], seed=0)  # one world, which continues the first context
frames = [frame]
for _ in range(24):
    action = torch.full((1, *world.spec.actions.shape), 2, dtype=world.spec.actions.dtype)
    state, output = world.step(state, action)
    frames.append(output.frame)

# A state is a value: stepping it twice with two actions gives two futures, and the state stays as it is.
futures = [world.step(state, torch.tensor([action]))[1].frame for action in (0, 5)]
print(f"two futures differ in {(futures[0] != futures[1]).float().mean():.0%} of the values")

write_video(path, torch.cat(frames).numpy(), fps=world.spec.fps)
print(path)
