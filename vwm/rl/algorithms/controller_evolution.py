"""World Models' controller (arXiv 1803.10122): evolved in a dream or in the real game, and judged in the real one.

Beside the controller that sees V's latent and M's memory stands one that sees the latent alone: what memory is worth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import vwm
from vwm.core.atomic_files import atomic_folder, atomic_write, atomic_write_text
from vwm.core.components import save_component
from vwm.data.datamodule import make_clip_dataset
from vwm.envs.batched_envs import EnvSpec
from vwm.models.mdn_rnn.simulator import MDNRNNSimulator
from vwm.rl.algorithms.cma_es import CMAESSearch
from vwm.rl.algorithms.controller_fitness import (
    ControllerFitness,
    RealEnvFitness,
    SimulatedFitness,
    episode_start_frames,
)
from vwm.rl.algorithms.linear_controller import LinearController, initial_controller_parameters
from vwm.rl.training_run import TrainingRun
from vwm.runs.metric_tables import MetricTable, read_csv_rows
from vwm.worlds.bundle import load_simulator

EVOLUTION_RESULT_FILE = "evaluation.json"
FITNESS_HISTORY_FILE = "told.npz"
GENERATION_SEED_LIMIT = 1_000_000
"""What the seeds of the games that judge lie beyond those that evolution plays."""
RESUMABLE_SETTINGS = ("bundle", "data", "generations", "versions")
"""What of a search's making may be another when it goes on."""
ControllerInput = Literal["latent_and_memory", "latent"]


