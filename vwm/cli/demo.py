"""``vwm demo``: all stages on a small scale, each by the command that a user would type."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import torch

from vwm.cli.configs import config_path
from vwm.cli.thread_choice import fastest_thread_count
from vwm.core.command_output import format_command, print_output
from vwm.envs.recording import record_dataset

COINRUN_DEMO: dict[str, Any] = {
    "env": "procgen:coinrun",
    "prefer": {7: 4.0, 8: 3.0, 6: 1.0},  # right, right + up, right + down: random actions rarely leave the start
    "env_options": {"num_levels": 500, "distribution_mode": "easy", "use_backgrounds": False, "restrict_themes": True},
    "unseen": {"start_level": 100_000},
}
FREEWAY_DEMO: dict[str, Any] = {
    "env": "ALE/Freeway-v5",
    "prefer": {1: 2.0},
    "env_options": {},
    "unseen": {},
    "frame_skip": 4,
}

TOKENIZER_SHARE = 0.4
"""Share of the training time that the tokenizer gets."""

BUSY_FACTOR = 1.5
"""How much longer training may take on a machine with other work."""

EXPECTATION = (
    "Training takes at most {minutes:g} minutes, or 50% longer on a busy machine. What to expect of the default "
    "sizes: a tokenizer of about 30 dB, and a world that follows actions (delta-PSNR of 1.5 to 3.5 dB) and predicts "
    "each of the next ten frames better than a copy of the last one: by 2 to 3 dB the next one, by 0 to 2 the tenth."
)


def run_demo(
    out: Path = Path("runs/demo"),
    frames: int = 60_000,
    tokenizer_steps: int = 3000,
    genie_steps: int = 3000,
    minutes: float = 8.0,
    threads: int = 0,
    seed: int = 0,
) -> None:
    """Record an environment, learn a world from the video alone, measure it, and make it playable.

    It takes about 10 minutes on two idle cores, and about 16 on a busy machine. On a slower machine, training makes
    fewer steps in its time; the schedule of the learning rate ends with the time, so that the world is less sharp, but
    finished.

    Run it again to continue where it stopped.

    Args:
        out: folder of everything that is written.
        frames: frames to record for training; a tenth as many, of unseen levels, are recorded for evaluation.
        tokenizer_steps: optimizer steps of the tokenizer.
        genie_steps: optimizer steps of latent actions and dynamics.
        minutes: time limit of both trainings together; 50% longer where fewer threads than cores are fastest.
        threads: CPU threads of torch; 0 measures before each stage how many are fastest.
        seed: seed of all random numbers.
    """
    if minutes <= 0:
        raise ValueError(f"minutes must be above 0, got {minutes:g}")
    began = time.monotonic()
    print(EXPECTATION.format(minutes=minutes), flush=True)
    recording = COINRUN_DEMO if importlib.util.find_spec("procgen") else FREEWAY_DEMO
    train, test = out / "data", out / "data_unseen"
    _record_dataset(recording, train, frames, seed, {})
    _record_dataset(recording, test, max(1000, frames // 10), seed + 1, recording["unseen"])
    common = ["--data.init_args.path", str(train), "--seed_everything", str(seed)]
    common += ["--data.init_args.workers", "0"]  # raw frames are read faster than another process could send them
    bundle = out / "bundle"
    busy = _set_threads(threads)
    _run_command(
        "fit",
        ["-c", config_path("tokenizer/coinrun_small.yaml"), "--run", str(out / "tokenizer")]
        + ["--trainer.max_steps", str(tokenizer_steps), *_time_limit(minutes * TOKENIZER_SHARE, busy), *common],
    )
    _run_command("export", [str(out / "tokenizer"), "--out", str(out / "tokenizer_only")])
    busy = _set_threads(threads)
    _run_command(
        "fit",
        ["-c", config_path("genie/coinrun_small.yaml"), "--run", str(out / "genie")]
        + ["--model.init_args.tokenizer", str(out / "tokenizer_only")]
        + ["--trainer.max_steps", str(genie_steps), *_time_limit(minutes * (1 - TOKENIZER_SHARE), busy), *common],
    )
    _run_command("export", [str(out / "genie"), "--out", str(bundle), "--title", recording["env"].split(":")[-1]])
    _set_threads(threads)
    _run_command("eval", [str(bundle), str(test), "--out", str(out / "report"), "--drift-seconds", "2"])
    minutes = (time.monotonic() - began) / 60
    print(f"\ndone in {minutes:.1f} minutes; the report is {out / 'report' / 'index.html'}")
    print_output(bundle, "a world", format_command("play", bundle))


def _set_threads(threads: int) -> bool:
    """Set torch's number of threads; return whether other work made fewer of them faster than all."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(threads or fastest_thread_count())
    print(f"\n{torch.get_num_threads()} of {cores} cores are used", flush=True)
    return not threads and torch.get_num_threads() < cores


def _time_limit(minutes: float, busy: bool) -> list[str]:
    """Return the arguments of ``vwm fit`` that end a training, and its schedule, after some minutes."""
    seconds = max(1, round(60 * minutes * (BUSY_FACTOR if busy else 1)))
    return ["--trainer.max_time", f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"]


def _record_dataset(recording: dict[str, Any], out: Path, frames: int, seed: int, more_options: dict[str, Any]) -> None:
    record_dataset(
        recording["env"],
        out,
        frames=frames,
        seed=seed,
        frame_skip=recording.get("frame_skip", 1),
        prefer=recording["prefer"],
        env_options={**recording["env_options"], **more_options},
    )


def _run_command(command: str, argv: list[str]) -> None:
    """Run a command in this process (imports are slow), and show it as one would type it."""
    from vwm.cli.main import run_command

    print(f"\n$ vwm {command} {' '.join(argv)}", flush=True)
    run_command(command, argv)
