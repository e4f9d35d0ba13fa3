"""Measure a world on a recording that it was not trained on: rollouts, control by actions, speed; a page with plots.

python examples/evaluate_a_world.py [FOLDER]
"""

import sys
from pathlib import Path

import vwm

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/evaluation")
vwm.record("CarRacing-v3", folder / "data", frames=80, policy="road", frame_skip=4, skip_first_frames=13, workers=0)
report = vwm.evaluate("carracing", folder / "data", out=folder / "report", clips=2, horizon=4, drift_seconds=0)
for name in ("psnr", "psnr_copy_last", "psnr_random_actions"):
    print(name, [round(value, 1) for value in report["rollout"][name]])
