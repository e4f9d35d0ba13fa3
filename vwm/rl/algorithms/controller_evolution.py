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
from vwm.core.components import save_component
from vwm.core.version import VERSION
from vwm.data.datamodule import make_clip_dataset
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
    """What the controllers of a population are compared by.

    Attributes:
        where: the population acts in the learned world (``simulator``) or in the real environment (``env``).
        rollouts: of each controller.
        reward: in the simulator: ``model`` adds up the rewards that it predicts, ``survival`` counts the steps until it
            ends.
        temperature: of the simulator; above 1 (1.15) controllers exploit its errors less.
        horizon: steps after which a rollout in the simulator is cut off.
        context: frames that a rollout in the simulator starts from.
        data: shards at the beginnings of whose episodes rollouts start; the bundle's own starts by default.

    Raises:
        ValueError: a count is out of range.
    """

    where: Literal["simulator", "env"] = "simulator"
    rollouts: int = 16
    reward: Literal["model", "survival"] = "model"
    temperature: float = 1.0
    horizon: int = 1000
    context: int = 1
    data: str | None = None

    def __post_init__(self) -> None:
        check_positive(rollouts=self.rollouts, horizon=self.horizon, context=self.context)


class ControllerEvolution(Algorithm):
    """Linear controllers evolved by CMA-ES, one search for every input.

    Progress counts generations, of every search. ``metrics/INPUT_generations`` has the fitness of each generation,
    ``metrics/INPUT_evaluations`` the returns of the distribution's mean in the simulator and in the real environment:
    where the two part, controllers exploit errors of the world. At the end all controllers and random actions play the
    same new real episodes (``evaluation.json``), and the controllers are saved in ``controllers/``.

    Args:
        bundle: of an MDN-RNN world.
        env: the real environment; it must show frames of the world's size with the recording's action repeat.
        inputs: of the controllers.
        fitness: what a population is compared by.
        population: controllers in a generation.
        sigma: standard deviation of the first population.
        episodes: real episodes of the final evaluation of each controller, and of random actions.
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
        episodes: int = 100,
        device: str = "auto",
    ) -> None:
        check_positive(population=population, episodes=episodes)
        if not inputs:
            raise ValueError("inputs must name at least one controller, got none")
        self.bundle = bundle
        self.env = env
        self.inputs = inputs
        self.fitness = fitness
        self.population = population
        self.sigma = sigma
        self.episodes = episodes
        self.device = device

    def set_up(self, setup: TrainingSetup) -> None:
        """See ``Algorithm.set_up``. Raises ValueError for another world than an MDN-RNN."""
        self.setup = setup
        self.world = MDNRNNSimulator.require(load_simulator(self.bundle, self.device), str(self.bundle))
        settings = self.fitness
        self.real_fitness = RealEnvFitness(self.world, self.env, settings.rollouts)
        self.simulated_fitness = (
            SimulatedFitness(
                self.world,
                self._starts(),
                rollouts=settings.rollouts,
                horizon=settings.horizon,
                reward=settings.reward,
                temperature=settings.temperature,
            )
            if settings.where == "simulator"
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
        fitness = {name: torch.from_numpy(np.array(search.told)) for name, search in self.searches.items()}
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
            search.again(state["fitness"][name].numpy())

    def evaluate(self, env: EnvSpec | None) -> StepMetrics:
        """Play with the mean of every search's distribution, in the simulator and in the real environment."""
        seed = GENERATION_SEED_LIMIT + self._generation_seed(self.progress - 1)
        rows = {}
        for name, search in self.searches.items():
            real = self._real(env).play(search.mean, self.setup.evaluation_episodes, seed).mean()
            simulated = self.simulated_fitness(search.mean[None], seed)[0] if self.simulated_fitness else real
            rows[f"{name}_evaluations"] = [{"simulator": float(simulated), "env": float(real)}]
        return rows

    def finish(self, env: EnvSpec | None) -> None:
        """Save the controllers, and evaluate them and random actions in the same real episodes, new to all of them."""
        folder, seed = self.setup.folder.path, 3 * GENERATION_SEED_LIMIT + self.setup.seed
        for name, search in self.searches.items():
            with atomic_folder(folder / "controllers" / name) as temporary:
                controller = LinearController.of(torch.from_numpy(search.mean), self.world.spec.actions)
                save_component(controller, temporary)
        parameters: Mapping[str, Any] = {name: search.mean for name, search in self.searches.items()}
        real = self._real(env)
        returns = {name: real.play(values, self.episodes, seed) for name, values in parameters.items()}
        returns["random"] = real.play(None, self.episodes, seed)
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
        print(f"{folder / EVOLUTION_RESULT_FILE}: every return; also curves.png and controllers/")

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
        size = self.world.latent_size + (self.world.memory_size if name == "latent_and_memory" else 0)
        start = initial_controller_parameters(size, self.world.spec.actions)
        return CMAESSearch(start, self.sigma, self.population, self.setup.seed)

    def _real(self, env: EnvSpec | None) -> RealEnvFitness:
        return RealEnvFitness(self.world, env or self.env, self.fitness.rollouts)

    def _generation_seed(self, generation: int) -> int:
        draws = np.random.SeedSequence([self.setup.seed, generation]).generate_state(1)
        return int(draws[0] % GENERATION_SEED_LIMIT)

    def _fixed_settings(self) -> dict[str, Any]:
        """Return the settings that must not change when a search is resumed."""
        settings = self.fitness
        return {
            "where": settings.where, "reward": settings.reward, "temperature": settings.temperature,
            "horizon": settings.horizon, "context": settings.context, "rollouts": settings.rollouts,
            "population": self.population, "sigma": self.sigma, "seed": self.setup.seed, "env": repr(self.env),
            "inputs": list(self.inputs),
        }  # fmt: skip

    def _starts(self) -> torch.Tensor:
        settings = self.fitness
        if settings.data is not None:
            dataset = make_clip_dataset(settings.data, settings.context, fields=("frames",), shuffle=False)
            return episode_start_frames(dataset)
        if self.world.starts is None:
            raise ValueError(
                f"{self.bundle} has no starts to roll out from: name shards in fitness.data, or set fitness.where=env"
            )
        return self.world.starts[:, -settings.context :]
