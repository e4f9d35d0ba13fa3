"""Imagination, evolution, planners, tree search, simulated environments and whole runs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agent_cases import AGENTS, WORLDS, agent_case
from factories import diffusion_world, dream, jepa_world
from hashing import case, hashed, put, put_weights
from simulator_cases import fixed_actions
from small_networks import pictures
from torch import Tensor

from vwm.core.components import load_component
from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance
from vwm.planning.gumbel_search import GumbelMuZeroSearch
from vwm.planning.mppi import MPPI
from vwm.planning.puct_search import PUCTSearch
from vwm.planning.sampling_planner import NegativeReturnObjective
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.actor_critic_policy import (
    ClonedActorCriticPolicy,
    FeatureActorCriticPolicy,
    FrameActorCriticPolicy,
)
from vwm.rl.algorithms.cma_es import CMAESSearch
from vwm.rl.algorithms.controller_evolution import ControllerEvolution, ControllerFitnessConfig
from vwm.rl.algorithms.controller_fitness import SimulatedFitness
from vwm.rl.algorithms.dreamer import Dreamer, DreamerImaginationConfig
from vwm.rl.algorithms.imagined_rollout import imagination_losses, imagine_rollout, simulator_env_spaces
from vwm.rl.algorithms.linear_controller import (
    ControllerPolicy,
    LinearController,
    initial_controller_parameters,
    linear_controller_actions,
)
from vwm.rl.algorithms.policy_objectives import PMPOObjective, ReinforceObjective
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.rl.online_learning import OnlineLearning
from vwm.worlds.bundle import save_simulator
from vwm.worlds.context_sampler import ContextSampler, SimulatorContext
from vwm.worlds.simulated_env import SimulatedEnvSpec


def imagination(name: str, kind: str, objective: Any) -> None:
    world = diffusion_world(outcomes=True, policy=True)
    observe = "frame" if kind == "frame" else "features"
    spaces = simulator_env_spaces(world, observe)
    put(f"{name}/spaces", list(spaces.observation.shape))
    torch.manual_seed(0)
    policy: Any
    if kind == "features":
        policy = FeatureActorCriticPolicy(world, spaces, actor=ActorConfig(width=16, layers=1))
    elif kind == "frame":
        policy = FrameActorCriticPolicy(world, spaces, conv_channels=4, channel_multipliers=(1, 2), width=8)
    else:
        policy = ClonedActorCriticPolicy(world, spaces, critic=CriticConfig(width=16, layers=1), deterministic=False)
    put_weights(f"{name}/begun", policy)
    context = SimulatorContext(
        pictures(4, 3, 8, 8, seed=5),
        torch.randint(0, 4, (4, 2), generator=torch.Generator().manual_seed(6)),
        torch.ones(4, dtype=torch.bool),
    )
    optimizer = torch.optim.Adam([w for w in policy.parameters() if w.requires_grad], 1e-2)
    torch.manual_seed(1)
    for number in range(2):
        imagined = imagine_rollout(world, policy, context, 3, observe)
        put(f"{name}/dreamt{number}", [*imagined[1:]])
        losses = imagination_losses(policy, objective, imagined, 0.9)
        put(f"{name}/update{number}/actor", losses.actor_loss)
        put(f"{name}/update{number}/critic", losses.critic_loss)
        put(f"{name}/update{number}/returns", losses.returns)
        for key, value in losses.logs.items():
            put(f"{name}/update{number}/log/{key}", value)
        optimizer.zero_grad()
        (losses.actor_loss + losses.critic_loss).backward()
        optimizer.step()
        policy.actor_critic.update_target()
    put_weights(name, policy)


def evolution(name: str) -> None:
    for kind, world in {
        "keys": dream(predict_reward=True),
        "levers": dream(predict_reward=True, action_dims=3),
    }.items():
        space = world.spec.actions
        start = initial_controller_parameters(20, space)
        put(f"{name}/{kind}/first", start)
        population = np.random.default_rng(0).normal(size=(5, len(start))) * 2
        assert world.starts is not None
        fitness = SimulatedFitness(world, world.starts[:, -1:], 3, 8, "model", 1.0)
        put(f"{name}/{kind}/fitness", fitness(population, 4))
        put(f"{name}/{kind}/survival", SimulatedFitness(world, world.starts, 4, 6, "survival", 1.2)(population, 1))
        search = CMAESSearch(start, 0.5, 6, 3)
        for generation in range(3):
            asked = search.ask()
            search.tell(fitness(asked, generation))
        put(f"{name}/{kind}/search", [search.mean, search.sigma])
        controller = LinearController.from_parameters(torch.from_numpy(search.mean), space)
        put_weights(f"{name}/{kind}/controller", controller)
        features = torch.randn(4, 20, generator=torch.Generator().manual_seed(1))
        put(f"{name}/{kind}/said", controller(features, space))
        parameters = torch.from_numpy(population[:4]).float()
        put(f"{name}/{kind}/linear", linear_controller_actions(parameters, features, space))
        driver = ControllerPolicy(world, controller, EnvSpaces(ObservationSpace.of_shape((8, 8, 3)), space))
        carry, no = driver.init_carry(2), torch.zeros(2, dtype=torch.bool)
        for t, frame in enumerate(pictures(3, 2, 8, 8, seed=9)):
            acted = driver.act(carry, TimeStep(frame, torch.zeros(2), no | (t == 0), no, no), explore=False)
            carry = acted.carry
            put(f"{name}/{kind}/driver{t}", [acted.action, world.features(carry.state)])


def planners(name: str) -> None:
    small: dict[str, Any] = {"horizon": 4, "samples": 24, "elites": 6}
    for dims in (0, 2):
        world = jepa_world(action_dims=dims)
        rewarded = dream(predict_reward=True, action_dims=dims)
        assert world.starts is not None and rewarded.starts is not None
        state, _ = world.reset(world.starts, 3)
        goal = world.encode(world.starts.flip(1))[:, -1]
        other, _ = rewarded.reset(rewarded.starts, 3)
        for kind, planner in {
            "cem": CEM(**small),
            "cem_mean": CEM(**small, selection="mean", keep_elites=0, noise_exponent=0.0, action_bound=0.5),
            "mppi": MPPI(**small),
            "mppi_all": MPPI(horizon=4, samples=24, temperature=0.5, relative_temperature=False, selection="best"),
        }.items():
            at = f"{name}/{kind}/{'continuous' if dims else 'discrete'}"
            objective = GoalDistance(goal, "l2")
            plan = planner.plan(world, state, objective, world_seeds(3, 3))
            put(f"{at}/goal", list(plan[:3]) + [list(plan.distribution)])
            again = planner.plan(world, state, objective, 5, planner.shift_plan(plan, 1))
            put(f"{at}/later", list(again[:3]) + [list(again.distribution)])
            put(f"{at}/return", list(planner.plan(rewarded, other, NegativeReturnObjective(0.9), 1)[:3]))
            put(f"{at}/simulator_steps_per_plan", planner.simulator_steps_per_plan)


class Maze(Simulator):
    """States are numbers, and tables say what actions lead to; some end it."""

    def __init__(self, states: int = 7, actions: int = 5) -> None:
        g = torch.Generator().manual_seed(0)
        self.spec = SimulatorSpec(
            ObservationSpace.latent(), ActionSpace("discrete", actions), context=ObservationSpace.vector(1)
        )
        self.next = torch.randint(0, states, (states, actions), generator=g)
        self.reward = torch.rand(states, actions, generator=g, dtype=torch.float64)
        self.ends = torch.rand(states, actions, generator=g) < 0.15
        self.values = torch.rand(states, generator=g, dtype=torch.float64) * 2

    def reset(self, context: Tensor, seed: Any = 0, context_actions: Any = None) -> Any:
        return context[:, -1, 0].long(), context[:, -1]

    def step(self, state: Any, action: Tensor, decode: bool = True) -> Any:
        latent, reward, ends = (table[state, action] for table in (self.next, self.reward, self.ends))
        return latent, StepOutput(None, latent, reward, ends)


def trees(name: str) -> None:
    maze, states = Maze(), torch.arange(7)
    world = dream(predict_reward=True)
    assert world.starts is not None
    begun, _ = world.reset(world.starts, 3)
    for kind, search in {"puct": PUCTSearch(23), "gumbel": GumbelMuZeroSearch(23)}.items():
        found = search.plan(maze, states, discount=0.9, value=lambda s: maze.values[s], seed=3)
        put(f"{name}/{kind}/maze", list(found))
        put(f"{name}/{kind}/dream", list(search.plan(world, begun, discount=0.9, seed=world_seeds(2, 3))))


def record(folder: Path, length: int = 12) -> Path:
    """Three episodes of 8x8 pixels, played at random; button 2 pays."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for key in "abc":
            frames = rng.integers(256, size=(length, 8, 8, 3), dtype=np.uint8)
            actions = rng.integers(4, size=length)
            writer.write(key, Episode(frames, actions, (actions == 2).astype(np.float32), terminated=True))
    return folder


