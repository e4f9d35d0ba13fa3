"""A simulator as a TorchRL environment: a batch of worlds that stays on the simulator's device.

    env = SimulatorTorchRLEnv(vwm.load("coinrun"), num_envs=16, max_episode_steps=100)
    env.set_seed(0)
    rollout = env.rollout(1000, policy, break_when_any_done=False)

World i of an environment seeded with s has exactly the episodes of a ``SimulatorEnv`` seeded with s + i.
TorchRL is an optional dependency: ``pip install -e '.[torchrl]'`` in the clone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.data import Bounded, Categorical, Composite, Unbounded
    from torchrl.envs import EnvBase
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"TorchRL is not installed ({error}): pip install -e '.[torchrl]' in the clone"
    ) from error

from vwm.core.simulator import Simulator
from vwm.worlds.world_batch import WorldBatch


class SimulatorTorchRLEnv(EnvBase):
    """A batch of worlds, batch size [num_envs].

    Images are ``"pixels"``, uint8 [n, h, w, 3] (``ToTensorImage`` moves the channels to where torch expects them);
    vectors, and latents with ``observe="latent"``, are ``"observation"``, float32 [n, k]. Actions are int64 [n] or
    float32 [n, size] in [-1, 1], which stand for composite ones (see ``ActionSpace.from_flat``); ``reward``, ``done``,
    ``terminated`` and ``truncated`` are [n, 1].
    ``reset`` accepts a ``"_reset"`` mask, ``step`` a ``"_step"`` mask.

    Args:
        simulator: any simulator.
        num_envs: number of worlds.
        starts: contexts to start from, uint8 [m, t, h, w, 3] or float32 [m, t, k]; by default the simulator's own.
        max_episode_steps: steps after which an episode is truncated; None disables it.
        observe: ``"frame"``, or ``"latent"`` or ``"features"``, which skip the pixels; see ``WorldBatch``.

    Raises:
        ValueError: see ``vwm.worlds.world_batch.WorldBatch``.
    """

    def __init__(
        self,
        simulator: Simulator,
        num_envs: int,
        starts: Tensor | None = None,
        max_episode_steps: int | None = None,
        observe: str = "frame",
    ) -> None:
        worlds = WorldBatch(simulator, num_envs, starts, max_episode_steps, observe)
        super().__init__(device=worlds.device, batch_size=[num_envs])
        self.worlds = worlds
        device = {"device": self.device}
        shape = (num_envs, *worlds.observation_shape)
        if worlds.observation_dtype is torch.uint8:
            observations = {"pixels": Bounded(0, 255, shape, dtype=torch.uint8, **device)}
        else:
            observations = {"observation": Unbounded(shape, dtype=torch.float32, **device)}
        self.observation_spec = Composite(observations, shape=self.batch_size, **device)
        actions = simulator.spec.actions
        if actions.is_discrete:
            self.action_spec = Categorical(actions.size, (num_envs,), dtype=torch.int64, **device)
        else:
            self.action_spec = Bounded(-1.0, 1.0, (num_envs, actions.size), dtype=torch.float32, **device)
        self.reward_spec = Unbounded((num_envs, 1), dtype=torch.float32, **device)
        flags = ("done", "terminated", "truncated")
        self.done_spec = Composite(
            {flag: Categorical(2, (num_envs, 1), dtype=torch.bool, **device) for flag in flags},
            shape=self.batch_size,
            **device,
        )

    def fork(self) -> SimulatorTorchRLEnv:
        """Return an independent copy that continues exactly as this one would, its generators included."""
        worlds = self.worlds
        other = SimulatorTorchRLEnv(
            worlds.simulator, worlds.num_worlds, worlds.starts, worlds.max_episode_steps, worlds.observe
        )
        other.worlds = worlds.fork()
        return other

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self.worlds.reset(None if mask is None else mask.reshape(-1).cpu().numpy())
        return self._to_tensordict({})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        active = tensordict.get("_step", None)
        action = self.worlds.simulator.spec.actions.from_flat(tensordict.get("action").to(self.worlds.device))
        reward = self.worlds.step(action, None if active is None else active.reshape(-1).to(action.device))
        return self._to_tensordict({"reward": reward[:, None].clone()})

    def _set_seed(self, seed: int | None) -> None:
        """Seed world i with seed + i; None leaves the generators unchanged."""
        self.worlds.seed([None if seed is None else seed + i for i in range(self.worlds.num_worlds)])

    def _to_tensordict(self, entries: dict[str, Tensor]) -> TensorDictBase:
        """Return the current time step in tensors that the caller owns, next to other entries."""
        current = self.worlds.current
        terminated, truncated = current.terminated[:, None].clone(), current.truncated[:, None].clone()
        (key,) = self.observation_spec.keys()
        tensors = {key: current.observation.clone(), "terminated": terminated, "truncated": truncated}
        return TensorDict(
            {**tensors, "done": terminated | truncated, **entries}, batch_size=self.batch_size, device=self.device
        )
