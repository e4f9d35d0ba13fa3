"""World Models' controller (arXiv 1803.10122), evolved in the learned world or in the real environment.

The controller that sees the latent and the recurrent memory is compared with one that sees the latent only, which shows
what the memory is worth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vwm.core.atomic_files import atomic_folder, atomic_write_text
from vwm.core.checks import check_positive
from vwm.core.command_output import print_output
from vwm.core.components import save_component
from vwm.core.version import VERSION
from vwm.data.clip_folders import make_clip_dataset
from vwm.envs.batched_envs import EnvSpec
from vwm.models.mdn_rnn.simulator import MDNRNNSimulator
from vwm.rl.algorithm import Algorithm, StepMetrics, TrainingSetup
from vwm.rl.algorithms.cma_es import CMAESSearch
from vwm.rl.algorithms.controller_fitness import (
    ControllerFitness,
    RealEnvFitness,
    SimulatedFitness,
    episode_start_frames,
)
from vwm.rl.algorithms.evolution_report import format_evolution_results, plot_evolution, summarize_returns
from vwm.rl.algorithms.linear_controller import LinearController, initial_controller_parameters
from vwm.worlds.bundle import load_simulator

EVOLUTION_RESULT_FILE = "evaluation.json"
GENERATION_SEED_LIMIT = 1_000_000
"""Seeds of generations are below it, those of evaluations above."""
ControllerInput = Literal["latent_and_memory", "latent"]


@dataclass(frozen=True)
class ControllerFitnessConfig:
    """How the controllers of a population are evaluated.

    Attributes:
        env: the population acts in the learned world (``simulator``) or in the ``real`` environment.
        rollouts: number of rollouts of each controller.
        reward: in the simulator: ``model`` adds up the rewards that it predicts, ``survival`` counts the steps until it
            ends.
        temperature: of the simulator; above 1 (1.15) controllers exploit its errors less.
        horizon: steps after which a rollout in the simulator is cut off.
        context_frames: number of frames that a rollout in the simulator starts from.
        data: shards with the episodes from whose first frames rollouts start; by default the contexts in the bundle.

    Raises:
        ValueError: a count is out of range.
    """

    env: Literal["simulator", "real"] = "simulator"
    rollouts: int = 16
    reward: Literal["model", "survival"] = "model"
    temperature: float = 1.0
    horizon: int = 1000
    context_frames: int = 1
    data: str | None = None

    def __post_init__(self) -> None:
        check_positive(rollouts=self.rollouts, horizon=self.horizon, context_frames=self.context_frames)


class ControllerEvolution(Algorithm):
    """Evolves linear controllers by CMA-ES, one search for each kind of input.

    Progress counts generations. ``metrics/INPUT_generations`` has the fitness of each generation,
    ``metrics/INPUT_evaluations`` the returns of the distribution's mean in the simulator and in the real environment:
    where the two diverge, controllers exploit errors of the world. At the end all controllers and random actions play
    the same new real episodes (``evaluation.json``), and the controllers are saved in ``controllers/``.

    Args:
        bundle: of an MDN-RNN world.
        env: the real environment; it must show frames of the world's size with the recording's action repeat.
        inputs: of the controllers.
        fitness: how a population is evaluated.
        population: controllers in a generation.
        sigma: standard deviation of the first population.
        final_evaluation_episodes: real episodes of the final evaluation, of each controller and of random actions.
        device: of the world; ``auto`` takes a GPU where there is one.

    Raises:
        ValueError: a count is out of range, or there is no input.
    """

    unit = "generation"
    evaluates_itself = True

    def __init__(
        self,
        bundle: Path,
        env: EnvSpec,
        inputs: tuple[ControllerInput, ...] = ("latent_and_memory", "latent"),
        fitness: ControllerFitnessConfig = ControllerFitnessConfig(),
        population: int = 64,
        sigma: float = 0.1,
        final_evaluation_episodes: int = 100,
        device: str = "auto",
    ) -> None:
        check_positive(population=population, final_evaluation_episodes=final_evaluation_episodes)
        if not inputs:
            raise ValueError("inputs must name at least one controller, got none")
        self.bundle = bundle
        self.env = env
        self.inputs = inputs
        self.fitness = fitness
        self.population = population
        self.sigma = sigma
        self.final_evaluation_episodes = final_evaluation_episodes
        self.device = device

    def set_up(self, setup: TrainingSetup) -> None:
        """See ``Algorithm.set_up``. Raises ValueError for another world than an MDN-RNN."""
        self.setup = setup
        self.simulator = MDNRNNSimulator.require(load_simulator(self.bundle, self.device), str(self.bundle))
        config = self.fitness
        self.real_fitness = RealEnvFitness(self.simulator, self.env, config.rollouts)
        self.simulated_fitness = (
            SimulatedFitness(
                self.simulator,
                self._contexts(),
                rollouts=config.rollouts,
                horizon=config.horizon,
                reward=config.reward,
                temperature=config.temperature,
            )
            if config.env == "simulator"
            else None
        )
        self.searches = {name: self._make_search(name) for name in self.inputs}
        self.progress = 0

    def step(self) -> StepMetrics:
        """Evolve every controller by one generation."""
        seed = self._generation_seed(self.progress)
        self.progress += 1
        return {f"{name}_generations": [self._evolve(search, seed)] for name, search in self.searches.items()}

    def state_dict(self) -> dict[str, Any]:
        """See ``Algorithm.state_dict``: a search is a function of its settings and of all fitness values so far."""
        fitness = {name: torch.from_numpy(np.array(search.fitness_history)) for name, search in self.searches.items()}
        return {"progress": self.progress, "fitness": fitness, "settings": self._fixed_settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Algorithm.load_state_dict``. Raises ValueError for a search with other settings."""
        if state["settings"] != self._fixed_settings():
            raise ValueError(
                f"{self.setup.folder.last_checkpoint} is of a search with {state['settings']}, this one has "
                f"{self._fixed_settings()}: choose another folder"
            )
        self.progress = state["progress"]
        for name, search in self.searches.items():
            search.replay(state["fitness"][name].numpy())

    def evaluate(self, env: EnvSpec | None) -> StepMetrics:
        """Play with the mean of every search's distribution, in the simulator and in the real environment."""
        seed = GENERATION_SEED_LIMIT + self._generation_seed(self.progress - 1)
        rows = {}
        for name, search in self.searches.items():
            real = self._real_fitness(env).evaluate_controller(search.mean, self.setup.evaluation_episodes, seed).mean()
            simulated = self.simulated_fitness(search.mean[None], seed)[0] if self.simulated_fitness else real
            rows[f"{name}_evaluations"] = [{"simulator": float(simulated), "env": float(real)}]
        return rows

    def finish(self, env: EnvSpec | None) -> None:
        """Save the controllers, and evaluate them and random actions in the same new real episodes."""
        folder, seed = self.setup.folder.path, 3 * GENERATION_SEED_LIMIT + self.setup.seed
        for name, search in self.searches.items():
            with atomic_folder(folder / "controllers" / name) as temporary:
                controller = LinearController.from_parameters(
                    torch.from_numpy(search.mean), self.simulator.spec.actions
                )
                save_component(controller, temporary)
        parameters: Mapping[str, Any] = {name: search.mean for name, search in self.searches.items()}
        real = self._real_fitness(env)
        returns = {
            name: real.evaluate_controller(values, self.final_evaluation_episodes, seed)
            for name, values in parameters.items()
        }
        returns["random"] = real.evaluate_controller(None, self.final_evaluation_episodes, seed)
        results = {name: summarize_returns(values) for name, values in returns.items()}
        provenance = self._fixed_settings() | {
            "bundle": str(self.bundle),
            "generations": self.progress,
            "versions": {"vwm": VERSION, "torch": torch.__version__},
        }
        report = json.dumps({"results": results, "settings": provenance}, indent=2) + "\n"
        atomic_write_text(folder / EVOLUTION_RESULT_FILE, report)
        plot_evolution(folder / "curves.png", self.setup.folder, self.inputs)
        print(format_evolution_results(results))
        print_output(folder / EVOLUTION_RESULT_FILE, "every return")

    def _evolve(self, search: CMAESSearch, seed: int) -> dict[str, float]:
        fitness: ControllerFitness = self.simulated_fitness or self.real_fitness
        values = fitness(search.ask(), seed)
        search.tell(values)
        return {
            "best": float(np.max(values)),
            "mean": float(np.mean(values)),
            "worst": float(np.min(values)),
            "sigma": search.sigma,
        }

    def _make_search(self, name: ControllerInput) -> CMAESSearch:
        size = self.simulator.latent_size + (self.simulator.memory_size if name == "latent_and_memory" else 0)
        start = initial_controller_parameters(size, self.simulator.spec.actions)
        return CMAESSearch(start, self.sigma, self.population, self.setup.seed)

    def _real_fitness(self, env: EnvSpec | None) -> RealEnvFitness:
        return RealEnvFitness(self.simulator, env or self.env, self.fitness.rollouts)

    def _generation_seed(self, generation: int) -> int:
        state = np.random.SeedSequence([self.setup.seed, generation]).generate_state(1)
        return int(state[0] % GENERATION_SEED_LIMIT)

    def _fixed_settings(self) -> dict[str, Any]:
        """Return the settings that must not change when a search is resumed."""
        config = self.fitness
        return {
            "fitness_env": config.env, "reward": config.reward, "temperature": config.temperature,
            "horizon": config.horizon, "context_frames": config.context_frames, "rollouts": config.rollouts,
            "population": self.population, "sigma": self.sigma, "seed": self.setup.seed, "env": repr(self.env),
            "inputs": list(self.inputs),
        }  # fmt: skip

    def _contexts(self) -> torch.Tensor:
        config = self.fitness
        if config.data is not None:
            dataset = make_clip_dataset(config.data, config.context_frames, fields=("frames",), shuffle=False)
            return episode_start_frames(dataset)
        if self.simulator.starts is None:
            raise ValueError(
                f"{self.bundle} holds no contexts to roll out from: name shards in fitness.data, or set "
                "fitness.env=real"
            )
        return self.simulator.starts[:, -config.context_frames :]
