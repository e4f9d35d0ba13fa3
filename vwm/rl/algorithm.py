"""How a policy is learned: the interface of every algorithm, which ``AgentTraining`` drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from vwm.core.network_simulator import NetworkSimulator
from vwm.envs.batched_envs import EnvSpec
from vwm.rl.evaluation import EvaluationResult
from vwm.runs.run_folder import RunFolder
from vwm.runs.training_runtime import TrainingRuntime, compile_networks

StepMetrics = Mapping[str, Sequence[Mapping[str, float]]]
"""Rows for the run's tables by their names; a row is written at its own ``step``, or else at the progress after the
step. Rows of ``updates`` are averaged before they are written."""


@dataclass(frozen=True)
class TrainingSetup:
    """What an algorithm gets from the training that drives it.

    Attributes:
        folder: of the run.
        steps: the length of the training, in the algorithm's unit.
        seed: of everything random; torch's generator is seeded with it before ``Algorithm.set_up``.
        device: of the networks.
        evaluation_episodes: how many episodes an evaluation plays.
        runtime: precision of updates, compilation and loggers.
        accelerate: ``auto`` captures acting and updates as CUDA graphs on a GPU; ``none`` computes them plainly.
    """

    folder: RunFolder
    steps: int
    seed: int
    device: torch.device
    evaluation_episodes: int = 20
    runtime: TrainingRuntime = field(default_factory=TrainingRuntime)
    accelerate: Literal["auto", "none"] = "auto"


class Algorithm(ABC):
    """Networks, their environments and their data, advanced step by step.

    A constructor stores settings and opens nothing; ``set_up`` makes everything else. All that ``step`` changes must be
    in ``state_dict`` or in torch's generators, which the training saves, so that a resumed run equals an uninterrupted
    one.

    Attributes:
        unit: what ``progress`` and the training's ``steps`` count.
        supports_runtime: whether ``--precision`` and ``--compile`` apply.
        evaluates_first: whether to evaluate the policy before the first step.
        evaluates_itself: whether ``evaluate`` and ``finish`` replace the training's own evaluations.
        env: the training environment; ``curves.png`` compares the returns there with those of the evaluation.
        policy: the module that is trained and acts (``ActingPolicy``); exists after ``set_up``.
        progress: steps so far.
    """

    unit: ClassVar[str] = "decision"
    supports_runtime: ClassVar[bool] = False
    evaluates_first: bool = False
    evaluates_itself: ClassVar[bool] = False
    env: EnvSpec
    policy: Any
    progress: int = 0

    @abstractmethod
    def set_up(self, setup: TrainingSetup) -> None:
        """Open environments and data, and make the networks as they are before the first step.

        Raises:
            ValueError: the settings do not fit each other or the data.
        """

    @abstractmethod
    def step(self) -> StepMetrics:
        """Act and learn for a while; ``progress`` grows by at least 1.

        Raises:
            FloatingPointError: a loss is not finite; no weight was changed by it.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as tensors and plain values; ``policy`` has the policy's weights.

        What is large may be written into ``setup.folder.checkpoints`` and only be named here.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``, after ``set_up``.

        Raises:
            RuntimeError, KeyError: weights of other networks.
            ValueError: anything else that does not fit.
        """

    def compile_networks(self) -> None:
        """Compile the networks in place, after ``set_up``; see ``vwm.runs.training_runtime.compile_networks``."""
        compile_networks(self.policy)

    def build_policy(self, setup: TrainingSetup) -> Any:
        """Make a policy to load trained weights into, without opening anything of the training's own."""
        raise ValueError(f"{type(self).__name__} writes its own evaluation and has no policy to load")

    def prune_files(self) -> None:  # noqa: B027 - a hook
        """Delete files in the run's folder that neither the last checkpoint nor the future needs."""

    def close(self) -> None:  # noqa: B027 - a hook
        """Close the environments."""

    def evaluation_env(self, env: EnvSpec | None) -> EnvSpec:
        """Return the environment that policies are evaluated in, where the config names ``env`` (or none)."""
        return env or self.env

    def observe_evaluation(self, result: EvaluationResult) -> None:  # noqa: B027 - a hook
        """Take note of an evaluation."""

    def imagined_episode(self, means: Mapping[str, float]) -> Mapping[str, float] | None:
        """Return a row of ``episodes`` for averaged updates, where training has no episodes that end."""
        return None

    def evaluate(self, env: EnvSpec | None) -> StepMetrics:
        """Evaluate at an interval, where ``evaluates_itself``; ``env`` is the config's evaluation environment."""
        raise NotImplementedError

    def finish(self, env: EnvSpec | None) -> None:  # noqa: B027 - a hook
        """Evaluate after the last step, where ``evaluates_itself``."""

    def export_simulator(
        self, setup: TrainingSetup, policy: Any, state: Mapping[str, Any], title: str, fps: float, contexts: int
    ) -> NetworkSimulator:
        """Make a simulator of the learned world model, with contexts to start from.

        Args:
            setup: of the run.
            policy: as ``build_policy`` made it, with trained weights.
            state: the last checkpoint's ``state_dict``.
            title, fps: see ``SimulatorSpec``.
            contexts: number of starts.

        Raises:
            ValueError: the algorithm learns no world model.
        """
        raise ValueError(f"{type(self).__name__} learns no world model that could be exported")
