"""What a command may import: worlds start without the compiler, and raw frames are read without video decoders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLAY = """
import vwm.play.server
from vwm.play.session import PlaySession
for name in ("two_rooms", "carracing", "coinrun"):
    world = vwm.load(name)
session = PlaySession(world, world.starts)
session.reset(0, seed=0)
assert session.step(1).frames.any()
"""
TRAINING_ONLY = "lightning torchmetrics torchvision timm wandb"
HEAVY = f"{TRAINING_ONLY} torch._dynamo sympy transformers einx matplotlib av decord procgen gymnasium webdataset"


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        pytest.param(PLAY, HEAVY, id="play"),
        pytest.param(
            "import vwm.eval.world_report, vwm.eval.probe_report, vwm.eval.surprise_evaluation", HEAVY, id="measure"
        ),
        pytest.param("import vwm; vwm.inspect, vwm.open_clips", f"{HEAVY} diffusers", id="read"),
    ],
)
def test_commands_do_not_import_packages_that_they_do_not_use(code: str, unwanted: str) -> None:
    run(f"{code}\nimport sys; print(*set({unwanted.split()}) & set(sys.modules))", expected="")


def test_raw_frames_and_worlds_need_no_video_decoder(tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("av", "decord", "torchcodec", "procgen", "gym3", "vector_quantize_pytorch", "einx"):
    sys.modules[name] = None
import vwm
vwm.record("vwm/TwoRooms-v0", "{tmp_path}/data", frames=20, size=16, workers=0)
vwm.inspect("{tmp_path}/data")
clips = vwm.open_clips("{tmp_path}/data", clip_length=4)
{PLAY}
import vwm.train.fit, vwm.tokenizers.corpus, vwm.eval.surprise_evaluation, vwm.cli.bench_data
print(clips[0]["frames"].shape)
"""
    run(code, expected="(4, 16, 16, 3)")


def run(code: str, expected: str) -> None:
    """Run code in a process of its own and compare the last line that it prints."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].strip() == expected