class ControllerEvolution(TrainingRun):
    """Evolve linear controllers by CMA-ES.

    Args:
        run: folder of everything that the run writes. A run that stopped goes on exactly where it stood.
        bundle: of V and M, as ``vwm export`` made it.
        game: the real one, for judging; it must show frames of the world's size at the recording's action repeat.
        data: shards whose episodes' beginnings the dream starts from; the bundle's own starts by default.
        where: what the population plays in.
        reward: in the dream: ``model`` adds up what M foretells, ``survival`` counts the steps until it ends.
        temperature: of the dream; a harsher one (1.15) keeps controllers from living on its faults.
        horizon: steps after which a rollout in the dream is cut.
        context: frames that a rollout in the dream starts from.
        population: controllers a generation.
        rollouts: of each.
        generations: how many.
        sigma: deviation of the first population.
        sees: the controllers that are evolved, one after the other.
        evaluate_every: generations between looks at the distribution's middle, in dream and reality; 0 never looks.
        evaluate_episodes: real episodes of each look.
        episodes: real ones that judge each controller at the end, and random actions.
        seed: of everything.
        device: "auto" takes a GPU where there is one.

    Raises:
        ValueError: the bundle is of another kind of world, or of another game.
    """

    def __init__(
        self,
        run: Path,
        bundle: Path,
        game: EnvSpec,
        data: str | None = None,
        where: Literal["dream", "reality"] = "dream",
        reward: Literal["model", "survival"] = "model",
        temperature: float = 1.0,
        horizon: int = 1000,
        context: int = 1,
        population: int = 64,
        rollouts: int = 16,
        generations: int = 300,
        sigma: float = 0.1,
        sees: tuple[ControllerInput, ...] = ("latent_and_memory", "latent"),
        evaluate_every: int = 25,
        evaluate_episodes: int = 8,
        episodes: int = 100,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        if min(generations, episodes, context) < 1 or not sees:
            raise ValueError(
                f"generations={generations}, episodes={episodes} and context={context} must be 1 or more, and sees "
                f"must name a controller, got {list(sees)}"
            )
        world = MDNRNNSimulator.require(load_simulator(bundle, device), str(bundle))
        self.run_folder, self.world, self.game = Path(run), world, game
        self.population, self.generations, self.sigma, self.seed = population, generations, sigma, seed
        self.sees, self.evaluate_every, self.evaluate_episodes, self.episodes = (
            sees,
            evaluate_every,
            evaluate_episodes,
            episodes,
        )
        self.reality = RealEnvFitness(world, game, rollouts)
        self.dream = (
            SimulatedFitness(world, self._starts(data, context), rollouts, horizon, reward, temperature)
            if where == "dream"
            else None
        )
        self.fitness: ControllerFitness = self.dream or self.reality
        self.made = {
            "bundle": str(bundle), "data": data, "where": where, "reward": reward, "temperature": temperature,
            "horizon": horizon, "context": context, "population": population, "rollouts": rollouts,
            "generations": generations, "sigma": sigma, "seed": seed, "game": repr(game),
            "versions": {"vwm": vwm.__version__, "torch": torch.__version__},
        }  # fmt: skip

    def run(self) -> None:
        """Evolve every controller, then judge them on equal terms."""
        self._judge({sees: self._evolve(sees) for sees in self.sees})

    def _evolve(self, sees: ControllerInput) -> NDArray[np.float64]:
        """One controller, from where it stands; its parameters."""
        folder = self.run_folder / sees
        folder.mkdir(parents=True, exist_ok=True)
        size = self.world.latent_size + (self.world.memory_size if sees == "latent_and_memory" else 0)
        search = CMAESSearch(
            initial_controller_parameters(size, self.world.spec.actions), self.sigma, self.population, self.seed
        )
        settings = {name: value for name, value in self.made.items() if name not in RESUMABLE_SETTINGS}
        search.again(read_fitness_history(folder, settings)[: self.generations])
        done = len(search.told)
        table, watched = MetricTable(folder / "generations.csv", done), MetricTable(folder / "watched.csv", done)
        with tqdm(total=self.generations, initial=done, desc=sees, unit="generation") as bar:
            for generation in range(done, self.generations):
                fitness = self.fitness(search.ask(), self._generation_seed(generation))
                search.tell(fitness)
                best, mean, worst = (float(f(fitness)) for f in (np.max, np.mean, np.min))
                table.add(generation + 1, best=best, mean=mean, worst=worst, sigma=search.sigma)
                if self.evaluate_every and (generation + 1) % self.evaluate_every == 0:
                    self._watch(search.mean, generation, watched)
                    plot_evolution(self.run_folder / "curves.png", self.run_folder, self.sees)
                write_fitness_history(
                    folder, search.told, settings
                )  # last: what was not told is played and written again
                bar.set_postfix(best=f"{best:.1f}", mean=f"{mean:.1f}")
                bar.update()
        with atomic_folder(folder / "controller") as aside:
            save_component(LinearController.of(torch.from_numpy(search.mean), self.world.spec.actions), aside)
        plot_evolution(self.run_folder / "curves.png", self.run_folder, self.sees)
        return search.mean

    def _generation_seed(self, generation: int) -> int:
        return int(np.random.SeedSequence([self.seed, generation]).generate_state(1)[0] % GENERATION_SEED_LIMIT)

    def _watch(self, mean: NDArray[np.float64], generation: int, table: MetricTable) -> None:
        """What the distribution's middle earns in dream and reality: where they part, the dream's faults are used."""
        seed = GENERATION_SEED_LIMIT + self._generation_seed(generation)
        real = self.reality.play(mean, self.evaluate_episodes, seed).mean()
        dreamt = self.dream(mean[None], seed)[0] if self.dream else real
        table.add(generation + 1, dream=dreamt, real=real)

    def _judge(self, controllers: Mapping[str, NDArray[np.float64]]) -> None:
        """Every controller and random actions in the same real episodes, which none has met."""
        seed = 3 * GENERATION_SEED_LIMIT + self.seed
        played = {name: self.reality.play(own, self.episodes, seed) for name, own in controllers.items()}
        played["random"] = self.reality.play(None, self.episodes, seed)
        results = {name: summarize_returns(returns) for name, returns in played.items()}
        report = json.dumps({"results": results, "made": self.made}, indent=2) + "\n"
        atomic_write_text(self.run_folder / EVOLUTION_RESULT_FILE, report)
        print(format_evolution_results(results))
        print(f"{self.run_folder / EVOLUTION_RESULT_FILE}: every return; curves.png and the controllers beside it")

    def _starts(self, data: str | None, context: int) -> torch.Tensor:
        if data is not None:
            return episode_start_frames(make_clip_dataset(data, context, fields=("frames",), shuffle=False))
        if self.world.starts is None:
            raise ValueError("the bundle has no starts to dream from: name shards by data, or where=reality")
        return self.world.starts[:, -context:]


def read_fitness_history(folder: Path, settings: Mapping[str, Any]) -> NDArray[np.float64]:
    """The fitnesses so far, [g, p]; none where nothing was told.

    Raises:
        ValueError: they were told to a search of other settings.
    """
    file = folder / FITNESS_HISTORY_FILE
    if not file.is_file():
        return np.zeros((0, settings["population"]))
    with np.load(file, allow_pickle=False) as kept:
        found = json.loads(kept["settings"].item()) if "settings" in kept else {}
        told: NDArray[np.float64] = kept["fitness"]
    if found != settings:
        raise ValueError(f"{file} is of a search with {found}, this one has {dict(settings)}: choose another run")
    return told


def write_fitness_history(folder: Path, told: list[NDArray[np.float64]], settings: Mapping[str, Any]) -> None:
    """Keep them, whole or not at all."""
    with atomic_write(folder / FITNESS_HISTORY_FILE) as file:
        np.savez(file, fitness=np.stack(told), settings=np.array(json.dumps(settings)))


def summarize_returns(returns: NDArray[np.float64], draws: int = 2000) -> dict[str, Any]:
    """Mean with its 95 % interval (bootstrap over episodes), spread, and every return."""
    means = np.random.default_rng(0).choice(returns, (draws, len(returns))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "mean": float(returns.mean()), "low": float(low), "high": float(high), "std": float(returns.std()),
        "median": float(np.median(returns)), "episodes": len(returns), "returns": returns.tolist(),
    }  # fmt: skip


def format_evolution_results(results: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = [f"{'real return':20} {'mean':>9}  {'95 % interval':>20} {'median':>9}  episodes"]
    for name, found in results.items():
        interval = f"{found['low']:.1f} to {found['high']:.1f}"
        lines.append(f"{name:20} {found['mean']:9.1f}  {interval:>20} {found['median']:9.1f}  {found['episodes']}")
    return "\n".join(lines)


def plot_evolution(path: Path, run: Path, sees: tuple[str, ...]) -> None:
    """The best, mean and worst of every generation, and what the middle came to in dream and reality."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(sees), figsize=(7 * len(sees), 4.5), sharey=True, squeeze=False)
    for name, axis in zip(sees, axes[0], strict=True):
        rows, watched = (read_csv_rows(run / name / f"{kind}.csv") for kind in ("generations", "watched"))
        steps = [row["step"] for row in rows]
        axis.plot(steps, [row["mean"] for row in rows], label="population's mean")
        axis.fill_between(
            steps, *([row[k] for row in rows] for k in ("worst", "best")), alpha=0.2, label="worst to best"
        )
        for kind, style in (("dream", "o--"), ("real", "s-")):
            axis.plot([row["step"] for row in watched], [row[kind] for row in watched], style, label=f"middle, {kind}")
        axis.set(title=f"sees {name.replace('_', ' ')}", xlabel="generation", ylabel="return")
        axis.legend()
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=90)
    plt.close(figure)
