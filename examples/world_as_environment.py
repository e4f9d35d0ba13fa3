"""Use a world as a Gymnasium environment: one, a batch that steps together, and a fork of it.

python examples/world_as_environment.py
"""

import vwm

env = vwm.make_env("two_rooms", max_episode_steps=20)
frame, info = env.reset(seed=0)
print(f"one world: frame {frame.shape}, started from context {info['start']}")
for _ in range(5):
    frame, reward, terminated, truncated, info = env.step(env.action_space.sample())

envs = vwm.make_vector_env("two_rooms", num_envs=8, max_episode_steps=20, observe="latent")  # no pixels are drawn
latents, infos = envs.reset(seed=0)
print(f"eight worlds: latents {latents.shape}")
trial = envs.fork()  # states are values, so that a copy costs next to nothing
trial.step(trial.action_space.sample())  # does not affect envs
latents, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
print(f"rewards {rewards}")
