"""Stable-Baselines3's PPO in any environment, real or simulated: the model-free agent that others are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vwm.core.checks import check_positive
from vwm.envs.batched_envs import EnvSpec
from vwm.envs.time_step import TimeStep
from vwm.rl.agent import PolicyCarry, PolicyStep
from vwm.rl.algorithm import Algorithm, StepMetrics, TrainingSetup


class PPO(Algorithm):
    """Proximal policy optimization (arXiv 1707.06347), by Stable-Baselines3 (``pip install -e '.[sb3]'`` in the clone).

    A step is one rollout of every environment and the epochs of learning from it. A resumed run has the weights, the
    optimizer and the counters of its checkpoint and starts new episodes: Stable-Baselines3 keeps no environment's
    state, so it does not become, bit for bit, what it would have become.

    Args:
        env: what the agent acts in.
        num_envs: copies of the environment.
        policy: of Stable-Baselines3; None takes ``CnnPolicy`` for images and ``MlpPolicy`` for vectors.
        options: of its ``PPO``, ``{n_steps: 128, ent_coef: 0.01}`` for example.
        deterministic: evaluations take the most likely action; False samples there, too.
        sign_rewards: learn from the signs of rewards, as is usual on Atari; the returns that are reported stay those of
            the environment.
    """

    def __init__(
        self,
        env: EnvSpec,
        num_envs: int = 8,
        policy: str | None = None,
        options: dict[str, Any] | None = None,
        deterministic: bool = True,
        sign_rewards: bool = False,
    ) -> None:
        check_positive(num_envs=num_envs)
        self.env = env
        self.num_envs = num_envs
        self.policy_name = policy
        self.options = options or {}
        self.deterministic = deterministic
        self.sign_rewards = sign_rewards

    def set_up(self, setup: TrainingSetup) -> None:
        """See ``Algorithm.set_up``. Raises ImportError where Stable-Baselines3 is not installed."""
        self.setup = setup
        self.model = self._make_model(setup)
        self.policy = PPOPolicy(self.model.policy, self.deterministic)
        self.episodes = _make_episode_counter(self.num_envs)

    @property
    def progress(self) -> int:  # type: ignore[override]
        """Decisions so far."""
        return int(self.model.num_timesteps)

    def step(self) -> StepMetrics:
        """See ``Algorithm.step``."""
        self.model.learn(1, callback=self.episodes, progress_bar=False, reset_num_timesteps=False)
        return {"episodes": self.episodes.take()}

    def state_dict(self) -> dict[str, Any]:
        """See ``Algorithm.state_dict``."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.model.policy.optimizer.state_dict(),
            "progress": self.progress,
            "updates": self.model._n_updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Algorithm.load_state_dict``; draws from here on differ from those of the run's start."""
        self.policy.load_state_dict(state["policy"])
        self.model.policy.optimizer.load_state_dict(state["optimizer"])
        self.model.num_timesteps = state["progress"]
        self.model._n_updates = state["updates"]
        self.model.set_random_seed(self.setup.seed + state["progress"])  # or it would meet the same episodes again

    def close(self) -> None:
        """See ``Algorithm.close``."""
        self.model.get_env().close()

    def build_policy(self, setup: TrainingSetup) -> PPOPolicy:
        """See ``Algorithm.build_policy``."""
        model = self._make_model(setup)
        model.get_env().close()
        return PPOPolicy(model.policy, self.deterministic)

    def _make_model(self, setup: TrainingSetup) -> Any:
        stable_baselines3 = _import_stable_baselines()
        from vwm.worlds.stable_baselines import StableBaselinesVecEnv

        envs = StableBaselinesVecEnv(self.env.vector_env(self.num_envs, setup.seed), self.sign_rewards)
        fitting = "CnnPolicy" if len(envs.observation_space.shape or ()) == 3 else "MlpPolicy"
        return stable_baselines3.PPO(
            self.policy_name or fitting, envs, seed=setup.seed, device=setup.device, **self.options
        )


class PPOPolicy(nn.Module):
    """A policy of Stable-Baselines3 that acts; see ``ActingPolicy``.

    Args:
        networks: of Stable-Baselines3.
        deterministic: without exploring, take the most likely action; False samples there, too.
    """

    def __init__(self, networks: nn.Module, deterministic: bool = True) -> None:
        super().__init__()
        self.networks: Any = networks
        self.deterministic = deterministic

    @property
    def device(self) -> torch.device:
        """Stable-Baselines3 takes observations from the CPU."""
        return torch.device("cpu")

    def init_carry(self, batch: int) -> PolicyCarry:
        """Return the empty memory of a policy that has none."""
        return ()

    def act(self, carry: PolicyCarry, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``."""
        chosen, _ = self.networks.predict(
            time_step.observation.numpy(), deterministic=self.deterministic and not explore
        )
        action: Tensor = torch.as_tensor(chosen)
        return PolicyStep(action.clamp(-1, 1) if action.is_floating_point() else action, carry, {})


def _import_stable_baselines() -> Any:
    try:
        import stable_baselines3
    except ImportError as error:
        raise ImportError(
            f"PPO is Stable-Baselines3's, which is not installed ({error}): pip install -e '.[sb3]' in the clone"
        ) from error
    return stable_baselines3


def _make_episode_counter(num_envs: int) -> Any:
    """Make the callback that adds up returns and lengths; Stable-Baselines3 calls it after every step."""
    from stable_baselines3.common.callbacks import BaseCallback

    class EpisodeCounter(BaseCallback):
        """Collects the episodes that end."""

        def __init__(self) -> None:
            super().__init__()
            self.returns = [0.0] * num_envs
            self.lengths = [0] * num_envs
            self.ended: list[dict[str, float]] = []

        def _on_step(self) -> bool:
            steps = zip(self.locals["rewards"], self.locals["dones"], self.locals["infos"], strict=True)
            for i, (reward, over, info) in enumerate(steps):
                self.returns[i] += float(info.get("reward", reward))
                self.lengths[i] += 1
                if over:
                    row = {"step": self.num_timesteps, "return": self.returns[i], "length": float(self.lengths[i])}
                    self.ended.append(row)
                    self.returns[i] = 0.0
                    self.lengths[i] = 0
            return True

        def take(self) -> list[dict[str, float]]:
            """Return the episodes that ended since the last call."""
            ended, self.ended = self.ended, []
            return ended

    return EpisodeCounter()
