"""``vwm agent watch``: play the policy that a world comes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vwm.core.command_output import format_command, print_output
from vwm.envs.batched_envs import EnvSpec, GymnasiumEnvSpec
from vwm.rl.evaluation import evaluate_policy
from vwm.rl.evaluation_log import write_evaluation_video
from vwm.rl.world_policy import WorldPolicy
from vwm.worlds.bundle import load_simulator
from vwm.worlds.simulated_env import SimulatedEnvSpec


def watch_policy(
    world: str,
    out: Path,
    env: str | None = None,
    options: dict[str, Any] | None = None,
    data: str | None = None,
    episodes: int = 4,
    time_limit: int | None = 50,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Play the policy that a world comes with, in the world or in the real environment, and write videos.

    Args:
        world: a bundle, such as an imported world of DIAMOND or mmbench2.
        out: folder of the videos, one an episode.
        env: id of the real environment; by default the policy plays in the world.
        options: arguments of the environment's constructor.
        data: shards whose clips episodes in the world start from; by default the starts of the bundle.
        episodes: number of episodes of the policy, and of random actions.
        time_limit: decisions after which an episode is truncated; null disables it.
        seed: of the first episode; each of the next has the next seed.
        device: of the world and the policy; auto uses a GPU where there is one.

    Raises:
        ValueError: the world has no policy, or the environment other frames or actions.
    """
    simulator = load_simulator(world, device)
    spec = _env_spec(world, simulator.spec.observation.shape[0], env, options, data, time_limit, device)
    opened = spec.open(1, seed)
    policy = WorldPolicy(simulator, opened.spaces)
    opened.close()
    for episode in range(episodes):
        result = evaluate_policy(policy, spec, 1, seed + episode, record_video=True)
        random = evaluate_policy(None, spec, 1, seed + episode)
        path = out / f"{episode:03d}.mp4"
        write_evaluation_video(result, path)
        print(
            f"return {result.returns[0]:.2f} in {result.lengths[0]} decisions "
            f"(random actions: {random.returns[0]:.2f} in {random.lengths[0]}): {path}"
        )
    print_output(out, "the videos", format_command("play", world))


def _env_spec(
    world: str,
    size: int,
    env: str | None,
    options: dict[str, Any] | None,
    data: str | None,
    time_limit: int | None,
    device: str,
) -> EnvSpec:
    if env is not None:
        return GymnasiumEnvSpec(env, size=size, time_limit=time_limit, options=options or {})
    return SimulatedEnvSpec(Path(world), data, time_limit=time_limit, device=device, precision="float32")