def contexts(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = ContextSampler(str(record(Path(folder))), 3, 2, 0.5)
        torch.manual_seed(3)
        put(f"{name}/draw", list(found.sample(6)))
        put(f"{name}/spread", found.evenly_spaced(5))


def simulated_game(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = record(Path(folder) / "data")
        save_simulator(diffusion_world(outcomes=True), Path(folder) / "world")
        for observe in ("features", "frame", "latent"):
            game = SimulatedEnvSpec(Path(folder) / "world", str(data), time_limit=4, observe=observe, device="cpu")  # type: ignore[arg-type]
            worlds = game.open(2, 5)
            put(f"{name}/{observe}/spaces", list(worlds.spaces.observation.shape))
            shown = [worlds.reset()] if hasattr(worlds, "reset") else []
            for t in range(5):
                shown.append(worlds.step(fixed_actions(worlds.spaces.actions, 2, t)))
            put(f"{name}/{observe}/moments", [list(time_step) for time_step in shown])
            worlds.close()


def online(name: str) -> None:
    net: dict[str, Any] = {"width": 12, "layers": 1}

    def small(spaces: EnvSpaces) -> Dreamer:
        return Dreamer(
            spaces,
            WORLDS[3],
            ActorConfig(**net),
            CriticConfig(**net),
            imagination=DreamerImaginationConfig(horizon=3),
            batch_size=2,
            batch_length=4,
        )

    with tempfile.TemporaryDirectory() as folder:
        learning = OnlineLearning(
            GymnasiumEnvSpec("Pendulum-v1", time_limit=12), small, num_envs=2, prefill=20, updates_per_decision=0.5,
            replay_capacity=60,
        )  # fmt: skip
        AgentTraining(
            Path(folder), learning, steps=40, checkpoint_every=30, device="cpu",
            evaluation=EvaluationConfig(every=1000, episodes=1, video=False),
        ).run()  # fmt: skip
        state = torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)
        put(f"{name}/agent", sorted(hashed(value) for value in state["algorithm"]["policy"].values()))
        put(f"{name}/episodes", (Path(folder) / "metrics" / "episodes.csv").read_text())
        put(f"{name}/evaluations", (Path(folder) / "metrics" / "evaluations.csv").read_text())


def evolving(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_simulator(dream(num_actions=2), Path(folder) / "bundle")
        evolution = ControllerEvolution(
            Path(folder) / "bundle", GymnasiumEnvSpec("CartPole-v1", pixels=True, size=8),
            inputs=("latent_and_memory",), population=4, sigma=1.0, final_evaluation_episodes=2, device="cpu",
            fitness=ControllerFitnessConfig(reward="survival", horizon=6, rollouts=2),
        )  # fmt: skip
        AgentTraining(Path(folder) / "run", evolution, steps=2, evaluation=EvaluationConfig(every=0)).run()
        run = Path(folder) / "run"
        put(f"{name}/generations", (run / "metrics" / "latent_and_memory_generations.csv").read_text())
        put_weights(f"{name}/controller", load_component(run / "controllers" / "latent_and_memory"))
        put(f"{name}/returns", json.loads((run / "evaluation.json").read_text())["results"])


def agents() -> None:
    for kind, make in AGENTS.items():
        case(f"agent/{kind}", agent_case, make)
    for policy, objective in (
        ("features", ReinforceObjective()),
        ("frame", ReinforceObjective()),
        ("cloned", PMPOObjective(beta=0.1)),
        ("cloned", ReinforceObjective(beta=0.1)),
        ("features", PMPOObjective(beta=0)),
    ):
        case(
            f"agent/imagination/{policy}_{'pmpo' if isinstance(objective, PMPOObjective) else 'reinforce'}",
            imagination,
            policy,
            objective,
        )
    case("agent/evolution", evolution)
    case("planner", planners)
    case("tree_search", trees)
    case("agent/contexts", contexts)
    case("agent/simulated_game", simulated_game)
    case("run/online", online)
    case("run/evolution", evolving)
