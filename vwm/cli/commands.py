"""The table of commands: the function of each, a summary, and examples.

A name is a command or a group of commands, never both, so that what follows a command's name is always an argument.
"""

from __future__ import annotations

from typing import NamedTuple


class CLICommand(NamedTuple):
    """One command."""

    target: str
    """``module:function``. Its parameters are the arguments, and its docstring is the help."""
    summary: str
    examples: tuple[str, ...] = ()
    parses_arguments: bool = False
    """The function takes the arguments as a list of texts: trainings, whose arguments are the keys of a config."""


COMMANDS = {
    "record": CLICommand(
        "vwm.envs.recording:record_dataset",
        "play a game by random or simple rules, and record it as training data (shards)",
        (
            "vwm record procgen:coinrun data/coinrun --frames 50000",
            "vwm record ALE/Pong-v5 data/pong --policy sticky --frame-skip 4",
            "vwm record CarRacing-v3 data/carracing --workers 2",
        ),
    ),
    "ingest": CLICommand(
        "vwm.tokenizers.corpus:ingest_videos",
        "turn a folder of videos into training data (shards)",
        ("vwm ingest my_videos data/mine --size 64 --fps 15",),
    ),
    "import": CLICommand(
        "vwm.data.importing:import_dataset",
        "turn a data set of another project into training data (shards)",
        (
            "vwm import lerobot pusht data/pusht --size 96",
            "vwm import lerobot aloha data/aloha --cameras top,wrist",
            "vwm import hdf5 lift/image.hdf5 data/lift --cameras agentview_image",
            "vwm import npz recordings data/mine --fps 15",
            "vwm import lance pusht.lance data/pusht --cameras pixels --size 64",
        ),
    ),
    "convert": CLICommand(
        "vwm.data.converting:convert_dataset",
        "write training data (shards) as a data set of another project",
        (
            "vwm convert lerobot data/carracing carracing_lerobot",
            "vwm convert webdataset data/carracing carracing_tars",
        ),
    ),
    "inspect": CLICommand(
        "vwm.data.inspection:inspect_dataset",
        "count what shards hold, and draw a contact sheet",
        ("vwm inspect data/coinrun --sheet sheet.png",),
    ),
    "encode": CLICommand(
        "vwm.tokenizers.shard_encoding:encode_shards",
        "write shards with the latents of a tokenizer, which trainings then need not compute",
        ("vwm encode data/coinrun --tokenizer runs/bundle -o data/coinrun_tokens",),
    ),
    "fit": CLICommand(
        "vwm.train.fit:fit_model",
        "train a model from a config",
        (
            "vwm fit -c tokenizer/coinrun_small --data data/coinrun",
            "vwm fit -c genie/coinrun_small --steps 2000 --run runs/try",
            "vwm fit -c genie/coinrun_small --print-config",
        ),
        parses_arguments=True,
    ),
    "estimate": CLICommand(
        "vwm.train.estimate:estimate_training",
        "compute the memory, speed and cost of a training on many GPUs, without one",
        (
            "vwm estimate -c dit/dreamer4_1b --strategy fsdp --ranks 8,64,512",
            "vwm estimate -c dit/oasis_600m --strategy hsdp --ranks 1000,10000 --global-batch 4096",
        ),
        parses_arguments=True,
    ),
    "export": CLICommand(
        "vwm.train.export:export_run",
        "make a bundle of a training's run: what play, eval and agents open; or a page that plays it without Python",
        (
            "vwm export runs/genie -o runs/bundle --data data/coinrun",
            "vwm export coinrun --web -o runs/coinrun_web",
        ),
    ),
    "import-world": CLICommand(
        "vwm.train.import_world:import_world",
        "make a bundle of a world that others publish, from their files",
        ("vwm import-world oasis oasis-500m worlds/oasis --starts first_frame.png",),
    ),
    "pull": CLICommand(
        "vwm.worlds.pull:pull_bundle",
        "download a bundle from the hub, and check it",
        (
            "vwm pull my-org/kart",
            "vwm pull my-org/kart --revision v2 -o worlds/kart",
        ),
    ),
    "push": CLICommand(
        "vwm.train.push:push_bundle",
        "publish a bundle on the hub, with a model card made of its report",
        (
            "vwm push runs/bundle my-org/kart --report runs/report --license mit",
            "vwm push runs/bundle my-org/kart --private --revision try2",
        ),
    ),
    "zoo": CLICommand(
        "vwm.cli.zoo:list_zoo",
        "list the worlds that are here, and what loads from elsewhere, with size, license and figures",
        ("vwm zoo", "vwm zoo --json"),
    ),
    "play": CLICommand(
        "vwm.play.server:play_world",
        "play a world in the browser",
        (
            "vwm play coinrun",
            "vwm play my-org/kart@v2",
            "vwm play runs/bundle --port 8080 --host 0.0.0.0",
        ),
    ),
    "eval": CLICommand(
        "vwm.eval.world_report:evaluate_world",
        "measure a world on held-out data",
        ("vwm eval coinrun data/coinrun_unseen -o runs/report",),
    ),
    "probe": CLICommand(
        "vwm.eval.probe_report:probe_features",
        "measure what frozen features hold, compared with random networks and pixels",
        (
            "vwm probe runs/vjepa/bundle data/pong_state --state-names ball_x,ball_y -o runs/probe",
            "vwm probe carracing,runs/vjepa/bundle data/carracing_state --layer all",
            "vwm probe runs/vjepa/bundle data/sprites --label shape --test-data data/sprites_unseen",
        ),
    ),
    "surprise": CLICommand(
        "vwm.eval.surprise_evaluation:evaluate_surprise",
        "compare a V-JEPA model's surprise at possible and impossible clips",
        ("vwm surprise runs/sprites_small/bundle data/sprites_surprise",),
    ),
    "plan": CLICommand(
        "vwm.eval.goal_evaluation:evaluate_planner",
        "plan to goals in a world, and count how often they are reached",
        (
            "vwm plan two_rooms vwm/TwoRooms-v0 --episodes 100 --horizon 12 --metric l2",
            "vwm plan runs/bundle Pendulum-v1 --planner mppi --max-steps 120",
        ),
    ),
    "agent train": CLICommand(
        "vwm.cli.agent_commands:train_agent",
        "train an agent from a config",
        (
            "vwm agent train -c agents/tdmpc2_pendulum",
            "vwm agent train -c agents/tdmpc2_pendulum --seed 1 --run runs/seed1",
        ),
        parses_arguments=True,
    ),
    "agent eval": CLICommand(
        "vwm.cli.agent_commands:evaluate_agent",
        "evaluate a trained agent, and random actions, on new episodes",
        ("vwm agent eval runs/dreamer_v3_cartpole --episodes 100",),
    ),
    "agent compare": CLICommand(
        "vwm.cli.compare_agents:compare_runs",
        "compare runs in the real environment, with each other and with random actions",
        (
            "vwm agent compare world=runs/ppo_freeway_world real=runs/ppo_freeway --reference real --episodes 100",
            "vwm agent compare world=runs/w0,runs/w1,runs/w2 real=runs/r0,runs/r1,runs/r2 --reference real",
        ),
    ),
    "agent horizon": CLICommand(
        "vwm.eval.imagination_report:propose_horizon",
        "propose how far agents imagine in a world, and the penalty of its uncertainty, from its compounding error",
        (
            "vwm agent horizon freeway data/freeway_test --horizon 48",
            "vwm agent horizon runs/w0 data/test --ensemble [runs/w1,runs/w2]",
        ),
    ),
    "agent rank": CLICommand(
        "vwm.cli.rank_agents:rank_runs",
        "measure how well a world ranks policies: their returns in it against those in the real environment",
        ("vwm agent rank freeway runs/ppo_freeway runs/ppo_short --data data/freeway --time-limit 128",),
    ),
    "agent play": CLICommand(
        "vwm.cli.agent_commands:record_agent_videos",
        "write videos of a trained agent's episodes",
        ("vwm agent play runs/dreamer_v3_cartpole --episodes 3 --best",),
    ),
    "agent watch": CLICommand(
        "vwm.cli.watch_policy:watch_policy",
        "write videos of the policy that a world comes with, in the world or in the real environment",
        (
            "vwm agent watch worlds/breakout runs/breakout_policy",
            "vwm agent watch worlds/breakout runs/breakout_real --env ALE/Breakout-v5",
        ),
    ),
    "agent export": CLICommand(
        "vwm.cli.agent_commands:export_agent_world",
        "make a bundle of the world that an agent has learned",
        ("vwm agent export runs/dreamer_v3_carracing -o runs/dreamer_v3_carracing/world",),
    ),
    "bench play": CLICommand(
        "vwm.cli.bench_play:benchmark_play", "time the steps of a world", ("vwm bench play coinrun --steps 40",)
    ),
    "bench sessions": CLICommand(
        "vwm.cli.bench_sessions:benchmark_sessions",
        "time the player with several pages at once",
        ("vwm bench sessions coinrun --sessions 16",),
    ),
    "bench data": CLICommand(
        "vwm.cli.bench_data:benchmark_data", "time the data loader", ("vwm bench data data/coinrun --clip-length 16",)
    ),
    "demo": CLICommand(
        "vwm.cli.demo:run_demo",
        "record, train, measure and export on a small scale",
        ("vwm demo", "vwm demo --frames 20000 --genie-steps 400 -o runs/short"),
    ),
}
