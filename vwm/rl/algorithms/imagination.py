"""Learning in imagination only: a policy that improves in a fixed world model, starting from a recording's time steps.

Dreamer 4's third phase (arXiv 2509.24527, section 3.3) and, over frames, the setting of IRIS and DIAMOND, offline:
training takes no real step, and the world model does not change.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vwm.core.captured_steps import CaptureBackend, make_capture_backend
from vwm.core.captured_updates import CapturedUpdates
from vwm.core.checks import check_positive
from vwm.core.simulator import Simulator
from vwm.envs.batched_envs import EnvSpec
from vwm.envs.time_step import EnvSpaces
from vwm.nn.fused_adam import fuse_adam_on_cuda
from vwm.rl.algorithm import Algorithm, StepMetrics, TrainingSetup
from vwm.rl.algorithms.actor_critic_policy import ActorCriticPolicy
from vwm.rl.algorithms.encoded_env import EncodedEnvSpec
from vwm.rl.algorithms.imagined_rollout import (
    ImaginedRollout,
    check_prior,
    imagination_losses,
    imagine_rollout,
    mean_reward_per_step,
    simulator_env_spaces,
)
from vwm.rl.algorithms.policy_objectives import PolicyObjective
from vwm.rl.capturable_optimizers import make_capturable, optimizer_settings, optimizer_tensors
from vwm.rl.evaluation import EvaluationResult
from vwm.rl.optimizer_step import clip_and_step, require_finite, run_update
from vwm.worlds.bundle import load_simulator
from vwm.worlds.context_sampler import ContextSampler
from vwm.worlds.ensemble import EnsembleSimulator
from vwm.worlds.simulated_env import SimulatedEnvSpec, check_ensemble_settings


@dataclass(frozen=True)
class ImaginationEnsemble:
    """Further world models that show where the first one is unreliable; see ``EnsembleSimulator``.

    Attributes:
        bundles: of simulators that were trained on the same environment with other seeds, and take the same actions.
            ``updates`` then logs the mean ``uncertainty``, from which the penalty and the limit can be chosen.
        uncertainty_penalty: factor of the uncertainty that is subtracted from every reward.
        uncertainty_limit: uncertainty above which a rollout ends; None disables it.

    Raises:
        ValueError: a penalty or a limit without other simulators.
    """

    bundles: Sequence[Path] = ()
    uncertainty_penalty: float = 0.0
    uncertainty_limit: float | None = None

    def __post_init__(self) -> None:
        check_ensemble_settings(self.bundles, self.uncertainty_penalty, self.uncertainty_limit)


@dataclass(frozen=True)
class ImaginationRolloutConfig:
    """The rollouts of an update.

    Attributes:
        batch_size: contexts, each with one rollout.
        context_frames: frames of each context; 0 takes the number that the simulator prefers.
        rewarded_fraction: see ``ContextSampler``.
        horizon: decisions of a rollout. It is cut off there, not ended: the critic estimates what follows.
        discount: of rewards, per decision.

    Raises:
        ValueError: a value is out of range.
    """

    batch_size: int = 32
    context_frames: int = 0
    rewarded_fraction: float = 0.0
    horizon: int = 16
    discount: float = 0.997

    def __post_init__(self) -> None:
        check_positive(batch_size=self.batch_size, horizon=self.horizon)
        if self.context_frames < 0:
            raise ValueError(f"context_frames must be 0 or more, got {self.context_frames}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must lie in 0..1, got {self.discount}")


@dataclass(frozen=True)
class ImaginationOptimizerConfig:
    """How the policy is optimized.

    Attributes:
        lr, critic_lr: learning rates of Adam; the critic's is the same by default.
        max_grad_norm: largest gradient norm, of the critic and of the rest.
        epochs: updates from the same rollouts.
        critic_warmup_steps: decisions before the actor starts to learn, so that the critic can learn to evaluate it.

    Raises:
        ValueError: a value is out of range.
    """

    lr: float = 3e-4
    critic_lr: float | None = None
    max_grad_norm: float = 1.0
    epochs: int = 1
    critic_warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_positive(epochs=self.epochs)
        if self.critic_warmup_steps < 0:
            raise ValueError(f"critic_warmup_steps must be 0 or more, got {self.critic_warmup_steps}")
        if not self.lr > 0 or not self.max_grad_norm > 0:
            raise ValueError(f"lr and max_grad_norm must be above 0, got {self.lr} and {self.max_grad_norm}")


class ImaginationLearning(Algorithm):
    """A policy that learns from rollouts in a simulator, which start at time steps of a recording.

    Progress counts decisions in the simulator. Evaluations play the real environment; the first one, before anything
    was learned, measures the cloned policy where there is one. ``episodes`` has the return that the simulator predicts
    for the policy: its reward per decision, from uniformly drawn contexts, times the length of the last evaluation's
    episodes, so that the two can be compared: where they diverge, the policy exploits errors of the world model.

    Args:
        bundle: folder of the simulator.
        data: the recording.
        policy: the policy to train.
        objective: its losses.
        observe: what the policy observes: ``"features"``, ``"latent"`` or ``"frame"``; see ``EncodedEnvSpec``.
        rollouts: their number, horizon and discount.
        ensemble: further simulators that measure uncertainty.
        optimizer: learning rates, clipping, epochs.
        device: of the simulator; ``auto`` takes a GPU where there is one.

    Raises:
        ValueError: a setting is out of range.
    """

    supports_runtime = True
    evaluates_first = True

    def __init__(
        self,
        bundle: Path,
        data: str,
        policy: Callable[[Simulator, EnvSpaces], ActorCriticPolicy],
        objective: PolicyObjective,
        observe: Literal["features", "latent", "frame"] = "features",
        rollouts: ImaginationRolloutConfig = ImaginationRolloutConfig(),
        ensemble: ImaginationEnsemble = ImaginationEnsemble(),
        optimizer: ImaginationOptimizerConfig = ImaginationOptimizerConfig(),
        device: str = "auto",
    ) -> None:
        self.bundle = bundle
        self.data = data
        self.make_policy = policy
        self.objective = objective
        self.observe = observe
        self.rollouts = rollouts
        self.ensemble = ensemble
        self.optimizer = optimizer
        self.device = device
        self.env: EnvSpec = SimulatedEnvSpec(bundle, data, time_limit=rollouts.horizon, observe=observe, device=device)

    def set_up(self, setup: TrainingSetup) -> None:
        """See ``Algorithm.set_up``."""
        self.setup = setup
        with torch.random.fork_rng([]):  # the policy starts with the same weights with and without an ensemble
            others = [
                load_simulator(bundle, self.device, accelerate=setup.accelerate) for bundle in self.ensemble.bundles
            ]
        self.simulator = load_simulator(self.bundle, self.device, accelerate=setup.accelerate)
        self.ensemble_simulator: Simulator = self.simulator
        if others:
            members = [self.simulator, *others]
            self.ensemble_simulator = EnsembleSimulator(
                members, self.ensemble.uncertainty_penalty, self.ensemble.uncertainty_limit, followed_member="first"
            )
        self.policy: ActorCriticPolicy = self._make_policy(self.simulator)
        check_prior(self.policy, self.objective)
        self.optimizers = self._make_optimizers()
        fuse_adam_on_cuda(*self.optimizers.values())
        self.accelerate(make_capture_backend(setup.accelerate, self.policy.device))
        self.contexts = ContextSampler(
            self.data,
            self.rollouts.context_frames or self.simulator.spec.context_frames,
            self.rollouts.horizon * self.simulator.spec.frames_per_step,
            self.rollouts.rewarded_fraction,
            actions=not self.simulator.spec.actions.latent,
        )
        self.progress = 0
        self.episode_length = float("nan")

    def step(self) -> StepMetrics:
        """Roll the policy out, and learn from the rollouts."""
        context, began = self.contexts.sample(self.rollouts.batch_size), time.perf_counter()
        rollout = imagine_rollout(self.ensemble_simulator, self.policy, context, self.rollouts.horizon, self.observe)
        in_simulator = time.perf_counter() - began
        self.progress += self.rollouts.batch_size * self.rollouts.horizon
        for _ in range(self.optimizer.epochs):
            with self.setup.runtime.autocast():
                logs = self._update(rollout)
        logs |= {
            "imagined_reward": mean_reward_per_step(rollout, context.sampled_uniformly),
            "seconds": time.perf_counter() - began,
            "seconds_in_simulator": in_simulator,
        }
        if self.ensemble.bundles:
            logs["uncertainty"] = float(rollout.uncertainty[1:].mean())
        return {"updates": [logs]}

    def state_dict(self) -> dict[str, Any]:
        """See ``Algorithm.state_dict``."""
        return {
            "policy": self.policy.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "progress": self.progress,
            "episode_length": self.episode_length,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Algorithm.load_state_dict``."""
        self.policy.load_state_dict(state["policy"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.accelerate(make_capture_backend(self.setup.accelerate, self.policy.device))
        self.progress = state["progress"]
        self.episode_length = state["episode_length"]

    def build_policy(self, setup: TrainingSetup) -> ActorCriticPolicy:
        """See ``Algorithm.build_policy``."""
        return self._make_policy(load_simulator(self.bundle, self.device))

    def evaluation_env(self, env: EnvSpec | None) -> EnvSpec:
        """Return the real environment, encoded by the simulator; the simulator itself where none is given."""
        return EncodedEnvSpec(env, self.bundle, self.observe, self.device) if env else self.env

    def observe_evaluation(self, result: EvaluationResult) -> None:
        """Remember how long episodes are."""
        self.episode_length = float(result.lengths.mean())

    def imagined_episode(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Return what an episode of the last evaluation's length would earn in the simulator."""
        return {"return": means["imagined_reward"] * self.episode_length, "length": self.episode_length}

    def _update(self, rollout: ImaginedRollout) -> dict[str, float]:
        critic_only = self.progress <= self.optimizer.critic_warmup_steps
        learn = functools.partial(self._learn, critic_only=critic_only)
        name = f"update(critic_only={critic_only})"
        return run_update(self.captured_updates, name, learn, rollout)[0]

    def _learn(self, rollout: ImaginedRollout, critic_only: bool) -> tuple[dict[str, Tensor], None]:
        """Update actor and critic, or the critic alone, once; see ``run_update``."""
        losses = imagination_losses(self.policy, self.objective, rollout, self.rollouts.discount)
        require_finite(losses.logs)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        (losses.critic_loss if critic_only else losses.critic_loss + losses.actor_loss).backward()
        for name, optimizer in self.optimizers.items():
            clip_and_step(optimizer, self.optimizer.max_grad_norm, name=name)
        self.policy.actor_critic.update_target()
        return losses.logs, None

    def accelerate(self, backend: CaptureBackend | None) -> None:
        """Capture updates from now on; the simulator's steps are captured by itself.

        Args:
            backend: what captures them; None computes everything plainly.
        """
        self.captured_updates = None
        if backend is not None and make_capturable("the policy", self.optimizers):
            self.captured_updates = CapturedUpdates(
                backend,
                lambda: [*self.policy.parameters(), *self.policy.buffers(), *optimizer_tensors(self.optimizers)],
                lambda: optimizer_settings(self.optimizers),
            )

    def _make_policy(self, simulator: Simulator) -> ActorCriticPolicy:
        return self.make_policy(simulator, simulator_env_spaces(simulator, self.observe)).to(simulator.device)

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        settings = self.optimizer
        critic = list(self.policy.actor_critic.critic.parameters())
        of_critic = {id(weight) for weight in critic}
        rest = [w for w in self.policy.parameters() if w.requires_grad and id(w) not in of_critic]
        return {
            "actor": torch.optim.Adam(rest, settings.lr),
            "critic": torch.optim.Adam(critic, settings.critic_lr or settings.lr),
        }
