"""``vwm agent train`` of every kind of algorithm, with agents of a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from killing import Command
from results import check_run, folder_bytes, training_length, training_state
from trainings import load_world, prepare_export

from vwm.cli.main import main as vwm_main

SHORT = {
    "steps": 60, "checkpoint_every": 20, "log_every": 2, "threads": 1, "device": "cpu", "evaluation.every": 40,
    "evaluation.episodes": 1, "evaluation.video": "false",
}  # fmt: skip
REPLAY = {"num_envs": 2, "prefill": 20, "replay_capacity": 60}
SEQUENCES = {"agent.batch_size": 2, "agent.batch_length": 4}
RSSM = {f"agent.world_model.{name}": size for name, size in {"deter": 16, "hidden": 12}.items()}
IMAGES = {"class_path": "vwm.envs.GymnasiumEnvSpec", "init_args.env": "CartPole-v1", "init_args.pixels": "true",
          "init_args.size": 16}  # fmt: skip
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dreamer": ("dreamer_v3_cartpole", {**REPLAY, **SEQUENCES, **RSSM}),
    "planet": ("planet_pendulum", {**REPLAY, **SEQUENCES, **RSSM, "agent.planner.samples": 20,
                                   "agent.planner.elites": 4, "agent.planner.iterations": 1,
                                   "agent.planner.horizon": 3}),
    "muzero": ("muzero_cartpole", {**REPLAY, "agent.search.simulations": 2, "agent.batch_size": 4}),
    "tdmpc2": ("tdmpc2_pendulum", {**REPLAY, "pretrain_updates": 2, "agent.batch_size": 4, "agent.planning.samples": 8,
                                   "agent.planning.elites": 4, "agent.planning.proposals": 4,
                                   "agent.planning.iterations": 1, "agent.networks.encoder_width": 8,
                                   "agent.networks.latent_size": 8, "agent.networks.width": 8}),
    "ppo": ("ppo_coinrun", {"env.init_args.env": "CartPole-v1", "env.init_args.options": "{}", "num_envs": 2,
                            "options": "{n_steps: 8, batch_size: 8, n_epochs: 1}"}),
    "evolution": ("world_models_cartpole", {"bundle": "{home}/mdn_rnn/out", "fitness.data": "{home}/data",
                                            "population": 4, "final_evaluation_episodes": 2, "device": "cpu",
                                            "fitness.rollouts": 2, "fitness.horizon": 8, "env.init_args.size": 16}),
    "imagination": ("dreamer4_freeway", {"bundle": "{home}/dit_agent/out", "data": "{home}/data", "device": "cpu",
                                         "rollouts.batch_size": 4, "rollouts.horizon": 5,
                                         "policy.critic": "{width: 8, layers: 1}"}),
}  # fmt: skip
"""Config and settings of ``algorithm``; ``{home}`` stands for the folder of the case."""
EXPORTED = ("dreamer", "planet", "muzero", "tdmpc2")
"""Agents with a world of their own."""
NEEDS = {"evolution": "mdn_rnn", "imagination": "dit_agent"}
OTHER_SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"evaluation.env": "null"},
    "evolution": {"steps": 4, "checkpoint_every": 1, "evaluation.every": 2, "log_every": 1},
    "imagination": {"log_every": 1, **{f"evaluation.env.{name}": value for name, value in IMAGES.items()}},
}


def prepare(agent: str, home: Path) -> None:
    """Export the world that an agent learns in."""
    if agent in NEEDS:
        prepare_export(NEEDS[agent], home)


def agent_argv(agent: str, home: Path) -> list[str]:
    config, settings = AGENTS[agent]
    options = {
        **SHORT,
        **OTHER_SETTINGS.get(agent, {}),
        **{f"algorithm.{name}": value for name, value in settings.items()},
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value).replace("{home}", str(home)))]
    return ["agent", "train", "-c", f"agents/{config}", "--run", str(home / "run"), *words]


def agent_command(agent: str) -> Command:
    """Return the training of an agent; PPO's is not bit-equal after a resume, but must be complete."""
    return Command(
        prepare=lambda home: prepare(agent, home),
        argv=lambda home: agent_argv(agent, home),
        result=training_length if agent == "ppo" else training_state,
        check=lambda home: check_run(home / "run"),
    )


def extending_command(agent: str) -> Command:
    """Return the command that goes on with a run that had ended: what there was must stay readable."""

    def prepare_run(home: Path) -> None:
        prepare(agent, home)
        vwm_main([*agent_argv(agent, home), "--steps", "40"])

    def check(home: Path) -> None:
        check_run(home / "run", must_exist=True)

    return agent_command(agent)._replace(prepare=prepare_run, check=check)


def export_argv(home: Path) -> list[str]:
    return ["agent", "export", str(home / "run"), "-o", str(home / "out"), "--starts", "2"]


def export_command(agent: str) -> Command:
    """Return the command that exports an agent's world over an older bundle."""

    def prepare_old(home: Path) -> None:
        prepare(agent, home)
        vwm_main(agent_argv(agent, home))
        vwm_main([*export_argv(home), "--title", "old"])

    return Command(
        prepare=prepare_old,
        argv=export_argv,
        result=folder_bytes,
        check=lambda home: load_world(home / "out"),
        replaces="out",
    )


COMMANDS = {
    **{f"agent {name}": agent_command(name) for name in AGENTS},
    "agent longer": extending_command("dreamer"),
    **{f"agent export {name}": export_command(name) for name in EXPORTED},
}
